"""Fix which question is seen when, from which teacher at which mask ratio, with whose responses (Eq. 3, 5).

All of it is fixed before training: the spec gives the stages and their responses, the seed gives the order of
the questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masters.experiments.arms import LABELS, RunSpec
from masters.masking.choice import PAPERS, MaskChoice
from masters.masking.schedule import MaskSchedule
from masters.training.examples import Example, Examples, Stage
from masters.training.ladder import epochs


@dataclass(frozen=True)
class WantedResponses:
    """The first ``n`` responses of a model, masked at a ratio, to every question of the pool.

    Attributes:
        model: a rung of the ladder, or one of ``LABELS``.
        ratio: the model's mask ratio; for labels, the share of them that is wrong.
        n: responses per question.
        choice: which of the model's weights are masked.
        judge: ``rule``, ``embedding`` or ``llm``.
    """

    model: str
    ratio: float
    n: int
    choice: MaskChoice = PAPERS
    judge: str = "rule"

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", self.choice.at(self.ratio))


@dataclass(frozen=True)
class WantedLogprobs:
    """Log-probabilities of a model at every token of some responses.

    Attributes:
        model: the rung that reads the responses.
        responses: the responses it reads.
        ratio: its mask ratio.
        choice: which of its weights are masked.
    """

    model: str
    responses: WantedResponses
    ratio: float = 0.0
    choice: MaskChoice = PAPERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", self.choice.at(self.ratio))


@dataclass(frozen=True)
class ResponseSet:
    """The responses of one model to every question of a stage, with their scores.

    Attributes:
        n: responses per question.
        tokens: ``(questions, n)`` arrays of token ids.
        behavior: ``(questions, n)`` arrays: log-probabilities of the tokens under the model that wrote them.
        accuracy: ``(questions, n)``, 1 where a response is correct.
        teacher: full log-probabilities of the stage's teacher, one array per response, questions in order.
        reference: the same of the student before training.
        places: ascending places in the pool of the questions; None: all of the pool.
    """

    n: int
    tokens: Sequence[Sequence[np.ndarray]]
    behavior: Sequence[Sequence[np.ndarray]] | None = None
    accuracy: np.ndarray | None = None
    teacher: Any = None
    reference: Any = None
    places: np.ndarray | None = None

    def row(self, place: int) -> int:
        """Return the row of the question at a place of the pool."""
        return place if self.places is None else int(np.searchsorted(self.places, place))


def stages(spec: RunSpec) -> Callable[[int], Stage]:
    """Return the function from a step to its stage: Eq. 3, repeated by each teacher on its share of steps."""
    if not spec.teachers:
        return lambda step: (0, 0.0)
    schedule, several = MaskSchedule(spec.r_max, spec.r_step), len(spec.teachers)
    bounds = [spec.steps * index // several for index in range(several + 1)]  # first step of each teacher

    def stage(step: int) -> Stage:
        index = int(np.searchsorted(bounds, step, side="right")) - 1
        return index, schedule.ratio_at(step - bounds[index], bounds[index + 1] - bounds[index])

    return stage


def all_stages(spec: RunSpec) -> list[Stage]:
    """Return every stage of a run once, in order."""
    return list(dict.fromkeys(map(stages(spec), range(spec.steps))))


def wanted_responses(spec: RunSpec, stage: Stage) -> list[WantedResponses]:
    """Return the responses that a stage reads: the teacher's, then the student's; or the labels."""
    if spec.learn_from in LABELS:
        return [WantedResponses(spec.learn_from, spec.label_noise, 1)]
    teacher = (spec.teachers[stage[0]], stage[1], spec.teacher_responses) if spec.teachers else ("", 0.0, 0)
    return [
        WantedResponses(model, ratio, n, spec.choice(), spec.judge)
        for model, ratio, n in (teacher, (spec.student, 0.0, spec.student_responses))
        if n
    ]


def logprobs_at(spec: RunSpec, stage: Stage) -> list[WantedLogprobs]:
    """Return the log-probabilities that a stage learns from: its teacher's and the base student's."""
    found = []
    for responses in wanted_responses(spec, stage) if spec.teachers else ():
        found.append(WantedLogprobs(spec.teachers[stage[0]], responses, stage[1], spec.choice()))
        found.append(WantedLogprobs(spec.student, responses))
    return found


def order(spec: RunSpec, seed: int, size: int) -> np.ndarray:
    """Return the places in a pool of ``size`` questions, ``(steps * batch,)``, in the order of a run."""
    return epochs(np.random.default_rng([seed, 1]), size, spec.steps * spec.batch)


def places_at(spec: RunSpec, seed: int, size: int, stage: Stage) -> np.ndarray:
    """Return the places in a pool of ``size`` questions that a stage sees, ascending, each once."""
    stage_of = stages(spec)
    steps = [step for step in range(spec.steps) if stage_of(step) == stage]
    return np.unique(order(spec, seed, size).reshape(spec.steps, spec.batch)[steps])


def curriculum(
    spec: RunSpec, seed: int, pool: Sequence[int], responses: Mapping[Stage, Sequence[ResponseSet]]
) -> Examples:
    """Return the examples of a run in the order of its steps; ``pool`` has the indices of its questions."""
    places, stage_of = order(spec, seed, len(pool)), stages(spec)

    def make(position: int) -> Example:
        place, stage = int(places[position]), stage_of(position // spec.batch)
        return _example(pool[place], place, stage, responses[stage])

    return Examples(spec.steps * spec.batch, make)


def _example(question: int, place: int, stage: Stage, sets: Sequence[ResponseSet]) -> Example:
    def by_question(name: str) -> list[np.ndarray] | None:
        values = [getattr(one, name) for one in sets]
        if any(value is None for value in values):
            return None
        return [array for one, value in zip(sets, values, strict=True) for array in value[one.row(place)]]

    def by_response(name: str) -> list[np.ndarray] | None:
        if getattr(sets[0], name) is None:
            return None
        return [getattr(one, name)[one.row(place) * one.n + j] for one in sets for j in range(one.n)]

    accuracy = [one.accuracy[one.row(place)] for one in sets if one.accuracy is not None]
    return Example(
        question=question,
        responses=by_question("tokens") or [],
        stage=stage,
        accuracy=np.concatenate(accuracy) if accuracy else None,
        behavior=by_question("behavior"),
        teacher=by_response("teacher"),
        reference=by_response("reference"),
    )
