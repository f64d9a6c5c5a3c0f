"""Tables of a study: small files that git tracks, each written as a whole.

Several processes with different caches may add rows, so the lock lies beside the tables.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path

import pandas as pd
from filelock import FileLock

from masters.runtime.checksums import REMEDY, SUMS, read_list
from masters.runtime.errors import one_line
from masters_book.claims.comparisons import EFFECTS
from masters_book.results.intact import read_intact, write_intact
from masters_book.results.tables import (
    COUNT,
    FLAG,
    FRACTION,
    POSITIVE,
    TEXT,
    Number,
    Schema,
    Text,
    read_table,
)
from masters_book.study.effects import MAP

PARTS = ("generation", "judging", "scoring", "training")  # seconds
_MEASURED = {
    "accuracy": FRACTION,
    "sampled_accuracy": FRACTION,
    "tokens": POSITIVE,
    "kl": Number(high=math.inf, optional=True),
    "seconds": POSITIVE,
    "evaluation_seconds": POSITIVE,
}
_GROUP = {"replicate": COUNT, "arm": TEXT, "mode": Text(choices=("greedy", "sampled"))}
_SHARES = {"correct": FRACTION, "tokens": POSITIVE, "share": FRACTION}
SCHEMAS = {
    "runs.csv": Schema(
        {"replicate": COUNT, "arm": TEXT, "setting": TEXT, "key": TEXT, "weights": Text(optional=True)}
        | _MEASURED,
        ("replicate", "arm"),
    ),
    "trials.csv": Schema(
        {"arm": TEXT, "setting": TEXT, "learning_rate": POSITIVE, "policy_weight": POSITIVE, "beta": POSITIVE}
        | {"key": TEXT, **_MEASURED, "chosen": FLAG},
        ("setting",),
    ),
    "costs.csv": Schema(
        {"replicate": COUNT, "arm": TEXT, "key": TEXT}
        | dict.fromkeys(("steps", "responses", "tokens", "scored"), COUNT)
        | dict.fromkeys((*PARTS, "total"), POSITIVE)
        | {"accuracy": FRACTION},
        ("replicate", "arm"),
    ),
    "ladder.csv": Schema(
        {"replicate": COUNT, "model": TEXT, "parameters": COUNT, "weights": TEXT}
        | {"seconds": Number(low=0, optional=True)},  # none of a model that was not trained here
        ("replicate", "model"),
    ),
    "admissions.csv": Schema(
        {"replicate": COUNT, "model": TEXT, "key": TEXT, "weights": TEXT, "accuracy": FRACTION},
        ("replicate", "model"),
    ),
    "tasks.csv": Schema({**_GROUP, "task": TEXT, **_SHARES}, (*_GROUP, "task")),
    "registers.csv": Schema({**_GROUP, "register": TEXT, **_SHARES}, (*_GROUP, "register")),
    "blind.csv": Schema({"task": TEXT, "accuracy": FRACTION, "questions": COUNT}, ("task",)),
    "comparisons.csv": EFFECTS,
    "map.csv": MAP,
}
ANSWERS = ("arm", "task", "question", "correct", "tokens")


class Tables:
    """The tables in a folder, which is created with the first row. A missing table is empty."""

    def __init__(self, folder: Path, schemas: Mapping[str, Schema] = SCHEMAS) -> None:
        self.folder, self.schemas = folder, schemas

    @cached_property
    def lock(self) -> FileLock:
        """Lock to hold from reading a table to writing it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def has(self, name: str) -> bool:
        """Return whether a file is there.

        Raises:
            ValueError: it is not, although ``SHA256SUMS`` lists it.
        """
        if (self.folder / name).is_file():
            return True
        if name in dict(read_list(self.folder / SUMS)):
            raise ValueError(f"{self.folder / name} is missing, and {SUMS} lists it: restore it with git")
        return False

    def read(self, name: str) -> pd.DataFrame:
        """Read a table.

        Raises:
            ValueError: it is damaged, lost, or does not fit its schema.
        """
        if not self.has(name):
            return pd.DataFrame(columns=list(self.schemas[name].columns))
        return read_table(self.folder / name, self.schemas[name])

    def add(self, name: str, rows: pd.DataFrame) -> None:
        """Add rows and sort the table by its key; a row with the same key is replaced."""
        with self.lock:
            self.write(name, self.with_rows(name, rows).sort_values([*self.schemas[name].key]))

    def replace(self, name: str, rows: pd.DataFrame, group: list[str]) -> None:
        """Add rows in the place of all with the same values of ``group``, and sort the table by its key."""
        with self.lock:
            old = self.read(name)
            again = pd.MultiIndex.from_frame(old[group]).isin(pd.MultiIndex.from_frame(rows[group]))
            table = pd.concat([old[~again], rows], ignore_index=True)
            self.write(name, table.sort_values([*self.schemas[name].key]))

    def with_rows(self, name: str, rows: pd.DataFrame) -> pd.DataFrame:
        """Return a table with added rows; a row with the same key is replaced."""
        old, key = [self.read(name)] if self.has(name) else [], [*self.schemas[name].key]
        return pd.concat([*old, rows], ignore_index=True).drop_duplicates(key, keep="last")

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Write a table atomically."""
        with self.lock:
            content = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
            write_intact(self.folder / name, content)

    def read_parquet(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """Read a Parquet file.

        Raises:
            ValueError: it is damaged.
            OSError: it cannot be read.
        """
        content = read_intact(self.folder / name)
        try:
            return pd.read_parquet(BytesIO(content), columns=list(columns))
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.folder / name} holds no table ({one_line(error)}): {REMEDY}") from None

    def write_parquet(self, name: str, table: pd.DataFrame) -> None:
        """Write a Parquet file atomically."""
        with self.lock:
            content = table.to_parquet(index=False, compression="zstd", compression_level=19)
            write_intact(self.folder / name, content)

    def answers(self, replicate: int) -> pd.DataFrame:
        """Read the greedy answers of a replicate's runs to the test questions.

        Raises:
            ValueError: the file is damaged.
            OSError: the file cannot be read.
        """
        return self.read_parquet(_answers(replicate), ANSWERS)

    def add_answers(self, rows: pd.DataFrame, replicate: int) -> None:
        """Add answers, replacing older ones of the same arms."""
        rows = rows[list(ANSWERS)]
        with self.lock:
            if self.has(_answers(replicate)):
                old = self.answers(replicate)
                rows = pd.concat([old[~old["arm"].isin(set(rows["arm"]))], rows])
            text = dict.fromkeys(("arm", "task", "question"), "category")
            rows = rows.astype(dict.fromkeys(text, str)).astype(text | {"tokens": "uint16"})
            self.write_parquet(_answers(replicate), rows)


def _answers(replicate: int) -> str:
    return f"answers-{replicate}.parquet"
