"""How often judges agree with human verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from masters.judges.corpus import Case


def agreement(judges: Mapping[str, Any], asked: Sequence[Case]) -> pd.DataFrame:
    """Compare judges with human verdicts.

    Args:
        judges: each with ``score_many``, by the name to show.

    Returns:
        One row per kind and one for ``all``: the number of cases and, per judge, the fraction of verdicts
        that agree; a missing verdict counts as disagreement. Two more rows hold the errors as fractions of
        all cases: ``called right, wrong by hand`` and ``called wrong, right by hand``.
    """
    frame = pd.DataFrame(asked, columns=Case._fields)
    rows: dict[str, pd.Series] = {kind: frame["kind"] == kind for kind in frame["kind"].unique()}
    rows["all"] = frame["kind"].notna()
    table = pd.DataFrame({"cases": {name: int(rows_of.sum()) for name, rows_of in rows.items()}})
    table.loc["called right, wrong by hand"] = table.loc["called wrong, right by hand"] = len(frame)
    questions, labels, responses = (list(frame[name]) for name in ("question", "label", "response"))
    for name, judge in judges.items():
        said = pd.Series(judge.score_many(questions, labels, responses), dtype=float)
        shares = {row: (said == frame["verdict"])[rows_of].mean() for row, rows_of in rows.items()}
        shares["called right, wrong by hand"] = ((said == 1) & (frame["verdict"] == 0)).mean()
        shares["called wrong, right by hand"] = ((said != 1) & (frame["verdict"] == 1)).mean()
        table[name] = pd.Series(shares)
    return table.rename_axis("kind")
