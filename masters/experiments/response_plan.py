"""Which responses, and which log-probabilities on them, a set of runs reads; and generating them.

One plan serves training, ``masters generate``, its ``--dry-run``, and the cost of a run.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from masters.experiments.arms import LABELS, RunSpec, arm
from masters.experiments.curriculum import (
    WantedLogprobs,
    WantedResponses,
    all_stages,
    logprobs_at,
    places_at,
    wanted_responses,
)
from masters.experiments.lab import Lab
from masters.responses.store import Status
from masters.training.examples import Stage

# Whose responses are wanted, and to which questions: indices of the training questions.
Asked = Mapping[WantedResponses, Sequence[int]]


@dataclass(frozen=True)
class ResponsePlan:
    """What a set of runs reads, with indices of the training questions.

    Attributes:
        responses: each store once, with the most responses that any run reads from it.
        logprobs: log-probabilities of the responses, or of labels.
    """

    responses: Asked
    logprobs: Sequence[tuple[WantedLogprobs, Sequence[int]]]

    @classmethod
    def of(cls, specs: Iterable[RunSpec], pool: Sequence[int], cache_teacher: bool = True) -> "ResponsePlan":
        """Return the plan of runs that share what they read: all of it for the whole pool.

        Args:
            pool: indices of the questions.
            cache_teacher: whether log-probabilities are stored ahead.
        """
        most: dict[WantedResponses, int] = {}
        logprobs: dict[WantedLogprobs, WantedLogprobs] = {}
        for spec, stage in ((each, stage) for each in specs for stage in _read_stages(each)):
            for wanted in _generated(spec, stage):
                store = replace(wanted, n=0)
                most[store] = max(wanted.n, most.get(store, 0))
            for reading in logprobs_at(spec, stage) if cache_teacher else ():
                unjudged = replace(reading.responses, judge="rule")  # judges share the tokens
                logprobs.setdefault(replace(reading, responses=unjudged), reading)
        return cls(
            {replace(store, n=n): pool for store, n in most.items()},
            [(reading, pool) for reading in logprobs.values()],
        )

    @classmethod
    def alone(
        cls, spec: RunSpec, seed: int, pool: Sequence[int], cache_teacher: bool = True
    ) -> "ResponsePlan":
        """Return the plan of a run that shares nothing: at each stage, the questions of that stage alone.

        A run of one epoch sees each question at one mask ratio, so nothing is generated at the others.
        """
        if not reads_by_stage(spec, len(pool)):
            return cls.of([spec], pool, cache_teacher)
        asked: dict[WantedResponses, set[int]] = {}
        logprobs: list[tuple[WantedLogprobs, Sequence[int]]] = []
        for stage in all_stages(spec):
            questions = [pool[place] for place in places_at(spec, seed, len(pool), stage)]
            for wanted in _generated(spec, stage):
                asked.setdefault(wanted, set()).update(questions)
            logprobs += [(reading, questions) for reading in logprobs_at(spec, stage) if cache_teacher]
        return cls({wanted: sorted(questions) for wanted, questions in asked.items()}, logprobs)

    @classmethod
    def of_arm(cls, lab: Lab, name: str) -> "ResponsePlan":
        """Return the plan of one arm.

        Raises:
            ValueError: no such arm, or it reads no responses.
        """
        spec = arm(name, lab.profile)
        if spec.learn_from != "responses":
            raise ValueError(f"arm {name!r} reads no responses; choose one that does, such as masters")
        return cls.of([spec], lab.pool, lab.profile.distillation.cache_teacher)

    def models(self) -> set[str]:
        """Return the rungs whose weights the plan needs."""
        return {wanted.model for wanted in self.responses} | {reading.model for reading, _ in self.logprobs}


def _read_stages(spec: RunSpec) -> list[Stage]:
    """Return the stages that read what is stored."""
    return [] if spec.learn_from in ("nothing", "online") else all_stages(spec)


def _generated(spec: RunSpec, stage: Stage) -> list[WantedResponses]:
    return [wanted for wanted in wanted_responses(spec, stage) if wanted.model not in LABELS]


def reads_by_stage(spec: RunSpec, size: int) -> bool:
    """Return whether a run that shares nothing reads each stage's questions alone.

    From the third epoch on, stages share so many questions that reading the pool once is cheaper.
    """
    return len(_read_stages(spec)) > 1 and spec.steps * spec.batch <= 2 * size


def prepare(lab: Lab, plan: ResponsePlan) -> None:
    """Generate, judge and score what is missing of a plan, side by side."""
    for name in plan.models():
        lab.folder(name)
    make_all(lab, plan.responses)
    lab.parallel([(Lab.logprobs, reading) for reading in plan.logprobs], "sets of responses scored")


def shard(pool: Sequence[int], shard_index: int, num_shards: int) -> list[int]:
    """Return the questions of one of several equal jobs.

    Raises:
        ValueError: there is no such job.
    """
    if not 0 <= shard_index < num_shards:
        raise ValueError(
            f"shard index {shard_index} of {num_shards} shards: it counts from 0 to {max(num_shards, 1) - 1}"
        )
    return list(pool[shard_index::num_shards])


def status(lab: Lab, wanted: WantedResponses, pool: Sequence[int]) -> Status:
    """Return what is stored and what is missing; before the ladder is trained, all is missing."""
    if not lab.is_trained(wanted.model):
        return Status(0, wanted.n * len(pool), 0, None, None)
    contents = lab.questions("train").table["content"].iloc[list(pool)].tolist()
    return lab.store(wanted.model, wanted.ratio, wanted.choice).status(contents, wanted.n)


def make_all(lab: Lab, asked: Asked) -> None:
    """Generate and judge the missing responses of several models, in the profile's number of processes.

    A store with more than a process's share of the responses is divided among several.
    """
    for wanted in asked:
        lab.folder(wanted.model)
    share = sum(wanted.n * len(questions) for wanted, questions in asked.items()) / lab.writers
    jobs = []
    for wanted, questions in asked.items():
        shards = min(len(questions), max(1, round(wanted.n * len(questions) / share)))
        jobs += [(Lab.make_responses, (wanted, shard(questions, i, shards))) for i in range(shards)]
    lab.parallel(jobs, "sets of responses", lab.writers)


def marks(lab: Lab, wanted: WantedResponses) -> dict[str, int]:
    """Return how many stored responses of a model are empty, truncated or repetitive."""
    if not lab.is_trained(wanted.model):
        return {}
    counts: Counter[str] = Counter()
    for path in lab.store(wanted.model, wanted.ratio, wanted.choice).shards():
        counts.update(pd.read_parquet(path, columns=["mark"])["mark"])
    return {mark: count for mark, count in counts.items() if mark}
