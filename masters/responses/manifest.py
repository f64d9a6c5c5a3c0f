"""The manifest of a store: one line a shard, appended after the shard is safely on disk.

A line says how many rows and bytes a shard has, its SHA-256, how long its responses took to write, and which
responses it holds: for every question one or more (content, block, mask), where bit ``i`` of the mask means
response ``64 * block + i``. So a store of ten million responses opens by reading one file, what is missing is
counted without opening a shard, and a damaged shard can still be said to have held this or that.

Lines are appended whole under a lock. A line that a power cut tore is passed over; its shard is on disk
and is listed anew when the store is next opened.
"""

import base64
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

ENTRY = np.dtype([("content", "<u8"), ("block", "<u2"), ("mask", "<u8")])


@dataclass(frozen=True)
class Line:
    """What the manifest says of one shard.

    Attributes:
        shard: its file name.
        rows: responses in it.
        size: bytes.
        sha256: of the file.
        seconds: that its responses took to generate; 0 where nobody knows.
        entries: which responses, in the order of the rows; of type ``ENTRY``.
    """

    shard: str
    rows: int
    size: int
    sha256: str
    seconds: float
    entries: np.ndarray


def content_number(content: Sequence[str]) -> np.ndarray:
    """Content hashes (16 hexadecimal digits) as unsigned 64-bit numbers."""
    return np.frombuffer(bytes.fromhex("".join(content)), ">u8").astype(np.uint64)


def distinct(numbers: np.ndarray) -> np.ndarray:
    """Each number once, ascending; a sort, as NumPy's own ``unique`` takes many times longer for millions."""
    ordered = np.sort(numbers)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ordered) else ordered


def entries_of(content: Sequence[str], index: Sequence[int]) -> np.ndarray:
    """The entries of rows that are sorted by index within each question, a question's rows side by side.

    Args:
        content: of each row.
        index: of each row.

    Returns:
        ``(questions with their blocks,)`` of type ``ENTRY``.
    """
    numbers, indices = content_number(content), np.asarray(index, dtype=np.int64)
    blocks = indices // 64
    if not len(numbers):
        return np.zeros(0, ENTRY)
    new = np.r_[True, (numbers[1:] != numbers[:-1]) | (blocks[1:] != blocks[:-1])]
    starts = new.nonzero()[0]
    entries = np.zeros(len(starts), ENTRY)
    entries["content"], entries["block"] = numbers[starts], blocks[starts]
    entries["mask"] = np.bitwise_or.reduceat(np.uint64(1) << (indices % 64).astype(np.uint64), starts)
    return entries


def append(path: Path, line: Line) -> None:
    """Add a line and flush it to disk; the shard must be there already.

    Raises:
        OSError: the disk is full; the store is as it was.
    """
    about = {name: getattr(line, name) for name in ("shard", "rows", "size", "sha256", "seconds")}
    about["entries"] = base64.b64encode(line.entries.tobytes()).decode()
    data = (json.dumps(about) + "\n").encode()
    with FileLock(f"{path}.lock"), open(path, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":  # a torn line; ours begins on the next
                data = b"\n" + data
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise


def read(path: Path) -> list[Line]:
    """All whole lines of a manifest; none if there is no such file."""
    lines: list[Line] = []
    if not path.is_file():
        return lines
    with open(path, "rb") as file:
        for text in file:
            try:
                about = json.loads(text)
                about["entries"] = np.frombuffer(base64.b64decode(about["entries"], validate=True), ENTRY)
                lines.append(Line(**about))
            except (ValueError, TypeError, KeyError):
                continue
    return lines


class Held:
    """Which responses some shards hold together, searchable by question.

    Args:
        lines: of those shards.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = list(lines)
        parts = [line.entries for line in self.lines]
        entries = np.concatenate(parts) if parts else np.zeros(0, ENTRY)
        shard = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        counts = np.bitwise_count(entries["mask"]).astype(np.int64)
        ends = np.cumsum(counts)
        before = np.cumsum([0, *(line.rows for line in self.lines)])[:-1]
        row = (ends - counts - before[shard]).astype(np.int32) if len(parts) else np.zeros(0, np.int32)
        order = np.argsort(entries["content"], kind="stable")
        self._entries, self._shard, self._row = entries[order], shard[order], row[order]
        self._content = np.ascontiguousarray(self._entries["content"])

    def indices(self, content: Sequence[str]) -> list[set[int]]:
        """The indices of the responses that are there, for each of some questions."""
        numbers = content_number(content)
        left = np.searchsorted(self._content, numbers, "left")
        right = np.searchsorted(self._content, numbers, "right")
        found = []
        for start, end in zip(left.tolist(), right.tolist(), strict=True):
            there: set[int] = set()
            for entry in self._entries[start:end]:
                there |= _indices(entry)
            found.append(there)
        return found

    def covers(self, entries: np.ndarray) -> bool:
        """Whether all responses of some entries, of type ``ENTRY``, are there."""
        there = self.indices([f"{number:016x}" for number in entries["content"].tolist()])
        return all(_indices(entry) <= indices for entry, indices in zip(entries, there, strict=True))

    def count(self, content: np.ndarray, n: int) -> int:
        """How many of the first ``n`` responses of some questions are there.

        Args:
            content: questions as numbers, see :func:`content_number`; each counts once.
            n: responses a question.
        """
        block = self._entries["block"].astype(np.int64)
        full = np.clip(n - 64 * block, 0, 64)
        # A shift by 64 is not defined, so the last bit is set apart.
        below = np.where(
            full == 64,
            np.uint64(2**64 - 1),
            (np.uint64(1) << np.minimum(full, 63).astype(np.uint64)) - np.uint64(1),
        )
        wanted = np.sort(content)
        place = np.searchsorted(wanted, self._content)
        asked = wanted[np.minimum(place, len(wanted) - 1)] == self._content if len(wanted) else block < 0
        keep = asked & (below > 0)
        masks = (self._entries["mask"] & below)[keep]
        if not len(masks):
            return 0
        # Two writers may both have made a response; it counts once.
        names, blocks = self._content[keep], block[keep]
        if len(names) > 1 and (names[1:] == names[:-1]).any():
            order = np.lexsort((blocks, names))
            names, blocks, masks = names[order], blocks[order], masks[order]
            new = np.r_[True, (names[1:] != names[:-1]) | (blocks[1:] != blocks[:-1])]
            masks = np.bitwise_or.reduceat(masks, new.nonzero()[0])
        return int(np.bitwise_count(masks).sum())

    def rows(self, content: Sequence[str]) -> dict[str, np.ndarray]:
        """In which rows of which shards the responses of some questions are, by file name."""
        numbers = np.sort(content_number(content))
        left = np.searchsorted(self._content, numbers, "left")
        right = np.searchsorted(self._content, numbers, "right")
        counts = right - left
        where = (
            np.repeat(left, counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        )
        shards, starts = self._shard[where], self._row[where]
        lengths = np.bitwise_count(self._entries["mask"][where])
        found: dict[str, np.ndarray] = {}
        for number in np.unique(shards).tolist():
            of_shard = shards == number
            ranges = [
                np.arange(start, start + length)
                for start, length in zip(starts[of_shard].tolist(), lengths[of_shard].tolist(), strict=True)
            ]
            found[self.lines[number].shard] = np.sort(np.concatenate(ranges))
        return found


def _indices(entry: np.void) -> set[int]:
    mask, first = int(entry["mask"]), 64 * int(entry["block"])
    return {first + bit for bit in range(mask.bit_length()) if mask >> bit & 1}
