"""The loss of Masters: imitate the masked teacher, prefer the better of the cached responses (Eq. 8, 9, 11).

The loss is the mean over the responses of a batch of ``L_GRPO + JSD(teacher_r || student)``, where
``L_GRPO = -mean_j mean_t (rho_jt * A_j - beta * KL(pi_theta || pi_ref))`` for token t of response j. All
responses were generated before training, by the masked teachers and by the student: offline reinforcement
learning.

The defaults are the paper's: ratio one, all advantages, flat groups kept, both rewards, beta 0.1, unweighted
terms. Ratio one is pi_theta divided by its own detached value. As advantages sum to 0 within a group, the
policy term then always has the value 0, and the log shows 0. Its gradient is ``-A * grad log pi``.

Departures from the paper, each one of :class:`~masters.objective.options.LossOptions` and off by default:
    * policy_ratio="clipped": rho is pi_theta over the stored probability under the model that generated the
      response, clipped as in PPO. With ratio one, negative advantages on fixed responses push without bound.
    * advantages="positive": only responses better than their group's mean take part.
    * flat="skip": questions whose responses are all correct, or all wrong, have no policy term. Otherwise the
      distillation reward alone decides there, at full unit variance.
    * distillation_on="sum": Eq. 7 on the divergence summed over a response's tokens instead of its mean,
      which favors long, predictable text.
    * policy_weight: weight of the reward term of L_GRPO. The KL keeps its own weight, beta, so a smaller
      policy_weight makes the KL stronger relative to the rewards. Weighting all of L_GRPO by w, as an earlier
      version did, is policy_weight w with beta w times as large.
    * divergence: another divergence in place of the JSD, as table 5f combines Masters with other methods.
    * teacher_temperature: the teacher of Eq. 5 and 7 is ``softmax(log p / T)``, softer above 1 and sharper
      below. The student is not tempered, so no factor of T squared is needed (Hinton et al., arXiv
      1503.02531).

Choices where the paper is silent:
    * The divergence of Eq. 7 is that of the current student, at each step.
    * The KL of Eq. 9 is exact over the vocabulary.
    * Terms are averaged over the tokens of a response, then over responses; averaging="token" averages over
      all tokens of the batch at once.
    * In a group without spread in the total reward all advantages are 0; its JSD and KL still count.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from masters.objective.diagnostics import advantage_figures, ratio_figures
from masters.objective.logits import Logits, detached, each, tempered
from masters.objective.options import Averaging, LossOptions
from masters.objective.rewards import distillation_reward, group_advantages
from masters.objective.token_terms import Given, token_terms

PAPER = LossOptions()
METRICS = (
    *("divergence", "policy", "kl", "flat_groups", "reward_accuracy", "reward_distillation", "tokens"),
    *("advantage_mean", "advantage_std", "advantage_positive", "log_ratio", "effective_samples"),
)


class Loss(NamedTuple):
    """The scalar to minimize, and the metrics for the log."""

    total: Tensor
    """Eq. 11, a scalar with gradient."""
    metrics: dict[str, float]
    """``divergence`` (nats per token), ``policy`` (the reward term of L_GRPO, without the KL), ``kl`` (nats
    per token, not multiplied by beta), ``flat_groups`` (fraction of questions without advantages),
    ``reward_accuracy`` and ``reward_distillation`` (means), ``tokens`` (mean length of a response), and the
    figures of :mod:`masters.objective.diagnostics`; NaN for what a variant lacks."""


def masters_loss(
    student_logits: Logits,
    teacher_logits: Logits,
    tokens: Tensor,
    mask: Tensor,
    *,
    accuracy: Tensor | None = None,
    reference_logits: Logits | None = None,
    behavior_logprobs: Tensor | None = None,
    options: LossOptions = PAPER,
) -> Loss:
    """Compute Eq. 8 to 11 for a batch of questions with their responses.

    Logits are already shifted: those at a position predict the token at that position. Positions where the
    mask is False never count, whatever their values; a response without tokens is no member of its group.

    Args:
        student_logits: ``(questions, responses, tokens, vocabulary)``, in any form of
            :mod:`masters.objective.logits`; no other argument gets a gradient.
        teacher_logits: the same shape, from the teacher at the mask ratio of the current stage.
        tokens: ``(questions, responses, tokens)`` int64, the responses.
        mask: ``(questions, responses, tokens)`` bool (or 0 and 1), True where a token counts.
        accuracy: ``(questions, responses)``, R_acc of Eq. 6; required for the accuracy reward and for
            flat="skip".
        reference_logits: the same shape as the student's, from the student before training; required with a
            reward and a positive beta, otherwise used to report the KL.
        behavior_logprobs: ``(questions, responses, tokens)``, the log-probability of each token under the
            model that generated it, at temperature 1 over the whole vocabulary; required for
            policy_ratio="clipped".
        options: the paper's objective by default.

    Raises:
        ValueError: shapes differ, a required argument is missing, or no token counts; a reward is not finite;
            the teacher cannot be tempered.
    """
    rewards, clipped = options.rewards, bool(options.rewards) and options.policy_ratio == "clipped"
    regularized = bool(rewards) and options.beta > 0
    skips_flat = bool(rewards) and options.flat == "skip"
    judged = "accuracy" in rewards or skips_flat
    _check_given(accuracy, judged, "accuracy", "the accuracy reward and flat='skip'")
    _check_given(reference_logits, regularized, "reference_logits", "a policy term with beta > 0")
    _check_given(behavior_logprobs, clipped, "behavior_logprobs", "policy_ratio='clipped'")
    _check_shape("teacher_logits", teacher_logits, student_logits.shape)
    _check_shape("reference_logits", reference_logits, student_logits.shape)
    _check_shape("tokens", tokens, student_logits.shape[:-1])
    _check_shape("mask", mask, student_logits.shape[:-1])
    _check_shape("behavior_logprobs", behavior_logprobs, student_logits.shape[:-1])
    _check_shape("accuracy", accuracy, student_logits.shape[:-2])

    batch = _Batch(mask, options.averaging)
    reference = None if reference_logits is None else batch.logits(detached(reference_logits))
    teacher = tempered(batch.logits(detached(teacher_logits)), options.teacher_temperature)
    given = Given(batch.rows(tokens), teacher, reference, options.divergence, options.mix, regularized)

    terms = token_terms(batch.logits(student_logits), given)
    assert terms.divergence is not None
    total = batch.mean(terms.divergence)
    metrics = {"divergence": total, "tokens": batch.lengths.sum() / batch.valid.sum()}
    if accuracy is not None:
        metrics["reward_accuracy"] = accuracy[batch.valid].mean(dtype=torch.float32)
    if terms.kl is not None:
        metrics["kl"] = batch.mean(terms.kl)
    if behavior_logprobs is not None:
        metrics |= ratio_figures(terms.logprobs, batch.rows(behavior_logprobs))
    if rewards:
        reward = torch.zeros_like(batch.lengths)
        if "accuracy" in rewards and accuracy is not None:
            reward = reward + accuracy
        if "distillation" in rewards:
            of_response = batch.per_response(terms.divergence.detach())
            if options.distillation_on == "mean":
                of_response = of_response / batch.lengths.clamp(min=1)
            easy = distillation_reward(of_response, normalize=options.normalize, valid=batch.valid)
            metrics["reward_distillation"] = easy[batch.valid].mean()
            reward = reward + easy
        values, is_flat = group_advantages(reward, valid=batch.valid)
        if skips_flat and accuracy is not None:
            is_flat = is_flat | group_advantages(accuracy, valid=batch.valid).flat
            values = values.masked_fill(is_flat.unsqueeze(1), 0)
        metrics["flat_groups"] = is_flat.float().mean()
        values = values.clamp(min=0) if options.advantages == "positive" else values
        metrics |= advantage_figures(values, batch.valid)

        advantage, behavior = batch.of_token(values), terms.logprobs.detach()
        if clipped and behavior_logprobs is not None:
            behavior = batch.rows(behavior_logprobs.detach())
        rho = (terms.logprobs - behavior).exp()  # with policy_ratio "one" exactly 1, so never clipped
        bounded = rho.clamp(1 - options.clip, 1 + options.clip)
        policy = -batch.mean(torch.minimum(rho * advantage, bounded * advantage))
        metrics["policy"] = policy
        total = total + options.policy_weight * policy
        if regularized:
            total = total + options.beta * metrics["kl"]

    logged = torch.stack([part.detach().float() for part in metrics.values()]).tolist()
    return Loss(total, dict.fromkeys(METRICS, float("nan")) | dict(zip(metrics, logged, strict=True)))


def cross_entropy(
    student_logits: Logits, tokens: Tensor, mask: Tensor, averaging: Averaging = "response"
) -> Tensor:
    """Return the mean negative log-probability of given responses, in nats, for supervised fine-tuning.

    Args:
        student_logits: ``(..., tokens, vocabulary)``, already shifted as in :func:`masters_loss`.
        tokens: ``(..., tokens)`` int64.
        mask: ``(..., tokens)`` bool (or 0 and 1), True where a token counts.
        averaging: over the tokens of a response, then over responses; or over all tokens.

    Returns:
        A scalar with gradient.

    Raises:
        ValueError: shapes differ, or no token counts.
    """
    _check_shape("tokens", tokens, student_logits.shape[:-1])
    _check_shape("mask", mask, student_logits.shape[:-1])
    batch = _Batch(mask, averaging)
    terms = token_terms(batch.logits(student_logits), Given(batch.rows(tokens)))
    return -batch.mean(terms.logprobs)


class _Batch:
    """The tokens that count, as rows. Padding is dropped before any work over the vocabulary.

    ``lengths`` and ``valid`` are ``(questions, responses)``.
    """

    def __init__(self, mask: Tensor, averaging: Averaging) -> None:
        mask = mask.bool()
        self._places = mask.flatten().nonzero().squeeze(1)
        if not len(self._places):
            raise ValueError("no token of this batch counts: the mask is False everywhere")
        self._all = len(self._places) == mask.numel()
        self._response = self._places // mask.shape[-1]
        self.lengths = mask.sum(-1).float()
        self.valid = self.lengths > 0
        if averaging == "response":
            self._weights = self.of_token(1 / (self.lengths * self.valid.sum()))
        else:
            self._weights = torch.full_like(self._places, 1 / len(self._places), dtype=torch.float32)

    def rows(self, values: Tensor) -> Tensor:
        """Convert ``(questions, responses, tokens, ...)`` to ``(rows, ...)``."""
        flat = values.reshape(-1, *values.shape[self.lengths.ndim + 1 :])
        return flat if self._all else flat.index_select(0, self._places.to(flat.device))

    def logits(self, source: Logits) -> Logits:
        """Convert logits in any form to ``(rows, vocabulary)``."""
        return each(source, self.rows)

    def of_token(self, values: Tensor) -> Tensor:
        """Repeat a value per response, ``(questions, responses)``, for its tokens, ``(rows,)``."""
        return values.flatten()[self._response]

    def per_response(self, values: Tensor) -> Tensor:
        """Sum ``(rows,)`` over the tokens of each response, to ``(questions, responses)``."""
        sums = torch.zeros_like(self.lengths, dtype=values.dtype).flatten()
        return sums.index_add(0, self._response, values).view_as(self.lengths)

    def mean(self, values: Tensor) -> Tensor:
        """Average a value per row over the batch."""
        return torch.dot(self._weights.to(values.dtype), values)


def _check_given(value: Logits | None, wanted: bool, name: str, reason: str) -> None:
    if wanted and value is None:
        raise ValueError(f"{name} is missing: {reason} needs it")


def _check_shape(name: str, value: Logits | None, expected: torch.Size) -> None:
    if value is not None and value.shape != expected:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; the student's logits require {tuple(expected)}"
        )
