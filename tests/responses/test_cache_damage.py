"""Damaged files of a store are harmless, or named in one line; nothing else that is read differs."""

import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
from fuzzing import count, damage, rounds

from masters.responses.engines import Response
from masters.responses.store import ResponseStore, StoreSpec, all_stores
from masters.settings import Sampling

COUNT = 12
SPEC = StoreSpec(weights="w", ratio=0.2, processor="p", sampling=Sampling(), seed=3)
QUESTIONS = small.stored_questions(COUNT)
CONTENT = QUESTIONS["content"].tolist()


class Shares:
    """Give a score that depends on the response only, and no verdict on some."""

    name = "shares"

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
        scores = [zlib.crc32(text.encode()) % 5 / 4 for text in responses]
        return [score if score < 1 else None for score in scores]


def store_in(root: Path) -> ResponseStore:
    return ResponseStore(SPEC, "large", root=root)


def seen(store: ResponseStore) -> pd.DataFrame:
    """Return everything that a run reads of a store."""
    frame = store.read(CONTENT, 2)
    frame["correct"] = store.verdicts(frame, Shares())
    there = store.status(CONTENT, 2).there
    assert there == len(frame)
    return frame.sort_values(["content", "index"], ignore_index=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    root = tmp_path_factory.mktemp("cache") / "responses"
    store = store_in(root)
    for start in (0, COUNT // 2):
        places = range(start, start + COUNT // 2)
        made = [
            Response(f"q{q}", i, [5, 6, q], f"it is {q}, {i}", [-1.0] * 3, "stop")
            for q in places
            for i in range(2)
        ]
        store.append(made, QUESTIONS, seconds=2.0)
    return root, seen(store)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(rounds(150)))
def test_a_damaged_file_is_harmless_or_named(
    seed: int, whole: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, expected = whole
    monkeypatch.setenv("MASTERS_CACHE", str(tmp_path))
    shutil.copytree(root, tmp_path / "responses")
    store, rng = store_in(tmp_path / "responses"), random.Random(seed)
    files = sorted(path for path in store.folder.iterdir() if not path.name.endswith(".lock"))
    path = rng.choice(files)
    how = damage(path, files, rng)
    named = 0
    for read in (lambda: seen(store), all_stores, store.verify):
        try:
            found = read()
        except ValueError as error:
            assert str(path) in str(error) and "delete" in str(error) and "\n" not in str(error), how
            named += 1
            continue
        if isinstance(found, pd.DataFrame):
            pd.testing.assert_frame_equal(found, expected)
        named += path in [damaged.path for damaged in found if hasattr(damaged, "path")]
    count("stored responses, damaged", named=bool(named))
    if path.suffix == ".parquet":
        assert named == 2 or path.read_bytes() == (root / store.key / path.name).read_bytes(), how
    if named:
        path.unlink()
        assert store.status(CONTENT, 2).missing == (COUNT if path.suffix == ".parquet" else 0)
        assert len(seen(store)) == 2 * COUNT - store.status(CONTENT, 2).missing


def doubled(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table])


def of_another_store(table: pa.Table) -> pa.Table:
    return table.set_column(0, "key", pa.array([key[::-1] for key in table["key"].to_pylist()]))


def of_another_type(table: pa.Table) -> pa.Table:
    place = table.column_names.index("logprobs")
    return table.set_column(place, "logprobs", pa.array(["-1.0"] * len(table)))


@pytest.mark.parametrize(
    "change",
    [
        doubled,
        of_another_store,
        of_another_type,
        lambda table: table.slice(0, 0),
        lambda table: table.drop_columns(["logprobs"]),
        lambda table: table.take(list(range(len(table)))[::-1]),
    ],
    ids=["doubled", "another store", "another type", "no rows", "no column", "another order"],
)
@pytest.mark.parametrize("listed", [True, False])
def test_a_shard_with_other_rows_is_named(
    whole: tuple[Path, pd.DataFrame], tmp_path: Path, change: Callable[[pa.Table], pa.Table], listed: bool
) -> None:
    shutil.copytree(whole[0], tmp_path / "responses")
    store = store_in(tmp_path / "responses")
    path = store.shards()[0]
    pq.write_table(change(pq.read_table(path)), path)
    if not listed:
        store.manifest.unlink()
    with pytest.raises(ValueError, match=r"is damaged .*delete it and run again") as error:
        store.read(CONTENT, 2)
    assert str(path) in str(error.value)
    assert [damaged.path for damaged in store.verify()] == [path]
