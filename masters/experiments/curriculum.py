"""Which question is seen when, from which teacher at which mask ratio, with whose responses (Eq. 3, 5).

Fixed before a run begins: the spec gives the stages and their authors, the seed gives the order of the
questions, and the parts hold what each author wrote. When a stage begins is fixed too, unless the spec leaves
that to the training (:mod:`masters.training.plateau`).

Departures from the paper:
    * replay, off by default: half of each batch is drawn, with replacement, from what the base student finds
      hard, question i with probability ``(1 - a_i) / sum_k (1 - a_k)``. Here a_i is the mean accuracy reward
      (Eq. 6) of its stored responses, by the judge and the labels of the run. The other half comes from the
      plain order, so the number of questions and steps is the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from masters.experiments.arms import LABELS, RunSpec
from masters.experiments.ladder import epochs
from masters.masking.schedule import MaskSchedule
from masters.training.examples import Example, Examples, Stage
from masters.training.plateau import PlateauStages, held_out


@dataclass(frozen=True)
class Part:
    """What one author contributes to a stage, for every question that it sees.

    Attributes:
        n: responses a question.
        tokens: token ids, by question and response.
        behaviour: log-probabilities of the tokens under their author, by question and response.
        accuracy: ``(questions, n)``, 1 where a response is right.
        teacher: whole log-probabilities of the stage's teacher, one array a response, questions in order.
        reference: the same of the student before training.
        rows: where each of the questions stands in all this, by its place in the pool; None where all of the
            pool are there, in its order.
    """

    n: int
    tokens: Sequence[Sequence[np.ndarray]]
    behaviour: Sequence[Sequence[np.ndarray]] | None = None
    accuracy: np.ndarray | None = None
    teacher: Any = None
    reference: Any = None
    rows: Mapping[int, int] | None = None

    def row(self, place: int) -> int:
        """Where the question at a place of the pool stands."""
        return place if self.rows is None else self.rows[place]


def stages(spec: RunSpec) -> Callable[[int], Stage]:
    """From a step to its stage: Eq. 3 anew for each teacher, which all get equal shares of the steps."""
    if not spec.teachers:
        return lambda step: (0, 0.0)
    schedule, bounds = MaskSchedule(spec.r_max, spec.r_step), _bounds(spec)

    def stage(step: int) -> Stage:
        index = int(np.searchsorted(bounds, step, side="right")) - 1
        return index, schedule.ratio_at(step - bounds[index], bounds[index + 1] - bounds[index])

    return stage


def _bounds(spec: RunSpec) -> list[int]:
    """The first step of each teacher, and the number of steps."""
    return [spec.steps * i // len(spec.teachers) for i in range(len(spec.teachers) + 1)]


def all_stages(spec: RunSpec) -> list[Stage]:
    """Every stage of a run once, in order; where the training decides, every stage that it may come to."""
    if spec.schedule == "plateau":
        ratios = MaskSchedule(spec.r_max, spec.r_step).ratios
        return [(index, ratio) for index in range(len(spec.teachers)) for ratio in ratios]
    return list(dict.fromkeys(map(stages(spec), range(spec.steps))))


def learning_rate_shares(spec: RunSpec) -> dict[Stage, float]:
    """Return how much of the learning rate, summed over all steps, each stage of a run gets.

    Equal stages get equal shares at a constant rate, as in the paper. Where the rate falls to zero, the late
    stages, those of the whole teacher, hardly count.
    """
    stage_of, shares = stages(spec), dict.fromkeys(all_stages(spec), 0.0)
    warm_up = max(1, spec.steps // 50)
    for step in range(spec.steps):
        rate = 1.0
        if spec.lr_schedule == "linear":
            rate = min(step / warm_up, (spec.steps - step) / max(1, spec.steps - warm_up))
        shares[stage_of(step)] += rate
    total = sum(shares.values())
    return {stage: share / total for stage, share in shares.items()}


def authors(spec: RunSpec, stage: Stage) -> list[tuple[str, float, int]]:
    """Who wrote the responses of a stage: (model, one of ``LABELS`` or ``refreshed``, mask ratio, responses a
    question); ``refreshed`` is the student as it is when the stage begins.

    Labels have no mask ratio; in its place is the share of them that is wrong.
    """
    if spec.learn_from in LABELS:
        return [(spec.learn_from, spec.label_noise, 1)]
    teacher = (spec.teachers[stage[0]], stage[1], spec.teacher_responses)
    anew = spec.refreshed and stage != stages(spec)(0)
    student = ("refreshed" if anew else spec.student, 0.0, spec.student_responses)
    return [author for author in (teacher, student) if author[2]]


def scores(spec: RunSpec) -> list[tuple[str, float, str, float, int]]:
    """Whose log-probabilities a run learns from, on whose responses: the stage's teacher and the student
    before training, as (scorer, its mask ratio, author, mask ratio of the author, responses a question);
    without those that are refreshed, since no two runs share them."""
    found: dict[tuple[str, float, str, float, int], None] = {}
    for stage in all_stages(spec) if spec.teachers else ():
        for author in authors(spec, stage):
            if author[0] == "refreshed":
                continue
            found[spec.teachers[stage[0]], stage[1], *author] = None
            found[spec.student, 0.0, *author] = None
    return list(found)


def order(spec: RunSpec, seed: int, size: int, accuracy: np.ndarray | None = None) -> np.ndarray:
    """Which questions of a pool a run sees, one after the other.

    Args:
        spec: the run.
        seed: of the order.
        size: questions of the pool.
        accuracy: ``(size,)`` in [0, 1], mean accuracy of the base student, for a run with ``replay``. The
            last ``batch // 2`` questions of each batch are then drawn in proportion to 1 minus it; all alike
            where it is 1 everywhere.

    Returns:
        ``(steps * batch,)`` places in the pool.

    Raises:
        ValueError: the run has ``replay``, and there is no accuracy.
    """
    hard = spec.batch // 2 if spec.replay else 0
    plain = epochs(np.random.default_rng([seed, 1]), size, spec.steps * (spec.batch - hard))
    if not hard:
        return plain
    if accuracy is None:
        raise ValueError(
            "a replay of hard questions needs the accuracy of the student's responses to the pool"
        )
    weights = 1 - np.asarray(accuracy, dtype=np.float64)
    shares = weights / weights.sum() if weights.any() else None
    drawn = np.random.default_rng([seed, 2]).choice(size, (spec.steps, hard), p=shares)
    return np.concatenate([plain.reshape(spec.steps, -1), drawn], axis=1).ravel()


def curriculum(
    spec: RunSpec, seed: int, pool: Sequence[int], parts: Mapping[Stage, Sequence[Part]]
) -> tuple[Examples, PlateauStages | None]:
    """The examples of a run in the order of its steps, and what decides its stages if the run itself does.

    Args:
        spec: the run.
        seed: of the order of the questions.
        pool: index of each question of the pool among all questions.
        parts: what the authors of each stage wrote.

    Raises:
        ValueError: the plateau schedule has no question to hold out.
    """
    trained = np.arange(len(pool))
    stage_of, plateau = stages(spec), None
    # The student's part is the last one; of the first stage, it is that of the base student.
    own = parts[stage_of(0)][-1].accuracy if spec.replay else None
    if spec.schedule == "plateau":
        held = held_out(len(pool))
        trained = np.setdiff1d(trained, held)

        def measured(stage: Stage) -> list[Example]:
            return [_example(pool[place], place, stage, parts[stage]) for place in held]

        plateau = PlateauStages(spec.r_max, spec.r_step, _bounds(spec), measured)
        stage_of = plateau.stage_of
    places = order(spec, seed, len(trained), None if own is None else own[trained].mean(1))

    def make(position: int) -> Example:
        place, stage = int(trained[places[position]]), stage_of(position // spec.batch)
        return _example(pool[place], place, stage, parts[stage])

    return Examples(spec.steps * spec.batch, make), plateau


def _example(question: int, place: int, stage: Stage, parts: Sequence[Part]) -> Example:
    def by_question(name: str) -> list[np.ndarray] | None:
        values = [getattr(part, name) for part in parts]
        if any(value is None for value in values):
            return None
        pairs = zip(parts, values, strict=True)
        return [array for part, value in pairs for array in value[part.row(place)]]

    def by_response(name: str) -> list[np.ndarray] | None:
        if getattr(parts[0], name) is None:
            return None
        return [getattr(part, name)[part.row(place) * part.n + j] for part in parts for j in range(part.n)]

    accuracy = [part.accuracy[part.row(place)] for part in parts if part.accuracy is not None]
    return Example(
        question=question,
        responses=by_question("tokens") or [],
        stage=stage,
        accuracy=np.concatenate(accuracy) if accuracy else None,
        behaviour=by_question("behaviour"),
        teacher=by_response("teacher"),
        reference=by_response("reference"),
    )


def grouped(column: pd.Series, n: int) -> list[list[np.ndarray]]:
    """A column of all responses as a list of those to each question, ``n`` side by side."""
    values = list(column)
    return [values[start : start + n] for start in range(0, len(values), n)]
