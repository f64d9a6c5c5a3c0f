"""Time the fast paths against plain ones, alternating within one run. ``make bench`` runs this.

Each ratio is the plain path's time over the fast path's, with the smallest and the largest of the
repetitions. Beside it stands what it could reach (:mod:`benchmarks.limits`), where operations decide.
Absolute times depend on the machine and are not reported. The mask has no plain path; its ratio is its time
over the time to copy the weights, and cannot be below 1. Lines about liger-kernel appear where it is
installed. The tables are stored in ``data/results/`` with the machine and the commit, and the book shows
them.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from benchmarks import growth as bench_growth
from benchmarks.limits import limit
from benchmarks.peak import Peak
from benchmarks.training import Head, Step, small_vocabulary
from masters.data.questions import Questions, load_questions
from masters.data.tasks import vocabulary
from masters.masking.teacher_mask import TeacherMask
from masters.models.small import build, build_processor
from masters.responses.engines.local import generate
from masters.runtime.files import ROOT
from masters.settings import ModelSpec, Sampling
from masters_book.results.intact import write_intact
from masters_book.study.provenance import machine

RESULTS = ROOT / "data" / "results"
REPETITIONS = 5
GROUP = 8
BATCH, LONG_PROMPT = 64, 300  # questions per generation batch; tokens
MASKED_WEIGHTS = 2**27
Way = Callable[[], object]
Line = tuple[str, list[float], float | None]  # what is compared, ratios, and their limit


def main() -> None:
    """Time each pair, print the ratios, and store the tables for the book."""
    torch.set_num_threads(1)
    print(f"ratios of times with one thread: median of {REPETITIONS} repetitions (smallest to largest)")
    # Each in its own process, because the cost of new memory depends on what a process freed before.
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,), max_tasks_per_child=1) as pool:
        tables = pool.map(_measured, (_packed, _steps, _heads, _engines, _memory, _liger, _masks))
        rows = [row for table in tables for row in table]
    growth = bench_growth.measure()
    for line in bench_growth.powers(growth):
        print(line)
    # Written together, so that all numbers in the book are from one machine.
    write_intact(RESULTS / "bench.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.3g"))
    write_intact(RESULTS / "growth.csv", growth.to_csv(index=False, float_format="%.6g"))
    write_intact(RESULTS / "machine.json", json.dumps(machine(), indent=1) + "\n")


def _measured(lines: Callable[[], Iterator[Line]]) -> list[dict[str, str | float]]:
    rows: list[dict[str, str | float]] = []
    for name, ratios, most in lines():
        median, smallest, largest = float(np.median(ratios)), min(ratios), max(ratios)
        row: dict[str, str | float] = {"what": name, "ratio": median, "smallest": smallest}
        rows.append(row | {"largest": largest, "limit": float("nan") if most is None else most})
        of = "" if most is None else f", limit {most:.1f}"
        print(f"{median:5.1f}  ({smallest:.1f} to {largest:.1f}{of})  {name}", flush=True)
    return rows


def _packed() -> Iterator[Line]:
    for prompt in (40, 300):
        for responses in (2, 4, 8, 16):
            step = Step(prompt=prompt, responses=responses)
            name = "packed group vs. one row per response"
            sizes = f"prompt of {prompt} tokens, {responses} responses of 32"
            yield f"{name}: {sizes}", *_compared(step.backward(), step.backward(together=False))


def _steps() -> Iterator[Line]:
    step = Step(prompt=300, width=256)
    name = "Masters step, rewards and reference included, vs. TRL's DistillationTrainer (JSD alone)"
    yield name, *_compared(step.masters(), step.trl())
    name = "Masters step with the teacher's 64 largest log-probabilities cached vs. computed live"
    yield name, *_compared(step.masters(64), step.masters())


def _heads() -> Iterator[Line]:
    head = Head()
    name = "JSD over 151,936 entries, 1,024 tokens: chunked vs. whole logits"
    yield name, _ratios(head.chunked, head.whole), None
    name = "JSD over 512 entries: closed-form gradient vs. autograd"
    yield name, _ratios(*small_vocabulary()), None


class _LongPrompts(Questions):
    """The same questions with prompts as long as those of images in many patches."""

    def prompt(self, index: int) -> np.ndarray:
        prompt = super().prompt(index)
        return np.pad(prompt, (LONG_PROMPT - len(prompt), 0), mode="edge")


def _engines() -> Iterator[Line]:
    words = vocabulary(("charts",))
    processor = build_processor(words)
    questions = load_questions(("charts",), "validation", BATCH, processor)
    model, _ = build(ModelSpec(width=64, layers=2, vision_layers=1), words, 0)
    name = "own engine vs. generate(num_return_sequences=8)"
    yield name, *_compared(*_generation(model, processor, questions))
    long = _LongPrompts(questions.folder)
    yield f"{name}: prompt of {LONG_PROMPT} tokens", *_compared(*_generation(model, processor, long))


def _memory() -> Iterator[Line]:
    """Yield the peak memory of whole logits over that of chunks, beyond weights and hidden states."""
    name = "memory: JSD over 151,936 entries, chunked vs. whole logits"
    yield name, [_peak(Head().whole) / _peak(Head().chunked)], None


def _liger() -> Iterator[Line]:
    """Yield time and memory of liger-kernel's chunked loss over ours; nothing where it is not installed."""
    if find_spec("liger_kernel") is None:
        print("liger-kernel is not installed here, so it is left out", flush=True)
        return
    name = "JSD over 151,936 entries, 1,024 tokens: chunked vs. liger-kernel's chunked loss"
    yield name, _ratios(Head().chunked, Head().liger()), None
    yield f"memory: {name}", [_peak(Head().liger()) / _peak(Head().chunked)], None


