"""Responses as arrays on disk hold what the store holds, in the order of the questions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import small

from masters.data.questions import Questions
from masters.responses import cached
from masters.responses.arrays import response_arrays
from masters.responses.cached import judged
from masters.responses.engines import Response
from masters.responses.store import ResponseStore, StoreSpec
from masters.settings import Sampling

SPEC = StoreSpec(weights="0" * 16, ratio=0.2, processor="0" * 16, sampling=Sampling(), seed=0)
COUNT, GROUP = 30, 3


class Table:
    """Questions that are never encoded; the last one is the first one again, with another label."""

    def __init__(self) -> None:
        content = [f"{7919 * (index % (COUNT - 1)):016x}" for index in range(COUNT)]
        names = [f"q{index}" for index in range(COUNT)]
        labels = [str(index % 4) for index in range(COUNT)]
        self.table = pd.DataFrame({"id": names, "content": content, "question": "?", "answer": labels})


class Exact:
    """A judge that counts; it has no verdict on the word "none"."""

    name = "exact"

    def __init__(self) -> None:
        self.judged = 0

    def score_many(self, questions: Sequence[str], labels: Sequence[str], texts: Sequence[str]) -> list[Any]:
        self.judged += len(texts)
        return [
            None if text == "none" else int(label == text) for label, text in zip(labels, texts, strict=True)
        ]


@pytest.fixture
def questions(tmp_path: Path) -> Any:
    with small.scratch(tmp_path):
        yield cast(Questions, Table())


def filled(questions: Questions, without: str = "") -> ResponseStore:
    """Return a store with responses to all questions in two shards, written in a random order."""
    store, draw = ResponseStore(SPEC, "large"), np.random.default_rng(0)
    about = questions.table.drop_duplicates("content").set_index("id")
    ids = draw.permutation(about.index.to_numpy())
    for some in (ids[:10], ids[10:]):
        store.append(
            [
                Response(
                    question=name,
                    index=index,
                    tokens=draw.integers(0, 99, draw.integers(1, 5)).tolist(),
                    text=("none", "1", "2")[draw.integers(3)],
                    logprobs=None if name == without else [-float(index)] * 2,
                    finish="stop",
                )
                for name in some
                for index in range(GROUP)
            ],
            about,
        )
    return store


def test_arrays_hold_the_stored_responses_in_the_order_of_the_questions(
    questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, judge, wanted = filled(questions), Exact(), [29, *range(5, 20), 0]
    whole = pd.concat(judged(store, questions, wanted, GROUP, judge), ignore_index=True)
    assert list(whole["question"][::GROUP]) == [f"q{index}" for index in wanted]
    monkeypatch.setattr(cached, "AT_ONCE", 4)
    parts = pd.concat(judged(store, questions, wanted, GROUP, judge), ignore_index=True)
    pd.testing.assert_frame_equal(whole, parts, check_dtype=False)
    found = response_arrays(store, questions, wanted, GROUP, judge)
    assert found.behavior is not None and len(found.tokens) == len(wanted) == len(found.behavior)
    for arrays, column in ((found.tokens, "tokens"), (found.behavior, "logprobs")):
        flat = [array.tolist() for group in arrays for array in group]
        assert flat == [list(row) for row in whole[column]]
    assert [len(group) for group in found.tokens[2:4]] == [GROUP, GROUP]
    assert found.accuracy.tolist() == (whole["correct"] == 1).astype(float).to_numpy().reshape(-1, 3).tolist()
    assert 0 < found.accuracy.sum() < found.accuracy.size
    with pytest.raises(IndexError):
        found.tokens[len(wanted)]


def test_other_labels_are_judged_once_and_stored_apart(questions: Questions) -> None:
    store, judge, wanted = filled(questions), Exact(), range(20)
    own = response_arrays(store, questions, wanted, GROUP, judge)
    before, ones = judge.judged, ["1"] * len(wanted)
    other = response_arrays(store, questions, wanted, GROUP, judge, ones)
    changed = [index for index in wanted if questions.table["answer"][index] != "1"]
    assert judge.judged - before == GROUP * len(changed)
    assert not np.array_equal(own.accuracy, other.accuracy)
    assert np.array_equal(own.accuracy, response_arrays(store, questions, wanted, GROUP, judge).accuracy)
    texts = pd.concat(judged(store, questions, wanted, GROUP, judge, ones))["text"]
    assert other.accuracy.ravel().tolist() == [float(text == "1") for text in texts]
    assert judge.judged - before == GROUP * len(changed)


def test_one_response_without_log_probabilities_leaves_them_all_out(questions: Questions) -> None:
    store = filled(questions, without="q4")
    assert response_arrays(store, questions, range(8), GROUP, Exact()).behavior is None
    assert response_arrays(store, questions, range(5, 8), GROUP, Exact()).behavior is not None


def test_a_store_that_has_changed_is_read_again(questions: Questions) -> None:
    store, judge = filled(questions), Exact()
    before = response_arrays(store, questions, [3], 1, judge).tokens[0]
    for shard in store.shards():
        shard.unlink()
    about = questions.table.set_index("id")
    store.append([Response("q3", 0, [7, 7], "1", [0.0, 0.0], "stop")], about)
    after = response_arrays(store, questions, [3], 1, judge).tokens[0]
    assert after[0].tolist() == [7, 7] != before[0].tolist()


def test_damaged_arrays_are_named(questions: Questions, tmp_path: Path) -> None:
    store = filled(questions)
    response_arrays(store, questions, [3], 1, Exact())
    (file,) = tmp_path.rglob("tokens.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"tokens\.npy.*delete this folder and run again"):
        response_arrays(store, questions, [3], 1, Exact())
