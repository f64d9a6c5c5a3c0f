"""The tables of the imitation study in ``data/results/imitation``, which git tracks."""

from io import BytesIO
from pathlib import Path

import pandas as pd
from filelock import FileLock

from masters.imitation import plan
from masters.imitation.distances import DIVERGENCES, TEACHER_WAYS
from masters.runtime.checksums import SUMS, read_list
from masters.runtime.files import STUDY, write_intact
from masters.runtime.tables import (
    COUNT,
    FRACTION,
    NUMBER,
    POSITIVE,
    REMEDY,
    TEXT,
    Schema,
    Text,
    read_intact,
    read_table,
)

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


def read(name: str, folder: Path = FOLDER) -> pd.DataFrame:
    """Read a table, empty if it has not been measured.

    Raises:
        ValueError: it is damaged.
    """
    if not _is_there(folder / name):
        return pd.DataFrame(columns=list(SCHEMAS[name].columns))
    return read_table(folder / name, SCHEMAS[name])


def write(name: str, table: pd.DataFrame, folder: Path = FOLDER) -> None:
    """Write a table as a whole."""
    with _lock(folder):
        _write(name, table, folder)


def add(name: str, rows: pd.DataFrame, folder: Path = FOLDER) -> None:
    """Add rows to a table and sort it by its key; a row with the same key is replaced."""
    key = [*SCHEMAS[name].key]
    with _lock(folder):
        old = [read(name, folder)] if (folder / name).is_file() else []
        table = pd.concat([*old, rows], ignore_index=True).drop_duplicates(key, keep="last")
        _write(name, table.sort_values(key), folder)


def _write(name: str, table: pd.DataFrame, folder: Path) -> None:
    content = table[list(SCHEMAS[name].columns)].to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_intact(folder / name, content)


def read_learning(folder: Path = FOLDER) -> pd.DataFrame:
    """Read the students' divergence and loss per run, look and held-out sequence.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / LEARNING
    if not _is_there(path):
        return pd.DataFrame(columns=list(LEARNED))
    content = read_intact(path)
    try:
        return pd.read_parquet(BytesIO(content), columns=list(LEARNED))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} holds no table ({' '.join(str(error).split())}): {REMEDY}") from None


def add_learning(rows: pd.DataFrame, folder: Path = FOLDER) -> None:
    """Add the rows of a run, replacing older ones of the same start, arm and seed."""
    run = ["start", "arm", "seed"]
    with _lock(folder):
        old = read_learning(folder)
        (of_run,) = rows[run].drop_duplicates().itertuples(index=False, name=None)
        if len(old):
            same = (old[run] == list(of_run)).all(axis=1)
            rows = pd.concat([old[~same], rows], ignore_index=True)
        rows = rows.sort_values([*run, "step", "sequence"])[list(LEARNED)]
        rows = rows.astype(dict.fromkeys(("start", "arm", "key", "kind"), "str"))
        rows = rows.astype(dict.fromkeys(("jsd", "loss"), "float32"))
        write_intact(folder / LEARNING, rows.to_parquet(index=False, compression="zstd"))


def _is_there(path: Path) -> bool:
    if path.is_file():
        return True
    if path.name in dict(read_list(path.with_name(SUMS))):
        raise ValueError(f"{path} is missing, and {SUMS} lists it: restore it with git")
    return False


def _lock(folder: Path) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")
