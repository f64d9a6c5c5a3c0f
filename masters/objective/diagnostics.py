"""Diagnostics of offline reinforcement learning, and when a run counts as diverged.

Rewards teach only if the responses to a question differ in reward (advantages have a spread), if the student
stays close to the models that generated the responses (log-ratio near 0, many effective samples), and if it
stays close to its initial weights (KL). With ratios ``w_i = pi_theta / pi_behavior`` of n tokens the
effective sample size is ``(sum w)^2 / sum w^2`` (Kong 1992). Here it is divided by n: 1 where the two models
agree, 1/n where one token outweighs all others.

Departures from the paper: none; it logs nothing of the kind.
"""

from collections.abc import Sequence

from torch import Tensor


class Diverged(FloatingPointError):
    """Raised by all ranks at the same step when a run has diverged."""


class NotFinite(Diverged):
    """Raised when the loss is not finite; no checkpoint of the run can then avoid it."""


def advantage_figures(advantages: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Summarize the advantages of a batch.

    Args:
        advantages: ``(questions, responses)``, as the policy term uses them.
        valid: ``(questions, responses)`` bool, True where there is a response.

    Returns:
        ``advantage_mean``, ``advantage_std`` (over all responses; 1 if no group is flat) and
        ``advantage_positive`` (fraction above 0).
    """
    values = advantages.detach()[valid].float()
    return {
        "advantage_mean": values.mean(),
        "advantage_std": values.std(unbiased=False),
        "advantage_positive": (values > 0).float().mean(),
    }


def ratio_figures(logprobs: Tensor, behavior_logprobs: Tensor) -> dict[str, Tensor]:
    """Measure how far the student is from the models that generated the responses.

    Args:
        logprobs: ``(tokens,)``, log-probabilities of the response tokens under the student.
        behavior_logprobs: ``(tokens,)``, the same under the model that generated each response.

    Returns:
        ``log_ratio`` (mean, nats per token; below 0 where the student finds the responses less likely) and
        ``effective_samples`` (fraction of the tokens, in (0, 1]).
    """
    log_ratio = (logprobs.detach() - behavior_logprobs.detach()).float().flatten()
    # In logarithms: a single ratio may overflow.
    effective = (2 * log_ratio.logsumexp(0) - (2 * log_ratio).logsumexp(0)).exp() / len(log_ratio)
    return {"log_ratio": log_ratio.mean(), "effective_samples": effective}


def reason_to_stop(
    losses: Sequence[float], rows: int, kl: float, max_kl: float | None, growth: float | None
) -> str | None:
    """Return why a run has diverged, or None.

    Args:
        losses: of all log rows so far, the current one last.
        rows: log rows of the whole run.
        kl: of the current row, nats per token; NaN if there is none.
        max_kl: largest allowed KL; None: no limit.
        growth: largest allowed loss, as a multiple of the largest loss in the first tenth of the rows; None:
            no limit.
    """
    loss, first = losses[-1], losses[: max(1, rows // 10)]
    if loss != loss or abs(loss) == float("inf"):
        return f"the loss is {loss}"
    if max_kl is not None and kl > max_kl:
        return f"the KL to the student before training is {kl:.3g} nats per token, above {max_kl:g}"
    largest = max(abs(value) for value in first)
    if growth is not None and len(losses) > len(first) and loss > growth * largest:
        return f"the loss is {loss:.3g}, above {growth:g} times the largest at the start, {largest:.3g}"
    return None
