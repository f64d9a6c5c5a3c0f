"""Comparisons of two arms on the seeds and questions that both have.

A comparison gives an effect with its interval: of the greedy answers, question by question, and of the
sampled answers, seed by seed. :mod:`masters_book.claims.verdicts` decides what an effect means for a claim.
"""

import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from masters_book.claims.evidence import Evidence
from masters_book.claims.statistics import RESAMPLES, Interval, mean_interval
from masters_book.results.tables import COUNT, NUMBER, TEXT, Number, Schema, Text

# Other names of the same run.
SAME_RUN = {"naive_rewards": ("r_max=0", "r_max=0.0")}
UNITS = {"accuracy": "points", "tokens": "percent", "cost": "times", "cost as run": "times"}
# Columns of a table of effects.
PAIR = ["id", "treatment", "control", "metric"]
EFFECT = ["effect", "effect_low", "effect_high", "freedom", "seeds"]
SAMPLED = ["sampled", "sampled_low", "sampled_high"]
COLUMNS = [*PAIR, *EFFECT, *SAMPLED, "gap"]
EFFECTS = Schema(
    dict.fromkeys(PAIR, TEXT)
    | dict.fromkeys(EFFECT, NUMBER)
    | {"metric": Text(choices=tuple(UNITS)), "freedom": Number(low=0, high=math.inf), "seeds": COUNT}
    | dict.fromkeys((*SAMPLED, "gap"), Number(optional=True)),
    tuple(PAIR),
)


@dataclass(frozen=True)
class Comparison:
    """Two arms and the metric that compares them.

    Attributes:
        treatment: name of an arm.
        control: name of the other arm.
        paper: the paper's matched effect; None where it gives no number.
        metric: ``tokens`` is the response length. ``cost`` is the treatment's cost over the control's, both
            at this project's rates; ``cost as run`` is the same ratio in measured seconds.
        role: ``decides``: the claim needs it; ``where run``: it also decides where both arms were run;
            ``shown``: it is shown beside the verdict and does not affect it.
        note: what else differs between the arms, as shown to the reader.
    """

    treatment: str
    control: str
    paper: Evidence | None = None
    metric: Literal["accuracy", "tokens", "cost", "cost as run"] = "accuracy"
    role: Literal["decides", "where run", "shown"] = "decides"
    note: str = ""

    @property
    def unit(self) -> str:
        """Unit of the effect: points of accuracy, percent of the control, or times the control."""
        return UNITS[self.metric]

    def names_among(self, arms: set[str]) -> tuple[str, str] | None:
        """Return the names that treatment and control have among ``arms``; None if one is missing."""
        names = [name_among(arm, arms) for arm in (self.treatment, self.control)]
        return None if names[0] is None or names[1] is None else (names[0], names[1])


def name_among(arm: str, arms: Container[str]) -> str | None:
    """Return the name that an arm has among ``arms``; None if it is not there."""
    return next((name for name in (arm, *SAME_RUN.get(arm, ())) if name in arms), None)


