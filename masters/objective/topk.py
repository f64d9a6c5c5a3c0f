"""The k largest log-probabilities of a token and the mass of the rest, packed into a fixed number of bytes.

A whole distribution over 151,936 entries takes 300 kB per token in float16; its 64 largest entries take 274
bytes: token ids in as many bits as the vocabulary needs, log-probabilities and the log of the remaining mass
in float16. So a student trains on them without a teacher in memory.

A divergence from such a distribution is that of k + 1 events: the entries kept, and all others as one. It is
at most that of the whole distributions (data processing), equal for k one below the vocabulary, and 0 between
equal models, as a divergence must be for a reward (Eq. 7) or a penalty (Eq. 9). Unpacking gives it in the
usual form: with the student's probabilities q, the remaining mass r is spread over the other entries as
``r q_i / sum_j q_j``, so that each has the ratio of the two masses to its q.

Departures from the paper: it does not say how it stores or computes the teachers' distributions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

LEAST = -30.0  # lower bound of the log of the remaining mass, which may be 0


def bytes_per_token(vocabulary: int, k: int) -> int:
    """Return the bytes per token.

    Raises:
        ValueError: k is not in 1 .. vocabulary - 1.
    """
    if not 1 <= k < vocabulary:
        raise ValueError(
            f"top k of {k} with a vocabulary of {vocabulary}: give 1 to {vocabulary - 1}, or none"
        )
    return -(-k * _bits(vocabulary) // 8) + 2 * k + 2


def storage_bytes(tokens: int, vocabulary: int, k: int | None) -> int:
    """Return the bytes on disk of the distributions at some tokens: k entries of each, or all if None."""
    return tokens * (2 * vocabulary if k is None else bytes_per_token(vocabulary, k))


def encode(log_probabilities: Tensor, k: int) -> np.ndarray:
    """Pack distributions.

    Args:
        log_probabilities: ``(tokens, vocabulary)``, normalized.
        k: number of entries to keep.

    Returns:
        ``(tokens, bytes_per_token)`` uint8.

    Raises:
        ValueError: k is not in 1 .. vocabulary - 1.
    """
    tokens, vocabulary = log_probabilities.shape
    bytes_per_token(vocabulary, k)  # refuses k
    top, ids = log_probabilities.float().topk(k, dim=-1)
    without = log_probabilities.float().scatter(-1, ids, -torch.inf)
    rest = without.logsumexp(-1).clamp(min=LEAST)
    bits = _bits(vocabulary)
    of_ids = (ids.cpu().numpy()[..., None] >> np.arange(bits)) & 1
    packed = np.packbits(of_ids.reshape(tokens, k * bits).astype(np.uint8), axis=1, bitorder="little")
    kept = torch.cat([top, rest[:, None]], 1).clamp(min=-6e4).half()  # float16 ends at -65,504
    values = kept.cpu().numpy()
    return np.concatenate([packed, values.view(np.uint8).reshape(tokens, -1)], 1)


@dataclass(frozen=True, eq=False)
class Packed:
    """Packed distributions; :mod:`masters.objective.logits` unpacks them a chunk of tokens at a time.

    Attributes:
        rows: ``(..., bytes_per_token)`` uint8.
        vocabulary: entries of each distribution.
        k: entries kept of each distribution.
    """

    rows: Tensor
    vocabulary: int
    k: int

    @property
    def shape(self) -> torch.Size:
        """Return the shape of the distributions, ``(..., vocabulary)``."""
        return torch.Size((*self.rows.shape[:-1], self.vocabulary))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Packed":
        """Apply a function to the packed rows."""
        return replace(self, rows=function(self.rows))

    def logits(self, like: Tensor | None = None) -> Tensor:
        """Unpack the log-probabilities, ``(..., vocabulary)`` in float32.

        Args:
            like: logits of the model that they are compared with, ``(..., vocabulary)``; the remaining mass
                is spread as this model spreads its own. A divergence, and its gradient for ``like``, are then
                those of k + 1 events, see the module. None: it is spread evenly.
        """
        lead, bits = self.rows.shape[:-1], _bits(self.vocabulary)
        size = -(-self.k * bits // 8)
        device = self.rows.device
        single = (self.rows[..., :size, None] >> torch.arange(8, device=device, dtype=torch.uint8)) & 1
        of_ids = single.reshape(*lead, 8 * size)[..., : self.k * bits].reshape(*lead, self.k, bits)
        ids = (of_ids.long() << torch.arange(bits, device=device)).sum(-1)
        halves = self.rows[..., size:].clone(memory_format=torch.contiguous_format)
        values = halves.view(torch.float16).float()
        mass, kept = values[..., self.k :], values[..., : self.k]
        if like is None:
            return (mass - math.log(self.vocabulary - self.k)).expand(self.shape).scatter(-1, ids, kept)
        others = like.detach().float().scatter(-1, ids, -torch.inf).log_softmax(-1)
        return (mass + others).scatter(-1, ids, kept)


def _bits(vocabulary: int) -> int:
    return max(1, (vocabulary - 1).bit_length())
