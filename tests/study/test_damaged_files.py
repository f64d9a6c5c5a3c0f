"""Damage to a tracked file is named in one line, or changes nothing that is read."""

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fuzzing import count, rounds

from masters import settings
from masters.runtime.checksums import SUMS
from masters.runtime.files import ROOT
from masters_book.claims.table import CLAIMS, read_claims
from masters_book.pages import parameters
from masters_book.results import STUDY
from masters_book.results.intact import read_json
from masters_book.results.tables import Number, Schema, read_table
from masters_book.study import plan
from masters_book.study.tables import SCHEMAS, Tables

RESULTS = [STUDY.parent, STUDY, STUDY.with_name("earlier"), ROOT / "data" / "paper"]
FILES = [path for folder in RESULTS for path in sorted(folder.iterdir()) if path.is_file() and path.suffix]
PARAMS = sorted(path.relative_to(settings.PARAMS) for path in settings.PARAMS.rglob("*.yaml"))
MARKERS = b"<<<<<<< HEAD\n%s=======\n%s>>>>>>> other\n"


def read(path: Path) -> pd.DataFrame:
    """Read a tracked file as the package does."""
    if path.suffix == ".json":
        return pd.DataFrame([read_json(path)])
    if path.suffix == ".parquet":
        return Tables(path.parent).answers(int(path.stem.split("-")[1]))
    if path.parent.name == "earlier":
        return read_table(path, CLAIMS)
    if path.name == "claims.csv":
        return read_claims(path)
    if path.name == "bench.csv":
        return read_table(path, Schema({"limit": Number(optional=True)}))
    return Tables(path.parent).read(path.name) if path.name in SCHEMAS else read_table(path)


def damaged(content: bytes, draw: random.Random) -> Iterator[bytes]:
    """Yield the content with each kind of damage, at a random place."""
    place, lines = draw.randrange(len(content)), content.splitlines(keepends=True)
    line = draw.randrange(len(lines))
    row = lines[line]
    yield content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    yield content[:place]
    yield b"".join([*lines[:line], row, row, *lines[line + 1 :]])
    yield b"".join([*lines[:line], MARKERS % (row, row), *lines[line + 1 :]])
    yield content[:place] + draw.randbytes(40) + content[place:]
    yield draw.randbytes(draw.randrange(200))


def outcome(path: Path, load: Callable[[Path], Any], names: str) -> Any:
    """Return what is read, or None where the file is named in one line."""
    try:
        return load(path)
    except ValueError as error:
        assert names in str(error) and "\n" not in str(error), error
        return None


@pytest.mark.fuzz
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "data")))
def test_damage_to_results_is_named(path: Path, tmp_path: Path) -> None:
    shutil.copy(path.with_name(SUMS), tmp_path)
    copy, content = tmp_path / path.name, path.read_bytes()
    draw = random.Random(path.name)
    for _ in range(rounds(2)):
        for bad in damaged(content, draw):
            copy.write_bytes(bad)
            assert bad == content or outcome(copy, read, path.name) is None
            count("tables of results, damaged", named=bad != content)


@pytest.mark.fuzz
def test_damage_to_the_checksums_is_named_or_harmless(tmp_path: Path) -> None:
    draw = random.Random(0)
    for name in ("comparisons.csv", SUMS):
        shutil.copy(STUDY / name, tmp_path)
    content, intact = (STUDY / SUMS).read_bytes(), read(STUDY / "comparisons.csv")
    for _ in range(rounds(10)):
        for bad in damaged(content, draw):
            (tmp_path / SUMS).write_bytes(bad)
            found = outcome(tmp_path / "comparisons.csv", read, SUMS)
            assert found is None or found.equals(intact)
            count("lists of checksums, damaged", named=found is None)


