"""Tables of a study: small files that git tracks, each written as a whole.

Several processes with different caches may add rows, so the lock lies beside the tables.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
from filelock import FileLock

from masters.runtime.files import write_atomic

MEASURED = ("accuracy", "sampled_accuracy", "tokens", "kl", "seconds", "evaluation_seconds")
PARTS = ("generation", "judging", "scoring", "training")  # seconds
# Columns that readers of a table need.
COLUMNS = {
    "runs.csv": ("replicate", "arm", "setting", "key", "weights", *MEASURED),
    "trials.csv": ("arm", "setting", "learning_rate", "policy_weight", "beta", "key", *MEASURED),
    "costs.csv": (
        *("replicate", "arm", "key", "steps", "responses", "tokens", "scored", *PARTS, "total"),
        "accuracy",
    ),
    "ladder.csv": ("replicate", "model", "parameters", "seconds", "weights"),
}
TEXT = {"key": str, "weights": str}  # hashes, which may look like numbers
ANSWERS = ("arm", "task", "question", "correct", "tokens")


class Tables:
    """The tables in a folder, which is created with the first row. A missing table is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def lock(self) -> FileLock:
        """Lock to hold from reading a table to writing it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def read(self, name: str) -> pd.DataFrame:
        """Read a table.

        Raises:
            ValueError: a column of :data:`COLUMNS` is missing.
        """
        path = self.folder / name
        if not path.is_file():
            return pd.DataFrame(columns=list(COLUMNS[name]))
        table = pd.read_csv(path, dtype=TEXT)
        if lacking := [column for column in COLUMNS[name] if column not in table]:
            raise ValueError(f"{path} has no column {', '.join(lacking)}: restore it with git, or delete it")
        return table

    def add(self, name: str, rows: pd.DataFrame, identity: Sequence[str]) -> None:
        """Add rows and sort the table by ``identity``."""
        with self.lock:
            self.write(name, self.with_rows(name, rows, identity).sort_values(list(identity)))

    def with_rows(self, name: str, rows: pd.DataFrame, identity: Sequence[str]) -> pd.DataFrame:
        """Return a table with added rows; a row with the same ``identity`` is replaced."""
        path = self.folder / name
        old = [pd.read_csv(path, dtype=TEXT)] if path.is_file() else []
        return pd.concat([*old, rows], ignore_index=True).drop_duplicates(list(identity), keep="last")

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Write a table atomically."""
        write_atomic(self.folder / name, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))

    def answers(self, replicate: int) -> pd.DataFrame:
        """Read the greedy answers of a replicate's runs to the test questions."""
        return pd.read_parquet(self._answers(replicate))

    def add_answers(self, rows: pd.DataFrame, replicate: int) -> None:
        """Add answers, replacing older ones of the same arms."""
        rows = rows[list(ANSWERS)]
        with self.lock:
            if self._answers(replicate).is_file():
                old = self.answers(replicate)
                rows = pd.concat([old[~old["arm"].isin(set(rows["arm"]))], rows])
            text = dict.fromkeys(("arm", "task", "question"), "category")
            rows = rows.astype(dict.fromkeys(text, str)).astype(text | {"tokens": "uint16"})
            content = rows.to_parquet(index=False, compression="zstd", compression_level=19)
            write_atomic(self._answers(replicate), content)

    def _answers(self, replicate: int) -> Path:
        return self.folder / f"answers-{replicate}.parquet"
