"""What a response is worth, and how much more than its neighbours (Eq. 6, 7, 10).

The idea: of the responses to one question, reward those that are right (R_acc, from a judge, Eq. 6) and those
that the student finds easy to imitate (R_distill, Eq. 7). Only differences within a question train anything.

Departures from the paper, all of them where it is silent:
    * A group without spread makes Eq. 7 and Eq. 10 divide by zero. Here Eq. 7 gives each of its responses one
      half, Eq. 10 gives each advantage 0, and such groups are reported.
    * The standard deviation is that of the population (divided by the number of responses): the group is all
      there is. Implementations that divide by one less get advantages smaller by ``sqrt((n - 1) / n)``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# A smaller spread is rounding in float32, not a preference: dividing by it would turn noise into advantages
# of full size. Relative where values exceed 1.
SPREAD = 1e-6


class Advantages(NamedTuple):
    """Eq. 10 for a batch."""

    values: Tensor
    """``(questions, responses)``, mean 0 and population variance 1 within a group; 0 in flat groups."""
    flat: Tensor
    """``(questions,)`` bool, True for the groups without spread."""


def distillation_reward(divergence: Tensor, *, normalise: bool = True, valid: Tensor | None = None) -> Tensor:
    """Eq. 7: ``(D_max - D) / (D_max - D_min)`` within a question; 1 is the easiest response, 0 the hardest.

    Responses that are all equally easy (a single one, too) get one half: neither the easiest nor the hardest.
    Being equal, they have no part in the advantages.

    Args:
        divergence: ``(questions, responses)``, nats, one value a response.
        normalise: False gives -D instead, the paper's ablation (table 5e).
        valid: ``(questions, responses)`` bool, False for places without a response: 0, and not counted.

    Returns:
        ``(questions, responses)``; in [0, 1] when normalised.

    Raises:
        ValueError: the shape is wrong or a divergence is not finite.
    """
    divergence, valid = _groups(divergence, valid, "divergence")
    if not normalise:
        return (-divergence).masked_fill(~valid, 0)
    low, high = _range(divergence, valid)
    spread = high - low
    reward = (high - divergence) / spread.clamp(min=SPREAD)
    return reward.masked_fill(_is_flat(low, high), 0.5).masked_fill(~valid, 0)


def group_advantages(rewards: Tensor, *, valid: Tensor | None = None) -> Advantages:
    """Eq. 10: ``(R - mean(R)) / std(R)`` over the responses of each question.

    Args:
        rewards: ``(questions, responses)``.
        valid: ``(questions, responses)`` bool, False for places without a response: 0, and not counted.

    Returns:
        The advantages and which groups are flat.

    Raises:
        ValueError: the shape is wrong or a reward is not finite.
    """
    rewards, valid = _groups(rewards, valid, "reward")
    flat = _is_flat(*_range(rewards, valid))
    count = valid.sum(1, keepdim=True).clamp(min=1)
    mean = rewards.masked_fill(~valid, 0).sum(1, keepdim=True) / count
    centred = (rewards - mean).masked_fill(~valid | flat, 0)
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return Advantages(centred / deviation.masked_fill(flat, 1), flat.squeeze(1))


def _groups(values: Tensor, valid: Tensor | None, what: str) -> tuple[Tensor, Tensor]:
    if values.ndim != 2:
        raise ValueError(f"{what} has shape {tuple(values.shape)}: give (questions, responses)")
    values = values.detach()
    values = values if values.dtype == torch.float64 else values.float()
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid.bool()
    if valid.shape != values.shape:
        raise ValueError(f"valid has shape {tuple(valid.shape)}, not {tuple(values.shape)} as the {what}")
    if not values[valid].isfinite().all():
        raise ValueError(f"a {what} is not finite: a judge or a model gave NaN or infinity")
    return values, valid


def _range(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    low = values.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    high = values.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    return low, high


def _is_flat(low: Tensor, high: Tensor) -> Tensor:
    scale = torch.maximum(low.abs(), high.abs()).clamp(min=1)
    return ~(high - low > SPREAD * scale)  # a group without any response has low above high: flat
