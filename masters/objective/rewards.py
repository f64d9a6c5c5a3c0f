"""Rewards of a response, and advantages within the responses to a question (Eq. 6, 7, 10).

Responses are rewarded if they are correct (R_acc, from a judge, Eq. 6) and if the student can imitate them
easily (R_distill, Eq. 7). Only differences between responses to the same question have an effect.

Departures from the paper, all of them where it is silent:
    * A group without spread makes Eq. 7 and Eq. 10 divide by zero. Here Eq. 7 then gives each response one
      half, Eq. 10 gives advantages of 0, and such groups are reported.
    * The standard deviation is that of the population (divided by n), as the group is complete.
      Implementations that divide by n - 1 get advantages smaller by ``sqrt((n - 1) / n)``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# A smaller spread is float32 rounding, which must not be scaled up to advantages of full size. Relative where
# values exceed 1.
SPREAD = 1e-6


class Advantages(NamedTuple):
    """Eq. 10 for a batch."""

    values: Tensor
    """``(questions, responses)``, mean 0 and population variance 1 within a group; 0 in flat groups."""
    flat: Tensor
    """``(questions,)`` bool, True for groups without spread."""


def distillation_reward(divergence: Tensor, *, normalize: bool = True, valid: Tensor | None = None) -> Tensor:
    """Eq. 7: return ``(D_max - D) / (D_max - D_min)`` within a question; 1 is the easiest response, 0 the
    hardest, one half where all are equally easy.

    Args:
        divergence: ``(questions, responses)``, nats, one value per response.
        normalize: False returns -D instead, the paper's ablation (table 5e).
        valid: ``(questions, responses)`` bool, False where there is no response; its reward is 0.

    Returns:
        ``(questions, responses)``; in [0, 1] if normalized.

    Raises:
        ValueError: the shape is wrong or a divergence is not finite.
    """
    divergence, valid = _groups(divergence, valid, "divergence")
    if not normalize:
        return (-divergence).masked_fill(~valid, 0)
    low, high = _range(divergence, valid)
    spread = high - low
    reward = (high - divergence) / spread.clamp(min=SPREAD)
    return reward.masked_fill(_is_flat(low, high), 0.5).masked_fill(~valid, 0)


def group_advantages(rewards: Tensor, *, valid: Tensor | None = None) -> Advantages:
    """Eq. 10: return ``(R - mean(R)) / std(R)`` over the responses to each question, and the flat groups.

    Args:
        rewards: ``(questions, responses)``.
        valid: ``(questions, responses)`` bool, False where there is no response; its advantage is 0.

    Raises:
        ValueError: the shape is wrong or a reward is not finite.
    """
    rewards, valid = _groups(rewards, valid, "reward")
    flat = _is_flat(*_range(rewards, valid))
    count = valid.sum(1, keepdim=True).clamp(min=1)
    mean = rewards.masked_fill(~valid, 0).sum(1, keepdim=True) / count
    centered = (rewards - mean).masked_fill(~valid | flat, 0)
    deviation = (centered.square().sum(1, keepdim=True) / count).sqrt()
    return Advantages(centered / deviation.masked_fill(flat, 1), flat.squeeze(1))


def _groups(values: Tensor, valid: Tensor | None, what: str) -> tuple[Tensor, Tensor]:
    if values.ndim != 2:
        raise ValueError(f"{what} has shape {tuple(values.shape)}: give (questions, responses)")
    values = values.detach()
    values = values if values.dtype == torch.float64 else values.float()
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid.bool()
    if valid.shape != values.shape:
        raise ValueError(f"valid has shape {tuple(valid.shape)}, not that of {what}, {tuple(values.shape)}")
    if not values[valid].isfinite().all():
        raise ValueError(
            f"a {what} is not finite: a judge or a model returned NaN or infinity; if training has begun, "
            "lower the learning rate"
        )
    return values, valid


def _range(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    low = values.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    high = values.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    return low, high


def _is_flat(low: Tensor, high: Tensor) -> Tensor:
    scale = torch.maximum(low.abs(), high.abs()).clamp(min=1)
    return ~(high - low > SPREAD * scale)  # also True for a group without responses, where low > high
