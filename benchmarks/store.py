"""Time how response stores open, count and read: ``python -m benchmarks.store ROWS ...``.

For each number, a store is filled with as many responses of random tokens and measured in another process,
whose peak memory is therefore that of a reader. The table is stored in ``data/results/``, and the book shows
it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks.peak import peak_memory
from masters.responses.engines import Response
from masters.responses.store import ResponseStore, StoreSpec
from masters.runtime.files import ROOT, cache_dir
from masters.settings import Sampling
from masters_book.results.intact import write_intact

GROUP = 8
QUESTIONS = 1024  # per shard
TOKENS = 16  # per response
SPEC = StoreSpec(weights="0" * 16, ratio=0.2, processor="0" * 16, sampling=Sampling(), seed=0)
READS = 200
TABLE = ROOT / "data" / "results" / "store.csv"


def contents(count: int) -> list[str]:
    """Return content hashes of generated questions, the same in every process."""
    numbers = np.random.default_rng(0).integers(0, 2**63, count, dtype=np.int64)
    return [f"{number:016x}" for number in numbers.tolist()]


def fill(rows: int) -> None:
    """Write a store of this many responses. All shards have the same responses, to different questions."""
    store = ResponseStore(SPEC, "large")
    rng = np.random.default_rng(1)
    shards = -(-rows // (GROUP * QUESTIONS))
    names = contents(shards * QUESTIONS)
    ids = [f"q{index}" for index in range(QUESTIONS)]
    answers = [
        Response(
            question=name,
            index=j,
            tokens=rng.integers(0, 50_000, TOKENS).tolist(),
            text=f"the answer is {rng.integers(100)} .",
            logprobs=rng.normal(-1, 0.5, TOKENS).tolist(),
            finish="stop",
        )
        for name in ids
        for j in range(GROUP)
    ]
    about = pd.DataFrame({"question": "how many ?", "answer": "7"}, index=ids)
    for shard in track(range(shards), "writing shards", console=Console(stderr=True)):
        about["content"] = names[shard * QUESTIONS : (shard + 1) * QUESTIONS]
        store.append(answers, about, seconds=1.0)


def measure(rows: int) -> None:
    """Print a reader's times and memory as JSON."""
    names = contents(-(-rows // (GROUP * QUESTIONS)) * QUESTIONS)
    store, before = ResponseStore(SPEC, "large"), peak_memory()
    start = time.perf_counter()
    held = store.held()
    opened = time.perf_counter() - start
    start = time.perf_counter()
    held.count(names, GROUP)
    counted = time.perf_counter() - start
    start = time.perf_counter()
    status = store.status(names, 2 * GROUP)
    status_seconds = time.perf_counter() - start
    seconds = []
    for place in np.random.default_rng(2).integers(0, len(names), READS).tolist():
        start = time.perf_counter()
        assert len(store.read([names[place]], GROUP, held=held)) == GROUP
        seconds.append(time.perf_counter() - start)
    assert status.there == len(names) * GROUP == status.missing
    found = {
        "responses": status.there,
        "bytes per response": status.size / status.there,
        "opening (s)": opened,
        "counting what is missing (s)": counted,
        "status (s)": status_seconds,
        "one question's group, median (ms)": 1000 * float(np.median(seconds)),
        "one question's group, slowest (ms)": 1000 * max(seconds),
        "memory beyond the imports (MiB)": peak_memory() - before,
    }
    print(json.dumps(found))


def main() -> None:
    """Fill stores in temporary folders, measure each in another process, print the table and store it."""
    if sys.argv[1] in ("fill", "measure"):
        {"fill": fill, "measure": measure}[sys.argv[1]](int(sys.argv[2]))
        return
    cache_dir().mkdir(parents=True, exist_ok=True)
    rows = []
    for count in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="bench-") as folder:
            environment = os.environ | {"MASTERS_CACHE": folder}
            run = [sys.executable, "-m", "benchmarks.store"]
            subprocess.run([*run, "fill", str(count)], check=True, env=environment)
            measured = [*run, "measure", str(count)]
            done = subprocess.run(measured, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        rows.append(json.loads(done.stdout))
    table = pd.DataFrame(rows)
    print(table.T.to_string(header=False, float_format="%.4g"))
    write_intact(TABLE, table.to_csv(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
