"""The paper's own effects, computed from its tables in ``data/paper/``.

An effect is a difference between rows of a table, or their ratio. It is stated as which rows, and computed
when it is shown; no number is typed. An effect is *matched* to a comparison of this project when its two rows
differ in the same thing as the two arms. The paper's numbers are single runs: an effect has no interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from masters.runtime.files import paper_table

Rows = Mapping[str, str | float | tuple[str, ...]]
# The students of tables 1, 3 and 4 with their large teachers.
PAIRS = {
    "Qwen2.5-VL-7B": "Qwen2.5-VL-72B",
    "Qwen3-VL-8B": "Qwen3-VL-32B",
    "InternVL3-8B": "InternVL3-78B",
    "InternVL3.5-8B": "InternVL3.5-38B",
}


# Columns of table 5d in words.
_PARTS = {"mid_teacher": "mid teacher", "multi_response": "responses", "reward_feedback": "rewards"}


@dataclass(frozen=True)
class Evidence:
    """The rows of the paper's tables behind an effect.

    Attributes:
        cells: which cells, in words for the reader, such as ``table 5c: 4:4 minus 0:8``.
        table: name of the treatment's table, and of the control's unless ``control_table`` names another.
        treatment: column and value (or values) that select the treatment's rows.
        control: the same for the control.
        control_table: another table for the control.
        ratio: the effect is treatment over control instead of their difference.
    """

    cells: str
    table: str
    treatment: Rows
    control: Rows
    control_table: str = ""
    ratio: bool = False

    def effect(self) -> float:
        """Return treatment minus control, or their ratio, as means over the selected rows and shared scores.

        The column ``avg`` is used only where the table gives no scores of single benchmarks: it is rounded.

        Raises:
            ValueError: a selector matches no row, or the tables share no column of scores.
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
            table.loc[_selected(table, rows, name), scores].to_numpy(dtype=np.float64).mean()
            for table, rows, name in (
                (first, self.treatment, self.table),
                (second, self.control, self.control_table or self.table),
            )
        ]
        return float(means[0] / means[1] if self.ratio else means[0] - means[1])


def capacity_gap() -> float:
    """Return how many points the paper's large teachers score above its undistilled 7B and 8B students.

    The mean over the four pairs of tables 3 and 4 and over the benchmarks that both tables have.
    """
    students = paper_table("table3_masters_students").set_index("model")
    teachers = paper_table("table4_large_models").set_index("model")
    gap = teachers.loc[list(PAIRS.values())].mean() - students.loc[list(PAIRS), teachers.columns].mean()
    return float(gap.mean())


def variants(treatment: str, control: str) -> Evidence:
    """Return the effect of two variants of table 1, the mean over its four students."""
    return Evidence(
        f"table 1: {treatment} minus {control}",
        "table1_components",
        {"variant": treatment},
        {"variant": control},
    )


def components(treatment: Rows, control: Rows) -> Evidence:
    """Return the effect of two rows of table 5d, where only the given parts are switched on.

    Args:
        treatment: parts of the treatment, by column; a column that is left out is ``no``.
        control: the same of the control.
    """
    off = dict.fromkeys(("mid_teacher", "multi_response", "reward_feedback"), "no")
    rows = [off | dict(row) for row in (treatment, control)]
    words = (
        [str(row["masking"]).replace("_", " "), *(_PARTS[name] for name in off if row[name] == "yes")]
        for row in rows
    )
    cells = " minus ".join("(" + ", ".join(parts) + ")" for parts in words)
    return Evidence(f"table 5d: {cells}", "table5d_components", rows[0], rows[1])


def rewards(treatment: str, control: str) -> Evidence:
    """Return the effect of two rewards of table 5e."""
    cells = f"table 5e: {treatment} minus {control}"
    return Evidence(cells, "table5e_rewards", {"reward": treatment}, {"reward": control})


def source(student: int, teacher: int) -> Evidence:
    """Return the effect of four responses of each model against another mix, table 5c."""
    names = ("student_responses", "teacher_responses")
    return Evidence(
        f"table 5c: 4:4 minus {student}:{teacher}",
        "table5c_response_source",
        dict(zip(names, (4, 4), strict=True)),
        dict(zip(names, (student, teacher), strict=True)),
    )


def _selected(table: pd.DataFrame, rows: Rows, name: str) -> pd.Series:
    selected = pd.Series(True, index=table.index)
    for column, value in rows.items():
        if column not in table:
            raise ValueError(f"paper table {name} has no column {column!r}")
        selected &= table[column].isin(value if isinstance(value, tuple) else (value,))
    if not selected.any():
        raise ValueError(f"paper table {name} has no row with {dict(rows)}")
    return selected
