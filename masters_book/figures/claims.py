"""The figures of all claims: each verdict with the effect that it follows from.

Each claim is shown in words and numbers, also if it was not tested. There is one layout for wide and one for
narrow screens. :func:`overview` is the short figure with a line per claim, :func:`claims_figure` has their
statements.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Transform, blended_transform_factory

from masters_book.claims.claims import CLAIMS
from masters_book.figures.style import BAND, COLORS, INK, QUIET, WIDTH, Drawing, panels

NARROW, FLAT = 4.8, 8.5  # inches
UNIT_MARKS = {"points": "pt", "percent": "%", "times": "x"}
VERDICT_COLORS = {
    "supported": COLORS[2],
    "not supported": COLORS[3],
    "reversed": COLORS[4],
    "undecided": COLORS[9],
    "not tested": QUIET,
}


def claims_figure(frame: pd.DataFrame, narrow: bool = False) -> Drawing:
    """Draw one row per claim: verdict, statement, numbers, and our effect beside the paper's.

    Our effect and its interval have the color of the verdict; a hollow mark is the paper's effect, and the
    gray band is the margin. Each unit has its own panel; ratios start at 0, and a ratio of 1 means no effect.
    Effects beyond an axis are arrows at its edge, so that a few large ones do not hide the others.

    Args:
        frame: claims, from :func:`masters_book.claims.verdicts.judge_claims`.
        narrow: layout for phones: text above the effect, not left of it.
    """
    parts = [(str(unit), rows.to_dict("records")) for unit, rows in frame.groupby("unit", sort=False)]
    line = 56 if narrow else 42
    texts = {row["id"]: textwrap.wrap(row["statement"], line) for _, rows in parts for row in rows}
    # Height in lines of text: one for verdict and numbers, those of the statement, and two for the effect.
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
    # Text must not move the axes, but must count as part of the figure, or notebooks crop it.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for words_of_claim in [text for axis in axes for text in axis.texts]:
        words_of_claim.set_in_layout(True)
    said = map(_sentence, frame.to_dict("records"))
    figure.alt = " ".join(["Effect of each claim, here and in the paper.", *said])
    figure.caption = (
        "Our effect on each claim with its 95 % interval over seeds and questions, and the paper's single "
        "runs."
    )
    return figure


def overview(frame: pd.DataFrame, narrow: bool = False) -> Drawing:
    """Draw one line per claim: its name, verdict, effect and interval, and the paper's effect.

    Effects of all units share one axis, in multiples of the claim's margin: 1 is the smallest effect that
    counts, and 0 is no effect. Effects beyond the axis are arrows at its edge.

    Args:
        frame: claims, from :func:`masters_book.claims.verdicts.judge_claims`.
        narrow: layout for phones: text above the effect, not left of it.
    """
    names = {claim.id: claim.name for claim in CLAIMS}
    rows = [_in_margins(row) for row in frame.to_dict("records")]
    step = 2.0 if narrow else 1.0  # lines per claim
    figure, (axis,) = panels(1, 1, 0.9 + 0.215 * step * len(rows))
    figure.set_figwidth(NARROW if narrow else FLAT)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1) if narrow else (0.46, 0, 0.45, 1))
    reach, top = _reach(rows), -0.6 if not narrow else -1.5
    end = step * (len(rows) - 1) + 0.6
    axis.set(xlim=(-reach, reach), ylim=(end, top), yticks=[])
    axis.set_xlabel("effect in multiples of the smallest that counts")
    axis.grid(False)
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.fill_between([-1, 1], top, end, color=BAND, lw=0)
    axis.axvline(0, color=QUIET, lw=1)
    across = blended_transform_factory(figure.transFigure, axis.transData)
    for place, row in enumerate(rows):
        y = step * place
        words = names.get(row["id"], "")
        here = f"{row['ours']} {UNIT_MARKS.get(row['unit'], '')}".strip() if row["ours"] else ""
        style: dict[str, Any] = {"transform": across, "va": "center", "fontsize": 10, "parse_math": False}
        at = y - 0.95 if narrow else y
        said = [
            axis.text(0.01, at, row["id"], weight="bold", **style),
            axis.text(0.1 if narrow else 0.05, at, words, **style),
            axis.text(0.6 if narrow else 0.325, at, row["verdict"], weight="bold", **style),
            axis.text(0.99, at, here, ha="right", **style),
        ]
        for text in said:
            text.set_in_layout(False)
        _mark(axis, row, y, -reach, reach)
    marks: list[Any] = [
        Line2D([], [], color=INK, marker="o", label="here, 95 % interval"),
        Line2D([], [], color=INK, marker="D", mfc="none", ls="", label="paper, single runs"),
        Line2D([], [], color=INK, marker=">", ls="", label="beyond the axis"),
        Patch(color=BAND, label="too small to count"),
    ]
    figure.legend(
        handles=marks, loc="outside upper center", ncols=2 if narrow else 4, frameon=False, columnspacing=1.2
    )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.alt = " ".join(["Effect of each claim, here and in the paper.", *map(_sentence, rows)])
    figure.caption = (
        "The claims: our effect with its 95 % interval over seeds and questions, in multiples of the claim's "
        "margin (of a ratio of costs, its distance from 1), and the paper's single runs. C13 claims no loss, "
        "and C15 no growth, beyond the margin."
    )
    return figure


def _in_margins(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a claim with its effects in multiples of the margin; of a ratio, 1 is no effect."""
    nothing = 1.0 if row["unit"] == "times" else 0.0
    names = ("effect", "effect_low", "effect_high", "paper_effect")
    scaled = {name: (float(row[name]) - nothing) / (float(row["margin"]) - nothing) for name in names}
    return {**row, **scaled, "margin": 1.0}


