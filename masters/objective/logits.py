"""Logits that are computed a chunk of tokens at a time, so that they are never all in memory at once.

The logits of one token over a vocabulary of 151,936 take 600 kB in float32. For a few groups of responses and
three models (student, teacher, reference) they take more memory than the models. So a loss takes logits in
three forms: a tensor; an output head with the hidden states it reads (:class:`Projection`); the k largest
log-probabilities of each token (:class:`masters.objective.topk.Packed`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from masters.objective.topk import Packed

# Logits per chunk: enough rows for an efficient product with the head, 64 MB in float32.
CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class Projection:
    """The logits ``hidden @ weight.T + bias`` over the first ``vocabulary`` rows of an output head.

    Attributes:
        hidden: ``(..., width)``, the hidden states.
        weight: ``(rows, width)``.
        bias: ``(rows,)``, or None.
        vocabulary: rows of the head that have a token; heads are often padded beyond them.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    vocabulary: int

    @property
    def shape(self) -> torch.Size:
        """Return the shape of the logits, ``(..., vocabulary)``."""
        return torch.Size((*self.hidden.shape[:-1], self.vocabulary))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Projection":
        """Apply a function to the hidden states."""
        return replace(self, hidden=function(self.hidden))

    def logits(self) -> Tensor:
        """Compute all logits at once, ``(..., vocabulary)``."""
        bias = None if self.bias is None else self.bias[: self.vocabulary]
        return functional.linear(self.hidden, self.weight[: self.vocabulary], bias)


Logits = Tensor | Projection | Packed


def each(source: Logits, function: Callable[[Tensor], Tensor]) -> Logits:
    """Select or reshape the tokens of logits in any form; the function keeps the last axis."""
    return function(source) if isinstance(source, Tensor) else source.map(function)


def select(source: Logits, where: slice | Tensor) -> Logits:
    """Return ``source[where]`` for logits in any form, which may be on another device than ``where``."""
    return each(source, lambda x: x[where.to(x.device) if isinstance(where, Tensor) else where])


def dense(source: Logits) -> Tensor:
    """Return logits in any form as a tensor."""
    return source if isinstance(source, Tensor) else source.logits()


def beside(source: Logits, student: Tensor) -> Tensor:
    """Return logits in any form as a tensor to compare with a student's, ``(..., vocabulary)``."""
    return (source.logits(student) if isinstance(source, Packed) else dense(source)).to(student.device)


def detached(source: Logits) -> Logits:
    """Return the same logits without gradient."""
    if isinstance(source, Projection):
        bias = None if source.bias is None else source.bias.detach()
        return replace(source, hidden=source.hidden.detach(), weight=source.weight.detach(), bias=bias)
    return each(source, Tensor.detach)


def tempered(source: Logits, temperature: float) -> Logits:
    """Return the logits of ``softmax(log p / temperature)``, where p is the softmax of the source.

    For an output head the hidden states and the bias are divided, so it is still computed in chunks.

    Args:
        temperature: above 1 softens the distribution, below 1 sharpens it; 1 returns the source.

    Raises:
        ValueError: the temperature is not a positive number, or the source has only the largest
            log-probabilities of a token, so the rest of the distribution is unknown.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"the temperature is {temperature}: give a number above 0")
    if temperature == 1:
        return source
    if isinstance(source, Packed):
        raise ValueError(
            f"a teacher at temperature {temperature:g} needs whole distributions, and only the {source.k} "
            "largest entries were kept: leave out top_k_logprobs, or the temperature"
        )
    if isinstance(source, Tensor):
        return source / temperature
    bias = None if source.bias is None else source.bias / temperature
    return replace(source, hidden=source.hidden / temperature, bias=bias)


def chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Yield slices of rows whose logits fit into one chunk."""
    size = max(1, CHUNK // vocabulary)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
