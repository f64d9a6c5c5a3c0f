"""Settings of the paper, a profile and the study: from the parameter files, what differs first."""

import re
from typing import Any

import pytest
import yaml
from study_files import Kept

from masters.settings import PARAMS
from masters_book.pages.settings import settings_table


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Cells by setting, in the order of the page."""
    study: Any = Kept(tmp_path_factory.mktemp("study"))
    table = settings_table("mini", study).split("<details>")[0].replace("<wbr>", "")
    found = re.findall(r"<tr>\s*<th scope=\"row\"><code>(\S+)</code>(.*?)</tr>", table, re.DOTALL)
    return {name: re.findall(r"<td>(.*?)</td>", cells, re.DOTALL) for name, cells in found}


def test_every_setting_of_the_files_is_there(rows: dict[str, list[str]]) -> None:
    values = yaml.safe_load((PARAMS / "mini" / "profile.yaml").read_text())
    not_of_the_method = {"description", "shows", "cannot_show", "minutes", "processes"}
    names = {name for name, value in values.items() if not isinstance(value, dict)} - not_of_the_method
    names |= {f"{group}.{name}" for group in ("ladder", "sampling", "distillation") for name in values[group]}
    assert names <= set(rows)
    plan = yaml.safe_load((PARAMS / "study.yaml").read_text())
    assert {f"ladder.{name}" for name in plan["ladder"]} <= set(rows)


def test_values_are_those_of_paper_profile_and_study(rows: dict[str, list[str]]) -> None:
    assert rows["distillation.r_step"] == ["0.05", "0.1", "0.05", "yes"]
    assert rows["distillation.beta"] == ["0.1", "0.1", "0.003<br>(Masters, tuned)", "yes"]
    assert rows["distillation.steps"] == ["not given", "150", "400", "the paper does not say"]
    assert rows["sampling.top_k"] == ["50", "50", "50", "no"]
    assert rows["seeds"] == ["1", "3", "10 for the main arms, 5 for others", "yes"]
    assert rows["distillation.questions"][0] == "1.5 million" and rows["distillation.questions"][-1] == "yes"
    assert "width 32" in rows["ladder.student"][1] and rows["ladder.teacher1"][1] == ""


def test_what_differs_comes_first(rows: dict[str, list[str]]) -> None:
    differs = [cells[-1] for cells in rows.values()]
    first_same = differs.index("no")
    assert set(differs[first_same:]) == {"no"} and "yes" in differs[:first_same]
    assert next(iter(rows)) == "ladder.student"
