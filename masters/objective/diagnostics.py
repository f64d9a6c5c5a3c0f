"""Whether offline reinforcement learning is healthy: figures for the log, and when a run counts as diverged.

The idea: rewards teach only while the responses of a question differ in them (advantages with spread),
while the student is near the models that wrote the responses (log-ratio near 0, many effective samples),
and while it has not left the model it started from (KL). With ratios ``w_i = pi_theta / pi_behaviour`` of n
tokens the effective sample size is ``(sum w)^2 / sum w^2`` (Kong 1992); here as a share of n: 1 where the
two models agree, 1/n where one token outweighs all others.

Departures from the paper: none; it logs nothing of the kind.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Diverged(FloatingPointError):
    """A run that has no use in going on; raised by all ranks at the same step."""


class NotFinite(Diverged):
    """Its loss is no longer finite, so no checkpoint of it leads anywhere else."""


def advantage_figures(advantages: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """How the advantages of a batch are distributed.

    Args:
        advantages: ``(questions, responses)``, as the policy term uses them.
        valid: ``(questions, responses)`` bool, True where there is a response.

    Returns:
        ``advantage_mean``, ``advantage_std`` (over all responses; 1 without flat groups, as each group has
        unit variance) and ``advantage_positive`` (share above 0).
    """
    values = advantages.detach()[valid].float()
    return {
        "advantage_mean": values.mean(),
        "advantage_std": values.std(unbiased=False),
        "advantage_positive": (values > 0).float().mean(),
    }


def ratio_figures(logprobs: Tensor, behaviour_logprobs: Tensor) -> dict[str, Tensor]:
    """How far the student is from the models that wrote the responses, on the tokens of these.

    Args:
        logprobs: ``(tokens,)``, log-probabilities under the student; tokens that count only.
        behaviour_logprobs: ``(tokens,)``, the same under the model that wrote each.

    Returns:
        ``log_ratio`` (mean, nats a token; below 0 where the student finds the responses less likely than
        their author did) and ``effective_samples`` (share of the tokens, in (0, 1]).

    Raises:
        ValueError: the shapes differ.
    """
    if logprobs.shape != behaviour_logprobs.shape:
        shapes = f"{tuple(logprobs.shape)} and {tuple(behaviour_logprobs.shape)}"
        raise ValueError(f"log-probabilities of {shapes} are not those of the same tokens")
    log_ratio = (logprobs.detach() - behaviour_logprobs.detach()).float().flatten()
    # In logarithms: a single ratio may be beyond what a float holds.
    share = (2 * log_ratio.logsumexp(0) - (2 * log_ratio).logsumexp(0)).exp() / len(log_ratio)
    return {"log_ratio": log_ratio.mean(), "effective_samples": share}


def reason_to_stop(
    losses: Sequence[float], rows: int, kl: float, max_kl: float | None, growth: float | None
) -> str | None:
    """Why a run has diverged, or None while it has not.

    Args:
        losses: of all log rows so far, the present one last.
        rows: that the whole run will log.
        kl: of the present row, nats a token; NaN where there is none.
        max_kl: the KL must not be above; None: whatever it is.
        growth: the loss must not be above this many times the largest of the first tenth of the rows; None:
            whatever it is.
    """
    loss, first = losses[-1], losses[: max(1, rows // 10)]
    if loss != loss or abs(loss) == float("inf"):
        return f"the loss is {loss}"
    if max_kl is not None and kl > max_kl:
        return f"the KL to the student before training is {kl:.3g} nats a token, above {max_kl:g}"
    largest = max(abs(value) for value in first)
    if growth is not None and len(losses) > len(first) and loss > growth * largest:
        return f"the loss is {loss:.3g}, above {growth:g} times the largest at the start, {largest:.3g}"
    return None


def term_norms(loss: Callable[..., Tensor], weights: Sequence[Tensor]) -> dict[str, float]:
    """The gradient norm of each term of Eq. 11.

    The loss is a sum of terms, and so is its gradient: a term's is what the gradient of the loss without it
    lacks. That takes three forward and backward passes.

    Args:
        loss: of the same batch, with options of :func:`masters.objective.loss.masters_loss` changed by name.
        weights: that are trained.

    Returns:
        ``gradient_divergence``, ``gradient_policy`` and ``gradient_kl``, the last multiplied by beta.
    """

    def gradients(**variant: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(**variant), weights, allow_unused=True, materialize_grads=True)

    alone, policy, whole = gradients(rewards=()), gradients(beta=0.0), gradients()
    return {
        "gradient_divergence": norm(alone),
        "gradient_policy": norm([b - a for a, b in zip(alone, policy, strict=True)]),
        "gradient_kl": norm([b - a for a, b in zip(policy, whole, strict=True)]),
    }


def norm(gradients: Sequence[Tensor]) -> float:
    """The norm of the gradients of all weights together."""
    return float(torch.stack([gradient.float().norm() for gradient in gradients]).norm())
