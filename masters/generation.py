"""What an arm of a profile needs of responses: how much is there, what the rest costs, and making it.

This is what ``masters generate``, ``masters judge`` and ``masters responses`` do for the same profile that
the notebooks read. A share of the questions is a job of its own, so any launcher can spread the work
over processes and machines that see the same folder.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from masters.arms import arm
from masters.curriculum import all_stages, authors
from masters.experiments import Lab
from masters.files import cache_dir
from masters.mask_choice import PAPERS, MaskChoice
from masters.responses import Judge, ResponseStore, responses
from masters.responses.store import VERSION, Status, StoreSpec
from masters.workers import Job


@dataclass(frozen=True)
class Wanted:
    """The first ``n`` responses of a model, masked at a ratio, to every question of the pool."""

    model: str
    ratio: float
    n: int
    choice: MaskChoice = PAPERS


def wanted(lab: Lab, name: str) -> list[Wanted]:
    """What a run of an arm reads, the most responses asked of each author.

    Raises:
        ValueError: no such arm, or it learns from labels alone.
    """
    spec = arm(name, lab.profile)
    if spec.learn_from != "responses":
        raise ValueError(f"arm {name!r} reads no responses; take one that does, such as masters")
    most: dict[tuple[str, float], int] = {}
    for stage in all_stages(spec):
        for model, ratio, n in authors(spec, stage):
            if model == "refreshed":  # within a run, for it alone
                continue
            most[model, ratio] = max(n, most.get((model, ratio), 0))
    choice = spec.choice()
    return [Wanted(model, ratio, n, choice.at(ratio)) for (model, ratio), n in most.items()]


def share(pool: Sequence[int], shard_index: int, num_shards: int) -> list[int]:
    """The questions of one of several equal jobs.

    Raises:
        ValueError: there is no such job.
    """
    if not 0 <= shard_index < num_shards:
        raise ValueError(
            f"shard index {shard_index} of {num_shards} shards: it counts from 0 to {max(num_shards, 1) - 1}"
        )
    return list(pool[shard_index::num_shards])


def status(lab: Lab, what: Wanted, pool: Sequence[int]) -> Status:
    """What is there and what is missing; before the ladder is trained, all is missing."""
    if not lab.is_trained(what.model):
        return Status(0, what.n * len(pool), 0, None, None)
    return lab.store(what.model, what.ratio, what.choice).status(_content(lab, pool), what.n)


def make(
    lab: Lab,
    what: Wanted,
    pool: Sequence[int],
    judge: Judge | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The responses themselves, generated and judged where they are missing.

    Args:
        lab: of the profile.
        what: whose responses, and how many.
        pool: indices of the questions.
        judge: the rule judge when None.
        progress: called with the responses written so far and all that are missing.
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
        progress=progress,
        engine=lab.engine,
    )


def make_all(lab: Lab, wanted: Sequence[Wanted], pool: Sequence[int]) -> None:
    """Generate and judge what is missing of several authors, in the profile's number of processes.

    Args:
        lab: of the profile.
        wanted: whose responses, and how many.
        pool: indices of the questions.
    """
    for what in wanted:
        lab.folder(what.model)
    shares = min(lab.writers, len(pool))
    jobs: list[Job] = [(make, (what, share(pool, part, shares))) for what in wanted for part in range(shares)]
    lab.parallel(jobs, "shares of the responses", lab.writers)


def marks(lab: Lab, what: Wanted) -> dict[str, int]:
    """How many stored responses of an author are empty, truncated or repetitive."""
    if not lab.is_trained(what.model):
        return {}
    counts: Counter[str] = Counter()
    for path in lab.store(what.model, what.ratio, what.choice).shards():
        counts.update(pd.read_parquet(path, columns=["mark"])["mark"])
    return {mark: count for mark, count in counts.items() if mark}


def all_stores() -> list[ResponseStore]:
    """Every store of the cache, of whatever profile; those of a former version are never read and left out.

    Raises:
        ValueError: the description of a store is damaged; the message names it.
    """
    stores = []
    for path in sorted((cache_dir() / "responses").glob("*/spec.json")):
        try:
            about = json.loads(path.read_text())
            if about["version"] != VERSION:
                continue
            fields = {name: about[name] for name in StoreSpec.model_fields if name in about}
            stores.append(ResponseStore(StoreSpec(**fields), about["source"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} is damaged; delete its folder") from None
    return stores


def _content(lab: Lab, pool: Sequence[int]) -> list[str]:
    return lab.questions("train").table["content"].iloc[list(pool)].tolist()
