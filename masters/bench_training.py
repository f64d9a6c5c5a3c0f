"""A training step and its parts against plain ways of doing the same: the pairs that ``make bench`` times.

Every pair computes the same numbers, which the tests show; here only time and memory are compared.
"""

import math
import multiprocessing
import resource
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from masters.logits import Projection, dense
from masters.models import IMAGE_SIZE, PATCH_SIZE, build
from masters.objective import masters_loss
from masters.packing import PackedBatch, pack, response_projection
from masters.settings import ModelSpec

LARGE_VOCABULARY, TOKENS, WIDTH = 151_936, 1024, 512  # of the Qwen family; a batch of 4 x 8 responses of 32
WORDS = 8192
Pair = tuple[str, Callable[[], object], Callable[[], object]]


def pairs() -> list[Pair]:
    """Name, fast way, plain way."""
    made: list[Pair] = []
    for prompt in (32, 300):
        for responses in (2, 4, 8, 16):
            step = Step(prompt, responses, 32)
            name = f"packed group, prompt of {prompt}, {responses} responses, forward and backward"
            made.append((name, step.packed, step.rows))
    step = Step(300, 8, 32, questions=1)
    made.append(("Masters step (8 responses, prompt of 300) against TRL's DistillationTrainer", step.masters, step.trl()))
    made.append(("the same step with the teacher's cached top 64", step.from_cache(64), step.masters))
    return made


class Step:
    """A student, a teacher and a batch of questions with their responses, all random.

    Args:
        prompt: tokens of a prompt, image included.
        responses: of each question.
        length: tokens of a response.
        questions: of the batch.
        width: of the student; the teacher has twice of it and twice as many layers.
        vocabulary: words.
    """

    def __init__(
        self,
        prompt: int,
        responses: int,
        length: int,
        questions: int = 4,
        width: int = 64,
        vocabulary: int = WORDS,
    ) -> None:
        words = [f"w{i}" for i in range(vocabulary)]
        self.student, self.processor = build(ModelSpec(width=width, layers=2, vision_layers=1), words, 0)
        self.teacher, _ = build(ModelSpec(width=2 * width, layers=4, vision_layers=1), words, 1)
        self.reference, _ = build(ModelSpec(width=width, layers=2, vision_layers=1), words, 0)
        rng = np.random.default_rng(0)
        low, size = 6, len(self.processor.tokenizer)
        image = np.full((IMAGE_SIZE // PATCH_SIZE) ** 2, self.processor.image_processor_token_id) if False else None
        self.prompts: list[np.ndarray] = []
        for _ in range(questions):
            ids = rng.integers(low, size, prompt)
            ids[1 : 1 + (IMAGE_SIZE // PATCH_SIZE) ** 2] = self.processor.image_token_id
            self.prompts.append(ids)
        self.groups = [[rng.integers(low, size, length) for _ in range(responses)] for _ in range(questions)]
        self.pixels = torch.from_numpy(rng.standard_normal((questions, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32))
        self.accuracy = torch.from_numpy(rng.integers(0, 2, (questions, responses))).float()
