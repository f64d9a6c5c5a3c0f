"""The response cache: responses are generated once and kept on disk.

A store is a folder named by a hash of what its responses share: model weights, mask ratio, tokenizer and chat
template, sampling settings and seed. A row adds the content hash of the question and the response index. Rows
are kept in Parquet shards that pandas, DuckDB and ``datasets`` can read. A shard is written to a temporary
name, flushed to disk, renamed and only then listed in the manifest with its SHA-256, which every read checks.
So a kill loses at most the current batch, several processes may write at once, and damage is named.

Verdicts are kept beside the shard in a file that carries the judge's name, so another judge needs no new
responses. A verdict holds for the response's key and the label it was given with.
"""

import hashlib
import io
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from pydantic import Field

from masters.judges import Judge, score_labeled
from masters.responses import manifest
from masters.responses.engines import Response
from masters.responses.manifest import Held, Line, runs_of
from masters.runtime.files import cache_dir, write_atomic
from masters.runtime.keys import VERSIONS, key_of
from masters.runtime.parameters import Strict
from masters.settings import Sampling

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
VERDICTS = pa.schema(
    [("key", pa.string()), ("verdict", pa.float32()), ("judge", pa.string()), ("label", pa.string())]
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


class Damaged(ValueError):
    """Raised for a damaged shard; the message names it and says what to do."""

    def __init__(self, path: Path, reason: object) -> None:
        self.path, self.reason = path, str(reason).strip().partition("\n")[0]
        super().__init__(
            f"{path} is damaged ({self.reason}); "
            "delete it and run again: only its responses are generated again"
        )

    def __reduce__(self) -> tuple[type["Damaged"], tuple[Path, str]]:
        return Damaged, (self.path, self.reason)  # an error of a worker is pickled


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
        determinism: see :class:`masters.responses.engines.Engine`.
        root: folder of all stores; default: in the cache.
    """

    def __init__(
        self, spec: StoreSpec, source: str = "", determinism: str = "", root: Path | None = None
    ) -> None:
        self.spec = spec
        self.source, self.determinism = source, determinism
        self.key = key_of("responses", **spec.model_dump(mode="json", exclude={"version"}))
        self.folder = (root or cache_dir() / "responses") / self.key
        self.manifest = self.folder / "manifest.jsonl"

    def shards(self) -> list[Path]:
        """Return the paths of the stored shards."""
        return sorted(self.folder.glob("part-*.parquet"))

    def append(self, responses: Iterable[Response], questions: pd.DataFrame, seconds: float = 0.0) -> Path:
        """Write one shard; a kill leaves either the whole shard or nothing.

        Args:
            responses: each once.
            questions: indexed by id, with the columns content, question and answer.
            seconds: time to generate the responses.

        Raises:
            OSError: the disk is full; earlier shards are unchanged.
        """
        self._describe()
        content = questions["content"]
        batch = sorted(responses, key=lambda response: (content[response.question], response.index))
        same = {"source": self.source, **self.spec.model_dump(include={"weights", "ratio", "seed", "engine"})}
        same["sampling"] = self.spec.sampling.model_dump_json()
        rows = []
        for response in batch:
            about: Any = questions.loc[response.question]
            rows.append(
                {
                    **vars(response),
                    **same,
                    "key": self._row_key(about["content"], response.index),
                    "content": about["content"],
                    "asked": about["question"],
                    "label": about["answer"],
                    "mark": mark(response.text, response.finish),
                }
            )
        path = self.folder / f"part-{uuid.uuid4().hex[:12]}.parquet"
        written = pa.Table.from_pylist(rows, schema=SCHEMA)
        data = _parquet(written)
        write_atomic(path, data)
        self._list(path, data, written, seconds)
        return path

    def _describe(self) -> None:
        """Write ``spec.json`` if it is missing."""
        path = self.folder / "spec.json"
        if not path.is_file():
            about = {
                "source": self.source,
                "determinism": self.determinism,
                **self.spec.model_dump(mode="json"),
            }
            write_atomic(path, json.dumps(about, indent=2))

    def _row_key(self, content: str, index: int) -> str:
        return hashlib.sha256(f"{self.key}{content}{index}".encode()).hexdigest()[:24]

    def _list(self, path: Path, data: bytes, table: pa.Table, seconds: float) -> Line:
        """List a shard that is on disk in the manifest."""
        digest = hashlib.sha256(data).hexdigest()
        runs: Any = runs_of(table["content"].to_numpy(), table["index"].to_numpy())
        line = Line(path.name, len(table), len(data), digest, seconds, **runs)
        manifest.append(self.manifest, line)
        return line

    def held(self) -> Held:
        """Index the stored responses from the manifest; list shards that are missing in it again.

        Raises:
            Damaged: a shard is damaged.
        """
        sizes = {path.name: path.stat().st_size for path in self.shards()}
        if sizes:
            self._describe()
        lines = manifest.read(self.manifest)
        for name, size in sizes.items():
            path, line = self.folder / name, lines.get(name)
            if line is not None and line.size != size:
                raise Damaged(path, f"{size} bytes, not {line.size}")
            if line is None:  # not listed
                lines[name] = self._list(path, path.read_bytes(), self._table(path, None), 0.0)
        return Held(lines[name] for name in sizes)

    def status(self, content: Sequence[str], n: int) -> Status:
        """Count what is stored and what is missing of ``n`` responses per question; duplicates count once."""
        held = self.held()
        there = held.count(content, n)
        missing = n * len(set(content)) - there
        size = sum(line.size for line in held.lines)
        rows = sum(line.rows for line in held.lines)
        timed = sum(line.rows for line in held.lines if line.seconds)
        seconds = missing * sum(line.seconds for line in held.lines) / timed if timed else None
        return Status(there, missing, size, missing * size / rows if rows else None, seconds)

    def read(self, content: Iterable[str], below: int, held: Held | None = None) -> pd.DataFrame:
        """Return the responses with an index below ``below``, one row per response, and each row's ``shard``.

        Args:
            held: result of an earlier :meth:`held`, for many small reads; None reads the manifest again.

        Raises:
            Damaged: a shard is damaged.
        """
        held = held or self.held()
        lines = {line.shard: line for line in held.lines}
        frames = [SCHEMA.empty_table().to_pandas().assign(shard="")]
        for name, rows in held.rows(sorted(set(content))).items():
            table = self._table(self.folder / name, lines[name])
            frame = (table if len(rows) == len(table) else table.take(rows)).to_pandas()
            frames.append(frame[frame["index"] < below].assign(shard=name))
        return pd.concat(frames[1:] or frames, ignore_index=True)

    def verdicts(self, rows: pd.DataFrame, judge: Judge) -> pd.Series:
        """Return the verdict on each row, from 0 to 1, or None; judge those that are new or have a new label.

        Args:
            rows: those of :meth:`read`; their columns asked and label may have changed since.
        """
        verdicts = pd.Series(np.nan, rows.index, dtype=np.float32)
        for shard, of_shard in rows[["shard", "key", "asked", "label", "text"]].groupby("shard"):
            name = re.sub(r"[^A-Za-z0-9.-]", "_", judge.name)
            path = self.folder / f"{Path(str(shard)).stem}.{name}.verdicts"
            known = _known_verdicts(path, judge.name)
            places = list(zip(of_shard["key"].tolist(), of_shard["label"].tolist(), strict=True))
            new = of_shard[[place not in known for place in places]]
            if len(new):
                scores = score_labeled(judge, new["asked"], new["label"], new["text"])
                judged = dict(zip(zip(new["key"], new["label"], strict=True), scores, strict=True))
                with FileLock(f"{path}.lock"):  # another process may have judged more of this shard
                    known = _known_verdicts(path, judge.name) | judged
                    table = [
                        {"key": key, "verdict": verdict, "judge": judge.name, "label": label}
                        for (key, label), verdict in known.items()
                    ]
                    write_atomic(path, _parquet(pa.Table.from_pylist(table, schema=VERDICTS)))
            verdicts[of_shard.index] = np.array([known[place] for place in places], dtype=np.float32)
        whole = (verdicts.isna() | (verdicts == verdicts.round())).all()
        found = pa.array(verdicts, from_pandas=True)
        return (found.cast(pa.int8()) if whole else found).to_pandas().set_axis(rows.index)

    def verify(self) -> list[Damage]:
        """Compare every byte of the store with the manifest and return the damaged shards.

        After they are deleted, the next run generates their responses again.
        """
        lines = manifest.read(self.manifest)
        there = {path.name: path for path in self.shards()}
        damaged = []
        for name, path in there.items():
            try:
                self._bytes(path, lines[name]) if name in lines else self._table(path, None)
            except Damaged as error:
                damaged.append(_damage(path, error.reason, lines.get(name)))
        held = Held(line for name, line in lines.items() if name in there)
        return damaged + [
            _damage(self.folder / name, "it is missing", line)
            for name, line in lines.items()
            if name not in there and not held.covers(line)  # and not generated again since
        ]

    def _bytes(self, path: Path, line: Line) -> bytes:
        data = path.read_bytes()
        if len(data) != line.size:
            raise Damaged(path, f"{len(data)} bytes, not {line.size}")
        if hashlib.sha256(data).hexdigest() != line.sha256:
            raise Damaged(path, "its bytes differ from those written")
        return data

    def _table(self, path: Path, line: Line | None) -> pa.Table:
        """Return the rows of a shard, whose bytes must be those listed; without a line, each row is checked.

        Raises:
            Damaged: they are not.
        """
        data = path.read_bytes() if line is None else self._bytes(path, line)
        try:
            table = pq.read_table(pa.BufferReader(data), page_checksum_verification=line is None)
        except (OSError, pa.ArrowException) as error:
            raise Damaged(path, error) from None
        if line is None:
            if not table.schema.equals(SCHEMA):
                raise Damaged(path, "its columns are not those of a shard")
            places = list(zip(table["content"].to_pylist(), table["index"].to_pylist(), strict=True))
            keys = [self._row_key(*place) for place in places]
            if not places or places != sorted(set(places)) or keys != table["key"].to_pylist():
                raise Damaged(path, "its rows are not responses of this store, each once")
        return table


def _known_verdicts(path: Path, judge: str) -> dict[tuple[str, str], float | None]:
    """Return the verdicts in a file by key and label; none if it is missing or damaged, so all are judged."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        keys, labels, verdicts, judges = (
            table[name].to_pylist() for name in ("key", "label", "verdict", "judge")
        )
        return (
            dict(zip(zip(keys, labels, strict=True), verdicts, strict=True)) if {*judges} == {judge} else {}
        )
    except (OSError, KeyError, pa.ArrowException):
        return {}


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP, write_page_checksum=True)
    return buffer.getvalue()


def _damage(path: Path, reason: str, line: Line | None) -> Damage:
    if line is None:
        return Damage(path, reason, None, None)
    return Damage(path, reason, line.rows, len({content for content, _ in line.responses()}))


def all_stores() -> list[ResponseStore]:
    """Return every store of this version in the cache.

    Raises:
        ValueError: the ``spec.json`` of a store is damaged, or not that of its folder; the message names it.
    """
    stores = []
    for path in sorted((cache_dir() / "responses").glob("*/spec.json")):
        try:
            about = json.loads(path.read_text())
            if about["version"] != VERSIONS["responses"]:
                continue
            fields = {name: about[name] for name in StoreSpec.model_fields if name in about}
            store = ResponseStore(StoreSpec(**fields), about["source"])
            if store.folder != path.parent:
                raise ValueError
            stores.append(store)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} is damaged; delete it: the next run writes it again") from None
    return stores
