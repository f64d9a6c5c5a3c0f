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
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from masters.settings import Sampling

SHORT = 1024  # entries of a row, up to which sorting all of it is faster than seeking the largest


def processors(sampling: Sampling, banned: Sequence[int]) -> list[LogitsProcessor]:
    """The warpers of ``transformers``, or equals of them, in the order in which ``generate`` applies them.

    Args:
        sampling: temperature, top-p, top-k and repetition penalty.
        banned: token ids that must never be drawn.
    """
    chain: list[LogitsProcessor] = [Never(banned)]
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


class Never(LogitsProcessor):
    """Excludes tokens, always.

    Args:
        banned: their ids.
    """

    def __init__(self, banned: Sequence[int]) -> None:
        self.banned = torch.tensor(banned, dtype=torch.long)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores ``(rows, vocabulary)`` with minus infinity where a token is excluded."""
        return scores.index_fill(-1, self.banned.to(scores.device), -torch.inf)  # type: ignore[return-value]


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
        best = _largest(scores, min(self.top_k, scores.shape[-1]))
        kept = best.softmax(-1).cumsum(-1) > 1 - self.top_p
        kept[:, -1] = True  # the best token stays, whatever rounding does
        lowest = best.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        return scores.masked_fill(scores < lowest, -torch.inf)  # type: ignore[return-value]


def _largest(scores: Tensor, k: int) -> Tensor:
    """The k largest of each row, ascending; on a CPU, NumPy sorts a short row in a fraction of the time."""
    if scores.device.type == "cpu" and scores.shape[-1] < SHORT:
        return torch.from_numpy(np.sort(scores.numpy(), -1)[:, -k:])
    return scores.topk(k).values.flip(-1)


def uniforms(seed: int, responses: Sequence[tuple[str, int]], count: int) -> np.ndarray:
    """The random numbers of some responses, each row a function of the seed and its response alone.

    Args:
        seed: of all.
        responses: question ids and indices.
        count: how many numbers each gets; more change no earlier ones.

    Returns:
        ``(responses, count)`` in [0, 1).
    """
    digests = b"".join(_digest(seed, question, index, 8 * count) for question, index in responses)
    bits = np.frombuffer(digests, dtype="<u8").reshape(len(responses), count)
    return (bits >> np.uint64(11)) * 2.0**-53  # as many bits as a float64 keeps


def response_seed(seed: int, question: str, index: int) -> int:
    """The seed of one response, for engines that draw themselves: from 0 to 2**31 - 1."""
    return int.from_bytes(_digest(seed, question, index, 4), "little") >> 1


def _digest(seed: int, question: str, index: int, size: int) -> bytes:
    # As many bytes as are asked for, as good as random, at a tenth of the cost of setting up a generator.
    return hashlib.shake_256(f"{seed}\n{question}\n{index}".encode()).digest(size)


def draw(log_probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token from each row by inverting its cumulative distribution.

    Args:
        log_probabilities: ``(rows, vocabulary)``, normalised; minus infinity where a token is excluded.
        uniform: ``(rows,)`` in [0, 1).

    Returns:
        ``(rows,)`` token ids, never an excluded one.
    """
    # What is normalised already stays so; on a CPU exp is slow where it meets minus infinity.
    cumulative = log_probabilities.softmax(-1).cumsum(-1, dtype=torch.float64)
    target = uniform.double() * cumulative[:, -1]
    # Strictly above the target, so a token of probability 0 is never met.
    drawn = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return drawn.clamp(max=log_probabilities.shape[-1] - 1)
