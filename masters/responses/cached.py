"""Responses of the masked teachers and of the student, generated once and judged once (Eq. 5, 6).

:func:`responses` is all that other modules need: it generates what is missing, judges what is not judged,
and returns the groups. What is on disk is never generated again.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from filelock import FileLock

from masters.data.questions import Questions, processor_hash
from masters.judges import Judge
from masters.judges.rule import RuleJudge
from masters.responses.engines import Engine, Response, Writer
from masters.responses.engines.local import TransformersEngine, generate
from masters.responses.source import Source
from masters.responses.store import SHARED, ResponseStore, StoreSpec
from masters.runtime.files import hash_of
from masters.runtime.progress import report
from masters.settings import Generation, Sampling

__all__ = ["Engine", "Judge", "Response", "ResponseStore", "Source", "generate", "open_store", "responses"]

SHARD = 1024


def engine_of(generation: Generation) -> Engine:
    """The engine that a profile asks for; a server's key is read from ``OPENAI_API_KEY``."""
    if generation.engine == "vllm":
        from masters.responses.engines.vllm import VllmEngine

        return VllmEngine(generation.vllm)
    if generation.engine == "openai":
        from masters.responses.engines.openai import OpenAIEngine

        assert generation.server is not None  # the settings see to it
        key = os.environ.get("OPENAI_API_KEY")
        return OpenAIEngine(generation.server, generation.served_as, generation.concurrency, key)
    from masters.responses.engines.local import TransformersEngine

    return TransformersEngine()


def open_store(
    source: Source, processor: Any, sampling: Sampling, seed: int | None, engine: Engine | None = None
) -> ResponseStore:
    """The store of a source under these settings, existing or not; ``TransformersEngine`` when None."""
    engine = engine or TransformersEngine()
    return ResponseStore(
        StoreSpec(
            weights=source.weights(),
            ratio=source.ratio,
            processor=processor_hash(processor),
            sampling=sampling,
            seed=seed,
            engine=engine.name,
            choice=source.choice.key(),
        ),
        source.title,
        engine.promise,
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
    progress: Callable[[int, int], None] | None = None,
    engine: Engine | None = None,
) -> pd.DataFrame:
    """The first ``n`` responses of a source to some questions.

    Two processes that ask for the same questions take turns, so nothing is generated twice.

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
        progress: called with the responses written so far and all that are missing; when None, word is left
            with :func:`masters.runtime.progress.report`.
        engine: who generates; ``TransformersEngine`` when None.

    Returns:
        A row a response, ordered as ``wanted`` and by index: key, question, content, asked, label, index,
        tokens, text, logprobs, support_logprobs, finish, mark, correct.

    Raises:
        ValueError: a shard is damaged; the message names it and says what to do.
    """
    judge, engine = judge or RuleJudge(), engine or TransformersEngine()
    store = open_store(source, processor, sampling, seed, engine)
    table = questions.table.iloc[list(wanted)]
    contents = table["content"].tolist()
    store.folder.mkdir(parents=True, exist_ok=True)
    # Those who ask for the same take turns; those who ask for other questions of the store write beside them.
    with FileLock(store.folder / f".{hash_of(sorted(set(contents)))}.lock"):
        missing = [
            tuple(index for index in range(n) if index not in there)
            for there in store.held().indices(contents)
        ]
        total = sum(map(len, missing))
        if counts is not None:
            counts["generated"] = counts.get("generated", 0) + total
            counts["reused"] = counts.get("reused", 0) + n * len(table) - total
        if total:
            with engine.writer(source, processor, questions, sampling, seed) as write:
                what = f"responses of {source.title} at mask {source.ratio:g}"
                told = progress or (lambda done, all_: report(what, done, all_))
                _write_missing(store, write, questions.table.set_index("id"), list(wanted), missing, told)
        result = store.read(contents, n, judge).drop(columns=list(SHARED))
    place = {content: position for position, content in enumerate(contents)}
    result["place"] = result["content"].map(place)
    return result.sort_values(["place", "index"]).drop(columns="place").reset_index(drop=True)


def _write_missing(
    store: ResponseStore,
    write: Writer,
    table: pd.DataFrame,
    wanted: list[int],
    missing: list[tuple[int, ...]],
    progress: Callable[[int, int], None],
) -> None:
    total, written, start = sum(map(len, missing)), 0, time.perf_counter()
    for indices in sorted(set(missing) - {()}):  # questions that lack the same responses go together
        todo = [question for question, lacks in zip(wanted, missing, strict=True) if lacks == indices]
        waiting: list[Response] = []
        for done in write(todo, indices):
            waiting.extend(done)
            written += len(done)
            progress(written, total)
            if len(waiting) >= SHARD:
                store.append(waiting, table, time.perf_counter() - start)
                waiting, start = [], time.perf_counter()
        if waiting:
            store.append(waiting, table, time.perf_counter() - start)
            start = time.perf_counter()
