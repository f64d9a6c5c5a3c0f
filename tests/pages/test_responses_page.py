"""The page of responses: what is stored, as it is; a bounded choice; nothing made up without a store."""

import base64
import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import small
from labs import profile
from PIL import Image

from masters.experiments.arms import arm
from masters.experiments.lab import Lab
from masters.experiments.response_plan import ResponsePlan, prepare
from masters_book.analysis.groups import rewarded_groups
from masters_book.pages.responses import FILE, QUESTIONS, chosen, responses_page, stored_groups


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with small.scratch(tmp_path_factory.mktemp("responses")) as patch:
        patch.delenv("MASTERS_CACHE", raising=False)
        yield Lab(profile())


def test_without_stored_responses_the_page_says_so(lab: Lab, tmp_path: Path) -> None:
    assert stored_groups(lab) is None, "and nothing is trained or generated for it"
    page = responses_page(tmp_path / FILE, "small effects.")
    assert "no stored responses" in page and "<table" not in page and "<form" not in page


def test_stored_responses_are_shown_with_their_rewards(lab: Lab, tmp_path: Path) -> None:
    prepare(lab, ResponsePlan.of([arm("masters", lab.profile)], lab.pool))
    found = stored_groups(lab)
    assert found is not None and (found["teacher"], found["ratio"], found["pool"]) == ("large", 0.2, 6)
    table, about = rewarded_groups(lab), lab.questions("train").table
    assert len(found["questions"]) == 6 and sum(len(q["responses"]) for q in found["questions"]) == len(table)
    texts = {question["question"] for question in found["questions"]}
    assert texts == set(about["question"].iloc[lab.pool])
    shown = pd.DataFrame([each for question in found["questions"] for each in question["responses"]])
    assert sorted(shown["advantage"]) == pytest.approx(sorted(table["advantage"]))
    assert sorted(shown["distillation"]) == pytest.approx(sorted(table["reward_distillation"]))
    assert (shown["verdict"] == "correct").sum() == table["correct"].sum()
    assert set(shown["source"]) == {"teacher", "student"}
    head, _, data = found["questions"][0]["pictures"][0].partition(",")
    assert head == "data:image/webp;base64"
    assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 96

    (tmp_path / FILE).write_text(json.dumps(found))
    page = responses_page(tmp_path / FILE, "small effects.")
    assert page.count("<section") == 6 and page.count("<tr><td>") == len(table)
    for name in ("task", "source", "verdict", "register", "spread"):
        assert re.search(rf'<label>\w+ <select name="{name}">', page), "a filter has its label"
    first = found["questions"][0]["responses"][0]
    cells = [first["source"], first["text"], first["register"], first["verdict"], f"{first['accuracy']:g}"]
    assert "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) in page


def test_as_many_questions_of_each_task_are_chosen() -> None:
    tasks = ["a"] * 100 + ["b"] * 3 + ["c"] * 100
    pool = pd.DataFrame({"id": [f"q{i}" for i in range(len(tasks))], "task": tasks}).set_index(
        pd.Index(range(7, 7 + len(tasks)))
    )
    first = chosen(pool)
    assert pool.loc[first.index, "id"].tolist() == first.tolist(), "an index leads to its question"
    assert pool.loc[first.index, "task"].value_counts().to_dict() == {"a": 16, "b": 3, "c": 16}
    assert list(chosen(pool)) == list(first) != list(pool.groupby("task").head(16)["id"])
    many = pd.DataFrame({"id": [f"q{i}" for i in range(99)], "task": [f"t{i}" for i in range(99)]})
    assert len(chosen(many)) == QUESTIONS
