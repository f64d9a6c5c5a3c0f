"""Sample one token with the paper's settings, seeded per response.

The random numbers of a response depend on the seed, the question's id and the response's index only. So a
response is the same in any batch and after any interruption.
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

SHORT = 1024  # vocabulary size below which a full sort is faster than top-k on a CPU


def processors(sampling: Sampling, banned: Sequence[int]) -> list[LogitsProcessor]:
    """Return logits processors equivalent to those of ``transformers.generate``, in the same order.

    Args:
        banned: token ids that are never sampled.
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


class Sampler:
    """Choose the next token of each response.

    Args:
        sampling: greedy decoding uses none of it.
        banned: token ids that are never chosen.
        noise: ``(rows, tokens)`` in [0, 1), one number per token to sample; None decodes greedily.
    """

    def __init__(self, sampling: Sampling, banned: Sequence[int], noise: Tensor | None) -> None:
        self.noise = noise
        self.chain = processors(sampling, banned) if noise is not None else [Never(banned)]

    def __call__(self, history: Tensor, logits: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return tokens and their log-probabilities over the whole vocabulary, before all settings.

        Args:
            history: ``(responses, tokens)``, prompt and response so far.
            logits: ``(responses, vocabulary)``.
            rows: ``(responses,)``, their rows of the noise.
            step: number of the token, from 0.
        """
        whole = logits.log_softmax(-1)
        for process in self.chain:
            logits = process(history, logits)
        if self.noise is None:
            token = logits.argmax(-1)
        else:
            token = draw(logits.log_softmax(-1), self.noise[rows, step])
        return token, whole.gather(1, token[:, None])[:, 0]


class Never(LogitsProcessor):
    """Exclude the banned token ids."""

    def __init__(self, banned: Sequence[int]) -> None:
        self.banned = torch.tensor(banned, dtype=torch.long)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Set excluded tokens of ``scores``, ``(rows, vocabulary)``, to minus infinity."""
        return scores.index_fill(-1, self.banned.to(scores.device), -torch.inf)  # type: ignore[return-value]


class TopKTopP(LogitsProcessor):
    """Apply top-k, then top-p, and sort only the k best tokens instead of the whole vocabulary."""

    def __init__(self, top_k: int, top_p: float) -> None:
        self.top_k, self.top_p = top_k, top_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Set excluded tokens of ``scores``, ``(rows, vocabulary)``, to minus infinity."""
        best = _largest(scores, min(self.top_k, scores.shape[-1]))
        kept = best.softmax(-1).cumsum(-1) > 1 - self.top_p
        kept[:, -1] = True  # always keep the best token, despite rounding
        lowest = best.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        return scores.masked_fill(scores < lowest, -torch.inf)  # type: ignore[return-value]


def _largest(scores: Tensor, k: int) -> Tensor:
    """Return the k largest entries of each row, ascending; NumPy is much faster on short CPU rows."""
    if scores.device.type == "cpu" and scores.shape[-1] < SHORT:
        return torch.from_numpy(np.sort(scores.numpy(), -1)[:, -k:])
    return scores.topk(k).values.flip(-1)


def uniforms(seed: int, responses: Sequence[tuple[str, int]], count: int) -> np.ndarray:
    """Return uniform random numbers in [0, 1), ``(responses, count)``.

    Args:
        responses: question ids and response indices; each row depends on its own pair and the seed only.
        count: numbers per response; a larger count keeps the earlier numbers.
    """
    digests = b"".join(_digest(seed, question, index, 8 * count) for question, index in responses)
    bits = np.frombuffer(digests, dtype="<u8").reshape(len(responses), count)
    return (bits >> np.uint64(11)) * 2.0**-53  # 53 bits, the precision of a float64


def response_seed(seed: int, question: str, index: int) -> int:
    """Return the seed of one response, from 0 to 2**31 - 1, for engines with their own sampler."""
    return int.from_bytes(_digest(seed, question, index, 4), "little") >> 1


def _digest(seed: int, question: str, index: int, size: int) -> bytes:
    # Pseudo-random bytes for a tenth of the cost of constructing a random generator.
    return hashlib.shake_256(f"{seed}\n{question}\n{index}".encode()).digest(size)


def draw(log_probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Sample one token per row by inverting its cumulative distribution.

    Args:
        log_probabilities: ``(rows, vocabulary)``, normalized; minus infinity at excluded tokens.
        uniform: ``(rows,)`` in [0, 1).

    Returns:
        Token ids ``(rows,)``; never an excluded one.
    """
    # Softmax leaves normalized rows unchanged; exp is slow at minus infinity on a CPU.
    cumulative = log_probabilities.softmax(-1).cumsum(-1, dtype=torch.float64)
    target = uniform.double() * cumulative[:, -1]
    # Strictly above the target, so a token of probability 0 is never sampled.
    drawn = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return drawn.clamp(max=log_probabilities.shape[-1] - 1)
