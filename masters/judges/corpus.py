"""Human verdicts to compare judges with: every fifth case is held out for measuring them."""

from pathlib import Path
from typing import Any, NamedTuple

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
