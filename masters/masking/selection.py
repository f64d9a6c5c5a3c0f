"""Select the k smallest scores exactly, without sorting and without a limit on size.

Floating magnitudes have the order of their bit patterns without the sign bit. So the k-th smallest follows
from histograms of those integers, 15 or 16 bits at a time from the top. A 16-bit format needs one histogram;
a 32-bit format needs a second one, over the entries that share the leading digit found. Each pass reads the
weights once, in blocks, on their device.

A key is a non-negative integer with the order of a weight's score.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 22  # entries whose keys are in memory at once
_DIGIT = 16  # bits of a key per histogram
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Keys = Callable[[], Iterable[Tensor]]


def blocks(entries: Tensor, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Yield start and end of consecutive blocks of a flat tensor; at least one, possibly empty.

    Args:
        multiple: the length of every block but the last is a multiple of this, such as the length of a row.
    """
    size = max(1, BLOCK // max(1, multiple)) * max(1, multiple)
    for start in range(0, max(1, len(entries)), size):
        yield start, min(start + size, len(entries))


def magnitude_keys(values: Tensor) -> Tensor:
    """Return the bit patterns of the magnitudes, as integers of the same width, at least 16 bits.

    Args:
        values: any shape, contiguous, any floating type.
    """
    if values.element_size() == 1:
        values = values.to(torch.bfloat16)  # represents every value of every 8-bit format
    integers = _INTEGERS[values.element_size()]
    return values.view(integers) & torch.iinfo(integers).max


@dataclass
class Cut:
    """Selects the keys below a threshold, and the first keys that equal it.

    Attributes:
        threshold: the largest selected key.
        ties: how many keys equal to the threshold are still to be selected.
    """

    threshold: int
    ties: int

    def taken(self, keys: Tensor) -> Tensor:
        """Return which keys of the next block are selected; call once per block, in order."""
        taken = keys < self.threshold
        first = (keys == self.threshold).nonzero().flatten()[: self.ties]
        taken[first] = True
        self.ties -= len(first)
        return taken


@dataclass(frozen=True)
class RowCut:
    """Selects the ``count`` smallest keys of every row of ``width``, and among equal keys the first."""

    count: int
    width: int

    def taken(self, keys: Tensor) -> Tensor:
        """Return which keys of a block of whole rows are selected."""
        rows = keys.view(-1, self.width)
        order = rows.argsort(dim=1, stable=True)[:, : self.count]
        return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True).flatten()


def smallest(keys: Keys, count: int) -> Cut:
    """Select the ``count`` smallest keys; among equal ones the first.

    Args:
        keys: returns its blocks of keys at every call: flat, at least one, of one integer type.
        count: how many to select, at least 1 and at most all.
    """
    bits = 8 * next(iter(keys())).element_size()
    threshold, rank = 0, count - 1
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        cumulative = _histogram(keys, shift, None if shift == bits - _DIGIT else threshold).cumsum(0)
        digit = int(torch.searchsorted(cumulative, rank, right=True))
        rank -= int(cumulative[digit - 1]) if digit else 0
        threshold = threshold << _DIGIT | digit
    return Cut(threshold, rank + 1)


def _histogram(keys: Keys, shift: int, prefix: int | None) -> Tensor:
    """Count each digit at a shift, among the keys that begin with the prefix if there is one."""
    histogram = None
    for block in keys():
        if prefix is not None:
            block = block[block >> shift + _DIGIT == prefix]
            digits = (block >> shift) & ((1 << _DIGIT) - 1)
        else:
            digits = block >> shift
        # The leading digit has one bit less: keys are not negative.
        counts = torch.bincount(digits, minlength=1 << (_DIGIT - (prefix is None)))
        histogram = counts if histogram is None else histogram.add_(counts)
    assert histogram is not None, "there is at least one block"
    return histogram
