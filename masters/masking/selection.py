"""Select the k smallest scores exactly, without a sort and without a limit on the size.

The magnitude of a floating number is ordered as its bit pattern without the sign bit. So the k-th smallest
follows from a histogram of those integers, 15 or 16 bits at a time from the top: for a 16-bit format one
histogram is the answer, for 32 bits a second one counts the entries that share the leading digit found. A
pass reads the weights once, in blocks, on the device where they are; histograms of shards add up to that of
the whole.

An integer that is ordered as a weight's score is called its key. Keys are never negative.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK = 1 << 22  # entries whose keys are in memory at once
_DIGIT = 16  # bits of a key that one histogram counts
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Keys = Callable[[], Iterable[Tensor]]


def blocks(entries: Tensor, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Yield start and end of consecutive blocks of a flat tensor; at least one, possibly empty.

    Args:
        entries: a flat tensor.
        multiple: every block but the last is a multiple of this long, such as the length of a row.
    """
    size = max(1, BLOCK // max(1, multiple)) * max(1, multiple)
    for start in range(0, max(1, len(entries)), size):
        yield start, min(start + size, len(entries))


def magnitude_keys(values: Tensor) -> Tensor:
    """Return the bit patterns of the magnitudes: integers in the same order, equal where they are equal.

    Args:
        values: any shape, contiguous, any floating dtype.

    Returns:
        The same shape, in integers as wide as the values, at least 16 bits.
    """
    if values.element_size() == 1:
        values = values.to(torch.bfloat16)  # holds every value of every 8-bit format
    integers = _INTEGERS[values.element_size()]
    return values.view(integers) & torch.iinfo(integers).max


@dataclass
class Cut:
    """The smallest keys of a sequence of blocks: those below a threshold, and the first that equal it.

    Attributes:
        threshold: the largest key that is taken.
        ties: how many keys equal to the threshold are still to be taken.
    """

    threshold: int
    ties: int

    def taken(self, keys: Tensor) -> Tensor:
        """Return which keys of the next block are among the smallest; blocks come once, in their order."""
        taken = keys < self.threshold
        equal = keys == self.threshold
        first = equal & (equal.cumsum(0) <= self.ties)
        self.ties -= int(first.sum())
        return taken | first


@dataclass(frozen=True)
class RowCut:
    """The ``count`` smallest keys of each row of ``width``; among equals the earlier go first.

    Attributes:
        count: keys taken per row.
        width: length of a row; a block holds whole rows.
    """

    count: int
    width: int

    def taken(self, keys: Tensor) -> Tensor:
        """Return which keys of a block are among the smallest of their row."""
        if self.count == 0 or keys.numel() == 0:
            return torch.zeros_like(keys, dtype=torch.bool)
        rows = keys.view(-1, self.width)
        threshold = rows.kthvalue(self.count, dim=1, keepdim=True).values
        below, equal = rows < threshold, rows == threshold
        room = self.count - below.sum(1, keepdim=True)
        return (below | (equal & (equal.cumsum(1) <= room))).flatten()


def cuts(parts: Sequence[Keys], count: int, group: dist.ProcessGroup | None = None) -> list[Cut]:
    """Return the ``count`` smallest keys of several parts together; among equals the earlier go first.

    Earlier is: in an earlier part; in it, on a lower rank of the group; there, in an earlier place.

    Args:
        parts: each returns its blocks of keys at every call: flat, at least one, of one integer type.
        count: how many, over all parts and all processes of the group, from 0 to the number of keys.
        group: the processes that hold the rest of each part; None where one holds all.

    Returns:
        A cut for each part, for the keys that this process holds.
    """
    if count == 0:
        return [Cut(0, 0) for _ in parts]
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
    return [Cut(threshold, ties) for ties in _shares(parts, threshold, rank + 1, group)]


def _histogram(parts: Sequence[Keys], shift: int, prefix: int | None) -> Tensor:
    """How often each digit occurs at a shift, among the keys that begin with the prefix if there is one."""
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
    assert histogram is not None, "every part gives a block, be it empty"
    return histogram


def _shares(parts: Sequence[Keys], threshold: int, ties: int, group: dist.ProcessGroup | None) -> list[int]:
    """How many of the keys equal to the threshold go from each part on this process."""
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
