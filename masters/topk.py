"""The k largest log-probabilities of a token and the mass of the rest, packed into a fixed number of bytes.

A whole distribution over 151,936 entries takes 300 kB a token; its 64 largest entries take 274 bytes: token
ids of as many bits as the vocabulary needs, log-probabilities and the log of the remaining mass as float16.
What is read back is a distribution over the whole vocabulary again, with the remaining mass spread evenly, so
a student trains on it with no teacher in memory. Where the kept mass is p, its total variation distance from
the true distribution is at most 1 - p.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from masters.questions import Ragged

LEAST = -30.0  # stands for the logarithm of a remaining mass of 0


def bytes_per_token(vocabulary: int, k: int) -> int:
    """How many bytes a token takes.

    Raises:
        ValueError: k is not from 1 to the size of the vocabulary - 1.
    """
    if not 1 <= k < vocabulary:
        raise ValueError(
            f"top k of {k} with a vocabulary of {vocabulary}: give 1 to {vocabulary - 1}, or none"
        )
    return -(-k * _bits(vocabulary) // 8) + 2 * k + 2


def encode(log_probabilities: Tensor, k: int) -> np.ndarray:
    """Pack distributions.

    Args:
        log_probabilities: ``(tokens, vocabulary)``, normalised.
        k: entries to keep.

    Returns:
        ``(tokens, bytes_per_token)`` of type uint8.

    Raises:
        ValueError: as :func:`bytes_per_token`.
    """
    tokens, vocabulary = log_probabilities.shape
    size = bytes_per_token(vocabulary, k)
    top, ids = log_probabilities.float().topk(k, dim=-1)
    without = log_probabilities.float().scatter(-1, ids, -torch.inf)
    rest = without.logsumexp(-1).clamp(min=LEAST)
    bits = _bits(vocabulary)
    of_ids = (ids.cpu().numpy()[..., None] >> np.arange(bits)) & 1
    packed = np.packbits(of_ids.reshape(tokens, k * bits).astype(np.uint8), axis=1, bitorder="little")
    kept = torch.cat([top, rest[:, None]], 1).clamp(min=-6e4).half()  # float16 ends at -65,504
    values = kept.cpu().numpy()
    out = np.concatenate([packed, values.view(np.uint8).reshape(tokens, -1)], 1)
    assert out.shape == (tokens, size)
    return out


def decode(packed: np.ndarray, vocabulary: int, k: int) -> np.ndarray:
    """Unpack distributions: ``(tokens, vocabulary)`` log-probabilities of type float16."""
    tokens, bits = len(packed), _bits(vocabulary)
    size = -(-k * bits // 8)
    of_ids = np.unpackbits(packed[:, :size], axis=1, count=k * bits, bitorder="little")
    ids = (of_ids.reshape(tokens, k, bits).astype(np.int64) << np.arange(bits)).sum(-1)
    values = np.ascontiguousarray(packed[:, size:]).view(np.float16)
    share = values[:, k:].astype(np.float32) - np.log(vocabulary - k)
    out = np.repeat(share.astype(np.float16), vocabulary, axis=1)
    np.put_along_axis(out, ids, values[:, :k], axis=1)
    return out


class TopK:
    """Packed distributions in a file, mapped into memory; reading one unpacks it.

    Args:
        folder: where the packed rows, ``topk.npy`` and ``topk.offsets.npy``, and ``topk.shape.npy`` are.
    """

    def __init__(self, folder: Path) -> None:
        self.rows = Ragged(folder, "topk")
        self.vocabulary, self.k = np.load(folder / "topk.shape.npy").tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return decode(self.rows[index], self.vocabulary, self.k)


def _bits(vocabulary: int) -> int:
    return max(1, (vocabulary - 1).bit_length())
