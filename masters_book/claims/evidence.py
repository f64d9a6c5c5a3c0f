"""The paper's own effects, computed from its tables in ``data/paper/``.

An effect is the difference or the ratio of rows of a table. The code names the rows and computes the effect;
it contains no numbers of the paper. An effect is *matched* to a comparison of this project when its two rows
differ in the same thing as the two arms. The paper's numbers are single runs, so effects have no interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from masters_book.results.paper import paper_table

Rows = Mapping[str, str | float | tuple[str, ...]]
# The students of tables 1, 3 and 4 with their large teachers.
PAIRS = {
    "Qwen2.5-VL-7B": "Qwen2.5-VL-72B",
    "Qwen3-VL-8B": "Qwen3-VL-32B",
    "InternVL3-8B": "InternVL3-78B",
    "InternVL3.5-8B": "InternVL3.5-38B",
}
# Columns of table 5d, as shown to the reader.
_COMPONENTS = {"mid_teacher": "mid teacher", "multi_response": "responses", "reward_feedback": "rewards"}


@dataclass(frozen=True)
class Evidence:
    """The rows of the paper's tables behind an effect.

    Attributes:
        cells: the rows, as shown to the reader, such as ``table 5c: 4:4 minus 0:8``.
        table: file name in ``data/paper/``, without ending.
        treatment: column and value (or values) that select the treatment's rows.
        control: the same for the control.
        control_table: the control's table, if it is another one.
        ratio: whether the effect is treatment over control instead of their difference.
    """

    cells: str
    table: str
    treatment: Rows
    control: Rows
    control_table: str = ""
    ratio: bool = False

    def effect(self) -> float:
        """Return treatment minus control, or their ratio, of the means over selected rows and shared scores.

        The column ``avg`` is rounded, so it is used only in tables without scores of single benchmarks.

        Raises:
            ValueError: a selector matches no row.
        """
        first, second = paper_table(self.table), paper_table(self.control_table or self.table)
        keys = set(self.treatment) | set(self.control)
        scores = [
            name
            for name in first.columns
            if name in second and name not in keys and pd.api.types.is_numeric_dtype(first[name])
        ]
        scores = [name for name in scores if name != "avg"] or scores
        treatment, control = (
            _selected(table, rows)[scores].to_numpy(np.float64).mean()
            for table, rows in ((first, self.treatment), (second, self.control))
        )
        return float(treatment / control if self.ratio else treatment - control)


def variants(treatment: str, control: str) -> Evidence:
    """Return the difference of two variants in table 1, averaged over its four students."""
    return Evidence(
        f"table 1: {treatment} minus {control}",
        "table1_components",
        {"variant": treatment},
        {"variant": control},
    )


def components(treatment: Rows, control: Rows) -> Evidence:
    """Return the difference of two rows of table 5d.

    Args:
        treatment: values by column; a component that is left out is ``no``.
        control: the same for the control.
    """
    off = dict.fromkeys(_COMPONENTS, "no")
    rows = [off | dict(row) for row in (treatment, control)]
    words = (
        [str(row["masking"]).replace("_", " "), *(_COMPONENTS[name] for name in off if row[name] == "yes")]
        for row in rows
    )
    cells = " minus ".join("(" + ", ".join(parts) + ")" for parts in words)
    return Evidence(f"table 5d: {cells}", "table5d_components", rows[0], rows[1])


def rewards(treatment: str, control: str) -> Evidence:
    """Return the difference of two rewards in table 5e."""
    cells = f"table 5e: {treatment} minus {control}"
    return Evidence(cells, "table5e_rewards", {"reward": treatment}, {"reward": control})


def source(student: int, teacher: int) -> Evidence:
    """Return the difference of four responses from each model and another mix in table 5c."""
    names = ("student_responses", "teacher_responses")
    return Evidence(
        f"table 5c: 4:4 minus {student}:{teacher}",
        "table5c_response_source",
        dict(zip(names, (4, 4), strict=True)),
        dict(zip(names, (student, teacher), strict=True)),
    )


def _selected(table: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    for column, value in rows.items():
        table = table[table[column].isin(value if isinstance(value, tuple) else (value,))]
    if table.empty:
        raise ValueError(f"the paper's table has no row with {dict(rows)}")
    return table
