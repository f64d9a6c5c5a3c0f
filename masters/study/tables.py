"""The tables of a study: small files that git tracks, each written as a whole.

Several processes may add rows, whichever cache each of them has, so a lock lies beside the tables.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
from filelock import FileLock

from masters.runtime.files import write_atomic

MEASURED = ("accuracy", "sampled_accuracy", "tokens", "kl", "seconds", "evaluation_seconds")
PARTS = ("generation", "judging", "scoring", "training")  # of a cost, in seconds
# The columns of a table that its readers need.
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
    """The tables in a folder; one that is not there yet is empty.

    Args:
        folder: made when the first row is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def lock(self) -> FileLock:
        """To be held from the reading of a table to its writing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def read(self, name: str) -> pd.DataFrame:
        """A table of :data:`COLUMNS`.

        Raises:
            ValueError: it lacks a column.
        """
        path = self.folder / name
        if not path.is_file():
            return pd.DataFrame(columns=list(COLUMNS[name]))
        table = pd.read_csv(path, dtype=TEXT)
        if lacking := [column for column in COLUMNS[name] if column not in table]:
            raise ValueError(f"{path} has no column {', '.join(lacking)}: restore it with git, or delete it")
        return table

    def add(self, name: str, rows: pd.DataFrame, identity: Sequence[str]) -> None:
        """Add rows to a table, in the order of their identity."""
        with self.lock:
            self.write(name, self.with_rows(name, rows, identity).sort_values(list(identity)))

    def with_rows(self, name: str, rows: pd.DataFrame, identity: Sequence[str]) -> pd.DataFrame:
        """A table with more rows, in the place of those that are the same but for their values."""
        path = self.folder / name
        old = [pd.read_csv(path, dtype=TEXT)] if path.is_file() else []
        return pd.concat([*old, rows], ignore_index=True).drop_duplicates(list(identity), keep="last")

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Write a table, or nothing of it."""
        write_atomic(self.folder / name, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))

    def answers(self, replicate: int) -> pd.DataFrame:
        """The greedy answers of a replicate's runs to the test questions."""
        return pd.read_parquet(self._answers(replicate))

    def add_answers(self, rows: pd.DataFrame, replicate: int) -> None:
        """Add the answers of some arms, in the place of what they had."""
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
