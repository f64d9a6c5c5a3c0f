"""The sweep of a study: some forms of the objective over decades of the learning rate.

What becomes of accuracy, of the length of the answers, and how far the student goes from where it began.
"""

import pandas as pd
from matplotlib.figure import Figure

from masters.arms import title
from masters.drawing import COLOURS, panels
from masters.figures import DASHES, MARKERS

SWEPT = {"accuracy": "accuracy (%)", "tokens": "tokens an answer", "kl": "KL to reference (nats a token)"}


def swept(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of arms whose names end in a learning rate, the parts of these in ``form`` and ``rate``."""
    named = runs["arm"].astype(str).str.extract(r"^([^+]+)\+learning_rate=([^+]+)$")
    return runs.assign(form=named[0], rate=named[1].astype(float)).dropna(subset="form")


def whole(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of those replicates in which the most arms have a learning rate in their name."""
    arms = swept(runs).groupby("replicate").size()
    return runs[runs["replicate"].isin(arms.index[arms == arms.max()])]


def worst(runs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Each form of the objective at the worst of the learning rates that all forms have, means of replicates.

    Returns:
        One row a form, the least accurate first: rate, form, accuracy, tokens, kl; and the ends of the rates.
    """
    means = swept(runs).groupby(["rate", "form"], sort=False)[["accuracy", "tokens", "kl"]].mean()
    forms = means.groupby("rate").size()
    shared = forms.index[forms == forms.max()]
    means = means.loc[shared].reset_index()
    table = means.loc[means.groupby("form")["accuracy"].idxmin()].sort_values("accuracy")
    return table, (float(shared.min()), float(shared.max()))


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
