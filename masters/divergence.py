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

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

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
    return _apply(_Jsd, teacher_logits if teacher_gradient else teacher_logits.detach(), student_logits)


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


def forward_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """``KL(teacher || student)`` per token, in nats: classical distillation.

    The gradient reaches the student only.

    Args:
        teacher_logits: ``(..., vocabulary)``.
        student_logits: ``(..., vocabulary)``, the same shape.

    Returns:
        ``(...)``, one value a token.

    Raises:
        ValueError: the two shapes differ.
    """
    return kl(teacher_logits.detach(), student_logits)


class _Jsd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        dtype = _precision(teacher_logits, student_logits)
        value, gradients = _buffers(ctx, dtype, teacher_logits, student_logits)
        tiny = torch.finfo(dtype).tiny
        for rows, (p, q) in _blocks(teacher_logits, student_logits):
            p, q = p.to(dtype).softmax(-1), q.to(dtype).softmax(-1)
            # The clamps make 0 * log 0 zero: where both vanish, and where one does.
            m = p.add(q).mul_(0.5).clamp_(min=tiny)
            log_ratios = [x.div(m).clamp_(min=tiny).log_() for x in (p, q)]
            kls = [torch.linalg.vecdot(x, log_ratio) for x, log_ratio in zip((p, q), log_ratios, strict=True)]
            value[rows] = kls[0].add(kls[1]).mul_(0.5)
            for gradient, x, log_ratio, to_m in zip(gradients, (p, q), log_ratios, kls, strict=True):
                if gradient is not None:
                    gradient[rows] = log_ratio.sub_(to_m.unsqueeze(-1)).mul_(x).mul_(0.5)
        return value.clamp_(min=0).view(student_logits.shape[:-1])  # rounding may fall below 0 by an ulp

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return _chain(ctx, upstream)


class _Kl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, p_logits: Tensor, q_logits: Tensor) -> Tensor:
        dtype = _precision(p_logits, q_logits)
        value, (p_gradient, q_gradient) = _buffers(ctx, dtype, p_logits, q_logits)
        for rows, (p_rows, q_rows) in _blocks(p_logits, q_logits):
            log_p, log_q = p_rows.to(dtype).log_softmax(-1), q_rows.to(dtype).log_softmax(-1)
            p = log_p.exp()
            log_ratio = log_p.sub_(log_q).masked_fill_(p == 0, 0)
            divergence = torch.linalg.vecdot(p, log_ratio)
            value[rows] = divergence
            if p_gradient is not None:
                p_gradient[rows] = log_ratio.sub_(divergence.unsqueeze(-1)).mul_(p)
            if q_gradient is not None:
                q_gradient[rows] = log_q.exp_().sub_(p)
        return value.clamp_(min=0).view(p_logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return _chain(ctx, upstream)


def _check_shapes(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"logits of shapes {tuple(first.shape)} and {tuple(second.shape)} cannot be compared: "
            "both models must read the same tokens and share one vocabulary"
        )


def _apply(function: type[torch.autograd.Function], *logits: Tensor) -> Tensor:
    # A forward pass computes gradients for whatever requires them; without a graph nobody will ask.
    if not torch.is_grad_enabled():
        logits = tuple(x.detach() for x in logits)
    return function.apply(*logits)


def _precision(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _buffers(ctx: FunctionCtx, dtype: torch.dtype, *logits: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    rows = logits[0].shape[:-1].numel()
    value = torch.empty(rows, dtype=dtype, device=logits[0].device)
    needed = ctx.needs_input_grad  # type: ignore[attr-defined]
    gradients = [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need else None
        for x, need in zip(logits, needed, strict=True)
    ]
    ctx.save_for_backward(*gradients)  # type: ignore[arg-type]
    return value, [None if x is None else x.view(rows, x.shape[-1]) for x in gradients]


def _blocks(*logits: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    flat = [x.reshape(-1, x.shape[-1]) for x in logits]
    block = _CPU_BLOCK if logits[0].device.type == "cpu" else _LARGE_BLOCK
    size = max(1, block // logits[0].shape[-1])
    for start in range(0, len(flat[0]), size):
        rows = slice(start, start + size)
        yield rows, [x[rows] for x in flat]


def _chain(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
    saved = ctx.saved_tensors  # type: ignore[attr-defined]
    scale = upstream.unsqueeze(-1)
    first, second = (None if gradient is None else gradient * scale.to(gradient.dtype) for gradient in saved)
    return first, second
