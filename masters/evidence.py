"""The paper's own effects, computed from its tables in ``data/paper/`` and never typed.

One idea: an effect is a difference between rows of a table, or their ratio, so it is stated as which rows,
and read when it is shown. The paper's numbers are single runs: an effect has no interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from masters.files import paper_table

Rows = Mapping[str, str | float | tuple[str, ...]]


@dataclass(frozen=True)
class Evidence:
    """Where the paper's effect stands: rows of its tables, never a number.

    Attributes:
        table: of the treatment, and of the control unless ``control_table`` says otherwise.
        treatment: column and value (or values) that pick the treatment's rows.
        control: the same for the control.
        control_table: another table for the control.
        ratio: what is taken is treatment over control.
    """

    table: str
    treatment: Rows
    control: Rows
    control_table: str = ""
    ratio: bool = False

    def effect(self) -> float:
        """Treatment minus control, or over it: means of the picked rows and the scores both tables have.

        The column ``avg`` is used only where no scores of single benchmarks are given: it is rounded.

        Raises:
            ValueError: a selector picks no row, or the tables share no column of scores.
        """
        first, second = paper_table(self.table), paper_table(self.control_table or self.table)
        keys = set(self.treatment) | set(self.control)
        scores = [
            name
            for name in first.columns
            if name in second and name not in keys and pd.api.types.is_numeric_dtype(first[name])
        ]
        scores = [name for name in scores if name != "avg"] or scores
        if not scores:
            raise ValueError(f"{self.table} and {self.control_table or self.table} share no column of scores")
        means = [
            table.loc[_picked(table, rows, name), scores].to_numpy(dtype=np.float64).mean()
            for table, rows, name in (
                (first, self.treatment, self.table),
                (second, self.control, self.control_table or self.table),
            )
        ]
        return float(means[0] / means[1] if self.ratio else means[0] - means[1])


def variants(treatment: str, control: str) -> Evidence:
    """Two variants of table 1."""
    return Evidence("table1_components", {"variant": treatment}, {"variant": control})


def components(treatment: tuple[str, str], control: tuple[str, str]) -> Evidence:
    """Two rows of table 5d without mid teacher and rewards, given as (masking, multi_response)."""
    rest = {"mid_teacher": "no", "reward_feedback": "no"}
    first, second = ({"masking": row[0], "multi_response": row[1], **rest} for row in (treatment, control))
    return Evidence("table5d_components", first, second)


def rewards(treatment: str, control: str) -> Evidence:
    """Two rewards of table 5e."""
    return Evidence("table5e_rewards", {"reward": treatment}, {"reward": control})


def source(student: int, teacher: int) -> Evidence:
    """Four responses of each model against another mix, table 5c."""
    names = ("student_responses", "teacher_responses")
    return Evidence(
        "table5c_response_source",
        dict(zip(names, (4, 4), strict=True)),
        dict(zip(names, (student, teacher), strict=True)),
    )


def _picked(table: pd.DataFrame, rows: Rows, name: str) -> pd.Series:
    picked = pd.Series(True, index=table.index)
    for column, value in rows.items():
        if column not in table:
            raise ValueError(f"paper table {name} has no column {column!r}")
        picked &= table[column].isin(value if isinstance(value, tuple) else (value,))
    if not picked.any():
        raise ValueError(f"paper table {name} has no row with {dict(rows)}")
    return picked
