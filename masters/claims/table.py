"""What a run said of the paper's claims, as its ``claims.csv`` holds it.

:mod:`masters.claims.verdicts` writes the file, the shell and the book read it, and this is what they agree
on.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

VERDICTS = ("supported", "not supported", "reversed", "undecided", "not tested")

# Columns that are numbers, empty where there is none.
NUMBERS = (
    "paper_effect",
    "effect",
    "effect_low",
    "effect_high",
    "smallest",
    "p",
    "p_holm",
    "seeds",
    "margin",
    "share",
    "sampled",
    "sampled_low",
    "sampled_high",
)
TEXT = ("treatment", "control", "cells", "excludes_paper", "disagree", "limits")


class ClaimRow(NamedTuple):
    """One line of ``claims.csv`` as text: the paper's figure, ours with its interval, the verdict."""

    id: str
    statement: str
    paper: str
    ours: str
    low: str
    high: str
    unit: str
    verdict: str
    where: str

    @property
    def interval(self) -> str:
        """The 95 % interval in words, empty where there is none."""
        return f"{self.low} to {self.high}" if self.low and self.high else ""


def signed(value: float) -> str:
    """Return one decimal with its sign; empty for NaN.

    What rounds to zero has a second decimal, so that a bound just beside zero shows its side; there is no
    sign before a zero.
    """
    if np.isnan(value):
        return ""
    text = f"{value:+.1f}"
    if text not in ("+0.0", "-0.0"):
        return text
    text = f"{value:+.2f}"
    return "0.0" if text in ("+0.00", "-0.00") else text


def read_claims(path: Path) -> list[ClaimRow]:
    """The claims that notebook 7 wrote, as text.

    Raises:
        ValueError: the file is missing, lacks a column, or has a verdict that nobody knows.
    """
    table = _read(path, ClaimRow._fields, f"reproduce PROFILE={path.parent.name}")
    return [ClaimRow(*row) for row in table[[*ClaimRow._fields]].itertuples(index=False)]


def read_frame(path: Path, target: str = "") -> pd.DataFrame:
    """The claims with their numbers, as ``masters.claims.verdicts.judge_claims`` returned them.

    Args:
        path: of ``claims.csv``.
        target: of make that writes it, for messages; of the profile's own run when empty.

    Raises:
        ValueError: as ``read_claims``, or a number is none.
    """
    target = target or f"reproduce PROFILE={path.parent.name}"
    table = _read(path, (*ClaimRow._fields, *NUMBERS, *TEXT), target)
    try:
        return table.assign(**{name: pd.to_numeric(table[name]) for name in NUMBERS})
    except ValueError as error:
        raise ValueError(f"{path}: {error}; delete it and run `make {target}`") from None


def _read(path: Path, columns: tuple[str, ...], target: str) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"{path} is missing: run `make {target}` first")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if lacking := sorted(set(columns) - set(table)):
        raise ValueError(f"{path} has no column {', '.join(lacking)}: delete it and run `make {target}`")
    if unknown := sorted(set(table["verdict"]) - set(VERDICTS)):
        raise ValueError(f"{path} has the verdict {unknown[0]!r}; there are: {', '.join(VERDICTS)}")
    return table
