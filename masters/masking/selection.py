"""Select the k smallest scores exactly, without sorting and without a limit on size.

Floating magnitudes have the order of their bit patterns without the sign bit. So the k-th smallest follows
from histograms of those integers, 15 or 16 bits at a time from the top. A 16-bit format needs one histogram;
a 32-bit format needs a second one, over the entries that share the leading digit found. Each pass reads the
weights once, in blocks, on their device. The histograms of shards add up to that of the whole.

A key is a non-negative integer with the order of a weight's score.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
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


def cuts(parts: Sequence[Keys], count: int, group: dist.ProcessGroup | None = None) -> list[Cut]:
    """Select the ``count`` smallest keys of several parts together.

    Among equal keys the earlier part comes first; within a part the lower rank, then the lower index.

    Args:
        parts: each returns its blocks of keys at every call: flat, at least one, of one integer type.
        count: from 1 to the number of keys of all parts and processes.
        group: the processes that share each part; None where one holds all.

    Returns:
        A cut per part, for the keys in this process.
    """
    bits = 8 * next(iter(parts[0]())).element_size()
    threshold, rank = 0, count - 1
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        histogram = _histogram(parts, shift, None if shift == bits - _DIGIT else threshold)
        if group is not None:
            dist.all_reduce(histogram, group=group)
        cumulative = histogram.cumsum(0)
        digit = int(torch.searchsorted(cumulative, rank, right=True))
        rank -= int(cumulative[digit - 1]) if digit else 0
        threshold = threshold << _DIGIT | digit
    return [Cut(threshold, ties) for ties in _ties(parts, threshold, rank + 1, group)]


def _histogram(parts: Sequence[Keys], shift: int, prefix: int | None) -> Tensor:
    """Count each digit at a shift, among the keys that begin with the prefix if there is one."""
    histogram = None
    for keys in (block for part in parts for block in part()):
        if prefix is not None:
            keys = keys[keys >> shift + _DIGIT == prefix]
            digits = (keys >> shift) & ((1 << _DIGIT) - 1)
        else:
            digits = keys >> shift
        # The leading digit has one bit less: keys are not negative.
        counts = torch.bincount(digits, minlength=1 << (_DIGIT - (prefix is None)))
        histogram = counts if histogram is None else histogram.add_(counts.to(histogram.device))
    assert histogram is not None, "every part returns at least one block"
    return histogram


def _ties(parts: Sequence[Keys], threshold: int, ties: int, group: dist.ProcessGroup | None) -> list[int]:
    """Return how many keys equal to the threshold each part selects in this process."""
    if group is None and len(parts) == 1:
        return [ties]
    counts = [[(keys == threshold).sum() for keys in part()] for part in parts]
    device = counts[0][0].device
    own = torch.stack([torch.stack(count).sum().to(device) for count in counts])
    held = [own]
    if group is not None:
        held = [torch.empty_like(own) for _ in range(group.size())]
        dist.all_gather(held, own, group=group)
    table = torch.stack(held, dim=1)  # (parts, ranks)
    before = (table.flatten().cumsum(0) - table.flatten()).view_as(table)
    shares = (ties - before).clamp(min=0).minimum(table)
    return shares[:, 0 if group is None else group.rank()].tolist()
