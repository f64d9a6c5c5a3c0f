"""Responses of the masked teachers and of the student, generated once and judged once (Eq. 5, 6).

:func:`responses` is all that other modules need: it generates what is missing, judges what is not judged,
and returns the groups. What is on disk is never generated again.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from filelock import FileLock

from masters.judges import RuleJudge
from masters.masking import TeacherMask
from masters.models import load
from masters.progress import report
from masters.questions import Questions, processor_hash
from masters.responses.engines import Response, generate
from masters.responses.store import Judge, ResponseStore, Source, StoreSpec
from masters.settings import Sampling

__all__ = ["Judge", "Response", "ResponseStore", "Source", "generate", "open_store", "responses"]

SHARD = 1024


def open_store(source: Source, processor: Any, sampling: Sampling, seed: int | None) -> ResponseStore:
    """The store of a source under these settings, existing or not."""
    return ResponseStore(
        StoreSpec(
            weights=source.weights(),
            ratio=source.ratio,
            processor=processor_hash(processor),
            sampling=sampling,
            seed=seed,
        )
    )


def responses(
    source: Source,
    processor: Any,
    questions: Questions,
    wanted: Sequence[int],
    n: int,
    sampling: Sampling,
    seed: int,
    judge: Judge | None = None,
    counts: dict[str, int] | None = None,
) -> pd.DataFrame:
    """The first ``n`` responses of a source to some questions.

    Two processes that ask for the same store take turns, so nothing is generated twice.

    Args:
        source: who writes.
        processor: of the source.
        questions: encoded by that processor.
        wanted: indices of the questions.
        n: responses a question.
        sampling: how tokens are drawn.
        seed: of the responses.
        judge: fills the column ``correct``; ``RuleJudge`` when None.
        counts: if given, ``generated`` and ``reused`` are added to it.

    Returns:
        A row a response, ordered as ``wanted`` and by index: question, content, index, tokens, text,
        logprobs, support_logprobs, finish, correct.

    Raises:
        ValueError: a shard is damaged; the message names it and says what to do.
    """
    judge = judge or RuleJudge()
    store = open_store(source, processor, sampling, seed)
    table = questions.table.iloc[list(wanted)]
    store.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(store.folder / ".lock"):
        there = store.index()
        have = there[there["index"] < n].groupby("content")["index"].nunique()
        first = table["content"].map(have).fillna(0).astype(int).to_numpy()
        missing = int((n - first).sum())
        if counts is not None:
            counts["generated"] = counts.get("generated", 0) + missing
            counts["reused"] = counts.get("reused", 0) + n * len(table) - missing
        if missing:
            _generate_missing(store, source, processor, questions, list(wanted), first, n, sampling, seed)

        verdicts = store.judged(judge)
    result = store.read(set(table["content"]), n).drop_duplicates(["content", "index"])
    result["correct"] = [verdicts[key] for key in zip(result["content"], result["index"], strict=True)]
    place = {content: position for position, content in enumerate(table["content"])}
    result["place"] = result["content"].map(place)
    return result.sort_values(["place", "index"]).drop(columns="place").reset_index(drop=True)


def _generate_missing(
    store: ResponseStore,
    source: Source,
    processor: Any,
    questions: Questions,
    wanted: list[int],
    first: Any,
    n: int,
    sampling: Sampling,
    seed: int,
) -> None:
    model, _ = load(source.folder)
    if source.ratio:
        TeacherMask(model).apply(source.ratio)
    table = questions.table.set_index("id")
    total, written = int((n - first).sum()), 0
    what = f"responses of {source.folder.name.partition('-')[0]} at mask {source.ratio:g}"
    for start in sorted(set(first.tolist()) - {n}):  # questions that already have the same number go together
        todo = [index for index, have in zip(wanted, first, strict=True) if have == start]
        waiting: list[Response] = []
        for done in generate(model, processor, questions, todo, range(start, n), sampling, seed):
            waiting.extend(done)
            written += len(done)
            report(what, written, total)
            if len(waiting) >= SHARD:
                store.append(waiting, table)
                waiting = []
        if waiting:
            store.append(waiting, table)
