"""A training step and its parts, each with a plain computation of the same numbers, for ``make bench``.

The tests show that both give the same numbers; the benchmarks compare only time and memory.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from masters.models.packing import pack, response_projection
from masters.models.small import IMAGE_SIZE, PATCH_SIZE, build
from masters.objective.divergence import jsd
from masters.objective.logits import CHUNK, Projection
from masters.objective.loss import masters_loss
from masters.objective.options import LossOptions
from masters.objective.topk import Packed, encode
from masters.settings import ModelSpec

IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
Way = Callable[[], object]


class Step:
    """A random student and reference, a teacher of twice the width, and a batch of questions and responses.

    Args:
        prompt: tokens per prompt, 16 of them for its image.
        responses: responses per question.
        length: tokens per response.
        questions: questions per batch.
        width: hidden size of the student.
        words: words in the vocabulary.
    """

    def __init__(
        self,
        prompt: int = 40,
        responses: int = 8,
        length: int = 32,
        questions: int = 1,
        width: int = 128,
        words: int = 4096,
    ) -> None:
        names = [f"w{i}" for i in range(words)]
        small, large = (ModelSpec(width=size, layers=4, vision_layers=1) for size in (width, 2 * width))
        self.student, self.processor = build(small, names, 0)
        self.reference, self.teacher = build(small, names, 0)[0].eval(), build(large, names, 1)[0].eval()
        self.student.train()
        rng = np.random.default_rng(0)
        size = len(self.processor.tokenizer)
        self.prompts = [rng.integers(6, size, prompt) for _ in range(questions)]
        for ids in self.prompts:
            ids[1 : 1 + IMAGE_TOKENS] = self.processor.image_token_id
        self.groups = [[rng.integers(6, size, length) for _ in range(responses)] for _ in range(questions)]
        pixels = rng.standard_normal((questions, 1, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
        self.images = [{"pixel_values": torch.from_numpy(picture)} for picture in pixels]
        self.accuracy = torch.from_numpy(rng.integers(0, 2, (questions, responses))).float()
        self.batch = pack(self.prompts, self.groups, self.images)
        with torch.no_grad():
            scores = response_projection(self.teacher, self.batch)
            self.scores = scores.logits() if isinstance(scores, Projection) else scores

    def backward(self, together: bool = True) -> Way:
        """Return a forward and backward pass of the student, packed or with one row per response."""

        def run() -> None:
            batch = pack(self.prompts, self.groups, self.images, together=together)
            hidden = response_projection(self.student, batch)
            assert isinstance(hidden, Projection)
            hidden.logits().sum().backward()

        return run

    def masters(self, top_k: int | None = None) -> Way:
        """Return a step of the paper's objective, gradients included.

        ``top_k``: cached log-probabilities per token; None runs the teacher.
        """
        cached = None
        if top_k is not None:
            assert isinstance(self.scores, Tensor)
            rows = encode(self.scores.flatten(0, -2).log_softmax(-1), top_k)
            cached = Packed(
                torch.from_numpy(rows).view(*self.scores.shape[:-1], -1), self.scores.shape[-1], top_k
            )

        def run() -> None:
            with torch.no_grad():
                teacher = response_projection(self.teacher, self.batch) if cached is None else cached
                reference = response_projection(self.reference, self.batch)
            loss = masters_loss(
                response_projection(self.student, self.batch),
                teacher,
                self.batch.tokens,
                self.batch.mask,
                accuracy=self.accuracy,
                reference_logits=reference,
            )
            loss.total.backward()

        return run

    def trl(self) -> Way:
        """Return a step of TRL's closest trainer on the same responses: JSD without rewards."""
        from trl import DistillationConfig, DistillationTrainer  # slow to import

        prompts = [ids for ids, group in zip(self.prompts, self.groups, strict=True) for _ in group]
        ids = torch.from_numpy(np.stack(prompts))
        responses = self.batch.tokens.flatten(0, 1)
        inputs: dict[str, Any] = {
            "prompt_ids": ids,
            "prompt_mask": torch.ones_like(ids),
            "completion_ids": responses,
            "completion_mask": self.batch.mask.flatten(0, 1).long(),
            "pixel_values": self.batch.images["pixel_values"].repeat_interleave(self.batch.mask.shape[1], 0),
            "num_items_in_batch": self.batch.mask.sum().float(),
        }
        folder = tempfile.mkdtemp()
        trainer = DistillationTrainer(
            model=self.student,
            teacher_model=self.teacher,
            args=DistillationConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=False,
                beta=0.5,
                report_to=[],
                gradient_checkpointing=False,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": ["w1"]}),
            processing_class=self.processor,
        )
        return lambda: trainer.compute_loss(self.student, inputs).backward()


class Head:
    """A divergence from hidden states, by default over the Qwen family's vocabulary of 151,936 entries."""

    def __init__(self, width: int = 512, vocabulary: int = 151_936, tokens: int = 1024) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.student_hidden = normal(4, 8, tokens // 32, width).requires_grad_()
        self.teacher_hidden = normal(4, 8, tokens // 32, width)
        self.student_weight = (normal(vocabulary, width) / width**0.5).requires_grad_()
        self.teacher_weight = normal(vocabulary, width) / width**0.5
        self.tokens = torch.zeros(4, 8, tokens // 32, dtype=torch.long)

    def chunked(self) -> None:
        """Compute the divergence and its gradients with our loss, in chunks."""
        size = len(self.student_weight)
        loss = masters_loss(
            Projection(self.student_hidden, self.student_weight, None, size),
            Projection(self.teacher_hidden, self.teacher_weight, None, size),
            self.tokens,
            torch.ones_like(self.tokens),
            options=LossOptions(rewards=()),
        )
        loss.total.backward()

    def whole(self) -> None:
        """Compute Eq. 4, 5 literally, from whole logits by autograd."""
        teacher = functional.linear(self.teacher_hidden, self.teacher_weight)
        student = functional.linear(self.student_hidden, self.student_weight)
        autograd_jsd(teacher, student).mean().backward()

    def liger(self) -> Way:
        """Return the same divergence and gradients by liger-kernel, in chunks as large as ours."""
        from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss  # in the extras only

        chunk = max(1, CHUNK // len(self.student_weight))  # tokens
        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=False, chunk_size=chunk
        )
        rows = [hidden.flatten(0, -2) for hidden in (self.student_hidden, self.teacher_hidden)]
        tokens = self.tokens.flatten()

        def run() -> None:
            loss(rows[0], self.student_weight, rows[1], self.teacher_weight, tokens).backward()

        return run


def autograd_jsd(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the JSD (Eq. 4, 5) in plain torch, ``(..., vocabulary)`` to ``(...)``."""
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    middle = (0.5 * (p + q)).log()
    return 0.5 * ((p * (log_p - middle)).sum(-1) + (q * (log_q - middle)).sum(-1))


def small_vocabulary() -> tuple[Way, Way]:
    """Return JSD steps with the closed-form gradient and with autograd, over 512 entries."""
    teacher, student = torch.randn(2048, 512), torch.randn(2048, 512, requires_grad=True)
    return (
        lambda: jsd(teacher, student).sum().backward(),
        lambda: autograd_jsd(teacher, student).sum().backward(),
    )
