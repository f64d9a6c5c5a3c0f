"""Plan a run of the paper's size, and read responses at growing sizes: ``python -m benchmarks.scale``.

Planning uses generated questions and the manifests of their stores; a plan reads no response. What training
reads is measured on whole stores. Each measurement has its own process, whose peak memory is therefore
that of the work. The table is stored in ``data/results/scale.csv``, and the book shows it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks.peak import peak_memory
from masters.data.questions import Questions, Ragged
from masters.experiments.arms import RunSpec
from masters.experiments.curriculum import ResponseSet, all_stages, curriculum
from masters.judges.rule import RuleJudge
from masters.responses import manifest
from masters.responses.arrays import response_arrays
from masters.responses.cached import judged
from masters.responses.engines import Response
from masters.responses.manifest import Line
from masters.responses.store import ResponseStore, StoreSpec
from masters.runtime.files import ROOT, cache_dir
from masters.settings import Sampling
from masters_book.results.intact import write_intact

PAPER = 1_500_000  # questions
GROWING = (8_000, 32_000, 128_000)  # questions
GROUP, SHARD = 4, 256  # responses per question and model; questions per shard
# The paper's schedule; the student's responses are a store, too.
SPEC = RunSpec(r_max=0.2, r_step=0.05, steps=PAPER // 256, batch=256)
RATIOS = [ratio for _, ratio in all_stages(SPEC)]
CACHE = cache_dir()
TABLE = ROOT / "data" / "results" / "scale.csv"


def store(ratio: float, weights: str = "teacher") -> ResponseStore:
    """Return the store of a mask ratio."""
    return ResponseStore(StoreSpec(weights=weights, ratio=ratio, processor="p", sampling=Sampling(), seed=0))


def write_questions(count: int, folder: Path) -> None:
    """Write encoded questions that share one short prompt and have no images."""
    numbers = np.random.default_rng(0).integers(0, 2**63, count, dtype=np.int64).tolist()
    about = {
        "id": [f"q{index}" for index in range(count)],
        "task": "own",
        "skill": "",
        "question": [f"how many objects are in the picture number {index} ?" for index in range(count)],
        "answer": [str(index % 10) for index in range(count)],
        "facts": "",
        "caption": "",
        "picture": 0,
        "content": [f"{number:016x}" for number in numbers],
    }
    folder.mkdir(parents=True)
    pd.DataFrame(about).to_parquet(folder / "table.parquet")
    with Ragged.writing(folder, "prompts", np.dtype(np.int32)) as add:
        for _ in range(count):
            add(np.arange(8))
    np.save(folder / "images.npy", np.zeros(1, np.uint8))
    np.save(folder / "images.offsets.npy", np.array([0, 1]))


def write_manifests(questions: Questions) -> None:
    """Write the manifests of all stores, with empty shards of the size that they name."""
    first, content = store(RATIOS[0]), questions.table["content"]
    first.folder.mkdir(parents=True)
    for start in track(range(0, len(content), SHARD), "manifests", console=Console(stderr=True)):
        some = sorted(content[start : start + SHARD])
        runs = {"content": "".join(some), "first": [0] * len(some), "count": [GROUP] * len(some)}
        line = Line(f"part-{start:09}.parquet", GROUP * len(some), 0, "0" * 64, 1.0, **runs)  # type: ignore[arg-type]
        manifest.append(first.manifest, line)
        (first.folder / line.shard).touch()
    for other in (*map(store, RATIOS[1:]), store(0, "student")):
        shutil.copytree(first.folder, other.folder)


def write_store(questions: Questions) -> None:
    """Write the responses of one store."""
    draw, about, whole = np.random.default_rng(1), questions.table.set_index("id"), store(0)
    for start in track(range(0, len(about), SHARD), "responses", console=Console(stderr=True)):
        answers = [
            Response(
                name,
                index,
                draw.integers(0, 50_000, 16).tolist(),
                f"it is {index} .",
                [-1.0] * 16,
                "stop",
            )
            for name in about.index[start : start + SHARD]
            for index in range(GROUP)
        ]
        whole.append(answers, about, 1.0)


def plan(folder: Path) -> dict[str, float]:
    """Return the seconds of each step of planning a run whose responses are all stored."""
    seconds, start = {}, time.perf_counter()

    def done(what: str) -> None:
        nonlocal start
        seconds[what], start = time.perf_counter() - start, time.perf_counter()

    questions = Questions(folder)
    content = questions.table["content"].tolist()
    done("opening the questions")
    for wanted in (*map(store, RATIOS), store(0, "student")):
        status = wanted.status(content, GROUP)
        assert (status.there, status.missing) == (GROUP * len(content), 0)
    done(f"status of {len(RATIOS) + 1} stores")
    empty = ResponseSet(GROUP, [])
    examples = curriculum(SPEC, 0, range(len(content)), {stage: [empty, empty] for stage in all_stages(SPEC)})
    assert len(examples) == SPEC.steps * SPEC.batch
    done("order of the examples")
    return seconds


def read(folder: Path) -> dict[str, float]:
    """Return the seconds to judge all responses, to write what training reads, and to read it once."""
    questions, seconds = Questions(folder), {}
    wanted, judge, start = range(len(questions)), RuleJudge(), time.perf_counter()
    for _ in judged(store(0), questions, wanted, GROUP, judge):
        pass
    seconds["judging"], start = time.perf_counter() - start, time.perf_counter()
    found = response_arrays(store(0), questions, wanted, GROUP, judge)
    seconds["writing what training reads"], start = time.perf_counter() - start, time.perf_counter()
    assert sum(len(tokens) for group in found.tokens for tokens in group) == 16 * GROUP * len(questions)
    seconds["reading it once"] = time.perf_counter() - start
    return seconds


def measure(what: str, folder: Path) -> None:
    """Print the seconds of the steps and the memory that they took beyond the imports, as JSON."""
    before = peak_memory()
    seconds = {"plan": plan, "read": read}[what](folder)
    print(json.dumps({"seconds": seconds, "mebibytes": peak_memory() - before}))


def _measured(what: str, count: int) -> list[dict[str, str | float]]:
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="bench-") as data:
        os.environ["MASTERS_CACHE"] = data
        folder = Path(data) / "questions"
        write_questions(count, folder)
        (write_manifests if what == "plan" else write_store)(Questions(folder))
        command = [sys.executable, "-m", "benchmarks.scale", what, str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    found = json.loads(done.stdout.splitlines()[-1])
    rows = [{"step": step, "questions": count, "seconds": s} for step, s in found["seconds"].items()]
    return [{"part": what, **row, "mebibytes": found["mebibytes"]} for row in rows]


def main() -> None:
    """Measure each size, print the table and store it for the book."""
    if len(sys.argv) > 1:
        measure(sys.argv[1], Path(sys.argv[2]))
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    rows = _measured("plan", PAPER)
    for count in GROWING:
        rows += _measured("read", count)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.1f"))
    write_intact(TABLE, table.to_csv(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
