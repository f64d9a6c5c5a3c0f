"""The tables of the imitation study in ``data/results/imitation``, which git tracks."""

from pathlib import Path

import pandas as pd

from masters_book.imitation import plan
from masters_book.imitation.distances import DIVERGENCES, TEACHER_WAYS
from masters_book.results import STUDY
from masters_book.results.tables import COUNT, FRACTION, NUMBER, POSITIVE, TEXT, Schema, Text
from masters_book.study.tables import Tables

FOLDER = STUDY.with_name("imitation")
KINDS = ("all", "text", "question")
CONTROLS = ("temperature", "random", "activation")
_TEACHER = {"way": Text(choices=TEACHER_WAYS), "value": POSITIVE}
_STUDENT = {"layers": COUNT, "healed": COUNT, "kind": Text(choices=KINDS)}
_EFFECT = {"change": NUMBER, "low": NUMBER, "high": NUMBER}
SCHEMAS = {
    "teachers.csv": Schema(
        _TEACHER
        | {"kind": Text(choices=KINDS), "dose": FRACTION, "entropy": POSITIVE}
        | {"argmax_changed": FRACTION, "loss": POSITIVE},
        ("way", "value", "kind"),
    ),
    "changes.csv": Schema(
        _STUDENT
        | {"divergence": Text(choices=DIVERGENCES), **_TEACHER, "distance": POSITIVE, "draws": COUNT}
        | _EFFECT,
        (*_STUDENT, "divergence", "way", "value"),
    ),
    "controls.csv": Schema(
        _STUDENT | {"control": Text(choices=CONTROLS), "ratio": FRACTION, "matched": POSITIVE, **_EFFECT},
        (*_STUDENT, "control", "ratio"),
    ),
    "mini.csv": Schema(
        {"replicate": COUNT, "model": TEXT, "ratio": FRACTION, "from_whole": FRACTION}
        | {"argmax_changed": FRACTION, "entropy": POSITIVE, "to_student": FRACTION},
        ("replicate", "model", "ratio"),
    ),
    "trials.csv": Schema(
        {"start": Text(choices=tuple(plan.STARTS)), "arm": Text(choices=tuple(plan.ARMS)), "rate": POSITIVE}
        | {"key": TEXT, "jsd": FRACTION},
        ("start", "arm", "rate"),
    ),
}
LEARNING = "learning.parquet"
LEARNED = ("start", "arm", "seed", "key", "step", "kind", "sequence", "jsd", "loss")


def tables(folder: Path = FOLDER) -> Tables:
    """Return the tables in a folder."""
    return Tables(folder, SCHEMAS)


def read_learning(folder: Path = FOLDER) -> pd.DataFrame:
    """Read the students' divergence and loss per run, look and held-out sequence; empty if there are none.

    Raises:
        ValueError: the file is damaged.
    """
    there = tables(folder)
    return there.read_parquet(LEARNING, LEARNED) if there.has(LEARNING) else pd.DataFrame(columns=[*LEARNED])


def add_learning(rows: pd.DataFrame, folder: Path = FOLDER) -> None:
    """Add the rows of a run, replacing older ones of the same start, arm and seed."""
    run, there = ["start", "arm", "seed"], tables(folder)
    with there.lock:
        old = read_learning(folder)
        (of_run,) = rows[run].drop_duplicates().itertuples(index=False, name=None)
        if len(old):
            same = (old[run] == list(of_run)).all(axis=1)
            rows = pd.concat([old[~same], rows], ignore_index=True)
        rows = rows.sort_values([*run, "step", "sequence"])[list(LEARNED)]
        rows = rows.astype(dict.fromkeys(("start", "arm", "key", "kind"), "str"))
        there.write_parquet(LEARNING, rows.astype(dict.fromkeys(("jsd", "loss"), "float32")))
