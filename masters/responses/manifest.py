"""The manifest of a store: one line per shard, appended after the shard is flushed to disk.

A line holds the shard's number of rows, its size in bytes, its SHA-256, the seconds its responses took to
generate, and which responses it holds. Each question has one or more entries (content, block, mask), where
bit ``i`` of the mask is response ``64 * block + i``. So opening a store of ten million responses reads one
file, counting what is missing opens no shard, and the content of a damaged shard is still known.

Lines are appended under a lock. A line cut off by a power failure is skipped; its shard is listed again the
next time the store is opened.
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
ALL = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Line:
    """One line of the manifest.

    Attributes:
        shard: file name.
        rows: number of responses.
        size: bytes.
        sha256: hash of the file.
        seconds: time to generate the responses; 0 if unknown.
        entries: responses in the order of the rows, as an array of type ``ENTRY``.
    """

    shard: str
    rows: int
    size: int
    sha256: str
    seconds: float
    entries: np.ndarray


def content_number(content: Sequence[str]) -> np.ndarray:
    """Convert content hashes (16 hexadecimal digits each) to unsigned 64-bit integers."""
    return np.frombuffer(bytes.fromhex("".join(content)), ">u8").astype(np.uint64)


def entries_of(content: Sequence[str], index: Sequence[int]) -> np.ndarray:
    """Return the entries, of type ``ENTRY``, of rows sorted by question and response index."""
    numbers, indices = content_number(content), np.asarray(index, dtype=np.int64)
    blocks = indices // 64
    if not len(numbers):
        return np.zeros(0, ENTRY)
    starts = _starts(numbers, blocks)
    entries = np.zeros(len(starts), ENTRY)
    entries["content"], entries["block"] = numbers[starts], blocks[starts]
    entries["mask"] = np.bitwise_or.reduceat(np.uint64(1) << (indices % 64).astype(np.uint64), starts)
    return entries


def append(path: Path, line: Line) -> None:
    """Append a line and flush it to disk; on an ``OSError`` (disk full) the manifest is unchanged."""
    about = {name: getattr(line, name) for name in ("shard", "rows", "size", "sha256", "seconds")}
    about["entries"] = base64.b64encode(line.entries.tobytes()).decode()
    data = (json.dumps(about) + "\n").encode()
    with FileLock(f"{path}.lock"), open(path, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":  # an incomplete last line: start a new one
                data = b"\n" + data
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise


def read(path: Path) -> list[Line]:
    """Return all complete lines of a manifest; none if the file does not exist."""
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
    """Index of the responses in several shards, searchable by question."""

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

    def _spans(self, content: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return where each question's entries begin and end."""
        numbers = content_number(content)
        return np.searchsorted(self._content, numbers), np.searchsorted(self._content, numbers, "right")

    def indices(self, content: Sequence[str]) -> list[set[int]]:
        """Return the indices of the stored responses of each question."""
        return [
            {index for entry in self._entries[left:right] for index in _indices(entry)}
            for left, right in zip(*self._spans(content), strict=True)
        ]

    def covers(self, entries: np.ndarray) -> bool:
        """Return whether all responses of the entries, of type ``ENTRY``, are stored."""
        there = self.indices([f"{number:016x}" for number in entries["content"].tolist()])
        return all(_indices(entry) <= indices for entry, indices in zip(entries, there, strict=True))

    def count(self, content: np.ndarray, n: int) -> int:
        """Count the stored responses with an index below ``n``; duplicate questions count once."""
        if not len(content):
            return 0
        wanted = np.sort(content)
        place = np.searchsorted(wanted, self._content)
        first = 64 * self._entries["block"].astype(np.int64)
        keep = (first < n) & (wanted[np.minimum(place, len(wanted) - 1)] == self._content)
        names, first = self._content[keep], first[keep]
        beyond = np.clip(64 - (n - first), 0, 63).astype(np.uint64)  # bits of responses from n on
        masks = self._entries["mask"][keep] & (ALL >> beyond)
        # Two processes may have written the same response; it counts once.
        if (names[1:] == names[:-1]).any():
            order = np.lexsort((first, names))
            masks = np.bitwise_or.reduceat(masks[order], _starts(names[order], first[order]))
        return int(np.bitwise_count(masks).sum())

    def rows(self, content: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the rows that hold the questions' responses, ascending, by shard file name."""
        found: dict[str, list[np.ndarray]] = {}
        for left, right in zip(*self._spans(content), strict=True):
            for place in range(left, right):
                start, mask = self._row[place], self._entries["mask"][place]
                rows = np.arange(start, start + int(mask).bit_count())
                found.setdefault(self.lines[self._shard[place]].shard, []).append(rows)
        return {shard: np.sort(np.concatenate(rows)) for shard, rows in found.items()}


def _starts(numbers: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Return where a new (number, block) pair begins."""
    return np.r_[True, (numbers[1:] != numbers[:-1]) | (blocks[1:] != blocks[:-1])].nonzero()[0]


def _indices(entry: np.void) -> set[int]:
    mask, first = int(entry["mask"]), 64 * int(entry["block"])
    return {first + bit for bit in range(mask.bit_length()) if mask >> bit & 1}
