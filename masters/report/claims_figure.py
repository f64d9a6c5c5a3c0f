"""The picture of the claims: every verdict at once, with the effect that it follows from.

One idea: who sees this picture alone knows what was found. So each claim is there in words and numbers, those
that were not tested too, and it is drawn twice, for wide and for narrow screens.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Transform, blended_transform_factory

from masters.report.style import BAND, COLOURS, INK, QUIET, WIDTH, need, panels

NARROW = 4.8
VERDICT_COLOURS = {
    "supported": COLOURS[2],
    "not supported": COLOURS[3],
    "reversed": COLOURS[4],
    "undecided": COLOURS[9],
    "not tested": QUIET,
}


def claims(frame: pd.DataFrame, narrow: bool = False) -> Figure:
    """The claims one below the other, each in words and with its effect beside the paper's.

    A claim is its verdict, statement and numbers, and our effect with its interval in the colour of the
    verdict; a hollow mark is the paper's effect, and the grey band holds what is smaller than the margin.
    Effects in points, in percent and ratios have a panel each; a ratio is seen from 0, and no effect is 1.
    A few large effects must not press the others together: what lies beyond an axis is an arrow at its edge,
    and stands in the numbers.

    Args:
        frame: as ``masters.claims.verdicts.judge_claims`` returns it.
        narrow: for phones, with the words above the effect, not on its left.
    """
    words = ("id", "statement", "verdict", "ours", "low", "high", "paper", "unit")
    need(frame, *words, "effect", "effect_low", "effect_high", "paper_effect", "margin")
    parts = [(str(unit), rows.to_dict("records")) for unit, rows in frame.groupby("unit", sort=False)]
    line = 56 if narrow else 42
    texts = {row["id"]: textwrap.wrap(row["statement"], line) for _, rows in parts for row in rows}
    # In lines of text: one for verdict and numbers, those of the statement, and two for the effect.
    tall = {name: 3.2 + len(text) if narrow else 0.6 + max(3, 1 + len(text)) for name, text in texts.items()}
    heights = [sum(tall[row["id"]] for row in rows) for _, rows in parts]
    total = 0.175 * sum(heights) + 0.75 * len(parts) + 0.6
    figure, axes = panels(len(parts), 1, total / len(parts), height_ratios=heights)
    figure.set_figwidth(NARROW if narrow else WIDTH)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1) if narrow else (0.5, 0, 0.5, 1))
    beyond = False
    for axis, (unit, rows), height in zip(axes, parts, heights, strict=True):
        reach, top = _reach(rows), 0.0
        left = 0.0 if unit == "times" else -reach
        axis.set(xlim=(left, reach), ylim=(height, 0), yticks=[], xlabel=f"effect ({unit})")
        axis.grid(False)
        axis.tick_params(top=True, labeltop=True, bottom=True)
        axis.spines[["left", "right"]].set_visible(False)
        for row in rows:
            text = texts[row["id"]]
            _claim_words(axis, blended_transform_factory(figure.transFigure, axis.transData), row, text, top)
            beyond |= _claim_effect(axis, row, top + (len(text) + 2.2 if narrow else 2.3), left, reach)
            top += tall[row["id"]]
    marks: list[Any] = [
        Line2D([], [], color=INK, marker="o", label="here, 95 % interval"),
        Line2D([], [], color=INK, marker="D", mfc="none", ls="", label="paper, single runs"),
        Patch(color=BAND, label="below the margin"),
    ]
    if beyond:
        marks.append(Line2D([], [], color=INK, marker=">", ls="", label="beyond the axis"))
    figure.legend(handles=marks, loc="outside upper center", ncols=2, frameon=False)
    # The words must not push the axes aside, but belong to the picture: a notebook crops what does not.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for words_of_claim in [text for axis in axes for text in axis.texts]:
        words_of_claim.set_in_layout(True)
    return figure


def _claim_words(
    axis: Axes, across: Transform, row: Mapping[Any, Any], statement: list[str], top: float
) -> None:
    """Verdict, numbers and statement of a claim from line ``top`` on, over the width of the whole figure."""
    place: dict[str, Any] = {"transform": across, "va": "top", "fontsize": 10, "parse_math": False}
    here = f"{row['ours']} ({row['low']} to {row['high']})" if row["ours"] else ""
    there = f"paper {row['paper']}" if row["paper"] else ""
    words = [
        axis.text(0.01, top + 0.3, f"{row['id']}  {row['verdict']}", weight="bold", **place),
        axis.text(0.99, top + 0.3, "  ".join(filter(None, (here, there))), ha="right", **place),
        axis.text(0.01, top + 1.3, "\n".join(statement), **place),
    ]
    for text in words:
        text.set_in_layout(False)  # what is written over the whole figure must not push the axes aside
    line = axis.plot([0.01, 0.99], [top, top], color=BAND, lw=1, transform=across, clip_on=False)
    line[0].set_in_layout(False)


def _claim_effect(axis: Axes, row: Mapping[Any, Any], y: float, left: float, right: float) -> bool:
    """Effect, interval, margin and the paper's effect in a row of an axis from left to right; whether some of
    it lies beyond."""
    colour, margin = VERDICT_COLOURS[row["verdict"]], row["margin"]
    effect, low, high, paper = _effects(row)
    axis.fill_between([max(left, -margin), margin], y - 0.6, y + 0.6, color=BAND, lw=0)
    nothing = 1 if row["unit"] == "times" else 0
    axis.plot([nothing, nothing], [y - 0.6, y + 0.6], color=QUIET, lw=1)
    axis.plot([low, high], [y, y], "-", color=colour, lw=2.5)
    axis.plot([effect], [y], "o", color=colour)
    axis.plot([paper], [y], "D", mfc="none", mec=INK)
    ours, theirs = {"color": colour}, {"mfc": "none", "mec": INK}
    ends = ((low, ours), (high, ours), (paper, theirs))
    far = [(value, look) for value, look in ends if value < left or value > right]
    for value, look in far:
        end, mark = (right, ">") if value > right else (left, "<")
        axis.plot([end], [y], mark, clip_on=False, **look)
    return bool(far)


def _effects(row: Mapping[Any, Any]) -> list[float]:
    return [float(row[name]) for name in ("effect", "effect_low", "effect_high", "paper_effect")]


def _reach(rows: Sequence[Mapping[Any, Any]]) -> float:
    """Where the axis of some claims ends: six of seven are seen as a whole, with their margins."""
    farthest = [np.nanmax(np.abs([row["margin"], *_effects(row)])) for row in rows]
    return 1.1 * float(np.quantile(farthest, 6 / 7, method="lower"))
