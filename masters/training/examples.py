"""What a training step reads: questions with their responses and all that is known of them, packed.

The order of the questions is fixed before training begins: :class:`Examples` is a list in the order of the
steps, each with its teacher and mask ratio.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from masters.data.questions import Questions
from masters.models.compatibility import Compatibility
from masters.models.packing import PackedBatch, pack
from masters.objective.topk import Packed

Stage = tuple[int, float]  # index of the teacher, its mask ratio


@dataclass(frozen=True)
class Example:
    """A question with its responses.

    Attributes:
        question: index among the questions.
        responses: token ids of each response.
        stage: index of the teacher, and its mask ratio.
        accuracy: accuracy reward of each response, Eq. 6.
        behavior: per response, the log-probabilities of its tokens under the model that generated it.
        teacher: per response, ``(tokens, vocabulary)`` log-probabilities of the masked teacher, whole or the
            k largest; None if the teacher is in memory during training.
        reference: the same of the student before training.
        prompt: token ids that replace the question's own prompt, with the same image.
    """

    question: int
    responses: Sequence[np.ndarray]
    stage: Stage = (0, 0.0)
    accuracy: np.ndarray | None = None
    behavior: Sequence[np.ndarray] | None = None
    teacher: Sequence[np.ndarray | Packed] | None = None
    reference: Sequence[np.ndarray | Packed] | None = None
    prompt: np.ndarray | None = None


class Examples(Dataset[Example]):
    """All examples of a training run, in the order of its steps.

    Args:
        length: steps times batch size.
    """

    def __init__(self, length: int, make: Callable[[int], Example]) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Example:
        return self.make(position)


@dataclass(frozen=True)
class Batch:
    """The examples of one device and step, as tensors.

    Attributes:
        stage: index of the teacher and its mask ratio, the same for all examples.
        parts: the same questions with some responses each, where one forward pass does not read all of them;
            empty otherwise.
        accuracy: ``(questions, responses)``; see :class:`Example` for this and the following.
        behavior: ``(questions, responses, tokens)``.
        teacher: ``(questions, responses, tokens, vocabulary)``.
        reference: ``(questions, responses, tokens, vocabulary)``.
    """

    packed: PackedBatch
    stage: Stage
    parts: tuple[PackedBatch, ...] = ()
    accuracy: Tensor | None = None
    behavior: Tensor | None = None
    teacher: Tensor | Packed | None = None
    reference: Tensor | Packed | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on another device."""

        def moved(value: Tensor | Packed) -> Tensor | Packed:
            return value.map(lambda rows: rows.to(device)) if isinstance(value, Packed) else value.to(device)

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: moved(v) for name, v in values.items() if isinstance(v, Tensor | Packed)}
        parts = tuple(part.to(device) for part in self.parts)
        return replace(self, packed=self.packed.to(device), parts=parts, **tensors)  # type: ignore[arg-type]


class Collator:
    """Makes a :class:`Batch` of examples.

    Args:
        compatibility: what the models can read; None: packed rows, and nothing is checked.
        at_once: responses per question and forward pass of the student; None: all of them.
    """

    def __init__(
        self, questions: Questions, compatibility: Compatibility | None = None, at_once: int | None = None
    ) -> None:
        self.questions, self.compatibility, self.at_once = questions, compatibility, at_once

    def __call__(self, examples: list[Example]) -> Batch:
        """Return the batch.

        Raises:
            ValueError: the examples are of several stages, or one does not fit the models.
        """
        stages = {example.stage for example in examples}
        if len(stages) != 1:
            raise ValueError(f"one step has one teacher and one mask ratio, got {sorted(stages)}")
        prompts = [self.questions.prompt(e.question) if e.prompt is None else e.prompt for e in examples]
        if self.compatibility is not None:
            for example, prompt in zip(examples, prompts, strict=True):
                self.compatibility.check(self.questions, example.question, prompt, example.responses)
        groups = [example.responses for example in examples]
        images = [self.questions.image_features([example.question]) for example in examples]
        together = self.compatibility is None or self.compatibility.together

        def packed(some: slice) -> PackedBatch:
            return pack(prompts, [group[some] for group in groups], images, together=together)

        batch, size, at_once = packed(slice(None)), len(groups[0]), self.at_once or len(groups[0])
        first, shape = examples[0], batch.tokens.shape
        starts = range(0, size, at_once) if at_once < size else ()
        rewards = np.array([example.accuracy for example in examples])
        return Batch(
            batch,
            first.stage,
            parts=tuple(packed(slice(start, start + at_once)) for start in starts),
            accuracy=None if first.accuracy is None else torch.tensor(rewards, dtype=torch.float32),
            **{
                name: _padded([getattr(example, name) for example in examples], shape)
                for name in ("behavior", "teacher", "reference")
                if getattr(first, name) is not None
            },
        )


def _padded(groups: Sequence[Sequence[np.ndarray | Packed]], shape: torch.Size) -> Any:
    """Stack one array ``(tokens, ...)`` per response to ``(questions, responses, tokens, ...)``."""
    first = groups[0][0]
    kind, one = (np.uint8, first.rows.numpy()) if isinstance(first, Packed) else (np.float32, first)
    filled = np.zeros((*shape, *one.shape[1:]), dtype=kind)
    for row, group in enumerate(groups):
        for j, values in enumerate(group):
            tokens = values.rows.numpy() if isinstance(values, Packed) else values
            filled[row, j, : len(tokens)] = tokens
    whole = torch.from_numpy(filled)
    return replace(first, rows=whole) if isinstance(first, Packed) else whole
