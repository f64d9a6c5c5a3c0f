"""Which responses, and which teacher log-probabilities on them, a set of runs needs; and making them.

One plan serves ``Lab.results``' preparation, ``masters generate``, its ``--dry-run``, and the costs of a run.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from masters.experiments.arms import LABELS, RunSpec, arm
from masters.experiments.curriculum import all_stages, authors, scores
from masters.experiments.lab import Lab
from masters.judges import Judge
from masters.masking.choice import PAPERS, MaskChoice
from masters.responses.cached import responses
from masters.responses.store import Status
from masters.runtime.workers import Job


@dataclass(frozen=True)
class WantedResponses:
    """The first ``n`` responses of a model, masked at a ratio, to every question of the pool.

    Attributes:
        model: a rung of the ladder.
        ratio: its mask ratio.
        n: responses per question.
        choice: which of its weights are masked.
        judge: ``rule``, ``embedding`` or ``llm``.
    """

    model: str
    ratio: float
    n: int
    choice: MaskChoice = PAPERS
    judge: str = "rule"


@dataclass(frozen=True)
class WantedScores:
    """Log-probabilities of a model at every token of some responses, or of the labels.

    Attributes:
        scorer: the rung that reads.
        scorer_ratio: its mask ratio.
        source: the rung that wrote the responses, or one of ``LABELS``.
        ratio: the source's mask ratio, or the share of wrong labels.
        n: responses per question.
        choice: which weights of teachers are masked.
    """

    scorer: str
    scorer_ratio: float
    source: str
    ratio: float
    n: int
    choice: MaskChoice = PAPERS


@dataclass(frozen=True)
class ResponsePlan:
    """What a set of runs reads: each store once, with the most responses that any run asks of it."""

    responses: tuple[WantedResponses, ...]
    scores: tuple[WantedScores, ...]

    @classmethod
    def of(cls, specs: Iterable[RunSpec], cache_teacher: bool = True) -> "ResponsePlan":
        """Return the plan of some runs.

        Args:
            specs: runs; those that read no stored responses or labels add nothing, and responses that a run
                refreshes for itself are no part of the plan.
            cache_teacher: whether log-probabilities are stored; without, teachers run along.
        """
        most: dict[tuple[str, float, MaskChoice, str], int] = {}
        scored: dict[WantedScores, None] = {}
        for spec in specs:
            if spec.learn_from in ("nothing", "online"):
                continue
            for stage in all_stages(spec):
                for source, ratio, n in authors(spec, stage):
                    if source not in (*LABELS, "refreshed"):
                        what = source, ratio, spec.choice().at(ratio), spec.judge
                        most[what] = max(n, most.get(what, 0))
            if cache_teacher:
                scored |= dict.fromkeys(WantedScores(*what, spec.choice()) for what in scores(spec))
        wanted = (WantedResponses(*what[:2], n, *what[2:]) for what, n in most.items())
        return cls(tuple(wanted), tuple(scored))

    @classmethod
    def of_arm(cls, lab: Lab, name: str) -> "ResponsePlan":
        """Return the plan of one arm.

        Raises:
            ValueError: no such arm, or it reads no responses.
        """
        spec = arm(name, lab.profile)
        if spec.learn_from != "responses":
            raise ValueError(f"arm {name!r} reads no responses; take one that does, such as masters")
        return cls.of([spec], lab.profile.distillation.cache_teacher)

    def models(self) -> set[str]:
        """The rungs whose weights are needed to make all of it."""
        return {what.model for what in self.responses} | {what.scorer for what in self.scores}


def prepare(lab: Lab, plan: ResponsePlan) -> None:
    """Generate, judge and score what is missing of a plan, for all questions of the pool, side by side."""
    for name in plan.models():
        lab.folder(name)
    write: list[Job] = [
        (Lab.groups, (what.model, what.ratio, what.n, what.judge, what.choice)) for what in plan.responses
    ]
    score: list[Job] = [
        (
            Lab.distributions,
            (
                lab.source(what.scorer, what.scorer_ratio, what.choice),
                *(what.source, what.ratio, what.n, what.choice),
            ),
        )
        for what in plan.scores
    ]
    lab.parallel(write, "sets of responses", lab.writers)
    lab.parallel(score, "sets of responses scored")


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


def status(lab: Lab, what: WantedResponses, pool: Sequence[int]) -> Status:
    """Return what is there and what is missing; before the ladder is trained, all is missing."""
    if not lab.is_trained(what.model):
        return Status(0, what.n * len(pool), 0, None, None)
    contents = lab.questions("train").table["content"].iloc[list(pool)].tolist()
    return lab.store(what.model, what.ratio, what.choice).status(contents, what.n)


def make(
    lab: Lab,
    what: WantedResponses,
    pool: Sequence[int],
    judge: Judge | None = None,
) -> pd.DataFrame:
    """Return responses, generated and judged where they are missing.

    Args:
        lab: of the profile.
        what: whose responses, and how many.
        pool: indices of the questions.
        judge: the rule judge when None.
    """
    return responses(
        lab.source(what.model, what.ratio, what.choice),
        lab.processor,
        lab.questions("train"),
        pool,
        what.n,
        lab.profile.sampling,
        lab.profile.replicate,
        judge or lab.judge,
        engine=lab.engine,
    )


def make_all(lab: Lab, wanted: Sequence[WantedResponses], pool: Sequence[int]) -> None:
    """Generate and judge what is missing of several models, in the profile's number of processes.

    Args:
        lab: of the profile.
        wanted: whose responses, and how many.
        pool: indices of the questions.
    """
    for what in wanted:
        lab.folder(what.model)
    shards = min(lab.writers, len(pool))
    jobs: list[Job] = [(make, (what, shard(pool, one, shards))) for what in wanted for one in range(shards)]
    lab.parallel(jobs, "shards of the responses", lab.writers)


def marks(lab: Lab, what: WantedResponses) -> dict[str, int]:
    """Return how many stored responses of a model are empty, truncated or repetitive."""
    if not lab.is_trained(what.model):
        return {}
    counts: Counter[str] = Counter()
    for path in lab.store(what.model, what.ratio, what.choice).shards():
        counts.update(pd.read_parquet(path, columns=["mark"])["mark"])
    return {mark: count for mark, count in counts.items() if mark}
