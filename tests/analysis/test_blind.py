"""The blind baseline: answers from the question's text alone."""

import pandas as pd
import pytest

from masters.settings import load_profile
from masters_book.analysis.blind import blind_accuracy, blind_answers, blind_table

TRAIN = pd.DataFrame(
    {
        "question": ["how many ?", "how many ?", "how many ?", "is it red ?", "a ?", "a ?"],
        "answer": ["2", "2", "3", "no", "b", "a"],
    }
)


def test_answers_are_the_most_common_to_the_same_text_or_of_the_set() -> None:
    questions = pd.DataFrame(
        {"question": ["how many ?", "is it red ?", "never seen ?", "a ?"]}, index=[7, 8, 9, 10]
    )
    found = blind_answers(TRAIN, questions)
    assert list(found) == ["2", "no", "2", "a"] and list(found.index) == [7, 8, 9, 10]


def test_accuracy_by_task_and_skill() -> None:
    profile = load_profile("smoke")
    frame = blind_accuracy(profile)
    assert len(frame) == len(profile.tasks) * profile.test_questions
    assert set(frame["task"]) == set(profile.tasks) and frame["skill"].nunique() > 4
    table = blind_table(profile).set_index("task")
    assert list(table.index) == [*profile.tasks, "all"]
    assert table["accuracy"]["all"] == pytest.approx(frame["correct"].mean())
    assert table["questions"]["all"] == len(frame) and 0 < table["accuracy"]["all"] < 1
