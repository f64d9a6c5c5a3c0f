"""The cache of responses: generated once, kept on disk, never asked for again.

A store is a folder named by a hash of all that its responses have in common: the weights that wrote them, the
mask ratio, the tokenizer and chat template, the sampling settings and the seed. A row adds what is left:
the content of the question and the index of the response. Rows come in Parquet shards that pandas, DuckDB
and ``datasets`` read as they are, each written to a temporary name, flushed to disk, renamed and only then
listed in the manifest. So a kill loses at most the batch under way, and two processes may write at once.
Verdicts stand beside the shard in a file that carries the judge's name: another judge needs no new responses.
"""

import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from masters.judges import Judge
from masters.responses.engines import Response
from masters.responses.manifest import Held, Line, append, content_number, distinct, entries_of, read
from masters.runtime.files import cache_dir, hash_of, write_atomic
from masters.settings import Sampling, Strict

VERSION = 3
ROW_GROUP = 1024
REPETITIONS = 3
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("question", pa.string()),
        ("content", pa.string()),
        ("asked", pa.string()),
        ("label", pa.string()),
        ("index", pa.int32()),
        ("tokens", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("logprobs", pa.list_(pa.float32())),
        ("support_logprobs", pa.list_(pa.float32())),
        ("finish", pa.string()),
        ("mark", pa.string()),
        ("source", pa.string()),
        ("weights", pa.string()),
        ("ratio", pa.float64()),
        ("seed", pa.int64()),
        ("sampling", pa.string()),
        ("engine", pa.string()),
    ]
)
# What all rows of a store have in common, written into each of them for readers of the bare files.
SHARED = ("source", "weights", "ratio", "seed", "sampling", "engine")


class StoreSpec(Strict):
    """What all responses of a store have in common."""

    weights: str
    ratio: float
    processor: str
    sampling: Sampling
    seed: int | None
    engine: str = "transformers"
    # Left out where it is the paper's, which is what stores hold that know nothing of it.
    choice: dict[str, str] = Field(default_factory=dict, exclude_if=lambda choice: not choice)
    version: int = VERSION


@dataclass(frozen=True)
class Status:
    """What a store has of the responses that are wanted.

    Attributes:
        there: responses that need not be generated.
        missing: those that do.
        size: bytes of the whole store.
        missing_size: bytes that the missing ones will take, as the stored ones did; None without any.
        missing_seconds: the same for the time.
    """

    there: int
    missing: int
    size: int
    missing_size: float | None
    missing_seconds: float | None


@dataclass(frozen=True)
class Damage:
    """A shard that cannot be trusted: where, why, and how many responses of how many questions it held."""

    path: Path
    reason: str
    responses: int | None
    questions: int | None


