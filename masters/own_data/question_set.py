"""A question set from rows of your own: every row is read and checked once, without a model.

Rows that cannot be used are listed with their reason, or stop everything (``on_bad_row``). Of two rows with
the same question and pictures, the first is kept. An evaluation split cut from the training rows shares no
picture with what remains. Pictures in files stay there; those inside a data file are copied into the set.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from masters.data.labels import encode_accepted
from masters.data.questions import Questions
from masters.data.scenes import pixel_hash
from masters.own_data.encoding import encode
from masters.own_data.pictures import PictureError, open_picture, reference
from masters.own_data.rows import READ, RowError, parse_row
from masters.own_data.sources import RawRow, Source, find_sources
from masters.runtime import distributed
from masters.runtime.errors import typed_line
from masters.runtime.files import cache_dir, write_atomic, write_folder
from masters.runtime.keys import hash_of, key_of
from masters.runtime.progress import report
from masters.settings import OwnData, SplitFromTrain

CHUNK = 64  # rows that are checked at a time
_ORDER_SEED = 7
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("messages", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.large_binary()), ("path", pa.string())]))),
        ("pixels", pa.list_(pa.string())),
        ("sizes", pa.list_(pa.list_(pa.int32()))),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("skill", pa.string()),
    ]
)


@dataclass(frozen=True)
class OwnQuestions:
    """Checked rows.

    Attributes:
        name: of the set; its questions have it as their task.
        splits: train, and eval and test where the settings name them. Columns: id, source and row (where it
            comes from), messages (JSON, the conversation up to the answer), images (``{bytes, path}``),
            pixels (a hash per picture), sizes (width and height), question, answer (a label, see
            :func:`masters.data.labels.accepted`; "" if there is none), skill (choice, open or unanswered).
        skipped: columns source, row, reason.
        hashes: hash by split; it changes with any text or picture.
        problems: what the user should know, one line each.
        max_pixels: larger pictures are scaled down to this when they are encoded.
        on_bad_row: skip or stop at rows that a processor refuses.
    """

    name: str
    splits: dict[str, datasets.Dataset]
    skipped: pd.DataFrame
    hashes: dict[str, str]
    problems: list[str]
    max_pixels: int | None
    on_bad_row: str


def load_own_data(settings: OwnData, base: Path) -> OwnQuestions:
    """Read and check all rows; a second call finds them in the cache, unless a file has changed.

    Relative paths start from ``base``.

    Raises:
        ValueError: a source cannot be read, a split has no usable row, or there is a bad row and
            ``on_bad_row`` is ``stop``.
    """
    entries = {"train": settings.train, "eval": settings.eval, "test": settings.test}
    named: dict[str, str | list[str]] = {}
    for split, entry in entries.items():
        if entry is not None and not isinstance(entry, SplitFromTrain):
            named[split] = entry
    sources = {split: find_sources(entry, base, split) for split, entry in named.items()}
    key = key_of(
        "own_data",
        settings=settings.model_dump(mode="json"),
        base=str(base.absolute()),
        sources={split: [source.fingerprint() for source in of] for split, of in sources.items()},
    )
    folder = cache_dir() / "own_data" / f"{settings.name}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        # The process that began a run has looked for all; a look at each picture file takes long.
        first = distributed.rank() == 0 and parent_process() is None
        if folder.is_dir() and first and not _unchanged(folder):
            shutil.rmtree(folder)
        if not folder.is_dir():
            write_folder(folder, partial(_read, settings, sources))
    about = json.loads((folder / "about.json").read_text())
    return OwnQuestions(
        settings.name,
        _splits(folder, about["files"]),
        pd.read_parquet(folder / "skipped.parquet"),
        about["hashes"],
        about["problems"],
        settings.max_pixels,
        settings.on_bad_row,
    )


def encode_own(own: OwnQuestions, split: str, processor: Any, limit: int | None = None) -> Questions:
    """Return the encoded questions of a split; encode them on first use.

    Rows that the processor refuses are left out with a warning, unless ``on_bad_row`` is ``stop``.

    Raises:
        ValueError: there is no such split, or the processor refuses every row, or one and ``on_bad_row`` is
            ``stop``.
    """
    if split not in own.splits:
        raise ValueError(f"data has no split {split!r}; it has {', '.join(own.splits)}")
    content, rows = some_rows(own, split, limit)
    return encode(own.name, split, rows, content, own.max_pixels, processor, own.on_bad_row == "skip")


def some_rows(own: OwnQuestions, split: str, limit: int | None) -> tuple[str, datasets.Dataset]:
    """Return hash and rows of a split; a limit takes rows of a fixed shuffled order."""
    rows = own.splits[split]
    if limit is not None and limit < len(rows):
        order = np.random.default_rng(_ORDER_SEED).permutation(len(rows))
        rows = rows.select(np.sort(order[:limit]))
    return hash_of([own.hashes[split], len(rows)]), rows


def refused_rows(own: OwnQuestions, split: str, processor: Any) -> pd.DataFrame:
    """Return the rows of a split that the processor refuses: columns source, row, reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the rows that are returned
        refused = pd.read_parquet(encode_own(own, split, processor).folder / "refused.parquet")
    rows = own.splits[split].select(refused["place"])
    return pd.DataFrame({"source": rows["source"], "row": rows["row"], "reason": refused["reason"]})


