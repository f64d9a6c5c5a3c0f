"""The store and its manifest, on made-up responses: stored, missing and damaged ones."""

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import small

from masters.judges import Judge
from masters.judges.rule import RuleJudge
from masters.responses import manifest
from masters.responses.engines import Response
from masters.responses.store import Damaged, ResponseStore, StoreSpec, all_stores, mark
from masters.settings import Sampling

COUNT = 40
QUESTIONS = small.stored_questions(COUNT)
CONTENT = QUESTIONS["content"].tolist()


def response(question: int, index: int) -> Response:
    text = str(question if index % 2 else question + 1)
    return Response(f"q{question}", index, [5, 6, index], text, [-1.0] * 3, "stop")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResponseStore:
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path))
    spec = StoreSpec(weights="w", ratio=0.2, processor="p", sampling=Sampling(), seed=3)
    return ResponseStore(spec, "large")


def fill(store: ResponseStore, pairs: list[tuple[int, int]], seconds: float = 0.0) -> Path:
    return store.append([response(*pair) for pair in pairs], QUESTIONS, seconds)


def test_a_row_holds_its_settings_and_any_reader_can_load_it(store: ResponseStore) -> None:
    path = fill(store, [(1, 1), (0, 0)])
    frame = pd.read_parquet(path)
    assert set(frame["source"]) == {"large"} and set(frame["ratio"]) == {0.2} and set(frame["seed"]) == {3}
    assert Sampling.model_validate_json(frame["sampling"][0]) == Sampling()
    assert frame["key"].is_unique and set(frame["key"].str.len()) == {24}
    assert len(datasets.Dataset.from_parquet(str(path), cache_dir=str(store.folder / "hf"))) == 2
    assert pq.read_metadata(path).num_rows == 2
    assert json.loads((store.folder / "spec.json").read_text())["engine"] == "transformers"


def test_keys_of_responses_are_unique(store: ResponseStore) -> None:
    other = ResponseStore(store.spec.model_copy(update={"seed": 4}), "large")
    keys = [pd.read_parquet(fill(s, [(0, 0), (0, 1), (1, 0)]))["key"].tolist() for s in (store, other)]
    assert len({*keys[0], *keys[1]}) == 6
    assert pd.read_parquet(fill(store, [(1, 0)]))["key"].tolist()[0] in keys[0]


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 130])
def test_counts_match_those_of_a_set(store: ResponseStore, n: int) -> None:
    rng = np.random.default_rng(n)
    held: set[tuple[int, int]] = set()
    for _ in range(4):  # some responses are written twice
        drawn = rng.integers((0, 0), (COUNT, 140), (300, 2)).tolist()
        pairs = list({(question, index) for question, index in drawn})
        fill(store, pairs)
        held.update(pairs)
    wanted = list(range(0, COUNT, 2))
    expected = sum(q in set(wanted) and i < n for q, i in held)
    status = store.status([CONTENT[q] for q in wanted], n)
    assert (status.there, status.missing) == (expected, n * len(wanted) - expected)
    assert store.held().indices([CONTENT[q] for q in wanted]) == [
        {i for question, i in held if question == q} for q in wanted
    ]
    frame = store.read([CONTENT[q] for q in wanted], n)
    assert sorted(zip(frame["question"], frame["index"], strict=True)) == sorted(
        (f"q{q}", i) for q, i in held if q in set(wanted) and i < n
    )


def test_an_empty_store_misses_all_responses(store: ResponseStore) -> None:
    status = store.status(CONTENT, 8)
    assert (status.there, status.missing) == (0, 8 * COUNT)
    assert status.missing_seconds is None and status.missing_size is None
    assert store.read(CONTENT, 8).empty and store.verify() == []


def test_missing_responses_are_estimated_to_cost_as_much_as_the_stored_ones(store: ResponseStore) -> None:
    path = fill(store, [(q, i) for q in range(10) for i in range(2)], seconds=4.0)
    status = store.status(CONTENT, 2)
    assert status.missing == 60
    assert status.missing_seconds == pytest.approx(12.0)
    assert status.missing_size == pytest.approx(3 * path.stat().st_size)


