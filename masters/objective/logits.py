"""Logits that are never all there: what makes them is kept, and they are made a chunk of tokens at a time.

The logits of one token over a vocabulary of 151,936 take 600 kB in float32; those of some groups of
responses, for the student, the teacher and the reference, take more than the models. A loss therefore takes
logits in three forms: a tensor, an output head with the hidden states it reads (:class:`Projection`), and
the k largest log-probabilities of each token (:class:`masters.objective.topk.Packed`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from masters.objective.topk import Packed

# Logits in one chunk: enough rows for an efficient product with the head, 64 MB in float32.
CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class Projection:
    """The logits ``hidden @ weight.T + bias`` over the first ``vocabulary`` rows of an output head.

    Attributes:
        hidden: ``(..., width)``, the states that the head reads.
        weight: ``(rows, width)`` of the head.
        bias: ``(rows,)``, or None.
        vocabulary: rows of the head that have a token; heads are often padded beyond them.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    vocabulary: int

    @property
    def shape(self) -> torch.Size:
        """``(..., vocabulary)``."""
        return torch.Size((*self.hidden.shape[:-1], self.vocabulary))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Projection":
        """The same head on other states."""
        return replace(self, hidden=function(self.hidden))

    def logits(self) -> Tensor:
        """All of them at once, ``(..., vocabulary)``."""
        bias = None if self.bias is None else self.bias[: self.vocabulary]
        return functional.linear(self.hidden, self.weight[: self.vocabulary], bias)


Logits = Tensor | Projection | Packed


def each(source: Logits, function: Callable[[Tensor], Tensor]) -> Logits:
    """Select or reshape the tokens of logits in any form; the function keeps the last axis."""
    return function(source) if isinstance(source, Tensor) else source.map(function)


def select(source: Logits, where: slice | Tensor) -> Logits:
    """Some tokens of logits in any form: ``source[where]``."""
    return each(source, lambda x: x[where])


def dense(source: Logits) -> Tensor:
    """Logits in any form as a tensor."""
    return source if isinstance(source, Tensor) else source.logits()


def detached(source: Logits) -> Logits:
    """The same logits without a gradient."""
    if isinstance(source, Projection):
        bias = None if source.bias is None else source.bias.detach()
        return replace(source, hidden=source.hidden.detach(), weight=source.weight.detach(), bias=bias)
    return each(source, Tensor.detach)


def tempered(source: Logits, temperature: float) -> Logits:
    """Logits in any form of ``softmax(log p / temperature)``, where p is the softmax of these.

    An output head's are tempered by what it reads, so they are still made a chunk at a time.

    Args:
        source: ``(..., vocabulary)``.
        temperature: above 1 softer, below 1 sharper; at 1 the source itself comes back.

    Raises:
        ValueError: the temperature is not a positive number, or only the largest log-probabilities of a
            token are known: the mass of the rest cannot be tempered.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"a temperature is {temperature}: it must be a number above 0")
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
    """Slices of rows whose logits fit into one chunk."""
    size = max(1, CHUNK // vocabulary)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
