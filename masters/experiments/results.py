"""The results of arms: read what is stored, run what is missing.

A killed run resumes from its checkpoint; two notebooks that need the same run share it.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from masters.experiments.arms import arm
from masters.experiments.evaluation import check_labels
from masters.experiments.lab import Lab
from masters.experiments.memory import memory_line
from masters.experiments.response_plan import ResponsePlan, prepare
from masters.experiments.run import run, run_folder
from masters.objective.diagnostics import Diverged
from masters.runtime import distributed
from masters.runtime.checksums import is_whole
from masters.runtime.errors import one_line


@dataclass(frozen=True)
class Results:
    """The results of some arms.

    Attributes:
        runs: one row per run: the spec, accuracy, sampled_accuracy, tokens, kl, seconds (of training),
            evaluation_seconds, diverged (the reason, or empty).
        predictions: one row per run, question and mode: correct, tokens, register.
        log: one row per logged step: the loss and its terms.
    """

    runs: pd.DataFrame
    predictions: pd.DataFrame
    log: pd.DataFrame


def read(runs: Sequence[tuple[str, int, Path]], diverged: bool = False) -> Results:
    """Read stored runs.

    Raises:
        Diverged: a run diverged, and ``diverged`` is False.
        ValueError: a file cannot be read.
    """
    rows, predictions, logs = [], [], []
    for name, seed, folder in runs:
        row = _read(folder / "result.json", lambda path: json.loads(path.read_text()))
        if row.setdefault("diverged", "") and not diverged:
            raise Diverged(f"arm {name!r} at seed {seed}: {row['diverged']}")
        rows.append({"arm": name, "seed": seed, "key": folder.name} | row)
        answers = _read(folder / "predictions.parquet", pd.read_parquet)
        predictions.append(answers.assign(arm=name, seed=seed))
        if (folder / "log.parquet").is_file():
            logs.append(_read(folder / "log.parquet", pd.read_parquet).assign(arm=name, seed=seed))
    nothing = pd.DataFrame(columns=["arm", "seed", "step", "loss"])
    return Results(
        pd.DataFrame(rows),
        pd.concat(predictions, ignore_index=True),
        pd.concat(logs, ignore_index=True) if logs else nothing,
    )


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({one_line(error)}): delete its folder, and the run is repeated"
        ) from None


def run_arms(
    lab: Lab,
    arms: Sequence[str],
    seeds: Sequence[int] | None = None,
    split: str = "test",
    diverged: bool = False,
) -> Results:
    """Return the runs of some arms on a split; missing runs run in parallel.

    Args:
        arms: names for :func:`masters.experiments.arms.arm`.
        seeds: seeds of the question order; all of the profile when None.
        split: ``test``, or ``validation`` for choices made before the test.
        diverged: whether to return diverged runs too.

    Raises:
        Diverged: a run diverged, and ``diverged`` is False.
    """
    specs = {name: arm(name, lab.profile) for name in arms}
    seeds = range(lab.profile.seeds) if seeds is None else seeds
    folders = {(name, seed): run_folder(lab, specs[name], seed, split) for name in arms for seed in seeds}
    missing = [pair for pair, folder in folders.items() if not is_whole(folder, "result.json")]
    if missing:
        _check_labels(lab, split)
    prepare(
        lab,
        ResponsePlan.of(
            [specs[name] for name, _ in missing], lab.pool, lab.profile.distillation.cache_teacher
        ),
    )
    lab.parallel([(run, (specs[name], seed, split)) for name, seed in missing], "runs")
    return read([(*pair, folder) for pair, folder in folders.items()], diverged)


def _check_labels(lab: Lab, split: str) -> None:
    """Check the labels of the pool and of a split with the judge of the evaluation."""
    check_labels(lab.judge, lab.questions("train").table.iloc[lab.pool])
    check_labels(lab.judge, lab.questions(split).table)


def run_arm(lab: Lab, name: str, seed: int) -> Path:
    """Train and evaluate an arm at a seed, unless it is done, and return the folder of its result.

    All ranks of a launch call it; rank 0 generates and scores the responses first.

    Raises:
        ValueError: no such arm.
        Diverged: the run diverged.
    """
    spec = arm(name, lab.profile)
    if distributed.rank() == 0:
        _check_labels(lab, "test")
        if spec.learn_from not in ("nothing", "online"):
            print(memory_line(lab, spec), file=sys.stderr, flush=True)
        if not is_whole(run_folder(lab, spec, seed), "result.json"):
            prepare(lab, ResponsePlan.of([spec], lab.pool, lab.profile.distillation.cache_teacher))
    distributed.wait()
    folder = run(lab, spec, seed)
    if distributed.rank() == 0:
        read([(name, seed, folder)])  # raises if it diverged
    return folder
