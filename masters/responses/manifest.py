"""The manifest of a store: one line per shard, appended after the shard is flushed to disk.

A line holds the shard's number of rows, its size in bytes, its SHA-256, the seconds its responses took to
generate, and which responses it holds, as runs of consecutive indices: content hash of the question, first
index, number of responses. So opening a store of ten million responses reads one file, counting what is
missing opens no shard, and the content of a damaged shard is still known.

Lines are appended under a lock, and each has a checksum. A damaged line is skipped; its shard is listed again
the next time the store is opened.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from filelock import FileLock

from masters.runtime.files import full_disk_error

CHECK = b', "check": '  # the last field of a line: CRC-32 of the bytes before it


@dataclass(frozen=True)
class Line:
    """One line of the manifest.

    Attributes:
        shard: file name.
        rows: number of responses.
        size: bytes.
        sha256: hash of the file.
        seconds: time to generate the responses; 0 if unknown.
        content: content hash of each run, joined.
        first: first index of each run.
        count: responses of each run; the runs are in the order of the rows.
    """

    shard: str
    rows: int
    size: int
    sha256: str
    seconds: float
    content: str
    first: Sequence[int]
    count: Sequence[int]

    def responses(self) -> list[tuple[str, set[int]]]:
        """Return content hash and indices of each run."""
        names = [self.content[place : place + 16] for place in range(0, len(self.content), 16)]
        runs = zip(names, self.first, self.count, strict=True)
        return [(name, set(range(first, first + count))) for name, first, count in runs]


def runs_of(content: Sequence[str], index: Sequence[int]) -> dict[str, str | list[int]]:
    """Return the fields content, first and count of rows sorted by content and index."""
    names, indices = np.asarray(content), np.asarray(index)
    starts = np.r_[True, (names[1:] != names[:-1]) | (indices[1:] != indices[:-1] + 1)].nonzero()[0]
    count = np.diff(np.r_[starts, len(names)])
    return {
        "content": "".join(names[starts]),
        "first": indices[starts].tolist(),
        "count": count.tolist(),
    }


def append(path: Path, line: Line) -> None:
    """Append a line and flush it to disk.

    Raises:
        OSError: the disk is full; the manifest is unchanged.
    """
    body = json.dumps(asdict(line))[:-1].encode()
    data = body + CHECK + f"{zlib.crc32(body)}}}\n".encode()
    with full_disk_error(path.parent), FileLock(f"{path}.lock"), open(path, "a+b") as file:
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


def read(path: Path) -> dict[str, Line]:
    """Return the undamaged lines of a manifest by shard; none if the file does not exist."""
    lines: dict[str, Line] = {}
    if not path.is_file():
        return lines
    with open(path, "rb") as file:
        for text in file:
            body, _, check = text.rpartition(CHECK)
            try:
                about = json.loads(text)
                del about["check"]
                if check.strip() == f"{zlib.crc32(body)}}}".encode():
                    lines[about["shard"]] = Line(**about)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue
    return lines


class Held:
    """Index of the responses in several shards, searchable by question.

    A response that two processes wrote counts once.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = list(lines)
        content = _numbers(line.content for line in self.lines)
        first = np.fromiter(chain.from_iterable(line.first for line in self.lines), np.int64)
        count = np.fromiter(chain.from_iterable(line.count for line in self.lines), np.int64)
        shard = np.repeat(np.arange(len(self.lines)), [len(line.first) for line in self.lines])
        before = np.cumsum([0, *(line.rows for line in self.lines)])
        row = count.cumsum() - count - before[shard]
        order = np.lexsort((first, content))
        self._content, first, count, row = content[order], first[order], count[order], row[order]
        self._shard = shard[order]
        # Cut from each run what earlier ones of its question cover; an offset keeps questions apart.
        start = first + (np.cumsum(np.r_[0, self._content[1:] != self._content[:-1]])[: len(first)] << 32)
        covered = np.r_[0, np.maximum.accumulate(start + count)[:-1]][: len(first)]
        cut = np.clip(covered - start, 0, count)
        self._first, self._count, self._row = first + cut, count - cut, row + cut

    def _runs(self, content: Sequence[str]) -> Iterator[range]:
        """Yield the places of each question's runs."""
        numbers = _numbers(content)
        return map(
            range, np.searchsorted(self._content, numbers), np.searchsorted(self._content, numbers, "right")
        )

    def indices(self, content: Sequence[str]) -> list[set[int]]:
        """Return the indices of the stored responses of each question."""
        first, end = self._first.tolist(), (self._first + self._count).tolist()
        return [
            {index for run in runs for index in range(first[run], end[run])} for runs in self._runs(content)
        ]

    def covers(self, line: Line) -> bool:
        """Return whether all responses of a line are stored."""
        runs = line.responses()
        there = self.indices([content for content, _ in runs])
        return all(indices <= stored for (_, indices), stored in zip(runs, there, strict=True))

    def count(self, content: Iterable[str], n: int) -> int:
        """Count the stored responses with an index below ``n``; duplicate questions count once."""
        wanted = np.sort(_numbers(content))
        if not len(wanted):
            return 0
        nearest = wanted.take(np.searchsorted(wanted, self._content), mode="clip")
        return int(np.clip(n - self._first, 0, self._count)[nearest == self._content].sum())

    def rows(self, content: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the rows that hold the questions' responses, ascending, by shard file name."""
        found: dict[str, list[np.ndarray]] = {}
        for runs in self._runs(content):
            for run in runs:
                rows = np.arange(self._row[run], self._row[run] + self._count[run])
                found.setdefault(self.lines[self._shard[run]].shard, []).append(rows)
        return {shard: np.sort(np.concatenate(rows)) for shard, rows in found.items()}


def _numbers(content: Iterable[str]) -> np.ndarray:
    """Convert content hashes of 16 hexadecimal digits to unsigned integers."""
    return np.frombuffer(bytes.fromhex("".join(content)), ">u8").astype(np.uint64)
