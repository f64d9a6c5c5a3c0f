"""How one token is drawn: the paper's sampling settings, seeded per response.

Every response has random numbers of its own, made from the seed, the question's id and the response's
index. So a response does not depend on the batch it was generated in, nor on how often a job was
interrupted.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from masters.settings import Sampling


def processors(sampling: Sampling, banned: Sequence[int]) -> LogitsProcessorList:
    """The warpers of ``transformers``, or equals of them, in the order in which ``generate`` applies them.

    Args:
        sampling: temperature, top-p, top-k and repetition penalty.
        banned: token ids that must never be drawn.
    """
    chain = LogitsProcessorList([SuppressTokensLogitsProcessor(list(banned))])
    if sampling.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature != 1:
        chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k and sampling.top_p < 1:
        chain.append(TopKTopP(sampling.top_k, sampling.top_p))
    elif sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    elif sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    return chain


class TopKTopP(LogitsProcessor):
    """Top-k followed by top-p, with the nucleus sought among the k best instead of the whole vocabulary.

    Args:
        top_k: how many tokens may be drawn.
        top_p: the smallest set of them with this probability is kept.
    """

    def __init__(self, top_k: int, top_p: float) -> None:
        self.top_k, self.top_p = top_k, top_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores ``(rows, vocabulary)`` with minus infinity where a token is excluded."""
        best = scores.topk(min(self.top_k, scores.shape[-1])).values.flip(-1)
        kept = best.softmax(-1).cumsum(-1) > 1 - self.top_p
        kept[:, -1] = True  # the best token stays, whatever rounding does
        lowest = best.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        return scores.masked_fill(scores < lowest, -torch.inf)  # type: ignore[return-value]


def uniforms(seed: int, question: str, index: int, count: int) -> np.ndarray:
    """The random numbers of one response: ``(count,)`` in [0, 1), a function of the arguments alone."""
    key = int.from_bytes(_digest(seed, question, index)[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def response_seed(seed: int, question: str, index: int) -> int:
    """The seed of one response, for engines that draw themselves: from 0 to 2**31 - 1."""
    return int.from_bytes(_digest(seed, question, index)[:4], "little") >> 1


def _digest(seed: int, question: str, index: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{question}\n{index}".encode()).digest()


def draw(log_probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token from each row by inverting its cumulative distribution.

    Args:
        log_probabilities: ``(rows, vocabulary)``, normalised; minus infinity where a token is excluded.
        uniform: ``(rows,)`` in [0, 1).

    Returns:
        ``(rows,)`` token ids, never an excluded one.
    """
    cumulative = log_probabilities.double().exp().cumsum(-1)
    target = uniform.double() * cumulative[:, -1]
    # Strictly above the target, so a token of probability 0 is never met.
    return (cumulative <= target[:, None]).sum(-1).clamp(max=log_probabilities.shape[-1] - 1)
