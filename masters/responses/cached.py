"""Responses of the masked teachers and of the student, each generated once and judged once (Eq. 5, 6).

:func:`responses` is the entry point: it generates the missing responses, judges the unjudged ones and returns
all of them. Stored responses are never generated again.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from masters.data.questions import Questions, processor_hash
from masters.judges import Judge
from masters.judges.rule import RuleJudge
from masters.models.source import Source
from masters.responses.engines import Engine, Response, Writer
from masters.responses.engines.local import TransformersEngine
from masters.responses.store import SCHEMA, SHARED, ResponseStore, StoreSpec
from masters.runtime.keys import hash_of
from masters.runtime.progress import report
from masters.settings import Generation, Sampling

SHARD = 1024  # responses
COLUMNS = [*(name for name in SCHEMA.names if name not in SHARED), "correct"]


def engine_of(generation: Generation) -> Engine:
    """Return the engine that a profile sets; a server's key is read from ``OPENAI_API_KEY``."""
    if generation.engine == "vllm":
        from masters.responses.engines.vllm import VllmEngine

        return VllmEngine(generation.vllm)
    if generation.engine == "openai":
        from masters.responses.engines.openai import OpenAIEngine

        assert generation.server is not None  # checked by the settings
        key = os.environ.get("OPENAI_API_KEY")
        return OpenAIEngine(generation.server, generation.served_as, generation.concurrency, key)
    return TransformersEngine(generation.batch)


def open_store(
    source: Source, processor: Any, sampling: Sampling, seed: int | None, engine: Engine | None = None
) -> ResponseStore:
    """Return the store for these settings, existing or not; the default engine is ``TransformersEngine``."""
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
    engine: Engine | None = None,
) -> pd.DataFrame:
    """Return the first ``n`` responses of a source to each wanted question, generating the missing ones.

    Processes that want the same questions take turns, so nothing is generated twice.

    Args:
        questions: encoded by ``processor``.
        wanted: indices of the questions.
        n: responses per question.
        judge: fills the column ``correct``; default ``RuleJudge``.
        counts: if given, ``generated`` and ``reused`` are incremented.
        engine: default ``TransformersEngine``.

    Returns:
        One row per response, ordered as ``wanted`` and by index: key, question, content, asked, label, index,
        tokens, text, logprobs, support_logprobs, finish, mark, correct.

    Raises:
        ValueError: a shard is damaged; the message names it and says what to do.
    """
    judge, engine = judge or RuleJudge(), engine or TransformersEngine()
    store = open_store(source, processor, sampling, seed, engine)
    table = questions.table.iloc[list(wanted)].reset_index(drop=True)
    is_first = ~table["content"].duplicated()  # questions with the same text and images share responses
    first, contents = np.asarray(wanted)[is_first].tolist(), table.loc[is_first, "content"].tolist()
    store.folder.mkdir(parents=True, exist_ok=True)
    # Processes with other questions write to the same store at the same time.
    with FileLock(store.folder / f".{hash_of(sorted(contents))}.lock"):
        missing = [
            tuple(index for index in range(n) if index not in there)
            for there in store.held().indices(contents)
        ]
        total = sum(map(len, missing))
        if counts is not None:
            counts["generated"] = counts.get("generated", 0) + total
            counts["reused"] = counts.get("reused", 0) + n * len(contents) - total
        if total:
            with engine.writer(source, processor, questions, sampling, seed) as write:
                what = f"responses of {source.title} at mask {source.ratio:g}"
                _write_missing(store, write, questions.table.set_index("id"), first, missing, what)
        result = store.read(contents, n)
        # Each question's own id and label, in the order of the questions; a label may have changed since.
        own = pd.DataFrame(
            {
                "question": table["id"],
                "content": table["content"],
                "asked": table["question"],
                "label": table["answer"],
                "place": range(len(table)),
            }
        )
        result = own.merge(result.drop(columns=["question", "asked", "label"]), on="content")
        result = result.sort_values(["place", "index"], ignore_index=True)
        result["correct"] = store.verdicts(result, judge)
    return result[COLUMNS]


def _write_missing(
    store: ResponseStore,
    write: Writer,
    table: pd.DataFrame,
    wanted: Sequence[int],
    missing: list[tuple[int, ...]],
    what: str,
) -> None:
    total, written, start = sum(map(len, missing)), 0, time.perf_counter()
    for indices in sorted(set(missing) - {()}):  # batch questions that lack the same responses
        todo = [question for question, lacks in zip(wanted, missing, strict=True) if lacks == indices]
        waiting: list[Response] = []
        for done in write(todo, indices):
            waiting.extend(done)
            written += len(done)
            report(what, written, total)
            if len(waiting) >= SHARD:
                store.append(waiting, table, time.perf_counter() - start)
                waiting, start = [], time.perf_counter()
        if waiting:
            store.append(waiting, table, time.perf_counter() - start)
            start = time.perf_counter()
