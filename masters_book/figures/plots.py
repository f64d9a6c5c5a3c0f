"""Figures of the notebooks: a function takes result tables and returns a figure.

Tables come from :mod:`masters.experiments.results`, :mod:`masters_book.analysis` and ``data/``. Accuracies
are fractions in tables and percent in figures. Error bars are 95 % intervals over seeds (Student's t) unless
a docstring says otherwise; a single run has none.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter
from scipy import stats

from masters.masking.schedule import MaskSchedule
from masters_book.claims.significance import power_law
from masters_book.figures.names import title_of
from masters_book.figures.style import (
    COLORS,
    DASHES,
    INK,
    MARKERS,
    QUIET,
    WIDTH,
    Drawing,
    ends,
    line_style,
    panels,
)

OVER_SEEDS = "95 % interval over seeds"
RUNGS = {"student": "base", "mid": "mid", "large": "large"}
LABELS = {
    "learning_rate": "learning rate",
    "step": "training step",
    "loss": "loss (nats per token)",
    "divergence": "divergence from the teacher\n(nats per token)",
    "kl": "KL to the base student\n(nats per token)",
    "effective_samples": "effective samples (share of tokens)",
    "reward_accuracy": "accuracy reward (0 to 1)",
    "reward_distillation": "distillation reward (0 to 1)",
    "accuracy": "accuracy (%)",
    "r_max": "first mask ratio r_max",
    "responses": "responses per question",
    "student_responses": "student's share of 8 responses",
}


def summary(
    runs: pd.DataFrame, by: str = "arm", value: str = "accuracy", order: Sequence[Any] | None = None
) -> pd.DataFrame:
    """Return the mean of a column over seeds with its 95 % interval, one row per group.

    Args:
        runs: one row per run.
        by: column with the groups.
        value: column to average; ``accuracy`` and ``sampled_accuracy`` become percent.
        order: groups to keep, in this order; default: all, in the order of the table.

    Returns:
        Columns ``name``, ``estimate``, ``low``, ``high``, ``runs``; the bounds of a single run are NaN.

    Raises:
        ValueError: a group has no run.
    """
    scale = 100.0 if value in ("accuracy", "sampled_accuracy") else 1.0
    groups = (scale * runs[value].astype(float)).groupby(runs[by], sort=False)
    table = groups.agg(["mean", "sem", "count"])
    table = table if order is None else table.reindex(list(order), fill_value=0)
    if lacking := [name for name in table.index if not table["count"][name]]:
        raise ValueError(f"no run with {by} {lacking[0]!r} to draw: run it or leave it out")
    mean, count = table["mean"], table["count"]
    half = table["sem"] * stats.t.ppf(0.975, count - 1)
    values = {"estimate": mean, "low": mean - half, "high": mean + half, "runs": count}
    return pd.DataFrame(values).rename_axis("name").reset_index()


def samples(rows: Iterable[Mapping[str, Any]]) -> Drawing:
    """Draw images in a grid, each with its answer above and its question below.

    Args:
        rows: each with ``image``, ``question`` and ``answer``, such as a ``datasets.Dataset``.
    """
    shown, columns = (
        list(rows) or [{"image": [[1.0]], "question": "", "answer": "no question has a picture"}],
        4,
    )
    chars = int(WIDTH / columns * 12.5)
    texts = [[textwrap.fill(str(row[name]), chars) for name in ("question", "answer")] for row in shown]
    lines = max(question.count("\n") + answer.count("\n") + 2 for question, answer in texts)
    figure, axes = panels(-(-len(shown) // columns), columns, WIDTH / columns - 0.1 + 0.2 * lines)
    for axis, row, (question, answer) in zip(axes, shown, texts, strict=False):
        axis.imshow(np.asarray(row["image"]), interpolation="nearest")
        # Text from data may hold dollar signs that are no formula.
        axis.set_title(answer, fontweight="bold", pad=4, parse_math=False)
        axis.set_xlabel(question, parse_math=False)
        axis.set(xticks=[], yticks=[])
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    figure.alt = "Images with question and answer: " + " ".join(
        f"{row['question']} {row['answer']}." for row in shown
    )
    figure.caption = "Pictures as the models see them: the label above, the question below."
    return figure


def size_accuracy(
    table: pd.DataFrame, runs: pd.DataFrame, arms: Sequence[str] = (), blind: float | None = None
) -> Drawing:
    """Draw accuracy vs. parameters (Fig. 1): a line for the ladder, a point for each distilled student.

    Args:
        table: the models, with ``model`` and ``parameters``.
        runs: runs of the ladder's arms and of ``arms``.
        arms: distilled students.
        blind: accuracy in percent of the blind baseline (:mod:`masters_book.analysis.blind`), drawn as a
        line.
    """
    figure, (axis,) = panels()
    size = table.set_index("model")["parameters"].astype(float)
    names = [model for model in RUNGS if model in size.index]
    rungs = summary(runs, order=[RUNGS[name] for name in names])
    x = size[names].to_numpy()
    _points(axis, x, rungs, COLORS[0], "-o", "models of the ladder")
    for name, where, y in zip(names, x, rungs["estimate"], strict=True):
        axis.annotate(name, (where, y), (9, -15), textcoords="offset points")
    students = summary(runs, order=arms) if arms else rungs.iloc[:0]
    for index, row in enumerate(students.to_dict("records")):
        place, marker = np.array([size["student"]]), MARKERS[(index + 1) % len(MARKERS)]
        _points(axis, place, pd.DataFrame([row]), COLORS[(index + 1) % 10], marker, title_of(row["name"]))
    axis.set(xscale="log", xlabel="parameters", ylabel=f"{LABELS['accuracy']}, {OVER_SEEDS}")
    axis.margins(0.15)
    if blind is not None:
        axis.axhline(blind, color=QUIET, ls="--", label="blind: the question's text alone")
    if arms or blind is not None:
        axis.legend(loc="lower right")
    blindly = "" if blind is None else f" Blind: {blind:.1f}."
    figure.alt = f"Accuracy in percent by model size. {_values(pd.concat([rungs, students]))}{blindly}"
    figure.caption = f"Accuracy on test questions by number of parameters; bars: {OVER_SEEDS}."
    return figure


def training_curves(log: pd.DataFrame, y: str = "loss", hue: str = "arm") -> Drawing:
    """Draw a logged quantity over training (Fig. 2b, 2c): the mean over seeds with its 95 % interval.

    Args:
        log: one row per logged step.
        y: the quantity; steps without it are left out.
        hue: column with the lines' names.
    """
    figure, (axis,) = panels()
    lines = []
    for index, (name, rows) in enumerate(log.dropna(subset=[y]).groupby(hue, sort=False)):
        steps = summary(rows, by="step", value=y, order=sorted(rows["step"].unique()))
        at, color = steps["name"].to_numpy(dtype=float), COLORS[index % 10]
        low, mean, high = (steps[column].to_numpy() for column in ("low", "estimate", "high"))
        axis.plot(at, mean, DASHES[index % 4], color=color, label=title_of(str(name)))
        axis.fill_between(at, low, high, color=color, alpha=0.15, lw=0)
        lines.append(ends(title_of(str(name)), at, mean))
    axis.set(xlabel=LABELS["step"], ylabel=LABELS.get(y, y), title=f"band: {OVER_SEEDS}")
    _legend(axis)
    figure.alt = f"{_label(y)} by training step. {'; '.join(lines)}."
    named = _label(y)
    figure.caption = (
        f"{named[0].upper()}{named[1:]} by training step: lines are means over seeds; bands: {OVER_SEEDS}."
    )
    return figure


def masked_accuracy(frame: pd.DataFrame) -> Drawing:
    """Draw the accuracy of masked models vs. the mask ratio, over all tasks.

    Error bars are 95 % Wilson intervals over questions: there is one model of each kind.

    Args:
        frame: ``model``, ``ratio``, ``task``, ``accuracy``, ``questions``.
    """
    figure, (axis,) = panels()
    correct = frame.assign(correct=frame["accuracy"] * frame["questions"])
    lines = []
    for index, (model, rows) in enumerate(correct.groupby("model", sort=False)):
        total = rows.groupby("ratio")[["correct", "questions"]].sum()
        mean = (total["correct"] / total["questions"]).to_numpy()
        low, high = _wilson(mean, total["questions"].to_numpy())
        points = 100 * pd.DataFrame({"estimate": mean, "low": low, "high": high})
        x = total.index.to_numpy(dtype=float)
        _points(
            axis, x, points, COLORS[index % 10], f"-{MARKERS[index % len(MARKERS)]}", title_of(str(model))
        )
        lines.append(ends(title_of(str(model)), x, 100 * mean))
    axis.set(xlabel="mask ratio r (share of each layer's weights set to zero)", ylabel=LABELS["accuracy"])
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylim(bottom=0)
    _legend(axis)
    figure.alt = f"Accuracy in percent by mask ratio. {'; '.join(lines)}."
    figure.caption = (
        "Accuracy of masked models over all tasks; bars: 95 % intervals over questions, of one model each."
    )
    return figure


def schedule(r_max: float, step: float, iterations: int) -> Drawing:
    """Draw the mask ratio over training (Fig. 2a): a staircase from r_max down to 0 (Eq. 3)."""
    mask = MaskSchedule(r_max, step)
    ratios = [mask.ratio_at(iteration, iterations) for iteration in range(iterations)]
    figure, (axis,) = panels(height=3.0)
    axis.step([*range(iterations), iterations], [*ratios, ratios[-1]], where="post", color=COLORS[0])
    axis.set(xlabel=LABELS["step"], ylabel="mask ratio r", xlim=(0, iterations))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    steps = ", ".join(f"{ratio:g}" for ratio in mask.ratios)
    figure.alt = f"Mask ratio over {iterations} training steps, in equal stages: {steps}."
    figure.caption = "The teacher's mask ratio by training step (Eq. 3)."
    return figure


def effects(frame: pd.DataFrame, unit: str = "accuracy (%)") -> Drawing:
    """Draw arms as points with intervals, and the paper's values in a second panel if there are any.

    Args:
        frame: ``name``, ``estimate``, ``low``, ``high`` (see :func:`summary`), and ``paper`` if known, NaN
            where the paper has no such arm.
        unit: label of the horizontal axes.
    """
    both = "paper" in frame and bool(frame["paper"].notna().any())
    figure, axes = panels(1, 1 + both, 1.1 + 0.42 * len(frame), sharey=True)
    y = np.arange(len(frame), dtype=float)
    for place, row in zip(y, frame.to_dict("records"), strict=True):
        axes[0].plot([row["low"], row["high"]], [place, place], "-", color=COLORS[0], lw=2.5)
        axes[0].plot([row["estimate"]], [place], "o", color=COLORS[0])
    _rows(axes[0], frame["name"])
    axes[0].set(xlabel=unit, title=f"here, {OVER_SEEDS}")
    figure.alt = f"Arms by {unit}. {_values(frame)}"
    figure.caption = f"Means over seeds; lines: {OVER_SEEDS}."
    if both:
        axes[1].plot(frame["paper"].to_numpy(dtype=float), y, "D", mfc="none", mec=INK)
        axes[1].set(title="paper (single runs)", xlabel=unit)
        figure.alt += f" Paper: {_values(frame.assign(estimate=frame['paper']).dropna(subset='paper'))}"
        figure.caption = f"Left: means over seeds; lines: {OVER_SEEDS}. Right: the paper's single runs."
    for axis in axes:
        axis.margins(x=0.15)
        if axis.get_xlim()[0] < 0 < axis.get_xlim()[1]:
            axis.axvline(0, color=QUIET, lw=1)
    return figure


def grid(runs: pd.DataFrame, x: str, paper: pd.DataFrame | None = None) -> Drawing:
    """Draw accuracy vs. a numeric setting (table 5a, 5c, Fig. 5), the paper's curves in a second panel.

    Args:
        runs: one row per run, with a numeric column ``x``.
        x: such as ``r_max``, ``responses`` or ``student_responses``.
        paper: the same column and one column of accuracies in percent per curve.
    """
    figure, axes = panels(1, 1 if paper is None else 2)
    points = summary(runs, by=x, order=sorted(runs[x].unique()))
    at = points["name"].to_numpy(dtype=float)
    _points(axes[0], at, points, COLORS[0], "-o", "here")
    lines = [ends("here", at, points["estimate"])]
    if paper is not None:
        rows = paper.sort_values(x)
        for index, name in enumerate(column for column in paper.columns if column != x):
            line = f"-{MARKERS[index % len(MARKERS)]}"
            axes[1].plot(rows[x], rows[name], line, color=COLORS[(index + 1) % 10], label=name)
            lines.append(ends(f"paper, {name}", rows[x], rows[name]))
        axes[1].set_title("paper (single runs)")
        _legend(axes[1])
    for axis in axes:
        axis.set(xlabel=LABELS.get(x, x), ylabel=LABELS["accuracy"])
        if x == "learning_rate":
            axis.set_xscale("log")
    axes[0].set_title(f"here, {OVER_SEEDS}")
    figure.alt = f"Accuracy in percent by {_label(x)}. {'; '.join(lines)}."
    figure.caption = f"Accuracy by {_label(x)}; bars: {OVER_SEEDS}."
    if paper is not None:
        figure.caption += " Right: the paper's single runs."
    return figure


def reward_distribution(responses: pd.DataFrame) -> Drawing:
    """Draw both rewards: the share of correct responses, and the distillation reward (Eq. 7) as a histogram.

    Args:
        responses: one row per response: ``correct`` (0 or 1), ``reward_distillation`` and ``source``, from
            :func:`masters_book.analysis.groups.rewarded_groups`.
    """
    figure, (left, right) = panels(1, 2)
    names, bins = list(dict.fromkeys(responses["source"])), np.linspace(0, 1, 11).tolist()
    said = []
    for index, name in enumerate(names):
        rows, color = responses[responses["source"] == name], COLORS[index % 10]
        correct = 100 * rows["correct"].mean()
        left.bar(index, correct, color=color, width=0.6)
        words = title_of(str(name))
        values = rows["reward_distillation"].to_numpy(dtype=float)
        share = np.full(len(values), 100 / max(1, len(values)))
        dash = DASHES[index % 4]
        right.hist(values, bins, weights=share, histtype="step", color=color, lw=2, ls=dash, label=words)
        said.append(f"{words}: {correct:.1f} % correct, mean distillation reward {values.mean():.2f}")
    left.set_xticks(range(len(names)), [textwrap.fill(title_of(str(name)), 12) for name in names])
    left.set(ylabel="accuracy reward 1 (% of responses)", ylim=(0, 100))
    right.set(xlabel=LABELS["reward_distillation"], ylabel="responses (%)")
    _legend(right)
    figure.alt = f"Rewards of responses by source. {'; '.join(said)}."
    figure.caption = (
        "Left: share of responses judged correct. Right: their distillation rewards (Eq. 7). No intervals."
    )
    return figure


def latency(frame: pd.DataFrame) -> Drawing:
    """Draw the inference time per question (Fig. 6), with the mean response length beside each bar.

    Args:
        frame: ``arm``, ``seconds_per_question``, ``tokens``.
    """
    figure, (axis,) = panels(height=1.1 + 0.42 * len(frame))
    times = 1000 * frame["seconds_per_question"].to_numpy(dtype=float)
    bars = axis.barh(np.arange(len(frame)), times, color=COLORS[0], height=0.6)
    axis.bar_label(bars, [f"{tokens:.1f} tokens" for tokens in frame["tokens"]], padding=4, fontsize=10)
    _rows(axis, frame["arm"])
    axis.set(xlabel="time per question (ms, one thread)", xlim=(0, 1.3 * float(times.max())))
    figure.alt = f"Milliseconds per question. {_values(frame.assign(name=frame['arm'], estimate=times))}"
    figure.caption = "Time per question on one thread, with the mean length of an answer; no intervals."
    return figure


def growth(table: pd.DataFrame) -> Drawing:
    """Draw the time of a forward and backward pass vs. each size it depends on, with fitted powers.

    Args:
        table: ``data/results/growth.csv``, written by ``make bench``; error bars span the measured times.
    """
    names = list(dict.fromkeys(table["axis"]))
    figure, axes = panels(-(-len(names) // 2), 2, 2.9)
    powers = []
    for axis, name in zip(axes, names, strict=False):
        part = table[table["axis"] == name]
        for place, (way, line) in enumerate(part.groupby("way", sort=False)):
            bounds = [line["seconds"] - line["smallest"], line["largest"] - line["seconds"]]
            style = {"color": COLORS[place], "fmt": line_style(place), "capsize": 3}
            label = f"{way}: power {power_law(line['value'], line['seconds'])[0]:.2f}"
            axis.errorbar(
                line["value"], 1000 * line["seconds"], 1000 * np.array(bounds), label=label, **style
            )
            powers.append(f"{name}, {label}")
        axis.set(xscale="log", yscale="log", xlabel=name, ylabel="time (ms)")
        axis.set_xticks(sorted(set(part["value"])), minor=False)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(EngFormatter(places=0, sep=""))
            side.set_minor_formatter(NullFormatter())
        axis.legend(frameon=False)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    figure.alt = f"Time of a forward and backward pass. {'; '.join(powers)}."
    figure.caption = (
        "Time of a forward and backward pass by each size it depends on; bars: all measured times."
    )
    return figure


def _points(axis: Axes, x: np.ndarray, points: pd.DataFrame, color: Any, line: str, label: str) -> None:
    low, y, high = (points[column].to_numpy(dtype=float) for column in ("low", "estimate", "high"))
    half = np.maximum(0, [y - low, high - y])  # rounding may put a bound on the other side
    axis.errorbar(x, y, yerr=half, fmt=line, color=color, capsize=3, label=label)


def _wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of Wilson's 95 % interval of a share of n, which has a width at 0 and 1 too."""
    z = 1.96
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def _rows(axis: Axes, names: Iterable[object]) -> None:
    """Label one row per arm, the first at the top."""
    words = [textwrap.fill(title_of(str(name)), 22) for name in names]
    axis.set_yticks(np.arange(len(words)), words)
    axis.set_ylim(len(words) - 0.5, -0.5)


def _legend(axis: Axes) -> None:
    if len(axis.get_legend_handles_labels()[1]) > 1:
        axis.legend()


def _values(points: pd.DataFrame) -> str:
    pairs = zip(points["name"], points["estimate"], strict=True)
    return ", ".join(f"{title_of(str(name))} {value:.1f}" for name, value in pairs) + "."


def _label(column: str) -> str:
    return " ".join(LABELS.get(column, column).split())
