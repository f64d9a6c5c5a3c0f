"""The three terms of Eq. 11 per token for vocabularies of any size: divergence, KL and log-probability.

The loss is a function of ``D`` (Eq. 4, 5), ``KL(pi_theta || pi_ref)`` (Eq. 9) and ``log pi_theta(token)`` of
each token. For a small batch they come from logits in memory. Where the logits are those of an output head
and exceed one chunk (:mod:`masters.objective.logits`), each chunk is computed, used and dropped. The backward
pass computes each chunk again: with the derivatives a, b, c of the loss for the three terms, the gradient for
its logits z is ``g = a dD/dz + b dKL/dz + c (onehot - q)``. Only ``g @ weight`` and ``g.T @ hidden`` are
kept, and no tensor ever holds all logits.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from masters.objective import logits as logits_module
from masters.objective.divergence import Kind, block_rows, divergence, rows_with_gradient
from masters.objective.logits import Logits, Projection, beside, chunks, dense, select


class Terms(NamedTuple):
    """Values per token, ``(rows,)``, or derivatives of a loss for them (None: not in the loss)."""

    divergence: Tensor | None
    """Of the student from the teacher, nats; None without a teacher."""
    kl: Tensor | None
    """Of the student from the reference, nats; None without a reference."""
    logprobs: Any
    """Of the token under the student, nats."""


class Given(NamedTuple):
    """What the student is compared with, a row per token, without gradient."""

    tokens: Tensor
    teacher: Logits | None = None
    reference: Logits | None = None
    kind: Kind = "jsd"
    mix: float = 0.5
    regularized: bool = True
    """Whether the KL is in the loss; otherwise it is computed without gradient."""


def in_chunks(student: Logits) -> bool:
    """Return whether the student's logits are too many to be computed at once."""
    rows = student.shape[:-1].numel()
    return isinstance(student, Projection) and rows * student.shape[-1] > logits_module.CHUNK


def token_terms(student: Logits, given: Given) -> Terms:
    """Return the three terms of each token, with gradient for the student.

    Args:
        student: ``(rows, vocabulary)``, logits in any form.
    """
    if isinstance(student, Projection) and in_chunks(student):
        return Terms(
            *_Recomputed.apply(student.hidden, student.weight, student.bias, student.vocabulary, given)
        )
    logits = dense(student)
    log_q = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    logprobs = log_q.gather(1, given.tokens.unsqueeze(1)).squeeze(1)
    from_teacher = from_reference = None
    if given.teacher is not None:
        teacher = beside(given.teacher, log_q)
        from_teacher = divergence(teacher, log_q, given.kind, mix=given.mix)
    if given.reference is not None:
        regularized = log_q if given.regularized else log_q.detach()
        from_reference = divergence(beside(given.reference, log_q), regularized, "reverse_kl")
    return Terms(from_teacher, from_reference, logprobs)


def _no_terms(hidden: Tensor, given: Given) -> Terms:
    """Return zeros for the terms of some hidden states; None without a teacher or without a reference."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    there = (given.teacher is not None, given.reference is not None, True)
    return Terms(*(torch.zeros(len(hidden), dtype=wide, device=hidden.device) if x else None for x in there))


class _Head:
    """An output head in the precision of the forward pass, autocast included."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, vocabulary: int) -> None:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        self.hidden, self.weight = hidden.to(dtype), weight[:vocabulary].to(dtype)
        self.bias = None if bias is None else bias[:vocabulary].to(dtype)

    def logits(self, rows: slice) -> Tensor:
        """Compute ``(rows, vocabulary)`` in float32, or in float64 for a float64 model."""
        z = functional.linear(self.hidden[rows], self.weight, self.bias)
        return z if z.dtype == torch.float64 else z.float()


def _pass(
    head: _Head, given: Given, into: Terms | None, derivatives: Terms | None, gradients: "_Gradients | None"
) -> None:
    """Compute every chunk of logits once; write the terms and add up the gradients, where they are given."""
    for rows in chunks(len(head.hidden), len(head.weight)):
        z = head.logits(rows)
        teacher, reference = (
            None if source is None else beside(select(source, rows), z).to(z)
            for source in (given.teacher, given.reference)
        )
        size = block_rows(z)
        for start in range(0, len(z), size):
            part = slice(start, start + size)
            here = slice(rows.start + start, min(rows.start + start + size, rows.stop))
            values, gradient = _block(
                z[part],
                given.tokens[here].unsqueeze(1),
                None if teacher is None else teacher[part],
                None if reference is None else reference[part],
                given,
                derivatives and Terms(*(None if x is None else x[here].unsqueeze(1) for x in derivatives)),
            )
            if into is not None:
                for target, value in zip(into, values, strict=True):
                    if target is not None:
                        target[here] = value
            if gradient is not None:
                z[part] = gradient
        if gradients is not None:
            gradients.add(rows, z, head)


def _block(
    z: Tensor,
    tokens: Tensor,
    teacher: Tensor | None,
    reference: Tensor | None,
    given: Given,
    derivatives: Terms | None,
) -> tuple[Terms, Tensor | None]:
    """Return the terms of some rows and the gradient for their logits, in closed form."""
    a, b, c = derivatives or (None, None, None)
    gradient = None if derivatives is None else torch.zeros_like(z)
    logprobs = (z.gather(1, tokens) - z.logsumexp(-1, keepdim=True)).squeeze(1)
    if gradient is not None and c is not None:
        gradient.addcmul_(z.softmax(-1), c, value=-1).scatter_add_(1, tokens, c.to(z.dtype))
    from_teacher = from_reference = None
    if teacher is not None:
        from_teacher, slope = rows_with_gradient(teacher, z, given.kind, given.mix)
        if gradient is not None and a is not None:
            gradient.addcmul_(slope, a)
    if reference is not None:
        from_reference, slope = rows_with_gradient(reference, z, "reverse_kl")
        if gradient is not None and b is not None:
            gradient.addcmul_(slope, b)
    return Terms(from_teacher, from_reference, logprobs), gradient


class _Gradients:
    """Gradients for the hidden states and the head, where needed, added up chunk by chunk."""

    def __init__(self, ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        wanted = ctx.needs_input_grad
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        # In float32, as hundreds of chunks are added. Padded rows of the head stay 0.
        self.weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None

    def add(self, rows: slice, gradient: Tensor, head: _Head) -> None:
        """Add the gradient for the logits of some rows."""
        narrow = gradient.to(head.weight.dtype)
        if self.hidden is not None:
            self.hidden[rows] = narrow @ head.weight
        if self.weight is not None:
            used = self.weight[: len(head.weight)]
            if narrow.dtype == used.dtype:
                used.addmm_(narrow.t(), head.hidden[rows])
            else:
                used += narrow.t() @ head.hidden[rows]
        if self.bias is not None:
            self.bias[: gradient.shape[1]] += gradient.sum(0)

    def of(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients in the types of the parameters."""
        bias_gradient = None if self.bias is None or bias is None else self.bias.to(bias.dtype)
        return self.hidden, None if self.weight is None else self.weight.to(weight.dtype), bias_gradient


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, vocabulary: int, given: Given
    ) -> tuple[Tensor | None, ...]:
        terms = _no_terms(hidden, given)
        ctx.head, ctx.given = _Head(hidden, weight, bias, vocabulary), given
        ctx.save_for_backward(hidden, weight, bias)
        _pass(ctx.head, given, terms, None, None)
        return tuple(terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        gradients = _Gradients(ctx, hidden, weight, bias)
        _pass(ctx.head, ctx.given, None, Terms(*upstream), gradients)
        return *gradients.of(weight, bias), None, None
