"""Run what is missing of the imitation study.

Any number of sessions continue the work: hidden states, targets and checkpoints are in the cache, results in
the tables (:mod:`masters_book.imitation.tables`). First all models are compared, then learning rates are
tried, then students learn, the far start first.
"""

import math
from pathlib import Path

import pandas as pd
from filelock import FileLock

from masters.runtime import workers
from masters_book.analysis.masked_teachers import mask_dose
from masters_book.imitation import learning, plan
from masters_book.imitation.changes import changes, controls, doses
from masters_book.imitation.distances import measure, missing_jobs
from masters_book.imitation.learning import Run, forget, learn
from masters_book.imitation.models import teacher_folder
from masters_book.imitation.tables import FOLDER, SCHEMAS, add_learning, read_learning, tables
from masters_book.study.study import Study

COMPARED = ("teachers.csv", "changes.csv", "controls.csv")
MINI_REPLICATES = 3
TUNED = ("whole", "progressive", "constant", "temperature")  # "step length" has the rate of "progressive"


def trials() -> list[Run]:
    """Return the trial runs."""
    return [
        Run(start, arm, 0, rate, trial=True)
        for start in plan.STARTS
        for arm in TUNED
        for rate in plan.TRIED_RATES
    ]


def untried(folder: Path = FOLDER) -> list[Run]:
    """Return the trials without a result."""
    there = set(tables(folder).read("trials.csv")["key"])
    return [run for run in trials() if run.key not in there]


def rates(folder: Path = FOLDER) -> dict[tuple[str, str], float]:
    """Return the learning rate with the lowest JSD per start and arm whose trials are all finished."""
    there = tables(folder).read("trials.csv")
    there = there[there["key"].isin([run.key for run in trials()])]
    found: dict[tuple[str, str], float] = {}
    for (start, arm), rows in there.groupby(["start", "arm"]):
        if len(rows) == len(plan.TRIED_RATES):
            found[str(start), str(arm)] = float(rows.sort_values("jsd")["rate"].iloc[0])
    for start in plan.STARTS:
        if (start, "progressive") in found:
            found[start, "step length"] = found[start, "progressive"]
    return found


def runs(folder: Path = FOLDER) -> list[Run]:
    """Return the runs whose learning rates are known, in the order in which they run."""
    known = rates(folder)
    return [
        Run(start, arm, seed, known[start, arm])
        for start in plan.STARTS
        for seed in range(plan.SEEDS)
        for arm in plan.ARMS  # "progressive" before "step length"
        if (start, arm) in known
    ]


def learned(folder: Path = FOLDER) -> pd.DataFrame:
    """Return the rows of :func:`.tables.read_learning` that count, those of current runs."""
    table = read_learning(folder)
    return table[table["key"].isin([run.key for run in runs(folder)])]


def unlearned(folder: Path = FOLDER) -> list[Run]:
    """Return the runs without a result whose learning rates are known."""
    there = set(learned(folder)["key"])
    return [run for run in runs(folder) if run.key not in there]


def missing(folder: Path = FOLDER) -> dict[str, tuple[int, int]]:
    """Return what is finished and what is missing, by part."""
    absent = [name for name in (*COMPARED, "mini.csv") if not (folder / name).is_file()]
    total = len(plan.STARTS) * len(plan.ARMS) * plan.SEEDS
    done = learned(folder)["key"].nunique()
    return {
        "tables of divergences": (len(COMPARED) + 1 - len(absent), len(absent)),
        "trials of learning rates": (len(trials()) - len(untried(folder)), len(untried(folder))),
        "runs of learning": (done, total - done),
    }


def run(processes: int, folder: Path = FOLDER) -> None:
    """Compute and write what is missing.

    Raises:
        ValueError: the teacher's package is not installed, or a file is damaged.
        OSError: the disk is full; finished work is kept.
    """
    if not all((folder / name).is_file() for name in COMPARED):
        teacher_folder()  # converted before the workers need it
        workers.run(missing_jobs(), processes, "models of the imitation study")
        of_teachers, distances = measure()
        tables(folder).write("teachers.csv", doses(of_teachers))
        tables(folder).write("changes.csv", changes(distances))
        tables(folder).write("controls.csv", controls(of_teachers, distances))
    if not (folder / "mini.csv").is_file():
        tables(folder).write("mini.csv", mini())
    for start in plan.STARTS:
        _learn([run for run in untried(folder) if run.start == start], processes, folder)
        todo = [run for run in unlearned(folder) if run.start == start]
        _learn([run for run in todo if run.arm != "step length"], processes, folder)
        _learn([run for run in todo if run.arm == "step length"], processes, folder)


def _learn(todo: list[Run], processes: int, folder: Path) -> None:
    if todo:
        teacher_folder()
    workers.run([(learn_one, (run, folder)) for run in todo], processes, "runs of the imitation study")


def learn_one(run: Run, folder: Path) -> None:
    """Train one student and store its result, unless another process has; a trial that diverges is the worst.

    Raises:
        ValueError: a run other than a trial diverged.
    """
    learning.folder().mkdir(parents=True, exist_ok=True)
    with FileLock(learning.folder() / f"{run.key}.lock"):
        stored = tables(folder).read("trials.csv") if run.trial else read_learning(folder)
        if run.key not in set(stored["key"]):
            _store(run, learn(run, tables(folder).read("teachers.csv")), folder)
        forget(run)


def _store(run: Run, rows: pd.DataFrame, folder: Path) -> None:
    score = float(rows["jsd"].mean())
    if run.trial:
        if not math.isfinite(score):
            score = math.log(2)  # the worst of the JSD
        row = {"start": run.start, "arm": run.arm, "rate": run.rate, "key": run.key, "jsd": score}
        tables(folder).add("trials.csv", pd.DataFrame([row]))
        return
    if not math.isfinite(score):
        raise ValueError(f"{run.start} {run.arm}, seed {run.seed}, diverged at learning rate {run.rate:g}")
    add_learning(rows.assign(start=run.start, arm=run.arm, seed=run.seed, key=run.key), folder)


def mini() -> pd.DataFrame:
    """Measure the same on the small vision-language models of the main study (:func:`mask_dose`)."""
    study, tables = Study("study"), []
    for replicate in study.planned()[:MINI_REPLICATES]:
        lab = study.lab(replicate)
        models = [name for name in lab.profile.ladder if name in ("mid", "large")]
        tables.append(mask_dose(lab, models, plan.RATIOS).assign(replicate=replicate))
    return pd.concat(tables, ignore_index=True)[list(SCHEMAS["mini.csv"].columns)]
