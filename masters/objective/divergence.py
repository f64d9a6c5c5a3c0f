"""How far the student's next-token distribution is from the teacher's (Eq. 4, 5), and the KL of Eq. 9.

The idea: with p the (masked) teacher, q the student and m their mean, at every token of a response
``JSD = (KL(p || m) + KL(q || m)) / 2`` over the whole vocabulary. It is 0 where the two agree and ln 2 where
they share nothing.

Each divergence is computed together with its gradient, which has a closed form, a block of rows at a time.
For the student's logits z it is ``dJSD / dz = q * (log(q / m) - KL(q || m)) / 2``. So a large vocabulary
costs one buffer of the logits' size, not one for every step of the formula.

Departures from the paper: none known. It does not say how the KL of Eq. 9 is estimated; here it is exact.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Kind = Literal["jsd", "forward_kl", "reverse_kl", "generalised_jsd", "skewed_kl", "total_variation"]

# Logits in one block: on a CPU, few enough for the temporaries to stay in a core's cache, which is faster; on
# an accelerator, enough to fill it.
_CPU_BLOCK, _LARGE_BLOCK = 1 << 16, 1 << 24


def jsd(teacher_logits: Tensor, student_logits: Tensor, *, teacher_gradient: bool = False) -> Tensor:
    """Eq. 4, 5: Jensen-Shannon divergence per token, in nats, within [0, ln 2].

    Computed in float32 (in float64 for float64 logits); finite for any finite logits, and for -inf logits
    (forbidden tokens) as long as one entry a token is finite. Log-probabilities are logits too.

    Args:
        teacher_logits: ``(..., vocabulary)``.
        student_logits: ``(..., vocabulary)``, the same shape.
        teacher_gradient: let the gradient flow to the teacher too; by default it reaches the student only.

    Returns:
        ``(...)``, one value a token.

    Raises:
        ValueError: the two shapes differ.
    """
    _check_shapes(teacher_logits, student_logits)
    value = divergence(teacher_logits, student_logits)
    if teacher_gradient:  # the divergence is symmetric, so the teacher's gradient is that of a student
        other = divergence(student_logits, teacher_logits)
        value = value + (other - other.detach())
    return value


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """``KL(p || q)`` per token, in nats, exact: the sum of ``p * log(p / q)`` over the vocabulary.

    In Eq. 9 p is the student and q the reference. Gradients flow to both arguments; detach the one that is
    fixed. Precision as in ``jsd``. Infinite where q forbids (logit -inf) what p allows.

    Args:
        p_logits: ``(..., vocabulary)``.
        q_logits: ``(..., vocabulary)``, the same shape.

    Returns:
        ``(...)``, one value a token.

    Raises:
        ValueError: the two shapes differ.
    """
    _check_shapes(p_logits, q_logits)
    return _apply(_Kl, p_logits, q_logits)


def divergence(
    teacher_logits: Tensor, student_logits: Tensor, kind: Kind = "jsd", *, mix: float = 0.5
) -> Tensor:
    """How far the student is from the teacher per token, in nats (total variation: in [0, 1]).

    With p the teacher, q the student and m = mix * p + (1 - mix) * q:

    * ``jsd``: ``(KL(p || m) + KL(q || m)) / 2`` at mix 1/2, Eq. 4, 5.
    * ``forward_kl``: ``KL(p || q)``, Hinton et al., arXiv 1503.02531.
    * ``reverse_kl``: ``KL(q || p)``, MiniLLM, arXiv 2306.08543.
    * ``generalised_jsd``: ``mix * KL(p || m) + (1 - mix) * KL(q || m)``, GKD, arXiv
      2306.13649; its beta is mix.
    * ``skewed_kl``: ``KL(p || m)``, DistiLLM, arXiv 2402.03898; its alpha is mix.
    * ``total_variation``: ``sum |p - q| / 2``, f-distill, arXiv 2307.15190.

    The gradient reaches the student only. Precision as in ``jsd``. Forward and reverse KL are infinite where
    one model forbids (logit -inf) what the other allows.

    Args:
        teacher_logits: ``(..., vocabulary)``.
        student_logits: ``(..., vocabulary)``, the same shape.
        kind: which of the six.
        mix: share of the teacher in m, for generalised_jsd in (0, 1), for skewed_kl in [0, 1).

    Returns:
        ``(...)``, one value a token.

    Raises:
        ValueError: the two shapes differ, the kind is unknown, or mix is out of range.
    """
    _check_shapes(teacher_logits, student_logits)
    check_kind(kind, mix)
    return _apply(_Divergence, teacher_logits.detach(), student_logits, kind, mix)


def check_kind(kind: str, mix: float) -> None:
    """Refuse an unknown kind of divergence and a mix that it cannot have.

    Raises:
        ValueError: one line says which.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"divergence is {kind!r}: choose from {', '.join(get_args(Kind))}")
    if kind == "generalised_jsd" and not 0 < mix < 1:
        raise ValueError(
            f"generalised_jsd needs a mix between 0 and 1, got {mix}; its limits are the two KLs"
        )
    if kind == "skewed_kl" and not 0 <= mix < 1:
        raise ValueError(f"skewed_kl needs a mix from 0 to below 1, got {mix}; at 1 it is zero")


def rows_with_gradient(p_logits: Tensor, q_logits: Tensor, kind: Kind, mix: float) -> tuple[Tensor, Tensor]:
    """The divergence of some rows and its gradient for the student's logits, in closed form.

    For ``D(p, q)`` with ``g = dD / dq``, the gradient for the logits z of q is ``q * (g - sum(q * g))``.

    Args:
        p_logits: ``(rows, vocabulary)`` of the teacher, in the precision of the result.
        q_logits: the same of the student.
        kind: see :func:`divergence`.
        mix: see :func:`divergence`.

    Returns:
        ``(rows,)`` and ``(rows, vocabulary)``.
    """
    if kind in ("forward_kl", "reverse_kl"):
        log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        if kind == "forward_kl":
            value = torch.linalg.vecdot(p, log_p.sub_(log_q).masked_fill_(p == 0, 0))
            return value.clamp_(min=0), q.sub_(p)
        log_ratio = log_q.sub_(log_p).masked_fill_(q == 0, 0)
        value = torch.linalg.vecdot(q, log_ratio)
        return value.clamp(min=0), log_ratio.sub_(value.unsqueeze(-1)).mul_(q)
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    if kind == "total_variation":
        gap = q.sub(p)
        value, slope = gap.abs().sum(-1).mul_(0.5), gap.sign_().mul_(0.5)
    else:
        share = 0.5 if kind == "jsd" else mix
        tiny = torch.finfo(q.dtype).tiny  # makes 0 * log 0 zero: where both vanish, and where one does
        m = p.mul(share).add_(q, alpha=1 - share).clamp_(min=tiny)
        value = torch.linalg.vecdot(p, p.div(m).clamp_(min=tiny).log_())
        if kind == "skewed_kl":
            slope = p.div_(m).mul_(share - 1)
        else:
            slope = q.div(m).clamp_(min=tiny).log_().mul_(1 - share)
            value = value.mul_(share).add_(torch.linalg.vecdot(q, slope))
    mean = torch.linalg.vecdot(q, slope).unsqueeze(-1)
    return value.clamp_(min=0), slope.sub_(mean).mul_(q)


def kl_with_gradient(p_logits: Tensor, q_logits: Tensor) -> tuple[Tensor, Tensor]:
    """``KL(p || q)`` of some rows and its gradient for the logits of p, ``p * (log(p / q) - KL(p || q))``.

    Args:
        p_logits: ``(rows, vocabulary)``, in the precision of the result.
        q_logits: the same of q.

    Returns:
        ``(rows,)`` and ``(rows, vocabulary)``.
    """
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    p = log_p.exp()
    log_ratio = log_p.sub_(log_q).masked_fill_(p == 0, 0)
    value = torch.linalg.vecdot(p, log_ratio)
    return value.clamp(min=0), log_ratio.sub_(value.unsqueeze(-1)).mul_(p)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, teacher_logits: Tensor, student_logits: Tensor, kind: Kind, mix: float
    ) -> Tensor:
        dtype = _precision(teacher_logits, student_logits)
        value, (_, gradient) = _buffers(ctx, dtype, teacher_logits, student_logits)
        for rows, (p, q) in _blocks(teacher_logits, student_logits):
            value[rows], slope = rows_with_gradient(p.to(dtype), q.to(dtype), kind, mix)
            if gradient is not None:
                gradient[rows] = slope
        return value.view(student_logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *_chain(ctx, upstream), None, None


class _Kl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, p_logits: Tensor, q_logits: Tensor) -> Tensor:
        dtype = _precision(p_logits, q_logits)
        value, (p_gradient, q_gradient) = _buffers(ctx, dtype, p_logits, q_logits)
        for rows, (p_rows, q_rows) in _blocks(p_logits, q_logits):
            p_rows, q_rows = p_rows.to(dtype), q_rows.to(dtype)
            value[rows], slope = kl_with_gradient(p_rows, q_rows)
            if p_gradient is not None:
                p_gradient[rows] = slope
            if q_gradient is not None:
                q_gradient[rows] = q_rows.softmax(-1).sub_(p_rows.softmax(-1))
        return value.view(p_logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return _chain(ctx, upstream)


def block_rows(logits: Tensor) -> int:
    """Rows of logits to work on at once."""
    block = _CPU_BLOCK if logits.device.type == "cpu" else _LARGE_BLOCK
    return max(1, block // logits.shape[-1])


def _check_shapes(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"logits of shapes {tuple(first.shape)} and {tuple(second.shape)} cannot be compared: "
            "both models must read the same tokens and share one vocabulary"
        )


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    # A forward pass computes gradients for whatever requires them; without a graph nobody will ask.
    if not torch.is_grad_enabled():
        arguments = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
    return function.apply(*arguments)


def _precision(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _buffers(ctx: FunctionCtx, dtype: torch.dtype, *logits: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    rows = logits[0].shape[:-1].numel()
    value = torch.empty(rows, dtype=dtype, device=logits[0].device)
    needed = ctx.needs_input_grad[: len(logits)]  # type: ignore[attr-defined]
    gradients = [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need else None
        for x, need in zip(logits, needed, strict=True)
    ]
    ctx.save_for_backward(*gradients)  # type: ignore[arg-type]
    return value, [None if x is None else x.view(rows, x.shape[-1]) for x in gradients]


def _blocks(*logits: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    flat = [x.reshape(-1, x.shape[-1]) for x in logits]
    size = block_rows(logits[0])
    for start in range(0, len(flat[0]), size):
        rows = slice(start, start + size)
        yield rows, [x[rows] for x in flat]


def _chain(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
    saved = ctx.saved_tensors  # type: ignore[attr-defined]
    scale = upstream.unsqueeze(-1)
    first, second = (None if gradient is None else gradient * scale.to(gradient.dtype) for gradient in saved)
    return first, second
