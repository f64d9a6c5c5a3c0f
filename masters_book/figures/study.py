"""Figures of a study's page: effects along each axis of the map, and the learning-rate sweep."""

import pandas as pd
from matplotlib.lines import Line2D

from masters.experiments.arms import title
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
from masters_book.study.effects import AXES, EFFECTS
from masters_book.study.sweep import swept

SWEPT = {"accuracy": "accuracy (%)", "tokens": "tokens per answer", "kl": "KL to reference (nats per token)"}


def effect_map(table: pd.DataFrame, blind: float = 0.0) -> Drawing:
    """Draw every effect along each axis with its 95 % interval over seeds and questions.

    Args:
        table: the result of :func:`masters_book.study.effects.measure_map`.
        blind: accuracy of the blind baseline in percent; marks are hollow where the student before training
            is below it.

    Raises:
        ValueError: the table has no row.
    """
    if table.empty:
        raise ValueError("there is no pair of arms to draw: run more of the study")
    axes_shown = [axis for axis in AXES if (table["axis"] == axis).any()]
    figure, axes = panels(len(axes_shown), 1, 2.6)
    lines = []
    for panel, axis in zip(axes, axes_shown, strict=True):
        on_axis = table[table["axis"] == axis]
        for place, effect in enumerate(EFFECTS):
            rows = on_axis[on_axis["effect"] == effect]
            reach = [rows["points"] - rows["low"], rows["high"] - rows["points"]]
            at = _aside(rows["value"], (place - 1) / 100, on_axis["value"], axis == "r_max")
            style = {"fmt": line_style(place), "color": COLORS[place], "elinewidth": 1.2}
            panel.errorbar(at, rows["points"], reach, label=effect, **style)
            below = rows["student_accuracy"] < blind
            lines.append(ends(f"{effect} by {axis}", rows["value"], rows["points"]))
            panel.plot(at[below], rows.loc[below, "points"], MARKERS[place], mfc="white", mec=COLORS[place])
        panel.axhline(0, color=QUIET, lw=1)
        panel.set(xlabel=AXES[axis], ylabel="effect (points)")
        if axis == "gap":
            panel.set_xscale("log")
            panel.xaxis.minorticks_off()
            able = on_axis.dropna().groupby("value")["student_accuracy"].mean()
            panel.set_xticks(able.index, [f"{value:.2g}\n({score:.0f} %)" for value, score in able.items()])
    handles, labels = axes[0].get_legend_handles_labels()
    if (table["student_accuracy"] < blind).any():
        handles.append(Line2D([], [], color=QUIET, marker="o", mfc="white", ls=""))
        labels.append("student below blind")
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.alt = f"Effects in points, 95 % intervals. {'; '.join(lines)}."
    return figure


def _aside(values: pd.Series, share: float, all_values: pd.Series, linear: bool) -> pd.Series:
    """Shift points along an axis by a share of its range, so that intervals at one value do not overlap."""
    low, high = all_values.min(), all_values.max()
    return values + share * (high - low) if linear else values * (high / low) ** share


def sweep(runs: pd.DataFrame) -> Drawing:
    """Draw accuracy, length and KL of each objective vs. the learning rate: means and single replicates.

    Args:
        runs: one row per run: arm, accuracy, tokens, kl.

    Raises:
        ValueError: no arm's name ends in a learning rate.
    """
    table = swept(runs)
    if table.empty:
        raise ValueError("there is no arm at several learning rates to draw: run more of the study")
    table["accuracy"] = 100 * table["accuracy"].astype(float)
    figure, axes = panels(len(SWEPT), 1, 2.6, sharex=True)
    lines = []
    for panel, (quantity, label) in zip(axes, SWEPT.items(), strict=True):
        for place, (form, rows) in enumerate(table.groupby("form", sort=False)):
            color, marker = COLORS[place], MARKERS[place]
            means = rows.groupby("rate")[quantity].mean()
            panel.plot(rows["rate"], rows[quantity], marker, mfc="none", mec=color, mew=0.8, ms=4)
            panel.plot(means.index, means, line_style(place), color=color, label=title(str(form)))
            lines.append(ends(f"{label}, {title(str(form))}", means.index, means))
        panel.set(xscale="log", ylabel=label)
    axes[-1].set(xlabel="learning rate")
    axes[-1].set_yscale("symlog", linthresh=1e-3)
    axes[-1].set_ylim(bottom=0)
    plain_numbers(axes[-1].xaxis, axes[-1].yaxis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.alt = f"Each objective by learning rate. {'; '.join(lines)}."
    return figure
