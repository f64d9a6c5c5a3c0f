"""The figures of a study's page: effects over each axis of the map, and forms of the objective over rates."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from masters.experiments.arms import title
from masters.report.figures import DASHES, MARKERS
from masters.report.style import COLOURS, QUIET, need, panels
from masters.study.effects import AXES, COLUMNS, EFFECTS, LINEAR
from masters.study.sweep import swept

SWEPT = {"accuracy": "accuracy (%)", "tokens": "tokens an answer", "kl": "KL to reference (nats a token)"}


def effect_map(table: pd.DataFrame, blind: float = 0.0) -> Figure:
    """Draw every effect along each axis with its 95 % interval over seeds and questions.

    Args:
        table: as ``measure_map`` returns it.
        blind: accuracy of a lookup from the question's text, in percent. Where the student is below it before
            training, the mark is hollow.

    Raises:
        ValueError: it has no row, or lacks a column.
    """
    need(table, *COLUMNS)
    if table.empty:
        raise ValueError("there is no pair of arms to draw: run more of the study")
    axes_shown = [axis for axis in AXES if (table["axis"] == axis).any()]
    figure, axes = panels(len(axes_shown), 1, 2.6)
    for panel, axis in zip(axes, axes_shown, strict=True):
        on_axis = table[table["axis"] == axis]
        for place, effect in enumerate(EFFECTS):
            rows = on_axis[on_axis["effect"] == effect]
            reach = [rows["points"] - rows["low"], rows["high"] - rows["points"]]
            at = _aside(rows["value"], (place - 1.5) / 100, on_axis["value"], axis in LINEAR)
            style = f"{DASHES[place]}{MARKERS[place]}"
            panel.errorbar(
                at, rows["points"], reach, fmt=style, color=COLOURS[place], elinewidth=1.2, label=effect
            )
            below = rows["student_accuracy"] < blind
            panel.plot(at[below], rows.loc[below, "points"], MARKERS[place], mfc="white", mec=COLOURS[place])
        panel.axhline(0, color=QUIET, lw=1)
        panel.set(xlabel=AXES[axis], ylabel="effect (points)")
        if axis not in LINEAR:
            panel.set_xscale("log")
            panel.set_xticks(np.unique(on_axis["value"]), minor=False)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{float(f'{value:.2g}'):g}"))
            panel.xaxis.minorticks_off()
        if axis == "gap":
            able = on_axis.dropna().groupby("value")["student_accuracy"].mean()
            panel.set_xticks(able.index, [f"{value:.2g}\n({score:.0f} %)" for value, score in able.items()])
    handles, labels = axes[0].get_legend_handles_labels()
    if (table["student_accuracy"] < blind).any():
        handles.append(Line2D([], [], color=QUIET, marker="o", mfc="white", ls=""))
        labels.append("student below blind")
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _aside(values: pd.Series, share: float, all_values: pd.Series, linear: bool) -> pd.Series:
    """Moved along an axis by a share of what it shows, so that intervals of one place stand side by side."""
    low, high = all_values.min(), all_values.max()
    return values + share * (high - low) if linear else values * (high / low) ** share


def sweep(runs: pd.DataFrame) -> Figure:
    """The arms whose names end in a learning rate: what became of them at each, mean and single replicates.

    Args:
        runs: one row a run: arm, accuracy, tokens, kl.

    Raises:
        ValueError: no arm of these runs has a learning rate in its name.
    """
    table = swept(runs)
    if table.empty:
        raise ValueError("there is no arm at several learning rates to draw: run more of the study")
    table["accuracy"] = 100 * table["accuracy"].astype(float)
    figure, axes = panels(len(SWEPT), 1, 2.6, sharex=True)
    for panel, (quantity, label) in zip(axes, SWEPT.items(), strict=True):
        for place, (form, rows) in enumerate(table.groupby("form", sort=False)):
            colour, marker = COLOURS[place], MARKERS[place]
            means = rows.groupby("rate")[quantity].mean()
            panel.plot(rows["rate"], rows[quantity], marker, color=colour, alpha=0.35, ms=5)
            style = f"{DASHES[place % len(DASHES)]}{marker}"
            panel.plot(means.index, means, style, color=colour, label=title(str(form)))
        panel.set(xscale="log", ylabel=label)
    axes[-1].set(xlabel="learning rate")
    axes[-1].set_yscale("symlog", linthresh=1e-3)
    axes[-1].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure
