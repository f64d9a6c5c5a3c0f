"""Ratios of the fast paths to the plain ones, each pair timed in turn in one run: what ``make bench`` prints.

A ratio says how many times faster the fast path is; the spread is the smallest and the largest of the
repetitions. Absolute times depend on the machine and are not shown as results. For the mask, which has no
plain path, the ratio is the other way round: how many copies of the weights could be made meanwhile.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from masters.divergence import jsd
from masters.masking import TeacherMask
from masters.models import build, build_processor
from masters.packing import pack, response_logits
from masters.questions import Questions, load_questions
from masters.responses import generate
from masters.settings import ModelSpec, Sampling
from masters.tasks import vocabulary

REPETITIONS = 5
GROUP = 8
QUESTIONS = 16  # of a training step
ASKED = 64  # of a batch of generation
MASKED = 2**27  # weights


def main() -> None:
    """Time each pair and print one table."""
    torch.set_num_threads(1)
    words = vocabulary(("charts",))
    processor = build_processor(words)
    questions = load_questions(("charts",), "validation", 64, processor)
    model, _ = build(ModelSpec(width=64, layers=2, vision_layers=1), words, 0)
    table = Table(
        title=f"fast path against plain path, one thread, {REPETITIONS} repetitions", title_justify="left"
    )
    for column in ("what", "times faster", "smallest", "largest"):
        table.add_column(column, justify="left" if column == "what" else "right")
    pairs: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("packed group against one row a response, forward and backward", *_packing(model, questions)),
        ("own engine against generate(num_return_sequences=8)", *_generation(model, processor, questions)),
        ("JSD with closed-form gradient against autograd", *_divergence()),
    ]
    for name, fast, plain in pairs:
        ratios = _ratios(fast, plain)
        table.add_row(name, f"{np.median(ratios):.1f}", f"{min(ratios):.1f}", f"{max(ratios):.1f}")
    Console().print(table)
    masks = Table(title="the time of one copy of the weights is 1", title_justify="left")
    for column in ("what", "times longer", "smallest", "largest"):
        masks.add_column(column, justify="left" if column == "what" else "right")
    for dtype in (torch.bfloat16, torch.float32):
        ratios = mask_ratios(dtype, MASKED)
        name = f"mask set-up at r = 0.2 against one copy of the weights, {str(dtype).removeprefix('torch.')}"
        masks.add_row(name, f"{np.median(ratios):.1f}", f"{min(ratios):.1f}", f"{max(ratios):.1f}")
    Console().print(masks)


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


def _packing(
    model: torch.nn.Module, questions: Questions
) -> tuple[Callable[[], object], Callable[[], object]]:
    rng = np.random.default_rng(0)
    indices = list(range(QUESTIONS))
    prompts = [questions.prompt(index) for index in indices]
    vocabulary_size = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    groups = [[rng.integers(6, vocabulary_size, 12) for _ in range(GROUP)] for _ in indices]

    def packed() -> None:
        batch = pack(prompts, groups, questions.image_features(indices))
        response_logits(model, batch).sum().backward()  # type: ignore[arg-type]

    def rows() -> None:
        each = [index for index in indices for _ in range(GROUP)]
        alone = [[response] for group in groups for response in group]
        batch = pack([questions.prompt(index) for index in each], alone, questions.image_features(each))
        response_logits(model, batch).sum().backward()  # type: ignore[arg-type]

    return packed, rows


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


def _divergence() -> tuple[Callable[[], object], Callable[[], object]]:
    teacher = torch.randn(2048, 512)
    student = torch.randn(2048, 512, requires_grad=True)

    def closed_form() -> None:
        jsd(teacher, student).sum().backward()

    def autograd() -> None:
        p, q = teacher.log_softmax(-1), student.log_softmax(-1)
        middle = torch.logaddexp(p, q) - np.log(2)
        divergence = 0.5 * (p.exp() * (p - middle)).sum(-1) + 0.5 * (q.exp() * (q - middle)).sum(-1)
        divergence.sum().backward()

    return closed_form, autograd


if __name__ == "__main__":
    main()
