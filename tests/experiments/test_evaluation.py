from typing import Any

import pandas as pd
import pytest
import small
import torch
from transformers import PreTrainedModel

from masters.data.questions import Questions
from masters.experiments.evaluation import evaluate, register
from masters.judges.rule import RuleJudge
from masters.training.train import Budget, train
from masters.training.trainer import Objective
from masters_book.analysis.latency import latency

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    return small.questions(tmp_path_factory.mktemp("evaluation") / "questions", count=6)


@pytest.fixture(scope="module")
def trained(asked: Questions, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Any]:
    """A tiny model that has learned the colours by heart."""
    model, processor = small.build()
    budget = Budget(steps=60, batch=4, learning_rate=1e-2)
    folder = tmp_path_factory.mktemp("run")
    train(model, asked, small.labeled(asked, budget), Objective(), budget, folder, "colours")
    return model, processor


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("7 .", "bare"),
        ("", "bare"),
        ("red , blue", "bare"),
        ("the answer is 7 .", "sentence"),
        ("the answer is", "sentence"),
        ("there are two bars taller than the red one , so the answer is 2 .", "rationale"),
        ("looking at the picture with some care we find that the answer is 2 .", "wordy"),
    ],
)
def test_the_register_of_an_answer_is_told_by_its_wording(text: str, name: str) -> None:
    assert register(text) == name


def test_a_model_that_knows_the_answers_is_always_right(
    asked: Questions, trained: tuple[PreTrainedModel, Any]
) -> None:
    scores = evaluate(*trained, asked, RuleJudge(), max_new_tokens=6, seed=None)
    assert list(scores.columns) == ["question", "task", "skill", "mode", "correct", "tokens", "register"]
    assert list(scores["question"]) == list(asked.table["id"])
    assert scores["correct"].dtype == bool and scores["correct"].all()
    assert set(scores["tokens"]) == {3}, "a colour, a full stop and the end"
    assert set(scores["register"]) == {"bare"} and set(scores["mode"]) == {"greedy"}
    assert set(scores["task"]) == {"squares"} and set(scores["skill"]) == {"colour"}


def test_both_modes_are_asked_and_only_sampled_answers_depend_on_the_seed(asked: Questions) -> None:
    model, processor = small.build()
    alone, one, two = (evaluate(model, processor, asked, RuleJudge(), 4, seed) for seed in (None, 1, 2))
    assert list(one["mode"]) == ["greedy"] * 6 + ["sampled"] * 6
    assert one["tokens"].between(1, 4).all()
    for both in (one, two):
        pd.testing.assert_frame_equal(both.head(6), alone)
    assert not one.equals(two)


class PartsOfAPoint:
    """Gives a third for every answer, and no verdict on the first."""

    name, revision = "parts", None

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[float | None]:
        return [None, *[1 / 3] * (len(responses) - 1)]


def test_parts_of_a_point_count(asked: Questions, trained: tuple[PreTrainedModel, Any]) -> None:
    scores = evaluate(*trained, asked, PartsOfAPoint(), max_new_tokens=6, seed=None)
    assert scores["correct"].tolist() == pytest.approx([0, *[1 / 3] * 5])


def test_latency_is_of_the_asked_questions(asked: Questions, trained: tuple[PreTrainedModel, Any]) -> None:
    measured = latency(*trained, asked, count=4, max_new_tokens=6)
    assert measured["seconds_per_question"] > 0
    assert measured["tokens"] == 3
