"""The pictures of the notebooks, drawn from result tables and nothing else: no model, file or typed result.

One idea: a function takes tables as ``masters.experiments.lab`` or ``masters.claims.verdicts`` returns them
and gives a matplotlib figure, closed for pyplot, so that a notebook shows it exactly once. Pictures are 7
inches wide, their text at least 10 points, readable on a phone; colours are seaborn's colour-blind palette
and never the only sign. Accuracies are fractions in our tables, percent in the pictures and in the paper's
tables. Error bars are 95 % intervals over seeds (Student's t) unless a docstring says otherwise; a single run
has none.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter
from scipy import stats

from masters.claims.statistics import power_law
from masters.experiments.arms import title
from masters.masking.schedule import MaskSchedule
from masters.report.claims_figure import claims as claims
from masters.report.style import COLOURS, INK, QUIET, WIDTH, need, panels

OVER_SEEDS = "95 % interval over seeds"
MARKERS, DASHES = "osD^vPX*<>", ("-", "--", "-.", ":")
RUNGS = {"student": "base", "mid": "mid", "large": "large"}
LABELS = {
    "learning_rate": "learning rate",
    "step": "training step",
    "loss": "loss (nats per token)",
    "divergence": "divergence from the teacher\n(nats per token)",
    "policy": "policy loss",
    "kl": "KL to the base student\n(nats per token)",
    "log_ratio": "log-ratio to the models that wrote\nthe responses (nats per token)",
    "effective_samples": "effective samples (share of tokens)",
    "flat_groups": "groups without spread (share)",
    "reward_accuracy": "accuracy reward (0 to 1)",
    "reward_distillation": "distillation reward (0 to 1)",
    "mask_ratio": "mask ratio (share of weights)",
    "accuracy": "accuracy (%)",
    "tokens": "response length (tokens)",
    "r_max": "first mask ratio r_max",
    "responses": "responses per question",
    "student_responses": "student's share of 8 responses",
}


def summary(
    runs: pd.DataFrame, by: str = "arm", value: str = "accuracy", order: Sequence[Any] | None = None
) -> pd.DataFrame:
    """Mean of a column over the seeds with its 95 % interval, one row a group.

    Args:
        runs: one row a run.
        by: column that names the group.
        value: column to average; ``accuracy`` and ``sampled_accuracy`` become percent.
        order: the groups to keep, in this order; by default all, in the order of the table.

    Returns:
        Columns ``name``, ``estimate``, ``low``, ``high``, ``runs``; the bounds of a single run are NaN.

    Raises:
        ValueError: a column is missing or a group has no run.
    """
    need(runs, by, value)
    scale = 100.0 if value in ("accuracy", "sampled_accuracy") else 1.0
    rows = []
    for name in order if order is not None else list(dict.fromkeys(runs[by])):
        values = scale * runs.loc[runs[by] == name, value].dropna().to_numpy(dtype=np.float64)
        if not len(values):
            raise ValueError(f"no run with {by} {name!r} to draw: run it or leave it out")
        mean, half = float(values.mean()), _half_width(values)
        rows.append(
            {"name": name, "estimate": mean, "low": mean - half, "high": mean + half, "runs": len(values)}
        )
    return pd.DataFrame(rows)


def samples(rows: Iterable[Mapping[str, Any]], columns: int = 4) -> Figure:
    """Pictures in a grid, the answer above and the question below each.

    Args:
        rows: each with ``image``, ``question`` and ``answer``, such as a ``datasets.Dataset``.
        columns: pictures side by side.
    """
    shown = list(rows)
    if not shown or columns < 1:
        raise ValueError("there is nothing to show: give at least one row and one column")
    chars = max(12, int(WIDTH / columns * 12.5))
    texts = [
        (textwrap.fill(str(r["question"]), chars), textwrap.fill(str(r["answer"]), chars)) for r in shown
    ]
    lines = max(question.count("\n") + answer.count("\n") + 2 for question, answer in texts)
    figure, axes = panels(-(-len(shown) // columns), columns, WIDTH / columns - 0.1 + 0.2 * lines)
    for axis, row, (question, answer) in zip(axes, shown, texts, strict=False):
        axis.imshow(np.asarray(row["image"]), interpolation="nearest")
        axis.set_title(answer, fontweight="bold", pad=4)
        axis.set(xlabel=question, xticks=[], yticks=[])
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    return figure


def size_accuracy(
    table: pd.DataFrame, runs: pd.DataFrame, arms: Sequence[str] = (), blind: float | None = None
) -> Figure:
    """Draw size against accuracy (Fig. 1): the ladder as a line, distilled students as points at their size.

    Args:
        table: the models, with ``model`` and ``parameters``.
        runs: with the arms of the ladder and those named.
        arms: distilled students; without any the figure shows the capacity gap.
        blind: accuracy in percent of a lookup from the question's text (:mod:`masters.analysis.blind`), for a
            line.
    """
    need(table, "model", "parameters")
    figure, (axis,) = panels()
    size = table.set_index("model")["parameters"].astype(float)
    names = [model for model in RUNGS if model in size.index]
    rungs = summary(runs, order=[RUNGS[name] for name in names])
    x = size[names].to_numpy()
    _points(axis, x, rungs, COLOURS[0], "-o", "models of the ladder")
    for name, where, y in zip(names, x, rungs["estimate"], strict=True):
        axis.annotate(name, (where, y), (9, -15), textcoords="offset points")
    for index, row in enumerate(summary(runs, order=arms).to_dict("records") if arms else ()):
        place, marker = np.array([size["student"]]), MARKERS[(index + 1) % len(MARKERS)]
        _points(axis, place, pd.DataFrame([row]), COLOURS[(index + 1) % 10], marker, _title(row["name"]))
    axis.set(xscale="log", xlabel="parameters", ylabel=f"{LABELS['accuracy']}, {OVER_SEEDS}")
    axis.margins(0.15)
    if blind is not None:
        axis.axhline(blind, color=QUIET, ls="--", label="blind: the question's text alone")
    if arms or blind is not None:
        axis.legend(loc="lower right")
    return figure


def training_curves(log: pd.DataFrame, y: str = "loss", hue: str = "arm", x: str = "step") -> Figure:
    """A logged quantity over training (Fig. 2b, 2c), the mean over seeds in a band of its 95 % interval.

    Args:
        log: one row a logged step.
        y: the quantity; steps without it are left out.
        hue: column that tells the lines apart.
        x: column of the horizontal axis.
    """
    need(log, x, y, hue)
    figure, (axis,) = panels()
    for index, (name, rows) in enumerate(log.dropna(subset=[y]).groupby(hue, sort=False)):
        steps = summary(rows, by=x, value=y, order=sorted(rows[x].unique()))
        at, colour = steps["name"].to_numpy(dtype=float), COLOURS[index % 10]
        dash = DASHES[index % 4]
        axis.plot(at, steps["estimate"].to_numpy(), dash, color=colour, label=_title(str(name)))
        axis.fill_between(
            at, steps["low"].to_numpy(), steps["high"].to_numpy(), color=colour, alpha=0.15, lw=0
        )
    axis.set(xlabel=LABELS.get(x, x), ylabel=LABELS.get(y, y), title=f"band: {OVER_SEEDS}")
    _legend(axis)
    return figure


def masked_accuracy(frame: pd.DataFrame) -> Figure:
    """Accuracy of masked models against the mask ratio, all tasks together.

    Error bars are 95 % binomial intervals over questions: there is one model of each kind.

    Args:
        frame: ``model``, ``ratio``, ``task``, ``accuracy``, ``questions``.
    """
    need(frame, "model", "ratio", "accuracy", "questions")
    figure, (axis,) = panels()
    right = frame.assign(right=frame["accuracy"] * frame["questions"])
    for index, (model, rows) in enumerate(right.groupby("model", sort=False)):
        total = rows.groupby("ratio")[["right", "questions"]].sum()
        share = (total["right"] / total["questions"]).to_numpy()
        half = 196.0 * np.sqrt(share * (1 - share) / total["questions"].to_numpy())
        points = pd.DataFrame(
            {"estimate": 100 * share, "low": 100 * share - half, "high": 100 * share + half}
        )
        line = f"-{MARKERS[index % len(MARKERS)]}"
        _points(axis, total.index.to_numpy(dtype=float), points, COLOURS[index % 10], line, str(model))
    axis.set(xlabel="mask ratio r (share of each layer's weights set to zero)", ylabel=LABELS["accuracy"])
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylim(bottom=0)
    _legend(axis)
    return figure


def schedule(r_max: float, step: float, iterations: int) -> Figure:
    """Fig. 2a: the mask ratio over training, a staircase from r_max down to 0 (Eq. 3).

    Raises:
        ValueError: no valid schedule, or fewer than one iteration.
    """
    if iterations < 1:
        raise ValueError(f"a schedule needs at least one iteration, not {iterations}")
    ratios = [MaskSchedule(r_max, step).ratio_at(iteration, iterations) for iteration in range(iterations)]
    figure, (axis,) = panels(height=3.0)
    axis.step([*range(iterations), iterations], [*ratios, ratios[-1]], where="post", color=COLOURS[0])
    axis.set(xlabel=LABELS["step"], ylabel="mask ratio r", xlim=(0, iterations))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def effects(frame: pd.DataFrame, unit: str = "accuracy (%)") -> Figure:
    """Arms as points with their interval and, where given, the paper's value in a panel of its own.

    Args:
        frame: ``name``, ``estimate``, ``low``, ``high`` (see ``summary``), perhaps ``paper``, NaN where the
            paper has no such arm.
        unit: label of the horizontal axes.
    """
    need(frame, "name", "estimate", "low", "high")
    both = "paper" in frame and bool(frame["paper"].notna().any())
    figure, axes = panels(1, 1 + both, 1.1 + 0.42 * len(frame), sharey=True)
    y = np.arange(len(frame), dtype=float)
    _bars(axes[0], frame, y, [COLOURS[0]] * len(frame))
    axes[0].set_yticks(y, [textwrap.fill(_title(str(name)), 22) for name in frame["name"]])
    axes[0].set(ylim=(len(frame) - 0.5, -0.5), xlabel=unit, title=f"here, {OVER_SEEDS}")
    if both:
        axes[1].plot(frame["paper"].to_numpy(dtype=float), y, "D", mfc="none", mec=INK)
        axes[1].set_title("paper (single runs)")
        axes[1].set_xlabel(unit)
    for axis in axes:
        axis.margins(x=0.15)
        if axis.get_xlim()[0] < 0 < axis.get_xlim()[1]:
            axis.axvline(0, color=QUIET, lw=1)
    return figure


def grid(runs: pd.DataFrame, x: str, paper: pd.DataFrame | None = None) -> Figure:
    """Accuracy against a numeric setting (table 5a, 5c, Fig. 5), the paper's curves in a second panel.

    Args:
        runs: one row a run, with a numeric column ``x``.
        x: such as ``r_max``, ``responses`` or ``student_responses``.
        paper: the same column and one column of accuracies in percent for each curve.
    """
    figure, axes = panels(1, 1 if paper is None else 2)
    points = summary(runs, by=x, order=sorted(runs[x].unique()) if x in runs else None)
    _points(axes[0], points["name"].to_numpy(dtype=float), points, COLOURS[0], "-o", "here")
    if paper is not None:
        need(paper, x)
        rows = paper.sort_values(x)
        for index, name in enumerate(column for column in paper.columns if column != x):
            line = f"-{MARKERS[index % len(MARKERS)]}"
            axes[1].plot(rows[x], rows[name], line, color=COLOURS[(index + 1) % 10], label=name)
        axes[1].set_title("paper (single runs)")
        _legend(axes[1])
    for axis in axes:
        axis.set(xlabel=LABELS.get(x, x), ylabel=LABELS["accuracy"])
        if x == "learning_rate":
            axis.set_xscale("log")
    axes[0].set_title(f"here, {OVER_SEEDS}")
    return figure


def reward_distribution(responses: pd.DataFrame, hue: str = "source") -> Figure:
    """Draw both rewards over the responses: the share that is right, and the distillation reward (Eq. 7).

    Args:
        responses: one row per response: ``correct`` (0 or 1), ``reward_distillation`` and ``hue``, such as
            :func:`masters.analysis.groups.rewarded_groups` returns them.
        hue: column that tells who answered.
    """
    need(responses, "correct", "reward_distillation", hue)
    figure, (left, right) = panels(1, 2)
    names, bins = list(dict.fromkeys(responses[hue])), np.linspace(0, 1, 11).tolist()
    for index, name in enumerate(names):
        rows, colour = responses[hue] == name, COLOURS[index % 10]
        left.bar(index, 100 * responses.loc[rows, "correct"].mean(), color=colour, width=0.6)
        values = responses.loc[rows, "reward_distillation"].to_numpy(dtype=float)
        share = np.full(len(values), 100 / max(1, len(values)))
        dash = DASHES[index % 4]
        right.hist(values, bins, weights=share, histtype="step", color=colour, lw=2, ls=dash, label=str(name))
    left.set_xticks(range(len(names)), [textwrap.fill(str(name), 12) for name in names])
    left.set(ylabel="accuracy reward 1 (% of responses)", ylim=(0, 100))
    right.set(xlabel=LABELS["reward_distillation"], ylabel="responses (%)")
    _legend(right)
    return figure


def latency(frame: pd.DataFrame) -> Figure:
    """Fig. 6: inference time a question, with the mean response length beside each bar.

    Args:
        frame: ``arm``, ``seconds_per_question``, ``tokens``.
    """
    need(frame, "arm", "seconds_per_question", "tokens")
    figure, (axis,) = panels(height=1.1 + 0.42 * len(frame))
    y = np.arange(len(frame))
    times = 1000 * frame["seconds_per_question"].to_numpy(dtype=float)
    bars = axis.barh(y, times, color=COLOURS[0], height=0.6)
    axis.bar_label(bars, [f"{tokens:.1f} tokens" for tokens in frame["tokens"]], padding=4, fontsize=10)
    axis.set_yticks(y, [textwrap.fill(_title(str(name)), 22) for name in frame["arm"]])
    axis.set(ylim=(len(frame) - 0.5, -0.5), xlabel="time a question (ms, one thread)")
    axis.set_xlim(0, 1.3 * float(times.max()))
    return figure


def growth(table: pd.DataFrame) -> Figure:
    """Time of a forward and backward pass against what it is made of, with the fitted power of each line.

    Args:
        table: of :func:`benchmarks.growth.measure`; bars reach from the smallest to the largest time.
    """
    need(table, "axis", "value", "way", "seconds", "smallest", "largest")
    names = list(dict.fromkeys(table["axis"]))
    figure, axes = panels(-(-len(names) // 2), 2, 2.9)
    for axis, name in zip(axes, names, strict=False):
        part = table[table["axis"] == name]
        for place, (way, line) in enumerate(part.groupby("way", sort=False)):
            bounds = [line["seconds"] - line["smallest"], line["largest"] - line["seconds"]]
            style = {"color": COLOURS[place], "marker": MARKERS[place], "ls": DASHES[place], "capsize": 3}
            label = f"{way}: power {power_law(line['value'], line['seconds'])[0]:.2f}"
            axis.errorbar(
                line["value"], 1000 * line["seconds"], 1000 * np.array(bounds), label=label, **style
            )
        axis.set(xscale="log", yscale="log", xlabel=name, ylabel="time (ms)")
        axis.set_xticks(sorted(set(part["value"])), minor=False)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(EngFormatter(places=0, sep=""))
            side.set_minor_formatter(NullFormatter())
        axis.legend(frameon=False)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    return figure


def _points(axis: Axes, x: np.ndarray, points: pd.DataFrame, colour: Any, line: str, label: str) -> None:
    y = points["estimate"].to_numpy(dtype=float)
    half = points["high"].to_numpy(dtype=float) - y
    axis.errorbar(x, y, yerr=half, fmt=line, color=colour, capsize=3, label=label)


def _bars(axis: Axes, points: pd.DataFrame, y: np.ndarray, colours: Sequence[Any]) -> None:
    bounds = points[["estimate", "low", "high"]].to_numpy(dtype=float)
    for place, colour, (estimate, low, high) in zip(y, colours, bounds, strict=True):
        axis.plot([low, high], [place, place], "-", color=colour, lw=2.5)
        axis.plot([estimate], [place], "o", color=colour)


def _legend(axis: Axes) -> None:
    if len(axis.get_legend_handles_labels()[1]) > 1:
        axis.legend()


def _half_width(values: np.ndarray) -> float:
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def _title(name: str) -> str:
    try:
        return title(name)
    except ValueError:
        return name  # the name of a model, or one a notebook has already written out