def _peak(way: Way) -> float:
    with Peak() as memory:
        way()
    return memory.peak


def _masks() -> Iterator[Line]:
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        yield f"time to mask at r = 0.2 over time to copy the weights, {name}", _mask_ratios(dtype), 1.0


def _mask_ratios(dtype: torch.dtype) -> list[float]:
    """Return the time to mask at r = 0.2 over the time to copy the weights, for each repetition.

    The weights are normal, in layers of 4096 x 4096.
    """
    layers = torch.nn.Sequential()
    for _ in range(MASKED_WEIGHTS // 4096**2):
        layer = torch.nn.Linear(4096, 4096, bias=False, dtype=dtype, device="meta").to_empty(device="cpu")
        torch.nn.init.normal_(layer.weight, std=0.02)
        layers.append(layer)

    ratios = []
    for repetition in range(REPETITIONS + 1):
        mask = TeacherMask(layers)
        start = time.perf_counter()
        copies = [parameter.detach().clone() for parameter in layers.parameters()]
        copying = time.perf_counter() - start
        del copies
        start = time.perf_counter()
        mask.apply(0.2)
        masking = time.perf_counter() - start
        mask.restore()
        if repetition > 0:  # the first is a warm-up
            ratios.append(masking / copying)
    return ratios


def _compared(fast: Way, plain: Way) -> tuple[list[float], float]:
    return _ratios(fast, plain), limit(fast, plain)


def _ratios(fast: Way, plain: Way) -> list[float]:
    fast(), plain()  # warm-up
    ratios = []
    for _ in range(REPETITIONS):
        times = []
        for path in (fast, plain):
            start = time.perf_counter()
            path()
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
    return ratios


def _generation(model: PreTrainedModel, processor: Any, questions: Questions) -> tuple[Way, Way]:
    sampling = Sampling(max_new_tokens=16)
    indices = list(range(BATCH))

    def own() -> None:
        list(generate(model, processor, questions, indices, range(GROUP), sampling, 0))

    def transformers() -> None:
        longest = max(len(questions.prompt(index)) for index in indices)
        ids = torch.zeros(len(indices), longest, dtype=torch.long)
        attention_mask = torch.zeros_like(ids)
        for row, index in enumerate(indices):
            prompt = torch.from_numpy(questions.prompt(index).astype(np.int64))
            ids[row, -len(prompt) :] = prompt
            attention_mask[row, -len(prompt) :] = 1
        model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=attention_mask,
            **questions.image_features(indices),
            do_sample=True,
            num_return_sequences=GROUP,
            max_new_tokens=sampling.max_new_tokens,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            suppress_tokens=[0, 1, 2, 3, 4],
        )

    return own, transformers


if __name__ == "__main__":
    main()
