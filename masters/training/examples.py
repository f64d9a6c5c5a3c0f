"""What a training step reads: a question with its responses and all that is known of them, packed.

Which question is seen when is fixed before training begins: :class:`Examples` is a list in the order of the
steps. So are its teacher and mask ratio, unless they are decided meanwhile (:mod:`masters.training.plateau`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from masters.data.questions import Questions
from masters.models.compatibility import Fit
from masters.models.packing import PackedBatch, pack
from masters.objective.topk import Packed

Stage = tuple[int, float]  # index of the teacher, its mask ratio


@dataclass(frozen=True)
class Example:
    """A question with its responses, as one step of training sees it.

    Attributes:
        question: index among the questions.
        responses: token ids of each response.
        stage: index of the teacher and its mask ratio.
        accuracy: the accuracy reward of each response, Eq. 6.
        behavior: for each response, the log-probabilities of its tokens under the model that wrote it.
        teacher: for each response, ``(tokens, vocabulary)`` log-probabilities of the masked teacher, whole or
            packed; None where the teacher itself is asked during training.
        reference: the same of the student before training.
        prompt: token ids in place of the question's own prompt, with the same picture.
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
    """All examples of a training run, in the order in which the steps take them.

    Args:
        length: steps times batch size.
        make: returns the example at a position.
    """

    def __init__(self, length: int, make: Callable[[int], Example]) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Example:
        return self.make(position)


class Collator:
    """From examples to what a step needs.

    Args:
        questions: what the examples refer to.
        fit: what the models can read; when None, they are believed to read everything, packed.
        share_rows: several questions in one row where they fit.
        at_once: responses of a question that the student reads at once; None: all of them.
    """

    def __init__(
        self,
        questions: Questions,
        fit: Fit | None = None,
        share_rows: bool = False,
        at_once: int | None = None,
    ) -> None:
        self.questions, self.fit, self.share_rows, self.at_once = questions, fit, share_rows, at_once

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        """A packed batch with the rewards and log-probabilities that its examples carry."""
        stages = {example.stage for example in examples}
        if len(stages) != 1:
            raise ValueError(f"one step has one teacher and one mask ratio, got {sorted(stages)}")
        prompts = [self.questions.prompt(e.question) if e.prompt is None else e.prompt for e in examples]
        if self.fit is not None:
            for example, prompt in zip(examples, prompts, strict=True):
                self.fit.check(self.questions, example.question, prompt, example.responses)
        groups = [example.responses for example in examples]
        pictures = [self.questions.image_features([example.question]) for example in examples]
        together = self.fit is None or self.fit.together

        def packed(some: slice) -> PackedBatch:
            chosen = [group[some] for group in groups]
            return pack(prompts, chosen, pictures, together=together, share_rows=self.share_rows)

        batch, size = packed(slice(None)), len(groups[0])
        made: dict[str, Any] = {"batch": batch, "stage": stages.pop()}
        if self.at_once is not None and self.at_once < size:
            starts = range(0, size, self.at_once)
            made["parts"] = [packed(slice(start, start + self.at_once)) for start in starts]
        if examples[0].accuracy is not None:
            made["accuracy"] = torch.tensor(np.array([e.accuracy for e in examples]), dtype=torch.float32)
        for name in ("behavior", "teacher", "reference"):
            values = [getattr(example, name) for example in examples]
            if values[0] is not None:
                made[name] = _padded(values, batch.tokens.shape)
        return made


def _padded(groups: Sequence[Sequence[np.ndarray | Packed]], shape: torch.Size) -> Tensor | Packed:
    """Arrays of each response, ``(tokens, ...)``, as one tensor ``(questions, responses, tokens, ...)``."""
    first = groups[0][0]
    kind, one = (np.uint8, first.rows.numpy()) if isinstance(first, Packed) else (np.float32, first)
    filled = np.zeros((*shape, *one.shape[1:]), dtype=kind)
    for row, group in enumerate(groups):
        for j, values in enumerate(group):
            tokens = values.rows.numpy() if isinstance(values, Packed) else values
            filled[row, j, : len(tokens)] = tokens
    whole = torch.from_numpy(filled)
    return replace(first, rows=whole) if isinstance(first, Packed) else whole
