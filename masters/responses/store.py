"""The cache of responses: generated once, kept on disk, never asked for again.

A store is a folder named by a hash of all that its responses have in common: the weights that wrote them, the
mask ratio, the tokenizer and chat template, the sampling settings and the seed. A row adds what is left:
the content of the question and the index of the response. Rows come in Parquet shards, each written to
a temporary name, flushed to disk and renamed, so a kill loses at most the batch under way; verdicts
stand beside the shard in a file that carries the judge's name, so another judge needs no new responses.
"""

import hashlib
import io
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from masters.files import cache_dir, hash_of, write_atomic
from masters.responses.engines import Response
from masters.settings import Sampling, Strict

VERSION = 1
SCHEMA = pa.schema(
    [
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
    ]
)


class Judge(Protocol):
    """Who decides that a response is right; see :mod:`masters.judges`."""

    @property
    def name(self) -> str:
        """Names the judge and its version; verdicts are kept under it."""

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
        """1 right, 0 wrong, None where the judge gave no valid verdict."""


@dataclass(frozen=True)
class Source:
    """Who writes: the saved model in a folder, masked at a ratio; 0 is the whole model."""

    folder: Path
    ratio: float = 0.0

    def weights(self) -> str:
        """16 hexadecimal digits of the SHA-256 over the model's safetensors files."""
        return _files_hash(tuple(sorted(str(path) for path in self.folder.glob("*.safetensors"))))


class StoreSpec(Strict):
    """What all responses of a store have in common."""

    weights: str
    ratio: float
    processor: str
    sampling: Sampling
    seed: int | None
    version: int = VERSION


class ResponseStore:
    """The responses of one source under one setting.

    Args:
        spec: what they have in common; its hash names the folder.
    """

    def __init__(self, spec: StoreSpec) -> None:
        self.spec = spec
        self.folder = cache_dir() / "responses" / hash_of(spec.model_dump(mode="json"))

    def shards(self) -> list[Path]:
        """The shards that are there."""
        return sorted(self.folder.glob("part-*.parquet"))

    def append(self, responses: Iterable[Response], questions: pd.DataFrame) -> Path:
        """Add one shard; it is there as a whole or not at all.

        Args:
            responses: what a model wrote.
            questions: indexed by id, with the columns content, question and answer.
        """
        if not (self.folder / "spec.json").is_file():
            write_atomic(self.folder / "spec.json", self.spec.model_dump_json(indent=2))
        responses = list(responses)
        about = questions.loc[[response.question for response in responses]]
        columns = zip(responses, about["content"], about["question"], about["answer"], strict=True)
        rows = [
            {**vars(r), "content": content, "asked": asked, "label": label}
            for r, content, asked, label in columns
        ]
        path = self.folder / f"part-{uuid.uuid4().hex[:12]}.parquet"
        write_atomic(path, _parquet(pa.Table.from_pylist(rows, schema=SCHEMA)))
        return path

    def index(self) -> pd.DataFrame:
        """Which responses are there: columns content and index."""
        return self._concat(_read(path, ["content", "index"]) for path in self.shards())

    def read(self, content: set[str], below: int) -> pd.DataFrame:
        """The responses to some questions, indices 0 to ``below`` - 1, one row each."""
        frames = []
        for path in self.shards():
            frame = _read(path)
            frames.append(frame[frame["content"].isin(content) & (frame["index"] < below)])
        return self._concat(frames)

    def judged(self, judge: Judge) -> dict[tuple[str, int], Any]:
        """The verdicts of a judge on all responses of the store; a shard is judged once.

        Returns:
            From (content, index) to 1, 0 or None.
        """
        verdicts: dict[tuple[str, int], Any] = {}
        for path in self.shards():
            beside = path.with_name(f"{path.stem}.{re.sub(r'[^A-Za-z0-9.-]', '_', judge.name)}.verdicts")
            if not beside.is_file():
                frame = _read(path, ["content", "asked", "label", "index", "text"])
                scores = judge.score_many(list(frame["asked"]), list(frame["label"]), list(frame["text"]))
                table = pa.table(
                    {
                        "content": pa.array(frame["content"]),
                        "index": pa.array(frame["index"], pa.int32()),
                        "verdict": pa.array(scores, pa.int8()),
                        "judge": pa.array([judge.name] * len(frame)),
                    }
                )
                write_atomic(beside, _parquet(table))
            frame = _read(beside)
            verdicts.update(
                zip(zip(frame["content"], frame["index"], strict=True), frame["verdict"], strict=True)
            )
        return verdicts

    @staticmethod
    def _concat(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
        frames = list(frames)
        return pd.concat(frames, ignore_index=True) if frames else SCHEMA.empty_table().to_pandas()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _read(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    try:
        frame = pq.read_table(path, columns=columns).to_pandas()
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is damaged ({reason}); delete it and run again: only its rows are made again"
        ) from None
    assert isinstance(frame, pd.DataFrame)
    return frame


@lru_cache(maxsize=64)
def _files_hash(paths: tuple[str, ...]) -> str:
    if not paths:
        raise ValueError("a model folder without *.safetensors; save the model with save_pretrained")
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
