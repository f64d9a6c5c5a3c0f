"""What the runs of the study say beyond the claims: where its effects are, and what a learning rate does.

The paper switches its parts on at one setting. The map takes an effect as the difference of two arms that
are alike in everything else, within a replicate: *masking* is a masked teacher against an unmasked one
without rewards (``masked`` and ``naive_multi``), *rewards* is both rewards against none under the mask
(``masters`` and ``masked``). What is changed is one thing at a time, in both arms alike.

The sweep follows some forms of the objective over decades of the learning rate: accuracy, length of the
answers, and how far the student goes from where it began.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from masters.arms import title
from masters.drawing import COLOURS, QUIET, panels
from masters.figures import DASHES, MARKERS

PAIRS = {"masking": ("masked", "naive_multi"), "rewards": ("masters", "masked")}
SWEPT = {"accuracy": "accuracy (%)", "tokens": "tokens an answer", "kl": "KL to reference (nats a token)"}
AXES = {
    "gap": "weights of the teacher / of the student",
    "r_max": "first mask ratio r_max",
    "learning_rate": "learning rate",
    "steps": "steps of training",
    "label_noise": "share of wrong labels",
    "teacher_temperature": "temperature of the teacher",
}
ALIKE = "learning_rate|steps|label_noise|teacher_temperature"  # as is the student: in the names of both arms
NEUTRAL = {"label_noise": "0", "teacher_temperature": "1"}  # of arms whose name says nothing
LINEAR = ("r_max", "label_noise")  # the other axes are logarithmic


def effects(runs: pd.DataFrame, ladder: pd.DataFrame, r_max: float, steps: int) -> pd.DataFrame:
    """Both effects wherever the two arms of a pair were run, along axes with more than one place.

    Args:
        runs: one row a run: arm, replicate, accuracy.
        ladder: one row a model of a replicate: model, parameters.
        r_max: of the arms whose name says nothing.
        steps: of the same.

    Returns:
        One row an axis, place, effect and replicate: axis (of ``AXES``), value, effect, replicate, points.
    """
    names = runs["arm"].astype(str).str.replace(rf"^(?=(r_max|student|{ALIKE})=)", "masters+", regex=True)
    runs = runs.assign(arm=names)
    of_arm = 100 * runs.pivot(index="replicate", columns="arm", values="accuracy").astype(float)
    size = ladder.drop_duplicates("model").set_index("model")["parameters"]
    rows = []
    neutral = NEUTRAL | {"steps": str(steps)}
    for effect, axis, value, treatment, control in _pairs(set(runs["arm"]), size, r_max, neutral):
        # Replicates that have one arm only say nothing.
        points = (of_arm[treatment] - of_arm[control]).dropna()
        rows += [(axis, value, effect, replicate, of_replicate) for replicate, of_replicate in points.items()]
    table = pd.DataFrame(rows, columns=["axis", "value", "effect", "replicate", "points"])
    # One place is no axis: what nothing else was changed from would stand on all of them.
    return table[table.groupby(["axis", "effect"])["value"].transform("nunique") > 1].reset_index(drop=True)


def _pairs(
    arms: set[str], size: pd.Series, r_max: float, neutral: Mapping[str, str]
) -> Iterator[tuple[str, str, float, str, str]]:
    """(effect, axis, value, treatment, control) of all pairs among some arms."""
    for effect, (treatment, control) in PAIRS.items():
        usual = {"gap": "large/student", "r_max": str(r_max), **neutral}
        found = [(axis, at, treatment, control) for axis, at in usual.items()]
        for name in arms:
            alike = control + name.removeprefix(treatment)
            if match := re.fullmatch(rf"{treatment}\+student=([a-z]+)(?:\+teachers=([a-z]+))?", name):
                found.append(("gap", f"{match[2] or 'large'}/{match[1]}", name, alike))
            elif match := re.fullmatch(rf"{treatment}\+label_noise=([^+]+)", name):
                # Wrong labels reach the rewards alone: without, all is the same whatever their share.
                found.append(("label_noise", match[1], name, control))
            elif match := re.fullmatch(rf"{treatment}\+({ALIKE})=([^+]+)", name):
                found.append((match[1], match[2], name, alike))
            elif match := re.fullmatch(rf"{treatment}\+r_max=([^+]+)", name):
                # An unmasked control is the same whatever the ratio would be.
                found.append(("r_max", match[1], name, alike if control == "masked" else control))
        for axis, value, first, second in found:
            if not arms.issuperset((first, second)):
                continue
            if axis != "gap":
                yield effect, axis, float(value), first, second
            elif set(models := value.split("/")) <= set(size.index):
                teacher, student = models
                yield effect, axis, float(size[teacher] / size[student]), first, second


def effect_map(table: pd.DataFrame) -> Figure:
    """Both effects along each axis: every replicate as a dot, their mean as a line.

    Args:
        table: as ``effects`` returns it.

    Raises:
        ValueError: it has no row.
    """
    if table.empty:
        raise ValueError("there is no pair of arms to draw: run more of the study")
    axes_shown = [axis for axis in AXES if (table["axis"] == axis).any()]
    figure, axes = panels(len(axes_shown), 1, 2.6)
    for panel, axis in zip(axes, axes_shown, strict=True):
        for place, effect in enumerate(PAIRS):
            rows = table[(table["axis"] == axis) & (table["effect"] == effect)]
            if rows.empty:
                continue
            colour, marker = COLOURS[place], MARKERS[place]
            means = rows.groupby("value")["points"].mean()
            panel.plot(rows["value"], rows["points"], marker, color=colour, alpha=0.35, ms=5)
            panel.plot(means.index, means, f"{DASHES[place]}{marker}", color=colour, label=effect)
        panel.axhline(0, color=QUIET, lw=1)
        panel.set(xlabel=AXES[axis], ylabel="effect (points)")
        if axis not in LINEAR:
            panel.set_xscale("log")
            ticks = np.unique(table.loc[table["axis"] == axis, "value"])
            panel.set_xticks(ticks, minor=False)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{float(f'{value:.2g}'):g}"))
            panel.xaxis.minorticks_off()
    axes[0].legend(title="effect of", frameon=False)
    return figure


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
    axes[-1].set(xlabel=AXES["learning_rate"])
    axes[-1].set_yscale("symlog", linthresh=1e-3)
    axes[-1].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure
