"""The divergence of the student's next-token distribution from the teacher's (Eq. 4, 5), and the KL of Eq. 9.

With p the (masked) teacher, q the student and m their mean, ``JSD = (KL(p || m) + KL(q || m)) / 2`` per token
of a response, over the whole vocabulary. It is 0 where the two agree, and ln 2 where no token is possible
under both.

Each divergence is computed together with its gradient, which has a closed form, a block of rows at a time.
For the student's logits z it is ``dJSD / dz = q * (log(q / m) - KL(q || m)) / 2``. So a large vocabulary
costs one buffer of the logits' size, not one per step of the formula.

Departures from the paper: none known. It does not say how the KL of Eq. 9 is estimated; here it is exact.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from masters.objective.options import Kind, check_kind

# Logits per block: on a CPU few enough to keep the temporaries in a core's cache, on an accelerator enough to
# keep it busy.
_CPU_BLOCK, _LARGE_BLOCK = 1 << 16, 1 << 24


def jsd(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Eq. 4, 5: return the Jensen-Shannon divergence per token, in nats, within [0, ln 2].

    The gradient reaches the student only. Computed in float32, or float64 for float64 logits. Finite for any
    finite logits, and for -inf logits (forbidden tokens) if one entry per token is finite. Log-probabilities
    are logits too.

    Args:
        teacher_logits: ``(..., vocabulary)``.
        student_logits: ``(..., vocabulary)``, the same shape.

    Returns:
        ``(...)``, one value per token.

    Raises:
        ValueError: the shapes differ.
    """
    return divergence(teacher_logits, student_logits)


def divergence(
    teacher_logits: Tensor, student_logits: Tensor, kind: Kind = "jsd", *, mix: float = 0.5
) -> Tensor:
    """Return the divergence of the student from the teacher per token, in nats (total variation: in [0, 1]).

    With p the teacher, q the student and m = mix * p + (1 - mix) * q:

    * ``jsd``: ``(KL(p || m) + KL(q || m)) / 2`` at mix 1/2, Eq. 4, 5.
    * ``forward_kl``: ``KL(p || q)``, Hinton et al., arXiv 1503.02531.
    * ``reverse_kl``: ``KL(q || p)``, MiniLLM, arXiv 2306.08543; with p the reference, the KL of Eq. 9.
    * ``generalised_jsd``: ``mix * KL(p || m) + (1 - mix) * KL(q || m)``, GKD, arXiv
      2306.13649; its beta is mix.
    * ``skewed_kl``: ``KL(p || m)``, DistiLLM, arXiv 2402.03898; its alpha is mix.
    * ``total_variation``: ``sum |p - q| / 2``, f-distill, arXiv 2307.15190.

    Gradient and precision as in :func:`jsd`. Forward and reverse KL are infinite where one model forbids
    (logit -inf) what the other allows.

    Args:
        teacher_logits: ``(..., vocabulary)``.
        student_logits: ``(..., vocabulary)``, the same shape.
        mix: weight of the teacher in m, in (0, 1) for generalised_jsd and in [0, 1) for skewed_kl.

    Returns:
        ``(...)``, one value per token.

    Raises:
        ValueError: the shapes differ, the kind is unknown, or mix is out of range.
    """
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"logits of shapes {tuple(teacher_logits.shape)} and {tuple(student_logits.shape)} cannot be "
            "compared: both models must read the same tokens and share one vocabulary"
        )
    check_kind(kind, mix)
    if not torch.is_grad_enabled():  # otherwise the forward pass would compute a gradient
        student_logits = student_logits.detach()
    return _Divergence.apply(teacher_logits.detach(), student_logits, kind, mix)


def rows_with_gradient(
    p_logits: Tensor, q_logits: Tensor, kind: Kind, mix: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Return the divergence of some rows and its gradient for the student's logits, in closed form.

    For ``D(p, q)`` with ``g = dD / dq``, the gradient for the logits z of q is ``q * (g - sum(q * g))``.

    Args:
        p_logits: ``(rows, vocabulary)`` of the teacher, in the precision of the result.
        q_logits: ``(rows, vocabulary)`` of the student, in the same precision.
        kind: see :func:`divergence`.
        mix: see :func:`divergence`.

    Returns:
        ``(rows,)`` and ``(rows, vocabulary)``.
    """
    if kind in ("forward_kl", "reverse_kl"):
        log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
        q = log_q.exp()
        if kind == "forward_kl":
            p = log_p.exp()
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
        weight = 0.5 if kind == "jsd" else mix
        tiny = torch.finfo(q.dtype).tiny  # makes 0 * log 0 zero: where both vanish, and where one does
        m = p.mul(weight).add_(q, alpha=1 - weight).clamp_(min=tiny)
        value = torch.linalg.vecdot(p, p.div(m).clamp_(min=tiny).log_())
        if kind == "skewed_kl":
            slope = p.div_(m).mul_(weight - 1)
        else:
            slope = q.div(m).clamp_(min=tiny).log_().mul_(1 - weight)
            value = value.mul_(weight).add_(torch.linalg.vecdot(q, slope))
    mean = torch.linalg.vecdot(q, slope).unsqueeze(-1)
    return value.clamp_(min=0), slope.sub_(mean).mul_(q)


def block_rows(logits: Tensor) -> int:
    """Return how many rows of logits to process at once."""
    block = _CPU_BLOCK if logits.device.type == "cpu" else _LARGE_BLOCK
    return max(1, block // logits.shape[-1])


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, teacher_logits: Tensor, student_logits: Tensor, kind: Kind, mix: float) -> Tensor:
        double = torch.float64 in (teacher_logits.dtype, student_logits.dtype)
        dtype = torch.float64 if double else torch.float32
        p, q = (x.reshape(-1, x.shape[-1]) for x in (teacher_logits, student_logits))
        value = torch.empty(len(q), dtype=dtype, device=q.device)
        gradient = torch.empty(q.shape, dtype=q.dtype, device=q.device) if ctx.needs_input_grad[1] else None
        size = block_rows(q)
        for start in range(0, len(q), size):
            rows = slice(start, start + size)
            value[rows], slope = rows_with_gradient(p[rows].to(dtype), q[rows].to(dtype), kind, mix)
            if gradient is not None:
                gradient[rows] = slope
        ctx.save_for_backward(None if gradient is None else gradient.view(student_logits.shape))
        return value.view(student_logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * upstream.unsqueeze(-1).to(gradient.dtype), None, None
