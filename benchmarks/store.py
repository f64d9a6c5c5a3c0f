"""Time how a response store opens, counts and reads: ``python -m benchmarks.store ROWS``.

The store is filled with ROWS responses of random tokens and measured in another process, whose peak memory is
therefore that of a reader.
"""

import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.peak import peak_memory
from masters.responses.engines import Response
from masters.responses.store import ResponseStore, StoreSpec
from masters.runtime.files import cache_dir
from masters.settings import Sampling

GROUP = 8
QUESTIONS = 1024  # per shard
TOKENS = 16  # per response
SPEC = StoreSpec(weights="0" * 16, ratio=0.2, processor="0" * 16, sampling=Sampling(), seed=0)
READS = 200


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
            support_logprobs=rng.normal(-1, 0.5, TOKENS).tolist(),
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
    """Print a reader's times and memory, tab-separated."""
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
    lines = [
        ("responses", f"{status.there:,}"),
        ("bytes per response", f"{status.size / status.there:.0f}"),
        ("opening, s", f"{opened:.2f}"),
        ("counting what is missing, s", f"{counted:.2f}"),
        ("status, opening included, s", f"{status_seconds:.2f}"),
        (f"one question's group, median of {READS}, ms", f"{1000 * np.median(seconds):.0f}"),
        ("one question's group, slowest, ms", f"{1000 * max(seconds):.0f}"),
        ("peak memory, MiB", f"{peak_memory():.0f}"),
        ("memory before the store was opened, MiB", f"{before:.0f}"),
    ]
    for name, value in lines:
        print(f"{name}\t{value}")


def main() -> None:
    """Fill a store in a temporary folder, measure it in another process, and print a table."""
    if sys.argv[1] == "measure":
        measure(int(sys.argv[2]))
        return
    rows = int(sys.argv[1])
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="bench-") as folder:
        os.environ["MASTERS_CACHE"] = folder
        fill(rows)
        command = [sys.executable, "-m", "benchmarks.store", "measure", str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    table = Table("what", "measured", title="response store", title_justify="left")
    for line in done.stdout.splitlines():
        table.add_row(*line.split("\t"))
    Console().print(table)


if __name__ == "__main__":
    main()