def _splits(folder: Path, files: Mapping[str, str]) -> dict[str, datasets.Dataset]:
    """Return the rows of each split: all of its file, or those that were cut from it."""
    splits = {}
    for split, file in files.items():
        rows = datasets.Dataset.from_file(str(folder / file))
        chosen = folder / f"{split}.npy"
        splits[split] = rows.select(np.load(chosen)) if chosen.is_file() else rows
    return splits


def _unchanged(folder: Path) -> bool:
    """Return whether the picture files that the rows name are those that were checked."""
    files = pd.read_parquet(folder / "pictures.parquet")
    return all(_stat(path) == (size, time) for path, size, time in files.itertuples(index=False))


def _stat(path: str) -> tuple[int, int]:
    """Return size and time of a file; a file that is not there has size -1."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return -1, 0
    return about.st_size, about.st_mtime_ns


# --- reading ------------------------------------------------------------------------------------------------


class _Reader:
    """Writes the usable rows of each split and remembers the others."""

    def __init__(self, settings: OwnData) -> None:
        self.settings = settings
        self.skipped: list[tuple[str, int, str]] = []
        self.files: dict[str, tuple[int, int]] = {}
        self.columns: set[str] = set()

    def read(self, split: str, sources: Sequence[Source], path: Path) -> None:
        """Write one split; ``ValueError`` if no row can be used, or a bad row stops the reading."""
        known: dict[bytes, tuple[str, int]] = {}
        count, before = 0, len(self.skipped)
        raw = (row for source in sources for row in source.rows())
        with (
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_stream(file, SCHEMA) as writer,
            ThreadPoolExecutor() as pool,
        ):
            while chunk := list(islice(raw, CHUNK)):
                kept = []
                self.columns.update(str(name) for row in chunk for name in row.values or ())
                for row, made in zip(chunk, pool.map(self._checked, chunk), strict=True):
                    if isinstance(made, dict):
                        asked = json.dumps([made["messages"], made["pixels"]]).encode()
                        key, number = hashlib.sha256(asked).digest(), len(known)
                        source, first = known.setdefault(key, (row.source, row.number))
                        if len(known) == number:
                            made = f"same question and pictures as {source} row {first}"
                    if isinstance(made, dict):
                        kept.append(made)
                    else:
                        self._skip(row, made)
                if kept:
                    writer.write_batch(pa.RecordBatch.from_pylist(kept, SCHEMA))
                count += len(kept)
                report(f"checking rows of data.{split}", count, count + len(chunk))
        report(f"checking rows of data.{split}", count, count)
        if not count:
            reason = f"; {self._line(*self.skipped[before])}" if self.skipped[before:] else ""
            raise ValueError(f"data.{split} has no usable row{reason}")

    def _skip(self, row: RawRow, reason: str) -> None:
        self.skipped.append((row.source, row.number, reason))
        if self.settings.on_bad_row == "stop":
            raise ValueError(f"{self._line(*self.skipped[-1])}; fix the row, or set data.on_bad_row: skip")

    @staticmethod
    def _line(source: str, number: int, reason: str) -> str:
        return f"{source} row {number}: {reason}"

    def _checked(self, raw: RawRow) -> dict[str, Any] | str:
        """Return a row of the set, or why it cannot be used."""
        if raw.values is None:
            return raw.problem
        try:
            row = parse_row(raw.values, self.settings.columns, self.settings.system)
            images = [reference(picture, raw.folder) for picture in row.pictures]
            pixels, sizes = [], []
            for image in images:
                if image["path"] is not None:
                    self.files[image["path"]] = _stat(image["path"])
                picture = open_picture(image)
                pixels.append(pixel_hash(picture))
                sizes.append(list(picture.size))
            texts = {
                "messages": json.dumps(row.messages, ensure_ascii=False),
                "question": row.question,
                "answer": encode_accepted(row.answers),
            }
            "".join(texts.values()).encode()
        except UnicodeEncodeError:
            return "its text is not valid Unicode"
        except (RowError, PictureError) as error:
            return str(error)
        except Exception as error:  # a malformed value fails in one of many places and ways
            return f"it cannot be read: {typed_line(error)}"
        return {
            "id": f"{self.settings.name}/{raw.source}:{raw.number}",
            "source": raw.source,
            "row": raw.number,
            "images": images,
            "pixels": pixels,
            "sizes": sizes,
            "skill": row.skill,
            **texts,
        }


def _read(settings: OwnData, sources: dict[str, list[Source]], folder: Path) -> None:
    """Read every split into a folder."""
    reader, files = _Reader(settings), {}
    with warnings.catch_warnings():  # pictures that large are refused
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for split, of in sources.items():
            files[split] = f"{split}.arrow"
            reader.read(split, of, folder / files[split])
    cut = {"eval": settings.eval, "test": settings.test}
    wanted = {split: of for split, of in cut.items() if isinstance(of, SplitFromTrain)}
    if wanted:
        every = datasets.Dataset.from_file(str(folder / files["train"]))
        shown = _shown(every)
        left = np.arange(len(shown))
        for split, asked in wanted.items():
            files[split] = files["train"]
            kept, held_out = _cut([shown[row] for row in left], asked.split_from_train, split)
            np.save(folder / f"{split}.npy", left[held_out])
            left = left[kept]
        np.save(folder / "train.npy", left)
    files = {split: files[split] for split in ("train", "eval", "test") if split in files}
    splits = _splits(folder, files)
    skipped = pd.DataFrame(reader.skipped, columns=["source", "row", "reason"])
    skipped.astype({"row": "int64"}).to_parquet(folder / "skipped.parquet")
    stats = [(path, *about) for path, about in sorted(reader.files.items())]
    pd.DataFrame(stats, columns=["path", "size", "time"]).to_parquet(folder / "pictures.parquet")
    about = {
        "files": files,
        "hashes": {split: _hash(rows) for split, rows in splits.items()},
        "problems": list(_problems(settings, splits, skipped, reader.columns)),
    }
    write_atomic(folder / "about.json", json.dumps(about, indent=2))


def _hash(rows: datasets.Dataset) -> str:
    digest = hashlib.sha256()
    columns = rows.select_columns(["id", "messages", "pixels", "question", "answer"])
    for row in columns:
        digest.update(json.dumps([*row.values()]).encode() + b"\n")
    return digest.hexdigest()[:16]


def _problems(
    settings: OwnData, splits: dict[str, datasets.Dataset], skipped: pd.DataFrame, columns: set[str]
) -> Iterator[str]:
    """Yield what the user should know, one line each."""
    if unread := sorted(columns - {*READ, *settings.columns.model_dump().values()}):
        yield f"columns that are not read: {', '.join(unread)}"
    total = sum(map(len, splits.values()))
    if len(skipped):
        first = skipped.iloc[0]
        yield (
            f"{len(skipped)} of {total + len(skipped)} rows are skipped; the first is "
            f"{first['source']} row {first['row']}: {first['reason']}"
        )
    for split, rows in splits.items():
        if without := sum(answer == "" for answer in rows["answer"]):
            yield f"{without} of {len(rows)} rows of {split} have no answer, so they get no accuracy reward"
    for split, asked in (("eval", settings.eval), ("test", settings.test)):
        if isinstance(asked, SplitFromTrain) and len(splits[split]) != asked.split_from_train:
            yield (
                f"{split} has {len(splits[split])} rows instead of {asked.split_from_train}: "
                "rows with a common picture stay together"
            )
    for split, rows in splits.items():
        if without := sum(not of_row for of_row in rows["pixels"]):
            names = settings.columns.images or "images or image"
            yield f"{without} of {len(rows)} rows of {split} have no picture (column {names})"
    seen = {name for of_row in _shown(splits["train"]) for name in of_row}
    for split in list(splits)[1:]:
        shared = sum(bool(seen & set(of_row)) for of_row in _shown(splits[split]))
        if shared:
            yield (
                f"{shared} of {len(splits[split])} rows of {split} have a picture that train has, too; or, "
                "without a picture, its question"
            )


def _shown(rows: datasets.Dataset) -> list[list[str]]:
    """Return the pictures of each row; a row without any is known by its question."""
    return [of or [question] for of, question in zip(rows["pixels"], rows["question"], strict=True)]


def _cut(shown: Sequence[Sequence[str]], count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and at most ``count`` rows to hold out, without a common picture.

    Rows that share a picture, directly or through others, stay together. Which are held out depends on the
    pictures only (``shown``, at least one name per row), not on the order of the rows.

    Raises:
        ValueError: no rows would remain on one side.
    """
    if count >= len(shown):
        raise ValueError(f"data.{split}.split_from_train is {count}, but train has {len(shown)} usable rows")
    # A graph of rows and pictures: rows that are connected stay together.
    rows = np.repeat(np.arange(len(shown)), list(map(len, shown)))
    pictures = len(shown) + pd.factorize(np.concatenate(list(map(list, shown))))[0]
    edges = coo_array((np.ones(len(rows)), (rows, pictures)), shape=2 * (int(pictures.max()) + 1,))
    groups: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(connected_components(edges, directed=False)[1][: len(shown)].tolist()):
        groups[group].append(row)
    ranks = {
        name: min(hash_of(["eval", picture]) for row in rows for picture in shown[row])
        for name, rows in groups.items()
    }
    held_out: list[int] = []
    for name in sorted(groups, key=lambda name: ranks[name]):
        if len(held_out) + len(groups[name]) <= count:
            held_out += groups[name]
    if not held_out:
        smallest = min(map(len, groups.values()))
        raise ValueError(
            f"data.{split}.split_from_train is {count}, but at least {smallest} rows are linked by common "
            f"pictures; raise it, or give a file for {split}"
        )
    kept = np.setdiff1d(np.arange(len(shown)), held_out)
    return kept, np.array(sorted(held_out))
