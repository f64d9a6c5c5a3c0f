"""The response cache: responses are generated once and kept on disk.

A store is a folder named by a hash of what its responses share: model weights, mask ratio, tokenizer and chat
template, sampling settings and seed. A row adds the content hash of the question and the response index. Rows
are kept in Parquet shards that pandas, DuckDB and ``datasets`` can read. A shard is written to a temporary
name, flushed to disk, renamed and only then listed in the manifest. So a kill loses at most the current
batch, and several processes may write at once. Verdicts are kept beside the shard in a file that carries the
judge's name, so another judge needs no new responses. A verdict holds for the label it was given with: where
the label has changed since, the response is judged again.
"""

import hashlib
import io
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from masters.judges import Judge, score_labelled
from masters.responses.engines import Response
from masters.responses.manifest import Held, Line, append, content_number, entries_of, read
from masters.runtime.files import cache_dir, write_atomic
from masters.runtime.keys import VERSIONS, key_of
from masters.settings import Sampling, Strict

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
# Equal in all rows of a store; repeated in each row for readers of single shards.
SHARED = ("source", "weights", "ratio", "seed", "sampling", "engine")


class StoreSpec(Strict):
    """What all responses of a store share; its hash names the store."""

    weights: str
    ratio: float
    processor: str
    sampling: Sampling
    seed: int | None
    engine: str = "transformers"
    # Left out for the paper's mask, so the keys of older stores stay valid.
    choice: dict[str, str] = Field(default_factory=dict, exclude_if=lambda choice: not choice)
    version: int = VERSIONS["responses"]


@dataclass(frozen=True)
class Status:
    """Stored and missing responses.

    Attributes:
        there: stored responses among those wanted.
        missing: responses still to generate.
        size: bytes of the whole store.
        missing_size: estimated bytes of the missing responses; None if the store is empty.
        missing_seconds: estimated seconds to generate them; None if no stored response was timed.
    """

    there: int
    missing: int
    size: int
    missing_size: float | None
    missing_seconds: float | None


@dataclass(frozen=True)
class Damage:
    """A damaged shard: its path, the reason, and how many responses and questions it held, if known."""

    path: Path
    reason: str
    responses: int | None
    questions: int | None


