"""The format of ``claims.csv``: :mod:`masters.claims.verdicts` writes it, the shell and the book read it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

VERDICTS = ("supported", "not supported", "reversed", "undecided", "not tested")

# Columns of numbers; empty if there is none.
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
        """The 95 % interval as text, empty if there is none."""
        return f"{self.low} to {self.high}" if self.low and self.high else ""


def signed(value: float) -> str:
    """Return a number with its sign and one decimal; empty for NaN.

    What rounds to 0.0 gets a second decimal, so that a bound close to zero shows its sign. Zero has no sign.
    """
    if np.isnan(value):
        return ""
    text = f"{value:+.1f}"
    if text not in ("+0.0", "-0.0"):
        return text
    text = f"{value:+.2f}"
    return "0.0" if text in ("+0.00", "-0.00") else text


def read_claims(path: Path) -> list[ClaimRow]:
    """Return the claims of ``claims.csv`` as text.

    Raises:
        ValueError: the file or a column is missing, or a verdict is not in :data:`VERDICTS`.
    """
    table = _read(path, ClaimRow._fields, f"reproduce PROFILE={path.parent.name}")
    return [ClaimRow(*row) for row in table[[*ClaimRow._fields]].itertuples(index=False)]


def read_frame(path: Path, target: str = "") -> pd.DataFrame:
    """Return the claims with their numbers, as ``masters.claims.verdicts.judge_claims`` returned them.

    Args:
        path: ``claims.csv``.
        target: the make target that writes it, for messages; empty means the profile's own run.

    Raises:
        ValueError: as :func:`read_claims`, or a value is not a number.
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
    if missing := sorted(set(columns) - set(table)):
        raise ValueError(f"{path} has no column {', '.join(missing)}: delete it and run `make {target}`")
    if unknown := sorted(set(table["verdict"]) - set(VERDICTS)):
        raise ValueError(f"{path} has the verdict {unknown[0]!r}; there are: {', '.join(VERDICTS)}")
    return table
