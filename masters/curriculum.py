"""Which question is seen when, from which teacher at which mask ratio, with whose responses (Eq. 3, 5).

Fixed before a run begins: the spec gives the stages and their authors, the seed gives the order of the
questions, and the parts hold what each author wrote.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masters.arms import RunSpec
from masters.batches import Example, Examples
from masters.ladder import epochs
from masters.schedule import MaskSchedule

Stage = tuple[int, float]  # index of the teacher, its mask ratio


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
    schedule = MaskSchedule(spec.r_max, spec.r_step)
    bounds = [spec.steps * i // len(spec.teachers) for i in range(len(spec.teachers) + 1)]

    def stage(step: int) -> Stage:
        index = int(np.searchsorted(bounds, step, side="right")) - 1
        return index, schedule.ratio_at(step - bounds[index], bounds[index + 1] - bounds[index])

    return stage


def all_stages(spec: RunSpec) -> list[Stage]:
    """Every stage of a run once, in order."""
    return list(dict.fromkeys(map(stages(spec), range(spec.steps))))


def authors(spec: RunSpec, stage: Stage) -> list[tuple[str, float, int]]:
    """Who wrote the responses of a stage: (model, ``labels`` or ``refreshed``, mask ratio, responses a
    question); ``refreshed`` is the student as it is when the stage begins."""
    if spec.learn_from == "labels":
        return [("labels", 0.0, 1)]
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


def order(spec: RunSpec, seed: int, size: int) -> np.ndarray:
    """Which questions of a pool of that size a run sees, one after the other: ``(steps * batch,)``."""
    return epochs(np.random.default_rng([seed, 1]), size, spec.steps * spec.batch)


def curriculum(
    spec: RunSpec, seed: int, pool: Sequence[int], parts: Mapping[Stage, Sequence[Part]]
) -> Examples:
    """The examples of a run, in the order of its steps.

    Args:
        spec: the run.
        seed: of the order of the questions.
        pool: index of each question of the pool among all questions.
        parts: what the authors of each stage wrote.
    """
    places, stage_of = order(spec, seed, len(pool)), stages(spec)

    def make(position: int) -> Example:
        place, stage = int(places[position]), stage_of(position // spec.batch)
        return _example(pool[place], place, stage, parts[stage])

    return Examples(spec.steps * spec.batch, make)


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
