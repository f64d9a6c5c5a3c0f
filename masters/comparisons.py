"""Two arms compared: on the questions and seeds that both have, and nothing else.

What a difference means for a claim is not said here but in :mod:`masters.verdicts`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from masters.evidence import Evidence
from masters.statistics import Interval, mean_interval, paired_difference

# Names of one and the same run.
SAME_RUN = {"naive_rewards": ("r_max=0", "r_max=0.0")}


@dataclass(frozen=True)
class Comparison:
    """Two arms and how they are compared.

    Attributes:
        treatment: name of an arm.
        control: name of the other.
        paper: its evidence, None where it only plots.
        metric: the score; ``cost`` is how many times the control's cost the treatment costs.
        where_run: counts where both arms were run, and is no reason to call the claim not tested otherwise.
    """

    treatment: str
    control: str
    paper: Evidence | None = None
    metric: Literal["accuracy", "tokens", "cost"] = "accuracy"
    where_run: bool = False


def paired_scores(
    predictions: pd.DataFrame, treatment: str, control: str, metric: str = "accuracy"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Greedy scores of two arms on the seeds and questions both have.

    A seed of a study is a replicate with models of its own, so no run stands in for that of another seed.

    Args:
        predictions: one row a run, question and mode, see ``masters.experiments``.
        treatment: name of an arm.
        control: name of the other.
        metric: ``accuracy`` (0 or 1) or ``tokens`` (of the response).

    Returns:
        Both arms' scores ``(seeds, questions)`` and the task of each question ``(questions,)``.

    Raises:
        ValueError: an arm has no greedy predictions or two of one question, or they share none.
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
    """The effect of one comparison with its 95 % interval; None if no seed has both arms.

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
    """The effect of one comparison with its 95 % interval, and the number of seeds behind it.

    In points for accuracy; for tokens in percent of the control's mean length, which is taken as known; for
    cost as a ratio, whose interval is of seeds alone (Student's t).

    Args:
        predictions: of the runs, as for ``paired_scores``.
        comparison: of two arms.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        costs: one row a run: arm, seed, total (seconds, its responses included).

    Returns:
        None if no seed has both arms, or fewer than two have their costs.

    Raises:
        ValueError: as ``paired_scores``.
    """
    if comparison.metric == "cost":
        return None if costs is None else _times(costs, comparison)
    greedy = predictions[predictions["mode"] == "greedy"]
    present = set(greedy["arm"])
    names = [
        next((name for name in (arm, *SAME_RUN.get(arm, ())) if name in present), None)
        for arm in (comparison.treatment, comparison.control)
    ]
    if names[0] is None or names[1] is None:
        return None
    first, second = (set(greedy.loc[greedy["arm"] == name, "seed"]) for name in names)
    if first.isdisjoint(second):
        return None
    a, b, tasks = paired_scores(predictions, names[0], names[1], comparison.metric)
    scale = 100.0 / float(b.mean()) if comparison.metric == "tokens" else 100.0
    effect = paired_difference(a, b, tasks, resamples, seed)
    return Interval(*(scale * bound for bound in effect)), len(a)


def _times(costs: pd.DataFrame, comparison: Comparison) -> tuple[Interval, int] | None:
    total = costs.pivot(index="seed", columns="arm", values="total").astype(np.float64)
    if not {comparison.treatment, comparison.control} <= set(total.columns):
        return None
    ratios = (total[comparison.treatment] / total[comparison.control]).dropna().to_numpy()
    return (mean_interval(ratios[:, None]), len(ratios)) if len(ratios) > 1 else None
