"""Verdicts by hand, with which a judge is compared: some for setting it up, every fifth for measuring it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from masters.runtime.files import ROOT

CORPUS = ROOT / "tests" / "judge_corpus.yaml"
HELD_OUT_EVERY = 5  # the fifth case, the tenth and so on: read by no one who writes a rule


class Case(NamedTuple):
    """A response to a question with the verdict of a careful human: 1 right, 0 wrong."""

    kind: str
    question: str
    label: str
    response: str
    verdict: int


def cases(path: Path = CORPUS) -> tuple[list[Case], list[Case]]:
    """The open cases and the held-out ones.

    Raises:
        ValueError: the file is missing or a line of it is not a case; the message says which.
    """
    try:
        lines: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        every = [Case(*line) for line in lines]
    except (OSError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no corpus of cases ({' '.join(str(error).split())})") from None
    held_out = every[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    open_ = [case for at, case in enumerate(every) if at % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    return open_, held_out


def agreement(judges: Mapping[str, Any], asked: Sequence[Case]) -> pd.DataFrame:
    """How far judges agree with the verdicts by hand.

    Args:
        judges: by the name to show; each has ``score_many``.
        asked: the cases.

    Returns:
        A row a kind and one for ``all``: cases, and for every judge the share of verdicts that agree; a
        verdict that a judge did not give agrees with nothing. Then two rows of what goes wrong, as shares of
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
