"""Responses of the masked teachers and of the student, each generated once and judged once (Eq. 5, 6).

:func:`generate` stores what is missing. :func:`judged` reads stored responses, some questions at a time, and
judges those that have no verdict. Stored responses are never generated again.
"""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from filelock import FileLock

from masters.data.questions import Questions, processor_hash
from masters.judges import Judge
from masters.models.source import Source
from masters.responses.engines import Engine, Response, Writer
from masters.responses.engines.local import TransformersEngine
from masters.responses.manifest import Held
from masters.responses.store import SCHEMA, SHARED, ResponseStore, StoreSpec
from masters.runtime.keys import hash_of
from masters.runtime.progress import report
from masters.settings import Generation, Sampling

SHARD = 1024  # responses
AT_ONCE = 1 << 13  # questions
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
        engine.determinism,
    )


def generate(
    source: Source,
    processor: Any,
    questions: Questions,
    wanted: Sequence[int],
    n: int,
    sampling: Sampling,
    seed: int,
    counts: dict[str, int] | None = None,
    engine: Engine | None = None,
) -> ResponseStore:
    """Generate what is missing of the first ``n`` responses to each question; return their store.

    Processes that want the same questions take turns, so nothing is generated twice.

    Args:
        questions: encoded by ``processor``.
        wanted: indices of the questions.
        n: responses per question.
        counts: if given, ``generated`` and ``reused`` are incremented.
        engine: default ``TransformersEngine``.

    Raises:
        ValueError: a shard is damaged; the message names it and says what to do.
    """
    engine = engine or TransformersEngine()
    store = open_store(source, processor, sampling, seed, engine)
    first: dict[str, int] = {}  # questions with the same text and images share responses
    for content, question in zip(questions.table["content"].iloc[list(wanted)], wanted, strict=True):
        first.setdefault(content, question)
    contents = sorted(first)
    store.folder.mkdir(parents=True, exist_ok=True)
    # Processes with other questions write to the same store at the same time.
    with FileLock(store.folder / f".{hash_of(contents)}.lock"):
        held = store.held()
        total = n * len(contents) - held.count(contents, n)
        if counts is not None:
            counts["generated"] = counts.get("generated", 0) + total
            counts["reused"] = counts.get("reused", 0) + n * len(contents) - total
        if total:
            with engine.writer(source, processor, questions, sampling, seed) as write:
                what = f"responses of {source.title} at mask {source.ratio:g}"
                _write_missing(store, write, questions, list(first.items()), n, held, what, total)
    return store


def judged(
    store: ResponseStore,
    questions: Questions,
    wanted: Sequence[int],
    n: int,
    judge: Judge,
    labels: Sequence[str] | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield stored responses, ``AT_ONCE`` questions at a time, and judge those without a verdict.

    Args:
        wanted: indices of the questions.
        labels: the label of each wanted question; None: its own.

    Returns:
        Tables with one row per response, ordered as ``wanted`` and by index: key, question, content, asked,
        label, index, tokens, text, logprobs, finish, mark, correct.

    Raises:
        ValueError: a shard is damaged.
    """
    held, table = store.held(), questions.table
    for start in range(0, max(1, len(wanted)), AT_ONCE):  # without questions, one empty table
        some = slice(start, start + AT_ONCE)
        asked = table.iloc[list(wanted[some])]
        # Each question's own id and label, in the order of the questions; a label may have changed since.
        own = pd.DataFrame(
            {
                "question": asked["id"].to_numpy(),
                "content": asked["content"].to_numpy(),
                "asked": asked["question"].to_numpy(),
                "label": asked["answer"].to_numpy() if labels is None else list(labels[some]),
                "place": range(len(asked)),
            }
        )
        read = store.read(own["content"], n, held)
        frame = own.merge(read.drop(columns=["question", "asked", "label"]), on="content")
        frame = frame.sort_values(["place", "index"], ignore_index=True)
        frame["correct"] = store.verdicts(frame, judge)
        yield frame[COLUMNS]


def _write_missing(
    store: ResponseStore,
    write: Writer,
    questions: Questions,
    wanted: Sequence[tuple[str, int]],
    n: int,
    held: Held,
    what: str,
    total: int,
) -> None:
    """Generate and store what ``held`` lacks of ``n`` responses to each question (content and index)."""
    table, written, start = questions.table.set_index("id"), 0, time.perf_counter()
    waiting: list[Response] = []

    def store_waiting() -> None:
        nonlocal waiting, start
        store.append(waiting, table, time.perf_counter() - start)
        waiting, start = [], time.perf_counter()

    for begin in range(0, len(wanted), AT_ONCE):
        some = wanted[begin : begin + AT_ONCE]
        missing: dict[tuple[int, ...], list[int]] = {}  # batch questions that lack the same responses
        for (_, question), there in zip(some, held.indices([content for content, _ in some]), strict=True):
            if lacking := tuple(index for index in range(n) if index not in there):
                missing.setdefault(lacking, []).append(question)
        for indices, lacked_by in sorted(missing.items()):
            for done in write(lacked_by, indices):
                waiting.extend(done)
                written += len(done)
                report(what, written, total)
                if len(waiting) >= SHARD:
                    store_waiting()
            if waiting:
                store_waiting()