def measure(
    predictions: pd.DataFrame,
    pairs: Iterable[tuple[str, Comparison]],
    resamples: int,
    runs: pd.DataFrame | None = None,
    costs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the effects of those comparisons whose arms were both run.

    Args:
        predictions: answers, see :func:`paired_effect`.
        pairs: comparisons, each with the id for its row.
        resamples: bootstrap resamples per interval.
        runs: one row per run (arm, seed, sampled_accuracy); without it there are no sampled effects.
        costs: one row per run (arm, seed, total, total_equal), in seconds; without it costs are not compared.

    Returns:
        One row per comparison with :data:`COLUMNS`: effect and interval in the unit of the metric, the
        degrees of freedom of the interval, and the number of shared seeds. For accuracies also the effect on
        sampled answers in points (Student's t over seeds alone), and ``gap``, the points between the base
        student and the large teacher. NaN elsewhere.

    Raises:
        ValueError: as :func:`paired_effect`.
    """
    gap, rows = _capacity_gap(predictions), []
    # Split by arm once, because a study has millions of answers.
    by_arm = {str(arm): answers for arm, answers in predictions.groupby("arm", observed=True)}
    for name, pair in pairs:
        if pair.unit == "times":
            found = None if costs is None else _cost_ratio(costs, pair)
        else:
            arms = pair.names_among(set(by_arm))
            found = arms and paired_effect(by_arm[arms[0]], by_arm[arms[1]], resamples, pair.metric)
        if found is None:
            continue
        effect, seeds = found
        sampled = sampled_effect(runs, pair) if pair.metric == "accuracy" and runs is not None else None
        no_gap = "student=" in pair.treatment + pair.control or pair.metric != "accuracy"
        values = [*effect, seeds, *(sampled or [np.nan] * 4)[:3], np.nan if no_gap else gap]
        rows.append([name, pair.treatment, pair.control, pair.metric, *values])
    return pd.DataFrame(rows, columns=COLUMNS)


def measured(predictions: pd.DataFrame, comparison: Comparison) -> Interval | None:
    """Return the effect of one comparison with its 95 % interval; None if no seed has both arms.

    Raises:
        ValueError: as :func:`paired_effect`.
    """
    arms = comparison.names_among(set(predictions["arm"]))
    if arms is None:
        return None
    treatment, control = (predictions[predictions["arm"] == arm] for arm in arms)
    found = paired_effect(treatment, control, RESAMPLES, comparison.metric)
    return found and found[0]


def interval_table(effects: Mapping[Any, Interval | None], what: str) -> pd.DataFrame:
    """Return effects as a table for a notebook, rounded to one decimal; NaN where an effect was not measured.

    Args:
        effects: results of :func:`measured`, by row.
        what: heading of the estimates.
    """
    rows = {name: effect[:3] if effect else [np.nan] * 3 for name, effect in effects.items()}
    return pd.DataFrame(rows, index=[what, "low", "high"]).T.astype(float).round(1)


def paired_effect(
    treatment: pd.DataFrame, control: pd.DataFrame, resamples: int, metric: str = "accuracy"
) -> tuple[Interval, int] | None:
    """Return the effect between two arms with its 95 % interval, and the number of shared seeds.

    It is measured on the greedy answers to the questions, and with the seeds, that both arms have. Each seed
    of a study is a replicate with its own models, so only runs of the same seed are compared.

    Args:
        treatment: answers of one arm, one row per run, question and mode: seed, task, question, mode,
            correct, tokens (``masters.experiments.results``).
        control: answers of the other arm.
        resamples: bootstrap resamples.
        metric: ``accuracy``: the effect is in points; ``tokens``: the length of the response, and the effect
            is in percent of the control's mean, which is treated as known.

    Returns:
        None if no seed has both arms.

    Raises:
        ValueError: an arm has two answers to one question with one seed.
    """
    value, tables = {"accuracy": "correct", "tokens": "tokens"}[metric], []
    for answers in (treatment, control):
        greedy = answers[answers["mode"] == "greedy"]
        if greedy.duplicated(["seed", "task", "question"]).any():
            arm = greedy["arm"].iloc[0]
            raise ValueError(f"arm {arm!r} has two predictions of one question with one seed; drop one")
        table = greedy.pivot(index="seed", columns=["task", "question"], values=value).astype(np.float64)
        # Sorted, so that the order of the rows cannot change an interval.
        tables.append(table.sort_index(axis=0).sort_index(axis=1))
    questions = tables[0].columns.intersection(tables[1].columns)
    seeds = tables[0].index.intersection(tables[1].index)
    if questions.empty or seeds.empty:
        return None
    first, second = (table.loc[seeds, questions].to_numpy() for table in tables)
    scale = 100.0 / float(second.mean()) if metric == "tokens" else 100.0
    return mean_interval(*_by_picture(first - second, questions), resamples).scaled(scale), len(seeds)


def _by_picture(differences: np.ndarray, questions: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Return differences with a column per picture, ``(seeds, pictures)``, and the task of each picture.

    Questions about one picture are not independent, so an interval counts and resamples pictures. Their mean
    is that of the questions, as a picture weighs as much as it has questions. The id of a built-in question
    is that of its picture and a number; any other question counts as a picture.
    """
    pictures = [(str(task), re.sub(r"-\d+$", "", str(question))) for task, question in questions]
    rows = pd.DataFrame(differences.T, pd.MultiIndex.from_tuples(pictures))
    sums = rows.groupby(level=[0, 1], sort=False).sum()
    tasks = sums.index.get_level_values(0).to_numpy(dtype=str)
    return sums.to_numpy().T * (len(sums) / len(questions)), tasks


def sampled_effect(runs: pd.DataFrame, comparison: Comparison) -> Interval | None:
    """Return the difference of two arms' sampled accuracies in points, with Student's t over their seeds.

    A run keeps only the mean of its sampled answers, so the interval does not cover other questions.

    Args:
        runs: one row per run: arm, seed, sampled_accuracy.
        comparison: two arms; its metric is ignored.

    Returns:
        None if fewer than two seeds have both arms.
    """
    names = comparison.names_among(set(runs["arm"]))
    if names is None:
        return None
    first, second = (runs[runs["arm"] == name].set_index("seed")["sampled_accuracy"] for name in names)
    differences = (first - second).dropna().to_numpy(dtype=np.float64)
    return mean_interval(differences[:, None]).scaled(100) if len(differences) > 1 else None


def _capacity_gap(predictions: pd.DataFrame) -> float:
    """Return how many points the large teacher scores above the base student on shared seeds, or NaN."""
    greedy = predictions[predictions["mode"] == "greedy"]
    means = greedy[greedy["arm"].isin(["large", "base"])].groupby(["seed", "arm"])["correct"].mean().unstack()
    if not {"large", "base"} <= set(means):
        return float("nan")
    return float(100 * (means["large"] - means["base"]).mean())


def _cost_ratio(costs: pd.DataFrame, comparison: Comparison) -> tuple[Interval, int] | None:
    column = "total_equal" if comparison.metric == "cost" else "total"
    total = costs.pivot(index="seed", columns="arm", values=column).astype(np.float64)
    if not {comparison.treatment, comparison.control} <= set(total.columns):
        return None
    ratios = (total[comparison.treatment] / total[comparison.control]).dropna().to_numpy()
    return (mean_interval(ratios[:, None]), len(ratios)) if len(ratios) > 1 else None
