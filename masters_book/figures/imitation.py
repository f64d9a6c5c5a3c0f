"""The figure of the imitation study: change in divergence over the student's distance, and over the dose."""

import pandas as pd

from masters_book.figures.style import (
    COLORS,
    MARKERS,
    QUIET,
    Drawing,
    ends,
    line_style,
    panels,
    plain_numbers,
)
from masters_book.imitation import plan

WAYS = {
    "magnitude": "magnitude mask (paper)",
    "temperature": "whole teacher, softer",
    "random": "random mask",
    "activation": "Wanda mask",
}
FARTHEST = 1.0  # nats; larger doses are not drawn


def imitation_figure(students: pd.DataFrame, changes: pd.DataFrame, mini: pd.DataFrame) -> Drawing:
    """Draw the change in JSD to the student at the paper's mask ratio by distance, and by dose.

    Args:
        students: one row per student: layers, healed, distance, change, low, high.
        changes: one row per student and changed teacher: layers, healed, way, value, dose, change, low, high.
        mini: one row per replicate and small teacher: model, distance, change.
    """
    figure, axes = panels(2, 1, 3.4)
    said = []
    first, second = axes
    for place, layers in enumerate(plan.LAYERS):
        rows = students[students["layers"] == layers].sort_values("distance")
        reach = [rows["change"] - rows["low"], rows["high"] - rows["change"]]
        style = {"fmt": MARKERS[place], "color": COLORS[place], "elinewidth": 1.2}
        first.errorbar(
            rows["distance"],
            rows["change"],
            reach,
            label=f"{layers} of {plan.TEACHER_LAYERS} layers",
            **style,
        )
        said.append(ends(f"{layers} layers", rows["distance"], rows["change"]))
    if len(mini):
        first.plot(
            mini["distance"], mini["change"], "o", mfc="none", mec=QUIET, label="small VLMs of the study"
        )
    first.set(xlabel="student's distance: JSD to the whole teacher (nats per token)")
    second.set(xlabel="dose: JSD of the changed teacher to the whole one (nats per token)")
    second.set_title(f"students after {max(plan.HEALED):,} training tokens", fontsize=10)
    far, near = (changes[changes["layers"] == layers] for layers in (min(plan.LAYERS), max(plan.LAYERS)))
    for line, rows in enumerate((far, near)):
        rows = rows[rows["healed"] == max(plan.HEALED)]
        name = f"{rows['layers'].iloc[0]} layers"
        for place, (way, label) in enumerate(WAYS.items()):
            one = rows[(rows["way"] == way) & (rows["dose"] <= FARTHEST)].sort_values("dose")
            words = f"{label}, {name}"
            second.plot(one["dose"], one["change"], line_style(line), color=COLORS[place], label=words, ms=5)
            said.append(ends(words, one["dose"], one["change"]))
    second.set_xscale("log")
    second.set_yscale("symlog", linthresh=10)
    plain_numbers(second.xaxis, second.yaxis)
    for panel in axes:
        panel.axhline(0, color=QUIET, lw=1)
        panel.set_ylabel("change in JSD to\nthe student (%)")
        panel.legend(frameon=False, fontsize=8, ncols=2)
    figure.alt = f"Change in percent by distance and by dose, in nats per token. {'; '.join(said)}."
    return figure