def judged(
    store: ResponseStore, content: list[str], n: int, judge: Judge, labels: dict[str, str] | None = None
) -> pd.DataFrame:
    frame = store.read(content, n)
    frame["label"] = frame["content"].map(labels) if labels else frame["label"]
    return frame.assign(correct=store.verdicts(frame, judge))


def test_verdicts_belong_to_their_rows(store: ResponseStore) -> None:
    for start in (0, 20):
        fill(store, [(q, i) for q in range(start, start + 20) for i in range(3)])
    frame = judged(store, CONTENT[5:30], 3, RuleJudge())
    assert len(frame) == 75
    assert frame["correct"].tolist() == [index % 2 for index in frame["index"]]


class Counting(RuleJudge):
    """The rules, counting what they judge."""

    judged = 0

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
        self.judged += len(responses)
        return super().score_many(questions, labels, responses)


def test_corrected_labels_are_judged_again_and_no_others(store: ResponseStore) -> None:
    judge = Counting()
    fill(store, [(q, i) for q in range(10) for i in range(2)])
    today = {content: str(q + 1 if q == 3 else q) for q, content in enumerate(CONTENT)}
    for labels, total, right in ((None, 20, 1), (today, 22, 0), (today, 22, 0), (None, 22, 1)):
        frame = judged(store, CONTENT[:10], 2, judge, labels).set_index(["content", "index"])
        assert judge.judged == total
        of_third = frame.loc[CONTENT[3]]
        assert of_third["correct"].tolist() == [1 - right, right]
        assert set(of_third["label"]) == {"3" if labels is None else "4"}
        assert frame.loc[CONTENT[4], "correct"].tolist() == [0, 1]


class Halves:
    """Gives half a point."""

    name = "halves"

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
        return [None if index % 3 == 0 else 0.5 for index in range(len(responses))]


def test_fractions_and_missing_verdicts_are_kept(store: ResponseStore) -> None:
    fill(store, [(q, 0) for q in range(6)])
    for _ in range(2):
        correct = judged(store, CONTENT[:6], 1, Halves())["correct"]
        assert correct.isna().tolist() == [True, False, False] * 2 and set(correct.dropna()) == {0.5}


def test_an_incomplete_manifest_line_loses_no_responses(store: ResponseStore) -> None:
    fill(store, [(0, 0), (1, 0)])
    fill(store, [(2, 0)])
    data = store.manifest.read_bytes()
    store.manifest.write_bytes(data[:-30])
    assert store.status(CONTENT, 1).there == 3
    fill(store, [(3, 0)])
    assert store.status(CONTENT, 1).there == 4
    assert len(manifest.read(store.manifest)) == 3
    for path in (store.manifest, store.folder / "spec.json"):
        path.unlink()
        assert store.status(CONTENT, 1).there == 4 and path.is_file()
    assert [found.key for found in all_stores()] == [store.key]


def test_a_flipped_bit_is_found(store: ResponseStore) -> None:
    path = fill(store, [(q, 0) for q in range(20)])
    fill(store, [(q, 0) for q in range(20, COUNT)])
    assert store.verify() == []
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    (damage,) = store.verify()
    assert (damage.path, damage.responses, damage.questions) == (path, 20, 20)
    path.unlink()
    (damage,) = store.verify()
    assert damage.reason == "it is missing" and store.status(CONTENT, 1).missing == 20


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("", "stop", "empty"),
        ("  ", "length", "empty"),
        ("four", "stop", ""),
        ("red, red", "stop", ""),
        ("it is red red red", "stop", "repetitive"),
        ("a b a b a b", "length", "repetitive"),
        ("a b a b a c", "length", "truncated"),
        ("bars are 3, 3 and 3 high", "stop", ""),
    ],
)
def test_a_bad_generation_is_marked(text: str, finish: str, expected: str) -> None:
    assert mark(text, finish) == expected


def test_damage_that_a_worker_finds_is_named_in_the_parent() -> None:
    found = Damaged(Path("shard.parquet"), "a flipped bit\nin the footer")
    again = pickle.loads(pickle.dumps(found))
    assert str(again) == str(found) and "shard.parquet is damaged (a flipped bit)" in str(again)