@pytest.mark.fuzz
@pytest.mark.parametrize("path", PARAMS, ids=str)
def test_damage_to_parameters_is_named_or_gives_parameters(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(settings.PARAMS, tmp_path / "params")
    for module in (settings, plan):
        monkeypatch.setattr(module, "PARAMS", tmp_path / "params")
    copy, content, draw = tmp_path / "params" / path, (settings.PARAMS / path).read_bytes(), random.Random(0)

    def load(changed: Path) -> object:
        if path.parent == Path():
            return plan.load_study(path.stem)
        if path.stem == "profile":
            return settings.load_profile(path.parent.name)
        return parameters.notebook_parameters(path.parent.name, path.stem)

    for _ in range(rounds(2)):
        for bad in damaged(content, draw):
            copy.write_bytes(bad)
            outcome(copy, load, path.name)


def test_every_tracked_file_is_read_and_has_a_checksum() -> None:
    for path in FILES:
        assert len(read(path)) and path.name in path.with_name(SUMS).read_text()


CONFLICT = "<<<<<<< HEAD"
ROW = "0,masters,greedy,charts,0.5,5,0.25"
HEADER = "replicate,arm,mode,task,correct,tokens,share"


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([HEADER, ROW, CONFLICT], "line 3 has 1 of 7 values: '<<<<<<< HEAD'"),
        ([HEADER, ROW, ROW], "line 3 is a second row of replicate 0, arm masters, mode greedy, task charts"),
        ([HEADER, ROW.replace("0,", "zero,", 1)], "line 2: replicate is 'zero', not a whole number"),
        ([HEADER, ROW.replace("0,", "0.5,", 1)], "line 2: replicate is '0.5', not a whole number"),
        ([HEADER, ROW.replace("0.5", "430")], "correct is '430', not a number of at least 0 and at most 1"),
        ([HEADER, ROW.replace("0.5", "nan")], "correct is 'nan', not a number"),
        ([HEADER, ROW.replace("0.5", "")], "correct is '', not a number"),
        ([HEADER, ROW.replace("masters", "")], "arm is '', not text"),
        ([HEADER, ROW.replace("greedy", "gready")], "mode is 'gready', not one of greedy, sampled"),
        ([HEADER.replace("share", "shore"), ROW], "has no column share"),
        ([HEADER + ",arm", ROW + ",masters"], "has two columns arm"),
        (
            [HEADER + ",more", ROW + ",1", ROW.replace("charts", "digits") + ",x"],
            "line 3: more is 'x', not a n",
        ),
    ],
)
def test_without_a_checksum_the_schema_names_line_and_cause(
    lines: list[str], cause: str, tmp_path: Path
) -> None:
    path = tmp_path / "tasks.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{cause}.*restore it with git"):
        read(path)


def test_what_no_run_measured_may_be_missing(tmp_path: Path) -> None:
    row = {"replicate": 0, "model": "large", "parameters": 7, "seconds": None, "weights": "0123"}
    Tables(tmp_path).write("ladder.csv", pd.DataFrame([row]))
    assert read(tmp_path / "ladder.csv").isna().sum().to_dict() == dict.fromkeys(row, 0) | {"seconds": 1}


def test_a_killed_write_leaves_old_or_new(tmp_path: Path) -> None:
    """Between the writes, the checksums of both states are on record."""
    tables, row = Tables(tmp_path), {"task": "x", "accuracy": 0.5, "questions": 2}
    tables.write("blind.csv", pd.DataFrame([row]))
    sums = (tmp_path / SUMS).read_text()
    old = (tmp_path / "blind.csv").read_bytes()
    tables.write("blind.csv", pd.DataFrame([row | {"accuracy": 0.25}]))
    (tmp_path / SUMS).write_text(sums + (tmp_path / SUMS).read_text())
    assert read(tmp_path / "blind.csv")["accuracy"][0] == 0.25
    (tmp_path / "blind.csv").write_bytes(old)
    assert read(tmp_path / "blind.csv")["accuracy"][0] == 0.5
    tables.write("blind.csv", pd.DataFrame([row]))
    assert (tmp_path / SUMS).read_text() == sums
    (tmp_path / "blind.csv").write_bytes(old.replace(b"0.5", b"0.6"))
    with pytest.raises(ValueError, match=f"another checksum than in {SUMS}: restore it with git"):
        read(tmp_path / "blind.csv")
