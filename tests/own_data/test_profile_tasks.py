"""A profile with a built-in question set and one of your own: questions, labels, responses, a run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import labs
import numpy as np
import pytest
import small
from PIL import Image

from masters.data.labels import REGISTERS
from masters.data.questions import load_questions
from masters.experiments.lab import Lab
from masters.experiments.results import run_arm
from masters.own_data.tasks import labels_of, questions_of
from masters.settings import OwnData, Profile
from masters_book.analysis.blind import blind_table
from masters_book.report import notebooks

COUNT = 40


def mine(folder: Path, name: str = "mine", **changes: Any) -> OwnData:
    given: dict[str, Any] = {"eval": {"split_from_train": 6}, "test": {"split_from_train": 7}} | changes
    return OwnData.model_validate({"name": name, "train": str(folder / "train.jsonl")} | given)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        answer: Any = ["odd", "uneven"] if number % 2 else "even"
        lines.append({"image": f"{number}.png", "question": "is it odd ?", "answer": answer})
    lines.append({"question": "what is odd ?"})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with small.scratch(folder / "data"):
        tiny = labs.profile().model_dump()
        yield Lab(Profile.model_validate(tiny | {"tasks": ["charts", mine(folder).model_dump()]}))


def test_questions_of_both_sets_follow_each_other(lab: Lab) -> None:
    sizes = {"train": (32, COUNT + 1 - 13), "validation": (6, 6), "test": (8, 7)}
    for split, counts in sizes.items():
        questions = lab.questions(split)
        assert tuple(questions.table.groupby("task", sort=False).size()) == counts
        assert questions.table["task"].unique().tolist() == ["charts", "mine"]
    alone = load_questions(["charts"], "train", 32, lab.processor)
    train = lab.questions("train")
    assert train.table["content"][:32].tolist() == alone.table["content"].tolist()
    assert len(train.images(0)) == 1 and {len(train.images(index)) for index in range(32, 60)} == {0, 1}
    unknown = lab.processor.tokenizer.unk_token_id
    assert not any((train.prompt(index) == unknown).any() for index in range(len(train)))
    assert set(lab.pool) <= set(range(len(train))) and {*train.table["task"][lab.pool]} == {"charts", "mine"}


def test_labels_are_the_first_accepted_answers(lab: Lab) -> None:
    labels, tokens = lab.labels_with(lab.profile.wrong_labels)
    own = labels[32:]
    assert set(labels["register"][:32]) <= set(REGISTERS) and set(own["register"]) == {"bare"}
    assert set(own["label"]) <= {"odd", "even", ""} and len(tokens) == len(labels)
    wrong = lab.labels_with(1.0)[0][32:]
    assert ((wrong["label"] != own["label"]) | (own["label"] == "")).all()


def test_labels_of_another_limit_are_refused(lab: Lab) -> None:
    with pytest.raises(ValueError, match="labels and questions of mine are not of the same set"):
        labels_of(lab.questions("train"), lab.profile.tasks, 31, 0.0, 0, REGISTERS)


def test_a_run_is_trained_and_judged_on_both(lab: Lab) -> None:
    folder = run_arm(lab, "masters", 0)
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["accuracy"] <= 1
    table = blind_table(lab.profile).set_index("task")
    assert list(table.index) == ["charts", "mine", "all"] and table["questions"]["mine"] == 7
    hashes = notebooks.test_sets(lab.profile)
    assert list(hashes) == ["charts", "mine"]


def test_refused_tasks(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "a"}\n{"question": "b"}\n')
    own = mine(tmp_path, eval=None, test=None)
    with pytest.raises(ValueError, match="data mine of the profile needs eval: a file or"):
        questions_of([own], "validation", None, lab.processor, tmp_path)
    with pytest.raises(ValueError, match="tasks has mine twice"):
        Profile.model_validate(lab.profile.model_dump() | {"tasks": ["mine", own.model_dump()]})