def mark(text: str, finish: str) -> str:
    """Return what is wrong with a response: ``empty``, ``truncated``, ``repetitive`` or nothing.

    A repetitive response ends in at least three repetitions of the same words.
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
        spec: what the responses share.
        source: name of the model, for the column of that name.
        promise: which determinism the engine guarantees, see :class:`masters.responses.engines.Engine`.
        root: folder of all stores; default: in the cache.
    """

    def __init__(
        self, spec: StoreSpec, source: str = "", promise: str = "", root: Path | None = None
    ) -> None:
        self.spec = spec
        self.source, self.promise = source, promise
        self.key = key_of("responses", **spec.model_dump(mode="json", exclude={"version"}))
        self.folder = (root or cache_dir() / "responses") / self.key
        self.manifest = self.folder / "manifest.jsonl"

    def shards(self) -> list[Path]:
        """Return the paths of the stored shards."""
        return sorted(self.folder.glob("part-*.parquet"))

    def append(self, responses: Iterable[Response], questions: pd.DataFrame, seconds: float = 0.0) -> Path:
        """Write one shard; a kill leaves either the whole shard or nothing.

        Of several responses with the same content and index, the first is written.

        Args:
            questions: indexed by id, with the columns content, question and answer.
            seconds: time to generate the responses.

        Raises:
            OSError: the disk is full; earlier shards are unchanged.
        """
        if not (self.folder / "spec.json").is_file():
            about = {"source": self.source, "promise": self.promise, **self.spec.model_dump(mode="json")}
            write_atomic(self.folder / "spec.json", json.dumps(about, indent=2))
        content_of = questions["content"]
        first: dict[tuple[str, int], Response] = {}
        for response in responses:
            first.setdefault((content_of[response.question], response.index), response)
        batch = [first[place] for place in sorted(first)]
        table = questions.loc[[response.question for response in batch]]
        content = table["content"].tolist()
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
            for r, what, asked, label in zip(batch, content, table["question"], table["answer"], strict=True)
        ]
        path = self.folder / f"part-{uuid.uuid4().hex[:12]}.parquet"
        data = _parquet(pa.Table.from_pylist(rows, schema=SCHEMA))
        write_atomic(path, data)
        self._list(path, data, content, [r.index for r in batch], seconds)
        return path

    def _list(self, path: Path, data: bytes, content: Any, index: Any, seconds: float) -> Line:
        """List a shard that is on disk in the manifest."""
        digest = hashlib.sha256(data).hexdigest()
        line = Line(path.name, len(content), len(data), digest, seconds, entries_of(content, index))
        append(self.manifest, line)
        return line

    def held(self) -> Held:
        """Index the stored responses from the manifest; list shards that are missing in it again.

        Raises:
            ValueError: a shard is damaged; the message names it and says what to do.
        """
        sizes = {path.name: path.stat().st_size for path in self.shards()}
        lines = {line.shard: line for line in read(self.manifest) if line.shard in sizes}
        for name, size in sizes.items():
            if name not in lines:
                path = self.folder / name
                frame = _read(path, ["content", "index"])
                lines[name] = self._list(path, path.read_bytes(), frame["content"], frame["index"], 0.0)
            elif lines[name].size != size:
                raise _damaged(self.folder / name, f"{size} bytes, not {lines[name].size}")
        return Held(lines[name] for name in sorted(lines))

    def status(self, content: Sequence[str], n: int) -> Status:
        """Count what is stored and what is missing of ``n`` responses per question; duplicates count once."""
        held = self.held()
        there = held.count(content_number(content), n)
        missing = n * len(set(content)) - there
        size = sum(line.size for line in held.lines)
        rows = sum(line.rows for line in held.lines)
        timed = sum(line.rows for line in held.lines if line.seconds)
        seconds = missing * sum(line.seconds for line in held.lines) / timed if timed else None
        return Status(there, missing, size, missing * size / rows if rows else None, seconds)

    def read(
        self,
        content: Iterable[str],
        below: int,
        judge: Judge | None = None,
        held: Held | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> pd.DataFrame:
        """Return the responses with an index below ``below``, one row per response.

        Args:
            judge: fills the column ``correct`` with scores from 0 to 1, or None; unjudged shards are judged
                first.
            labels: today's label of each content; default: those that the responses were stored with.
            held: result of an earlier :meth:`held`, for many small reads; None reads the manifest again.

        Raises:
            ValueError: a shard is damaged; the message names it and says what to do.
        """
        frames = []
        for name, rows in (held or self.held()).rows(sorted(set(content))).items():
            path = self.folder / name
            whole = _read(path)
            if labels is not None:
                whole["label"] = whole["content"].map(labels).fillna(whole["label"])
            frame = whole.iloc[rows]
            if judge is not None:
                frame = frame.assign(correct=self._verdicts(path, whole, judge).to_numpy()[rows])
            frames.append(frame[frame["index"] < below])
        if not frames:
            return SCHEMA.empty_table().to_pandas().assign(correct=None)
        # Two processes may have written the same response: keep one.
        return pd.concat(frames, ignore_index=True).drop_duplicates(["content", "index"])

    def verify(self) -> list[Damage]:
        """Compare every byte of the store with the manifest and return the damaged shards.

        After they are deleted, the next run generates their responses again.
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
            Damage(self.folder / name, "it is missing", *_counts(line))
            for name, line in lines.items()
            if name not in there and not held.covers(line.entries)  # and not generated again since
        ]
        return damaged

    def _verdicts(self, path: Path, shard: pd.DataFrame, judge: Judge) -> pd.Series:
        """Return the verdicts on all rows of a shard, in order; judge those that are new or have a new label.

        Args:
            shard: the rows of the file, with the labels to judge by.
        """
        beside = path.with_name(f"{path.stem}.{re.sub(r'[^A-Za-z0-9.-]', '_', judge.name)}.verdicts")
        verdicts: list[Any] = [None] * len(shard)
        todo = np.ones(len(shard), dtype=bool)
        if beside.is_file():
            kept = _read(beside)
            # Files from before labels could change hold none: they go with the labels of the shard itself.
            judged_by = kept["label"] if "label" in kept else _read(path, ["label"])["label"]
            todo = (judged_by != shard["label"]).to_numpy()
            verdicts = [None if pd.isna(verdict) else verdict for verdict in kept["verdict"]]
            if not todo.any():
                return kept["verdict"]
        new = shard[todo]
        scores = score_labelled(judge, new["asked"], new["label"], new["text"])
        for row, score in zip(np.flatnonzero(todo), scores, strict=True):
            verdicts[row] = score
        whole = all(verdict is None or verdict == int(verdict) for verdict in verdicts)
        table = pa.table(
            {
                "key": pa.array(shard["key"]),
                "verdict": pa.array(verdicts, pa.float32()).cast(pa.int8() if whole else pa.float32()),
                "judge": pa.array([judge.name] * len(shard)),
                "label": pa.array(shard["label"]),
            }
        )
        write_atomic(beside, _parquet(table))
        return _read(beside)["verdict"]


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP, write_page_checksum=True)
    return buffer.getvalue()


def _counts(line: Line | None) -> tuple[int | None, int | None]:
    """Return how many responses and questions a shard holds; None if it is not in the manifest."""
    return (None, None) if line is None else (line.rows, len(np.unique(line.entries["content"])))


def _fault(path: Path, line: Line | None) -> str:
    """Return what is wrong with a shard, or ""; an unlisted shard only has to be readable."""
    if line is None:
        try:
            pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            return _reason(error)
        return ""
    if path.stat().st_size != line.size:
        return f"{path.stat().st_size} bytes, not {line.size}"
    same = hashlib.sha256(path.read_bytes()).hexdigest() == line.sha256
    return "" if same else "its bytes differ from those written"


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is damaged ({reason}); delete it and run again: only its responses are generated again"
    )


def _read(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    try:
        frame: pd.DataFrame = pq.read_table(
            path, columns=columns, page_checksum_verification=True
        ).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, _reason(error)) from None
    return frame


def all_stores() -> list[ResponseStore]:
    """Return every store of this version in the cache.

    Raises:
        ValueError: the ``spec.json`` of a store is damaged; the message names it.
    """
    stores = []
    for path in sorted((cache_dir() / "responses").glob("*/spec.json")):
        try:
            about = json.loads(path.read_text())
            if about["version"] != VERSIONS["responses"]:
                continue
            fields = {name: about[name] for name in StoreSpec.model_fields if name in about}
            stores.append(ResponseStore(StoreSpec(**fields), about["source"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} is damaged; delete its folder") from None
    return stores
