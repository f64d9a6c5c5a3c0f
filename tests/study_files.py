"""Files of a study for the tests of the pages that show them."""

from pathlib import Path

import pandas as pd

from masters_book.results.tables import Column, Number, Text
from masters_book.study.plan import load_study
from masters_book.study.tables import SCHEMAS, Tables


class Kept:
    """A study of which every row counts."""

    def __init__(self, folder: Path, name: str = "study") -> None:
        self.name, self.folder, self.tables = name, folder, Tables(folder)
        self.plan, self.profile = load_study(name)

    def settings(self) -> dict[str, str]:
        """Every arm was trained as it is named, but for Masters."""
        names = ("base", "masked", "mid_then_large", "naive", "naive_multi")
        tuned = "masters+learning_rate=0.001+policy_weight=0.03+beta=0.003"
        return {"masters": tuned, **{name: name for name in names}}

    def missing(self) -> dict[int, list[str]]:
        """Return a replicate without Masters if fewer have it than are planned."""
        runs = self.runs
        return {} if (runs["arm"] == "masters").sum() >= self.plan.seeds else {9: ["masters"]}

    def refused(self) -> list[int]:
        """Every replicate has good teachers."""
        return []

    runs = property(lambda self: self.tables.read("runs.csv"))
    costs = property(lambda self: self.tables.read("costs.csv").assign(total_equal=lambda t: t["total"] / 2))
    tried = property(lambda self: self.tables.read("trials.csv"))


def write(path: Path, rows: pd.DataFrame) -> None:
    """Write a table of a study; each column that the rows lack gets some value that it may have."""
    columns = SCHEMAS[path.name].columns
    lacking = {name: _some(kind) for name, kind in columns.items() if name not in rows}
    rows.assign(**lacking).to_csv(path, index=False)


def _some(kind: Column) -> object:
    if isinstance(kind, Number):
        return kind.low if kind.low == 0 else 0.0
    return kind.choices[0] if isinstance(kind, Text) and kind.choices else "<k>"
