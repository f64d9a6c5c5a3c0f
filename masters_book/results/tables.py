"""Reading of the tables that results rest on: damage is named with file, line and cause, never computed with.

A table is checked line by line against its schema. Where the file ``SHA256SUMS`` in its folder (the format of
``sha256sum``) names it, it must also have that checksum. This finds what still looks like a table: a changed
digit, a renamed arm, lines lost at the end.
"""

import csv
import io
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from masters.runtime.checksums import REMEDY, SUMS
from masters_book.results.intact import read_listed

_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf)", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)


@dataclass(frozen=True)
class Text:
    """A column of text, one of ``choices`` if there are any; no value is missing unless ``optional``."""

    optional: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Number:
    """A column of numbers in [low, high]; no value is missing unless ``optional``."""

    optional: bool = False
    low: float = -sys.float_info.max
    high: float = sys.float_info.max
    whole: bool = False


Column = Text | Number


class Schema(NamedTuple):
    """What a table holds.

    Attributes:
        columns: those that it needs. What other columns hold follows from their values.
        key: columns whose values together name a row; no two rows share them.
    """

    columns: Mapping[str, Column] = {}
    key: tuple[str, ...] = ()


TEXT: Column = Text()
FLAG: Column = Text(choices=("True", "False"))
NUMBER: Column = Number()
POSITIVE: Column = Number(low=0)  # or zero
COUNT: Column = Number(low=0, whole=True)
FRACTION: Column = Number(low=0, high=1)


def read_table(path: Path, schema: Schema = Schema(), remedy: str = REMEDY) -> pd.DataFrame:  # noqa: B008
    """Read a CSV file whose first line names the columns.

    Args:
        path: the file.
        schema: what it holds.
        remedy: what to do about a damaged file, for the message.

    Returns:
        Columns of numbers (NaN if missing; integers if all are), of booleans, and of text (empty if missing).

    Raises:
        ValueError: the file is damaged or does not fit the schema.
        OSError: the file cannot be read.
    """
    content, intact = read_listed(path)
    try:
        table = _table(content.decode(), schema)
        if not intact:
            raise ValueError(f"has another checksum than in {SUMS}")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} {error}: {remedy}") from None
    return table


def _table(text: str, schema: Schema) -> pd.DataFrame:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, rows, lines = next(reader, []), [], []
    for row in reader:
        if len(row) != len(header):
            shown = ",".join(row)[:40]
            raise ValueError(f"line {reader.line_num} has {len(row)} of {len(header)} values: {shown!r}")
        rows.append(row)
        lines.append(reader.line_num)
    if missing := [name for name in schema.columns if name not in header]:
        raise ValueError(f"has no column {', '.join(missing)}")
    if twice := {name for name in header if header.count(name) > 1}:
        raise ValueError(f"has two columns {', '.join(sorted(twice))}")

    columns = {}
    for place, name in enumerate(header):
        values = [row[place] for row in rows]
        columns[name] = _column(name, values, schema.columns.get(name) or _guessed(values), lines)
    table = pd.DataFrame(columns)
    if schema.key and (again := table.duplicated([*schema.key])).any():
        row = rows[int(again.to_numpy().argmax())]
        named = ", ".join(f"{name} {row[header.index(name)]}" for name in schema.key)
        raise ValueError(f"line {lines[int(again.to_numpy().argmax())]} is a second row of {named}")
    return table


def _guessed(values: list[str]) -> Column:
    """Return what a column holds that no schema declares: numbers if any value is one."""
    if any(map(_NUMBER.fullmatch, values)):
        return NUMBER
    return Text(optional=True)


def _column(name: str, values: list[str], kind: Column, lines: list[int]) -> pd.Series:
    """Return the values of a column in their type."""
    for value, line in zip(values, lines, strict=True):
        if not _fits(value, kind):
            raise ValueError(f"line {line}: {name} is {value[:40]!r}, not {_words(kind)}")
    if isinstance(kind, Number):
        if values and all(map(_WHOLE.fullmatch, values)):
            return pd.Series(map(int, values), dtype="int64")
        return pd.Series([float(value or "nan") for value in values], dtype="float64")
    if values and set(values) <= {"True", "False"}:
        return pd.Series([value == "True" for value in values])
    return pd.Series(values, dtype="str")


def _fits(value: str, kind: Column) -> bool:
    if not value:
        return kind.optional
    if isinstance(kind, Number):
        form = _WHOLE if kind.whole else _NUMBER
        return bool(form.fullmatch(value)) and kind.low <= float(value) <= kind.high
    return not kind.choices or value in kind.choices


def _words(kind: Column) -> str:
    if isinstance(kind, Number):
        words = "a whole number" if kind.whole else "a number"
        lowest = f" of at least {kind.low:g}" if kind.low > Number.low else ""
        return words + lowest + (f" and at most {kind.high:g}" if kind.high < Number.high else "")
    return f"one of {', '.join(kind.choices)}" if kind.choices else "text"
