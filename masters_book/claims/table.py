"""The format of ``claims.csv``: written with the verdicts, read by the shell and the book."""

from pathlib import Path

import numpy as np
import pandas as pd

from masters_book.results.tables import TEXT, Number, Schema, Text, read_table

VERDICTS = ("supported", "not supported", "reversed", "undecided", "not tested")
_NUMBERS = (
    *("paper_effect", "effect", "effect_low", "effect_high", "smallest", "p", "p_holm", "seeds", "margin"),
    *("share", "sampled", "sampled_low", "sampled_high"),
)
_SHOWN = ("paper", "ours", "low", "high")  # as text
CLAIMS = Schema(
    dict.fromkeys(("id", "statement", "unit", "where", "treatment", "control", "limits"), TEXT)
    | {"verdict": Text(choices=VERDICTS)}
    | dict.fromkeys((*_SHOWN, "cells", "excludes_paper", "disagree"), Text(optional=True))
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


def read_claims(path: Path) -> pd.DataFrame:
    """Return the claims of ``claims.csv``, as ``masters_book.claims.verdicts.judge_claims`` returned them.

    Raises:
        ValueError: the file is missing or damaged.
    """
    command = f"`make reproduce PROFILE={path.parent.name}`"
    if not path.is_file():
        raise ValueError(f"{path} is missing: run {command} first")
    return read_table(path, CLAIMS, f"delete it and run {command}")
