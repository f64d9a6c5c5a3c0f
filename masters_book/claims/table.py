"""The format of ``claims.csv``: written with the verdicts, read by the shell and the book."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from masters_book.results.tables import TEXT, Number, Schema, Text, read_table

VERDICTS = ("supported", "not supported", "reversed", "undecided", "not tested")
_NUMBERS = (
    *("paper_effect", "effect", "effect_low", "effect_high", "smallest", "p", "p_holm", "seeds", "margin"),
    *("share", "sampled", "sampled_low", "sampled_high"),
)
SHOWN = ("paper", "ours", "low", "high")  # as text
CLAIMS = Schema(
    dict.fromkeys(("id", "statement", "unit", "where", "kind", "treatment", "control", "limits"), TEXT)
    | {"verdict": Text(choices=VERDICTS)}
    | dict.fromkeys((*SHOWN, "cells", "excludes_paper", "disagree"), Text(optional=True))
    | dict.fromkeys(_NUMBERS, Number(optional=True)),
    ("id",),
)


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


def shown(value: float, unit: str = "points") -> str:
    """Return an effect for the reader; empty for NaN. A ratio, in times, has no sign."""
    if unit != "times" or np.isnan(value):
        return signed(value)
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def span(row: Mapping[Any, Any], name: str = "effect") -> str:
    """Return the interval of an effect, or of the effect on ``sampled`` answers, in the row's unit."""
    unit = row.get("unit", "points") if name == "effect" else "points"
    return f"{shown(row[f'{name}_low'], unit)} to {shown(row[f'{name}_high'], unit)}"


def read_claims(path: Path) -> pd.DataFrame:
    """Return the claims of ``claims.csv``, as ``masters_book.claims.verdicts.judge_claims`` returned them.

    Raises:
        ValueError: the file is missing or damaged.
    """
    command = f"`make reproduce PROFILE={path.parent.name}`"
    if not path.is_file():
        raise ValueError(f"{path} is missing: run {command} first")
    return read_table(path, CLAIMS, f"delete it and run {command}")