def mark(text: str, finish: str) -> str:
    """What is wrong with a generation: ``empty``, ``truncated``, ``repetitive``, or nothing.

    Repetitive: it ends in the same words three times over or more.
    """
    words = text.split()
    if not words:
        return "empty"
    for length in range(1, len(words) // REPETITIONS + 1):
        if words[-REPETITIONS * length :] == REPETITIONS * words[-length:]:
            return "repetitive"
    return "truncated" if finish == "length" else ""


class ResponseStore:
    """The responses of one source under one setting.

    Args:
        spec: what they have in common; its hash names the folder.
        source: name of the model, for the column of that name.
        promise: what a response depends on, as its engine says; see :mod:`masters.responses.engines`.
        root: the folder of all stores; that of the cache when None.
    """

    def __init__(
        self, spec: StoreSpec, source: str = "", promise: str = "", root: Path | None = None
    ) -> None:
        self.spec = spec
        self.source, self.promise = source, promise
        self.key = hash_of(spec.model_dump(mode="json"))
        self.folder = (root or cache_dir() / "responses") / self.key
        self.manifest = self.folder / "manifest.jsonl"

    def shards(self) -> list[Path]:
        """The shards that are there."""
        return sorted(self.folder.glob("part-*.parquet"))

    def append(self, responses: Iterable[Response], questions: pd.DataFrame, seconds: float = 0.0) -> Path:
        """Add one shard; it is there as a whole or not at all.

        Args:
            responses: what a model wrote.
            questions: indexed by id, with the columns content, question and answer.
            seconds: that they took to generate.

        Raises:
            OSError: the disk is full; the store holds what it held, or the whole shard as well.
        """
        if not (self.folder / "spec.json").is_file():
            write_atomic(self.folder / "spec.json", self._about())
        content_of = questions["content"]
        batch = sorted(responses, key=lambda response: (content_of[response.question], response.index))
        about = questions.loc[[response.question for response in batch]]
        content = about["content"].tolist()
        sampling = self.spec.sampling.model_dump_json()
        same = {"source": self.source, **self.spec.model_dump(include={"weights", "ratio", "seed"})}
        same |= {"sampling": sampling, "engine": self.spec.engine}
        rows = [
            {
                **vars(r),
                **same,
                "key": hashlib.sha256(f"{self.key}{what}{r.index}".encode()).hexdigest()[:24],
                "content": what,
                "asked": asked,
                "label": label,
                "mark": mark(r.text, r.finish),
            }
            for r, what, asked, label in zip(batch, content, about["question"], about["answer"], strict=True)
        ]
        path = self.folder / f"part-{uuid.uuid4().hex[:12]}.parquet"
        data = _parquet(pa.Table.from_pylist(rows, schema=SCHEMA))
        write_atomic(path, data)
        self._list(path, data, content, [r.index for r in batch], seconds)
        return path

    def _list(
        self, path: Path, data: bytes, content: Sequence[str], index: Sequence[int], seconds: float
    ) -> Line:
        """Enter a shard that is on disk into the manifest."""
        digest = hashlib.sha256(data).hexdigest()
        line = Line(path.name, len(content), len(data), digest, seconds, entries_of(content, index))
        append(self.manifest, line)
        return line

    def held(self) -> Held:
        """Which responses are there, from the manifest; shards that it lost are listed in it anew.

        Raises:
            ValueError: a shard is not as it was written; the message names it and says what to do.
        """
        sizes = {}
        if self.folder.is_dir():
            with os.scandir(self.folder) as files:
                sizes = {
                    file.name: file.stat().st_size
                    for file in files
                    if re.match(r"part-\w+\.parquet$", file.name)
                }
        lines = {line.shard: line for line in read(self.manifest) if line.shard in sizes}
        for name, size in sizes.items():
            if name not in lines:
                path = self.folder / name
                frame = _read(path, ["content", "index"])
                content, index = frame["content"].tolist(), frame["index"].tolist()
                lines[name] = self._list(path, path.read_bytes(), content, index, 0.0)
            elif lines[name].size != size:
                raise _damaged(self.folder / name, f"{size} bytes, not {lines[name].size}")
        return Held(lines[name] for name in sorted(lines))

    def status(self, content: Sequence[str], n: int) -> Status:
        """What is there and what is missing of the first ``n`` responses to some questions.

        Args:
            content: of the questions.
            n: responses a question.
        """
        held = self.held()
        numbers = distinct(content_number(content))
        there = held.count(numbers, n)
        missing = n * len(numbers) - there
        size = sum(line.size for line in held.lines)
        rows = sum(line.rows for line in held.lines)
        timed = [line for line in held.lines if line.seconds]
        rate = sum(line.seconds for line in timed) / sum(line.rows for line in timed) if timed else None
        return Status(
            there,
            missing,
            size,
            missing * size / rows if rows else None,
            None if rate is None else missing * rate,
        )

    def read(
        self, content: Iterable[str], below: int, judge: Judge | None = None, held: Held | None = None
    ) -> pd.DataFrame:
        """The responses to some questions, indices 0 to ``below`` - 1, one row each.

        Args:
            content: of the questions.
            below: responses a question.
            judge: whose verdicts go into the column ``correct``: 1, 0 or None; judged where they are missing.
            held: what an earlier call of :meth:`held` gave, for many small reads; None opens the store anew.

        Raises:
            ValueError: a shard is damaged; the message names it and says what to do.
        """
        frames = []
        for name, rows in (held or self.held()).rows(sorted(set(content))).items():
            path = self.folder / name
            frame = _read_rows(path, rows)
            if judge is not None:
                frame["correct"] = self._verdicts(path, judge).to_numpy()[rows]
            frames.append(frame[frame["index"] < below])
        if not frames:
            return SCHEMA.empty_table().to_pandas().assign(correct=None)
        # Two writers may both have made a response: they are the same.
        return pd.concat(frames, ignore_index=True).drop_duplicates(["content", "index"])

    def verify(self) -> list[Damage]:
        """Read every byte of the store and compare it with the manifest.

        Returns:
            The damaged shards; deleting them and asking again makes their responses anew.
        """
        lines = {line.shard: line for line in read(self.manifest)}
        there = {path.name: path for path in self.shards()}
        damaged = [
            Damage(path, reason, *_counts(lines.get(name)))
            for name, path in there.items()
            if (reason := _fault(path, lines.get(name)))
        ]
        held = Held(line for name, line in lines.items() if name in there)
        damaged += [
            Damage(self.folder / name, "it is gone", *_counts(line))
            for name, line in lines.items()
            if name not in there and not held.covers(line.entries)  # not made again since
        ]
        return damaged

    def _verdicts(self, path: Path, judge: Judge) -> pd.Series:
        """The verdicts of a judge on all rows of a shard, in their order; a shard is judged once."""
        beside = path.with_name(f"{path.stem}.{re.sub(r'[^A-Za-z0-9.-]', '_', judge.name)}.verdicts")
        if not beside.is_file():
            frame = _read(path, ["key", "asked", "label", "text"])
            scores = judge.score_many(list(frame["asked"]), list(frame["label"]), list(frame["text"]))
            table = pa.table(
                {
                    "key": pa.array(frame["key"]),
                    "verdict": pa.array(scores, pa.int8()),
                    "judge": pa.array([judge.name] * len(frame)),
                }
            )
            write_atomic(beside, _parquet(table))
        return _read(beside)["verdict"]

    def _about(self) -> str:
        spec = self.spec.model_dump(mode="json")
        return json.dumps({"source": self.source, "promise": self.promise, **spec}, indent=2)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP, write_page_checksum=True)
    return buffer.getvalue()


