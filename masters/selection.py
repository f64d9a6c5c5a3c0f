"""Which entries are the k smallest, exactly, by counting: no sort, no limit on the size, one block at a time.

The idea: the magnitude of a floating number is ordered as its bit pattern without the sign bit. So the k
smallest follow from a histogram of those integers, of 15 or 16 bits at a time from the top: for a 16-bit
format one histogram is the answer, for 32 bits a second one is taken of the entries that share the leading
digit that was found. A pass reads the weights once, in blocks whose temporaries stay in a core's cache, on
the device where they are; histograms of shards add up to that of the whole.

Most entries are far from the k-th, and a sample tells which: see :func:`bracket`. Then the histograms have to
decide among the few that are near only.

An integer that is as ordered as a weight's score is called its key here; keys are never negative.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

# Entries in one block: on a CPU few enough for the cache, and enough for a histogram of 2**15 counts to cost
# little beside them; on an accelerator enough to fill it.
_CPU_BLOCK, _LARGE_BLOCK = 1 << 19, 1 << 24
_DIGIT = 16  # bits of a key that one histogram looks at
_SAMPLE = 1 << 16  # entries of a sample
_DEVIATIONS = 3  # of a sample's share from the true one, by which a bracket reaches to either side
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Keys = Callable[[], Iterable[Tensor]]


def blocks(entries: Tensor, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Start and end of consecutive blocks of a flat tensor, whole rows each; at least one, be it empty.

    Args:
        entries: a flat tensor.
        multiple: the length of a row.
    """
    block = _CPU_BLOCK if entries.device.type == "cpu" else _LARGE_BLOCK
    size = max(1, block // max(1, multiple)) * max(1, multiple)
    for start in range(0, max(1, len(entries)), size):
        yield start, min(start + size, len(entries))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let the operations on blocks run on the calling thread alone.

    A block takes microseconds. Where other programs use the cores, threads that wait for each other after
    every operation take many times as long as one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def magnitude_keys(values: Tensor) -> Tensor:
    """The bit pattern of the magnitudes: integers as ordered as they are, equal where they are.

    Args:
        values: any shape, contiguous, any floating dtype.

    Returns:
        The same shape, in integers as wide as the values, 16 bits at least.
    """
    if values.element_size() == 1:
        values = values.to(torch.bfloat16)  # holds every value of every 8-bit format
    integers = _INTEGERS[values.element_size()]
    raw, unsigned = values.view(integers), torch.iinfo(integers).max
    if raw.device.type == "cpu":  # by NumPy, as in places
        return torch.from_numpy(raw.numpy() & unsigned)
    return raw & unsigned


def has_nan(values: Tensor) -> bool:
    """Whether there is a NaN among some values, of any floating dtype."""
    if values.element_size() == 1:
        values = values.to(torch.bfloat16)
    # A sum is faster than a look at each, and NaN if one is; two infinities can make it so too.
    return bool(values.sum().isnan()) and bool(values.isnan().any())


def places(mask: Tensor) -> Tensor:
    """The indices where a flat bool mask is True, ascending; on a CPU by NumPy, which is faster."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


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
        """Which keys of the next block are among the smallest; the blocks are given once, in their order."""
        taken = up_to(keys, self.threshold if self.ties else self.threshold - 1)
        if self.ties == 0:
            return taken
        equal = equal_to(keys, self.threshold)
        number = _count(equal)
        if number > self.ties:
            taken[places(equal)[self.ties :]] = False
        self.ties -= min(self.ties, number)
        return taken


@dataclass(frozen=True)
class RowCut:
    """The ``count`` smallest keys of each row of ``width``; among equals the earlier go first.

    Attributes:
        count: how many go from a row.
        width: the length of a row; a block holds whole rows.
    """

    count: int
    width: int

    def taken(self, keys: Tensor) -> Tensor:
        """Which keys of a block are among the smallest of their row."""
        if self.count == 0 or keys.numel() == 0:
            return torch.zeros_like(keys, dtype=torch.bool)
        rows = keys.view(-1, self.width)
        threshold = rows.kthvalue(self.count, dim=1, keepdim=True).values
        below, equal = rows < threshold, rows == threshold
        room = self.count - below.sum(1, keepdim=True)
        return (below | (equal & (equal.cumsum(1) <= room))).flatten()


def sample(total: int) -> Tensor:
    """Places of some of so many entries, the same each time; with repetition, so for many entries only."""
    return torch.randint(total, (_SAMPLE,), generator=torch.Generator().manual_seed(0))


def bracket(sampled: Tensor, share: float) -> tuple[int, int]:
    """Two keys with, most likely, the last of those between them that a share of all keys takes.

    Args:
        sampled: keys drawn from all of them, such as those at :func:`sample`.
        share: of the keys, those that are smallest; in [0, 1].
    """
    size = len(sampled)
    slack = math.ceil(_DEVIATIONS * math.sqrt(share * (1 - share) * size)) + 1
    ordered, middle = sampled.sort().values, math.floor(share * size)
    low, high = (int(ordered[min(max(middle + shift, 0), size - 1)]) for shift in (-slack, slack))
    return low, high


def cuts(parts: Sequence[Keys], count: int, group: dist.ProcessGroup | None = None) -> list[Cut]:
    """The ``count`` smallest keys of several parts together; among equals the earlier go first.

    Earlier is: in an earlier part; in it, on a lower rank of the group; there, in an earlier place.

    Args:
        parts: each gives its blocks of keys anew at every call: flat, at least one, of one integer type.
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
    return [Cut(threshold, ties) for ties in _share(parts, threshold, rank + 1, group)]


def _histogram(parts: Sequence[Keys], shift: int, prefix: int | None) -> Tensor:
    """How often each digit occurs at a shift, among the keys that begin with the prefix if there is one."""
    histogram = None
    for keys in (block for part in parts for block in part()):
        if prefix is not None:
            keys = keys[places(equal_to(keys >> shift + _DIGIT, prefix))]
            digits = (keys >> shift) & ((1 << _DIGIT) - 1)
        else:
            digits = keys >> shift if shift else keys
        # The leading digit has a bit less: keys are not negative.
        counts = torch.bincount(digits, minlength=1 << (_DIGIT - (prefix is None)))
        histogram = counts if histogram is None else histogram.add_(counts.to(histogram.device))
    assert histogram is not None, "every part gives a block, be it empty"
    return histogram


def _share(parts: Sequence[Keys], threshold: int, ties: int, group: dist.ProcessGroup | None) -> list[int]:
    """How many of the keys equal to the threshold go from each part on this process."""
    if group is None and len(parts) == 1:
        return [ties]
    counts = [[equal_to(keys, threshold).sum() for keys in part()] for part in parts]
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


def up_to(keys: Tensor, value: int) -> Tensor:
    """Which keys are at most a value."""
    return _compare(operator.le, keys, value)


def equal_to(keys: Tensor, value: int) -> Tensor:
    """Which keys equal a value."""
    return _compare(operator.eq, keys, value)


def _count(mask: Tensor) -> int:
    if mask.device.type == "cpu":  # by NumPy, as in places
        return int(np.count_nonzero(mask.numpy()))
    return int(mask.count_nonzero())


def _compare(operation: Callable[[Any, int], Any], keys: Tensor, value: int) -> Tensor:
    if keys.device.type == "cpu":  # by NumPy, as in places
        return torch.from_numpy(operation(keys.numpy(), value))
    compared: Tensor = operation(keys, value)
    return compared
