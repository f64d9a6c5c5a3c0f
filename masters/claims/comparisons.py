"""Two arms compared on the seeds and questions that both have.

A comparison gives an effect with its interval: of the greedy answers, question by question, and of the
sampled answers, seed by seed. What an effect means for a claim is decided in :mod:`masters.claims.verdicts`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from masters.claims.evidence import Evidence
from masters.claims.statistics import Interval, mean_interval, paired_difference

# Names of one and the same run.
SAME_RUN = {"naive_rewards": ("r_max=0", "r_max=0.0")}
UNITS = {"accuracy": "points", "tokens": "percent", "cost": "times", "cost as run": "times"}
# Columns of a table of effects.
PAIR = ["id", "treatment", "control", "metric"]
EFFECT = ["effect", "effect_low", "effect_high", "freedom", "seeds"]
SAMPLED = ["sampled", "sampled_low", "sampled_high"]
COLUMNS = [*PAIR, *EFFECT, *SAMPLED, "gap"]


@dataclass(frozen=True)
class Comparison:
    """Two arms and how they are compared.

    Attributes:
        treatment: name of an arm.
        control: name of the other arm.
        paper: the paper's matched effect; None where it gives no figure.
        metric: the score. ``cost`` is the treatment's cost over the control's with both at this project's
            rates, ``cost as run`` the same in measured seconds.
        role: ``decides``: the claim needs it; ``where run``: it decides too where both arms were run;
            ``shown``: it stands beside the verdict and is no part of it.
        note: what the two arms differ in beyond the claim, for the reader.
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