def _sentence(row: Mapping[Any, Any]) -> str:
    """Return verdict and numbers of a claim, for the alternative text."""
    unit = row["unit"]
    ours = f"{row['ours']} {unit}, 95 % interval {row['low']} to {row['high']}" if row["ours"] else ""
    paper = f"paper {row['paper']} {unit}" if row["paper"] else "no figure in the paper"
    return f"{row['id']} {row['verdict']}: {', '.join(filter(None, (ours, paper)))}."


def _claim_words(
    axis: Axes, across: Transform, row: Mapping[Any, Any], statement: list[str], top: float
) -> None:
    """Write verdict, numbers and statement of a claim from line ``top`` on, across the whole figure."""
    place: dict[str, Any] = {"transform": across, "va": "top", "fontsize": 10, "parse_math": False}
    here = f"{row['ours']} ({row['low']} to {row['high']})" if row["ours"] else ""
    there = f"paper {row['paper']}" if row["paper"] else ""
    words = [
        axis.text(0.01, top + 0.3, f"{row['id']}  {row['verdict']}", weight="bold", **place),
        axis.text(0.99, top + 0.3, "  ".join(filter(None, (here, there))), ha="right", **place),
        axis.text(0.01, top + 1.3, "\n".join(statement), **place),
    ]
    for text in words:
        text.set_in_layout(False)  # text across the whole figure must not move the axes
    line = axis.plot([0.01, 0.99], [top, top], color=BAND, lw=1, transform=across, clip_on=False)
    line[0].set_in_layout(False)


def _claim_effect(axis: Axes, row: Mapping[Any, Any], y: float, left: float, right: float) -> bool:
    """Draw effect, interval, margin and the paper's effect; return whether any lies beyond the axis."""
    margin = row["margin"]
    axis.fill_between([max(left, -margin), margin], y - 0.6, y + 0.6, color=BAND, lw=0)
    nothing = 1 if row["unit"] == "times" else 0
    axis.plot([nothing, nothing], [y - 0.6, y + 0.6], color=QUIET, lw=1)
    return _mark(axis, row, y, left, right)


def _mark(axis: Axes, row: Mapping[Any, Any], y: float, left: float, right: float) -> bool:
    """Draw effect, interval and the paper's effect; return whether any lies beyond the axis."""
    color = VERDICT_COLORS[row["verdict"]]
    effect, low, high, paper = _effects(row)
    axis.plot([low, high], [y, y], "-", color=color, lw=2.5)
    axis.plot([effect], [y], "o", color=color)
    axis.plot([paper], [y], "D", mfc="none", mec=INK)
    ours, theirs = {"color": color}, {"mfc": "none", "mec": INK}
    ends = ((low, ours), (high, ours), (paper, theirs))
    far = [(value, look) for value, look in ends if value < left or value > right]
    for value, look in far:
        end, mark = (right, ">") if value > right else (left, "<")
        axis.plot([end], [y], mark, clip_on=False, **look)
    return bool(far)


def _effects(row: Mapping[Any, Any]) -> list[float]:
    return [float(row[name]) for name in ("effect", "effect_low", "effect_high", "paper_effect")]


def _reach(rows: Sequence[Mapping[Any, Any]]) -> float:
    """Return where an axis ends: six of seven claims fit, with their margins."""
    farthest = [np.nanmax(np.abs([row["margin"], *_effects(row)])) for row in rows]
    return 1.1 * float(np.quantile(farthest, 6 / 7, method="lower"))
