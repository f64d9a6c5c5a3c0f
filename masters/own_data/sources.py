"""Rows of data files, folders and hub data sets, one at a time.

A source is a path or a hub name. Rows are read in order and in small batches, so memory does not grow with
their number. A line that is no row, such as broken JSON, comes as a problem instead of values.
"""

import csv
import glob
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from masters.own_data.pictures import SUFFIXES
from masters.runtime.errors import one_line
from masters.runtime.keys import hash_of

BATCH = 64  # rows per read; rows may hold whole pictures
FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
HUB = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?(:[\w.\[\]%-]+)?")  # owner/name, /configuration, :split
SPLITS = {"train": ("train",), "eval": ("validation", "val", "dev", "eval", "test"), "test": ("test",)}


class RawRow(NamedTuple):
    """A row as it is in its source.

    Attributes:
        source: path or hub name, as shown in messages.
        number: from 1; the line of a JSONL file.
        folder: which relative paths of pictures start from.
        values: by column; None where the row cannot be read.
        problem: why it cannot be read, otherwise empty.
    """

    source: str
    number: int
    folder: Path
    values: dict[str, Any] | None
    problem: str = ""


class Source(NamedTuple):
    """One file, folder or hub data set.

    Attributes:
        title: as shown in messages.
        path: file or folder; None for the hub.
        dataset: of a datasets folder or of the hub.
    """

    title: str
    path: Path | None
    dataset: datasets.Dataset | None = None

    def fingerprint(self) -> str:
        """Return a hash that changes with the content: of names, sizes and times, not of the bytes."""
        if self.dataset is not None:
            return hash_of([self.title, self.dataset._fingerprint])
        assert self.path is not None
        files = sorted(p for p in self.path.rglob("*") if p.is_file()) if self.path.is_dir() else [self.path]
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hash_of([self.title, stats])

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows in order.

        Raises:
            ValueError: the file is damaged or not of the format that its name says.
        """
        if self.dataset is not None:
            arrow = self.dataset.with_format("arrow").iter(BATCH)
            rows = _with_class_names(arrow, self.dataset.features)
            yield from self._numbered(rows, self.path or Path.cwd())
            return
        assert self.path is not None
        if self.path.is_dir():
            yield from self._of_image_folder()
        elif self.path.suffix.lower() in (".jsonl", ".ndjson") or _has_objects_per_line(self.path):
            yield from self._of_lines()
        else:
            read = {".json": _of_json, ".parquet": _of_parquet}.get(self.path.suffix.lower(), _of_table)
            try:
                yield from self._numbered(read(self.path), self.path.parent)
            except (
                UnicodeDecodeError,
                json.JSONDecodeError,
                RecursionError,
                csv.Error,
                pa.ArrowException,
            ) as error:
                kind = self.path.suffix[1:]
                hint = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
                raise ValueError(f"{self.path} cannot be read as {kind}: {one_line(error)}{hint}") from None

    def _numbered(self, values: Iterator[Any], folder: Path) -> Iterator[RawRow]:
        for number, row in enumerate(values, start=1):
            yield self._row(number, row, folder)

    def _row(self, number: int, value: Any, folder: Path) -> RawRow:
        if not isinstance(value, dict):
            return RawRow(self.title, number, folder, None, "it is not an object with named columns")
        if None in value:  # csv.DictReader collects surplus cells there
            return RawRow(self.title, number, folder, None, "it has more cells than the header")
        return RawRow(self.title, number, folder, value)

    def _of_lines(self) -> Iterator[RawRow]:
        assert self.path is not None
        folder = self.path.parent
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield self._row(number, json.loads(line.decode("utf-8-sig")), folder)
                except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
                    reason = f"the line is not JSON: {one_line(error)}"
                    yield RawRow(self.title, number, folder, None, reason)

    def _of_image_folder(self) -> Iterator[RawRow]:
        """Read ``metadata.jsonl`` or ``metadata.csv``; its column ``file_name`` names the picture."""
        assert self.path is not None
        table = next(file for file in _metadata(self.path) if file.is_file())
        for row in Source(self.title, table).rows():
            if row.values is not None and (names := row.values.pop("file_name", None)) is not None:
                row.values.setdefault("images", names)
            yield row


def find_sources(entries: str | list[str], base: Path, split: str) -> list[Source]:
    """Find the files, folders and hub data sets of a split.

    Args:
        entries: as in the settings.
        base: folder that relative paths start from.
        split: train, eval or test; of a folder or hub data set with several splits, the one of that name.

    Raises:
        ValueError: an entry is neither a readable file or folder nor a data set on the hub.
    """
    sources = []
    for entry in [entries] if isinstance(entries, str) else entries:
        path = (base / os.path.expanduser(entry)).absolute()
        if os.path.isdir(path):  # unlike pathlib's, these three accept any text
            sources.append(_folder(entry, path, split))
        elif os.path.isfile(path):
            sources.append(_file(entry, path))
        elif entry.count("**") > 2:  # each one multiplies the time of the search
            raise ValueError(f"data.{split}: {entry[:80]!r} has more than two '**'; name a folder instead")
        elif any(character in entry for character in "*?["):
            pattern = os.path.expanduser(entry)  # the base folder's own name is no pattern
            found = sorted(glob.glob(pattern, root_dir=base, recursive=True))
            if not found:
                raise ValueError(f"data.{split}: no file matches {entry!r} in {base}")
            sources += [_file(os.path.relpath(base / name, base), (base / name).absolute()) for name in found]
        elif HUB.fullmatch(entry) and not entry.lower().endswith(FORMATS):
            sources.append(_hub(entry, split))
        else:
            raise ValueError(f"data.{split}: there is no file or folder {entry!r} in {base}")
    if not sources:
        raise ValueError(f"data.{split} is an empty list; give a file, a folder or a hub name")
    return sources


def _file(entry: str, path: Path) -> Source:
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{entry} has none of the endings {', '.join(FORMATS)}")
    return Source(entry, path)


def _metadata(folder: Path) -> list[Path]:
    return [folder / f"metadata{suffix}" for suffix in (".jsonl", ".csv", ".parquet")]


def _folder(entry: str, path: Path, split: str) -> Source:
    if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        try:
            return _chosen(entry, datasets.load_from_disk(str(path)), split, path)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise ValueError(f"{entry} is a damaged datasets folder: {one_line(error)}") from None
    if any(file.is_file() for file in _metadata(path)):
        return Source(entry, path)
    pictures = any(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))
    raise ValueError(
        f"{entry} is a folder of pictures without metadata.jsonl (columns file_name, question, answer)"
        if pictures
        else f"{entry} is neither a datasets folder (save_to_disk) nor an image folder with metadata.jsonl; "
        "for several files give a glob such as 'folder/*.parquet'"
    )


def _hub(entry: str, split: str) -> Source:
    name, _, part = entry.partition(":")
    owner, repository, *configuration = name.split("/")
    try:
        found = datasets.load_dataset(f"{owner}/{repository}", *configuration, split=part or None)
    except Exception as error:  # of the network, the hub or the data set's files
        raise ValueError(
            f"data.{split}: {entry!r} is neither a file nor a folder, and loading it from the hub fails: "
            f"{one_line(error)}"
        ) from None
    return _chosen(entry, found, split)


def _chosen(entry: str, found: Any, split: str, path: Path | None = None) -> Source:
    if isinstance(found, datasets.DatasetDict):
        name = next((name for name in SPLITS[split] if name in found), None)
        if name is None:
            raise ValueError(f"{entry} has no split for data.{split}; it has {', '.join(found)}")
        found = found[name]
    return Source(entry, path, found)


def _of_parquet(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow  # other writers than datasets have types that it does not know
        known = b"huggingface" in (schema.metadata or {})
        features = datasets.Features.from_arrow_schema(schema) if known else datasets.Features()
        yield from _with_class_names(file.iter_batches(BATCH), features)


def _with_class_names(tables: Iterable[Any], features: datasets.Features) -> Iterator[Any]:
    """Yield rows as plain values, pictures undecoded as ``{bytes, path}`` and class labels as names."""
    names = {name: of.names for name, of in features.items() if isinstance(of, datasets.ClassLabel)}
    for table in tables:
        for row in table.to_pylist(maps_as_pydicts="lossy"):
            for column, classes in names.items():
                known = row[column] is not None and 0 <= row[column] < len(classes)
                row[column] = classes[row[column]] if known else None  # -1 is the hub's "no label"
            yield row


def _has_objects_per_line(path: Path) -> bool:
    """Return whether a file called ``.json`` holds one object per line, as many do."""
    if path.suffix.lower() != ".json":
        return False
    with open(path, "rb") as file:
        first, second = file.readline(), file.readline()
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict) and bool(second.strip())
    except (ValueError, RecursionError):
        return False


def _of_json(path: Path) -> Iterator[Any]:
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        rows = rows["data"]
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of rows but holds one {type(rows).__name__}")
    yield from rows


def _of_table(path: Path) -> Iterator[Any]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = file.readline()
        file.seek(0)
        usual = "\t" if path.suffix.lower() == ".tsv" else ","
        # Where a comma is the decimal sign, spreadsheets write semicolons.
        delimiter = ";" if usual not in names and ";" in names else usual
        yield from csv.DictReader(file, delimiter=delimiter, strict=True)