def _counts(line: Line | None) -> tuple[int | None, int | None]:
    """How many responses of how many questions a shard holds, if anyone knows."""
    return (None, None) if line is None else (line.rows, len(np.unique(line.entries["content"])))


def _fault(path: Path, line: Line | None) -> str:
    """What is wrong with a shard, or nothing; one that is not listed must at least be readable."""
    if line is None:
        try:
            pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            return _reason(error)
        return ""
    if path.stat().st_size != line.size:
        return f"{path.stat().st_size} bytes, not {line.size}"
    same = hashlib.sha256(path.read_bytes()).hexdigest() == line.sha256
    return "" if same else "its bytes are not those that were written"


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is damaged ({reason}); delete it and run again: only its rows are made again")


def _read(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    try:
        frame = pq.read_table(path, columns=columns, page_checksum_verification=True).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, _reason(error)) from None
    assert isinstance(frame, pd.DataFrame)
    return frame


def _read_rows(path: Path, rows: np.ndarray) -> pd.DataFrame:
    """Some rows of a shard; only the row groups that hold them are read."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            needed = np.unique(np.searchsorted(starts, rows, "right") - 1).tolist()
            kept = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in needed])
            frame = file.read_row_groups(needed).take(np.searchsorted(kept, rows)).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, _reason(error)) from None
    assert isinstance(frame, pd.DataFrame)
    return frame


def all_stores() -> list[ResponseStore]:
    """Return every store in the cache, of whatever profile; stores of an older version are left out.

    Raises:
        ValueError: the description of a store is damaged; the message names it.
    """
    stores = []
    for path in sorted((cache_dir() / "responses").glob("*/spec.json")):
        try:
            about = json.loads(path.read_text())
            if about["version"] != VERSION:
                continue
            fields = {name: about[name] for name in StoreSpec.model_fields if name in about}
            stores.append(ResponseStore(StoreSpec(**fields), about["source"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} is damaged; delete its folder") from None
    return stores
