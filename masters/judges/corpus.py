"""Human verdicts to compare judges with: every fifth case is held out for measuring them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from masters.runtime.errors import one_line
from masters.runtime.files import ROOT

CORPUS = ROOT / "data" / "judge_corpus.yaml"
HELD_OUT_EVERY = 5  # never used to write a rule


class Case(NamedTuple):
    """A response to a question with a human verdict: 1 right, 0 wrong."""

    kind: str
    question: str
    label: str
    response: str
    verdict: int


def cases(path: Path = CORPUS) -> tuple[list[Case], list[Case]]:
    """Return the open cases and the held-out cases.

    Raises:
        ValueError: the file is missing or a line of it is not a case.
    """
    try:
        lines: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        every = [Case(*line) for line in lines]
    except (OSError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a corpus of cases ({one_line(error)})") from None
    held_out = every[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    open_ = [case for at, case in enumerate(every) if at % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    return open_, held_out


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
