"""Ratios of the fast paths to the plain ones, each pair timed in turn in one run: what ``make bench`` prints.

A ratio says how many times less a fast path takes; the spread is the smallest and the largest of the
repetitions. Absolute times depend on the machine and are not shown as results. For the mask, which has no
plain path, the ratio is the other way round: how many copies of the weights could be made meanwhile. The
tables are kept in ``data/results/`` with the machine and the commit, and the book shows them.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch

from benchmarks import growth as bench_growth
from benchmarks.training import Head, Step, small_vocabulary
from masters.data.questions import Questions, load_questions
from masters.data.tasks import vocabulary
from masters.masking.teacher_mask import TeacherMask
from masters.models.loading import build, build_processor
from masters.responses.engines.local import generate
from masters.runtime.files import ROOT, write_atomic
from masters.runtime.provenance import machine
from masters.settings import ModelSpec, Sampling
from masters.training.memory import Peak

RESULTS = ROOT / "data" / "results"
REPETITIONS = 5
GROUP = 8
ASKED, LONG = 64, 300  # questions of a batch of generation; tokens of a long prompt
MASKED = 2**27  # weights
Line = tuple[str, list[float]]


def main() -> None:
    """Time each pair, print it, and keep the table for the book."""
    torch.set_num_threads(1)
    print(f"how many times less, one thread: median of {REPETITIONS} repetitions, smallest and largest")
    # Each in a process of its own: how costly new memory is depends on what a process freed before.
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,), max_tasks_per_child=1) as pool:
        parts = pool.map(_measured, (_packed, _steps, _heads, _engines, _memory, _masks))
        rows = [row for part in parts for row in part]
    growth = bench_growth.measure()
    for line in bench_growth.powers(growth):
        print(line)
    # Together, so that what the book shows is of one machine.
    write_atomic(RESULTS / "bench.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.3g"))
    write_atomic(RESULTS / "growth.csv", growth.to_csv(index=False, float_format="%.6g"))
    write_atomic(RESULTS / "machine.json", json.dumps(machine(), indent=1) + "\n")


def _measured(lines: Callable[[], Iterator[Line]]) -> list[dict[str, str | float]]:
    rows: list[dict[str, str | float]] = []
    for name, ratios in lines():
        median, smallest, largest = float(np.median(ratios)), min(ratios), max(ratios)
        rows.append({"what": name, "ratio": median, "smallest": smallest, "largest": largest})
        print(f"{median:5.1f}  ({smallest:.1f} to {largest:.1f})  {name}", flush=True)
    return rows


def _packed() -> Iterator[Line]:
    for prompt in (40, 300):
        for responses in (2, 4, 8, 16):
            step = Step(prompt=prompt, responses=responses)
            name = f"packed group against a row a response: prompt of {prompt}, {responses} responses of 32"
            yield name, _ratios(step.backward(), step.backward(together=False))


def _steps() -> Iterator[Line]:
    step = Step(prompt=300, width=256)
    name = "Masters step, rewards and reference included, against TRL's DistillationTrainer (JSD alone)"
    yield name, _ratios(step.masters(), step.trl())
    name = "the same step with the 64 largest entries of the teacher cached, against live"
    yield name, _ratios(step.masters(64), step.masters())


def _heads() -> Iterator[Line]:
    head = Head()
    name = "JSD over 151,936 entries, 1,024 tokens: chunks against whole logits"
    yield name, _ratios(head.chunked, head.whole)
    name = "JSD over 512 entries: closed-form gradient against autograd"
    yield name, _ratios(*small_vocabulary())


class _Long(Questions):
    """The same questions with prompts as long as those of pictures in many patches."""

    def prompt(self, index: int) -> np.ndarray:
        prompt = super().prompt(index)
        return np.pad(prompt, (LONG - len(prompt), 0), mode="edge")


def _engines() -> Iterator[Line]:
    words = vocabulary(("charts",))
    processor = build_processor(words)
    questions = load_questions(("charts",), "validation", ASKED, processor)
    model, _ = build(ModelSpec(width=64, layers=2, vision_layers=1), words, 0)
    name = "own engine against generate(num_return_sequences=8)"
    yield name, _ratios(*_generation(model, processor, questions))
    yield f"{name}: prompt of {LONG}", _ratios(*_generation(model, processor, _Long(questions.folder)))


def _memory() -> Iterator[Line]:
    """How many times more memory whole logits take than chunks, beyond weights and hidden states."""
    peaks = []
    for way in (Head.whole, Head.chunked):
        head = Head()
        with Peak() as counted:
            way(head)
        peaks.append(counted.peak)
    yield "memory: JSD over 151,936 entries, chunks against whole logits", [peaks[0] / peaks[1]]


def _masks() -> Iterator[Line]:
    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        yield f"mask set-up at r = 0.2 in copies of the weights, {kind}", mask_ratios(dtype, MASKED)


def mask_ratios(dtype: torch.dtype, weights: int) -> list[float]:
    """How many times longer it takes to mask at r = 0.2 than to copy the weights, for each repetition.

    Args:
        dtype: that of the weights, which are normal.
        weights: how many there are, in layers of 4096 x 4096; rounded down to whole layers.
    """
    layers = torch.nn.Sequential()
    for _ in range(weights // 4096**2):
        layer = torch.nn.Linear(4096, 4096, bias=False, dtype=dtype, device="meta").to_empty(device="cpu")
        torch.nn.init.normal_(layer.weight, std=0.02)
        layers.append(layer)

    ratios = []
    for repetition in range(REPETITIONS + 1):
        mask = TeacherMask(layers)
        start = time.perf_counter()
        copies = [parameter.detach().clone() for parameter in layers.parameters()]
        middle = time.perf_counter()
        del copies
        again = time.perf_counter()
        mask.apply(0.2)
        end = time.perf_counter()
        mask.restore()
        if repetition > 0:  # the first one warms up
            ratios.append((end - again) / (middle - start))
    return ratios


def _ratios(fast: Callable[[], object], plain: Callable[[], object]) -> list[float]:
    fast(), plain()  # the first calls warm up
    ratios = []
    for _ in range(REPETITIONS):
        times = []
        for path in (fast, plain):
            start = time.perf_counter()
            path()
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
    return ratios


def _generation(
    model: torch.nn.Module, processor: object, questions: Questions
) -> tuple[Callable[[], object], Callable[[], object]]:
    sampling = Sampling(max_new_tokens=16)
    indices = list(range(ASKED))

    def own() -> None:
        list(generate(model, processor, questions, indices, range(GROUP), sampling, 0))  # type: ignore[arg-type]

    def transformers() -> None:
        longest = max(len(questions.prompt(index)) for index in indices)
        ids = torch.zeros(len(indices), longest, dtype=torch.long)
        seen = torch.zeros_like(ids)
        for row, index in enumerate(indices):
            prompt = torch.from_numpy(questions.prompt(index).astype(np.int64))
            ids[row, -len(prompt) :] = prompt
            seen[row, -len(prompt) :] = 1
        model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=seen,
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