def measure(
    predictions: pd.DataFrame,
    pairs: Iterable[tuple[str, Comparison]],
    resamples: int,
    runs: pd.DataFrame | None = None,
    costs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the effects of those comparisons whose arms were both run.

    Args:
        predictions: greedy answers, see :func:`paired_scores`.
        pairs: comparisons, each with an id that the row keeps.
        resamples: bootstrap resamples per interval.
        runs: one row per run (arm, seed, sampled_accuracy); without it there are no sampled effects.
        costs: one row per run (arm, seed, total, total_equal), in seconds; without it costs are not compared.

    Returns:
        One row per comparison with :data:`COLUMNS`: effect and interval in the unit of the metric, the
        degrees of freedom behind the interval, the number of shared seeds; for accuracies also the effect on
        sampled answers in points (Student's t over seeds alone), and ``gap``, the points between the base
        student and the large teacher. NaN where there is none.

    Raises:
        ValueError: as :func:`paired_scores`.
    """
    gap, rows = capacity_gap(predictions), []
    # By arm, since a study has millions of answers.
    of_arm = {str(arm): answers for arm, answers in predictions.groupby("arm", observed=True)}
    for name, pair in pairs:
        arms = [_present(arm, set(of_arm)) for arm in (pair.treatment, pair.control)]
        answers = [of_arm[arm] for arm in arms if arm is not None]
        both = pd.concat(answers) if answers else predictions.iloc[:0]
        found = measured_with_seeds(both, pair, resamples, costs=costs)
        if found is None:
            continue
        effect, seeds = found
        sampled = None
        if pair.metric == "accuracy" and runs is not None:
            sampled = sampled_effect(runs, pair)
        others = "student=" in pair.treatment + pair.control or pair.metric != "accuracy"
        values = [*effect, seeds, *(sampled or [np.nan] * 4)[:3], np.nan if others else gap]
        rows.append([name, pair.treatment, pair.control, pair.metric, *values])
    return pd.DataFrame(rows, columns=COLUMNS)


def read_effects(path: Path) -> pd.DataFrame:
    """Read a table of effects that :func:`measure` returned.

    Raises:
        ValueError: the file lacks a column, or a number is none.
    """
    table = pd.read_csv(path, dtype=dict.fromkeys(PAIR, str), keep_default_na=False)
    if lacking := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"{path} has no column {', '.join(lacking)}: restore it with git, or delete it")
    try:
        numbers = {name: pd.to_numeric(table[name]) for name in COLUMNS if name not in PAIR}
    except ValueError as error:
        raise ValueError(f"{path}: {error}; restore it with git, or delete it") from None
    return table.assign(**numbers)


def capacity_gap(predictions: pd.DataFrame) -> float:
    """Return how many points the large teacher scores above the base student, on shared seeds; or NaN."""
    greedy = predictions[predictions["mode"] == "greedy"]
    means = greedy[greedy["arm"].isin(["large", "base"])].groupby(["seed", "arm"])["correct"].mean().unstack()
    if not {"large", "base"} <= set(means):
        return float("nan")
    return float(100 * (means["large"] - means["base"]).mean())


def paired_scores(
    predictions: pd.DataFrame, treatment: str, control: str, metric: str = "accuracy"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the greedy scores of two arms on the seeds and questions that both have.

    A seed of a study is a replicate with models of its own, so no run stands in for that of another seed.

    Args:
        predictions: one row per run, question and mode, see ``masters.experiments.lab``.
        treatment: name of an arm.
        control: name of the other arm.
        metric: ``accuracy`` (0 or 1) or ``tokens`` (length of the response).

    Returns:
        Both arms' scores ``(seeds, questions)`` and the task of each question ``(questions,)``.

    Raises:
        ValueError: an arm has no greedy predictions or two for one question, or the arms share none.
    """
    value = {"accuracy": "correct", "tokens": "tokens"}[metric]
    wide = []
    for arm in (treatment, control):
        rows = predictions[(predictions["arm"] == arm) & (predictions["mode"] == "greedy")]
        if rows.empty:
            raise ValueError(f"no greedy predictions of arm {arm!r}: run it before comparing it")
        if rows.duplicated(["seed", "task", "question"]).any():
            raise ValueError(f"arm {arm!r} has two predictions of one question with one seed; drop one")
        wide.append(rows.pivot(index="seed", columns=["task", "question"], values=value).astype(np.float64))
    # Sorted, so that the order of the rows cannot change an interval.
    wide = [table.sort_index(axis=0).sort_index(axis=1) for table in wide]
    first, second = wide
    columns = first.columns.intersection(second.columns)
    seeds = first.index.intersection(second.index)
    if columns.empty or seeds.empty:
        raise ValueError(f"arms {treatment!r} and {control!r} share no seed or no question: run both alike")
    tasks = columns.get_level_values("task").to_numpy(dtype=str)
    return first.loc[seeds, columns].to_numpy(), second.loc[seeds, columns].to_numpy(), tasks


def measured(
    predictions: pd.DataFrame, comparison: Comparison, resamples: int, seed: int = 0
) -> Interval | None:
    """Return the effect of one comparison with its 95 % interval; None if no seed has both arms.

    Raises:
        ValueError: as ``paired_scores``.
    """
    found = measured_with_seeds(predictions, comparison, resamples, seed)
    return found and found[0]


def measured_with_seeds(
    predictions: pd.DataFrame,
    comparison: Comparison,
    resamples: int,
    seed: int = 0,
    costs: pd.DataFrame | None = None,
) -> tuple[Interval, int] | None:
    """Return the effect of one comparison with its 95 % interval, and the number of seeds behind it.

    In points for accuracy; for tokens in percent of the control's mean length, which is taken as known; for
    cost as a ratio, whose interval is over seeds alone (Student's t).

    Args:
        predictions: of the runs, as for ``paired_scores``.
        comparison: two arms and a metric.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.
        costs: see :func:`measure`.

    Returns:
        None if no seed has both arms, or fewer than two have their costs.

    Raises:
        ValueError: as ``paired_scores``.
    """
    if comparison.unit == "times":
        return None if costs is None else _times(costs, comparison)
    greedy = predictions[predictions["mode"] == "greedy"]
    names = [_present(arm, set(greedy["arm"])) for arm in (comparison.treatment, comparison.control)]
    if names[0] is None or names[1] is None:
        return None
    first, second = (set(greedy.loc[greedy["arm"] == name, "seed"]) for name in names)
    if first.isdisjoint(second):
        return None
    a, b, tasks = paired_scores(predictions, names[0], names[1], comparison.metric)
    scale = 100.0 / float(b.mean()) if comparison.metric == "tokens" else 100.0
    return paired_difference(a, b, tasks, resamples, seed).scaled(scale), len(a)


def sampled_effect(runs: pd.DataFrame, comparison: Comparison) -> Interval | None:
    """Return the difference of two arms' sampled accuracies in points, with Student's t over their seeds.

    Of sampled answers a run keeps the mean alone, so the interval does not cover other questions.

    Args:
        runs: one row per run: arm, seed, sampled_accuracy.
        comparison: two arms.

    Returns:
        None if fewer than two seeds have both arms.
    """
    names = [_present(arm, set(runs["arm"])) for arm in (comparison.treatment, comparison.control)]
    if names[0] is None or names[1] is None:
        return None
    first, second = (runs[runs["arm"] == name].set_index("seed")["sampled_accuracy"] for name in names)
    differences = (first - second).dropna().to_numpy(dtype=np.float64)
    return mean_interval(differences[:, None]).scaled(100) if len(differences) > 1 else None


def _present(arm: str, arms: set[str]) -> str | None:
    return next((name for name in (arm, *SAME_RUN.get(arm, ())) if name in arms), None)


def _times(costs: pd.DataFrame, comparison: Comparison) -> tuple[Interval, int] | None:
    column = "total_equal" if comparison.metric == "cost" else "total"
    total = costs.pivot(index="seed", columns="arm", values=column).astype(np.float64)
    if not {comparison.treatment, comparison.control} <= set(total.columns):
        return None
    ratios = (total[comparison.treatment] / total[comparison.control]).dropna().to_numpy()
    return (mean_interval(ratios[:, None]), len(ratios)) if len(ratios) > 1 else None
