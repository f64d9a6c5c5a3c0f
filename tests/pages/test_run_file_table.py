"""The table of a run file's parameters: every key of the example files, with its default."""

import re
from typing import Any

import pytest
import yaml

from masters.runtime.files import ROOT
from masters_book.pages.run_file import run_file_table


def names(content: dict[str, Any], head: str = "") -> set[str]:
    found = set()
    for name, value in content.items():
        nested = isinstance(value, dict) and value
        found |= names(value, f"{head}{name}.") if nested else {f"{head}{name}"}
    return found


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    page = run_file_table().replace("<wbr>", "")
    rows = re.findall(r"<tr>\s*<th scope=\"row\">(.*?)</th>(.*?)</tr>", page, re.DOTALL)
    return {re.sub(r"<.*?>", "", name): re.findall(r"<td>(.*?)</td>", cells) for name, cells in rows}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("run*.yaml")), ids=lambda path: path.name)
def test_every_parameter_of_the_examples_is_there(table: dict[str, list[str]], path: Any) -> None:
    content = yaml.safe_load(path.read_text())
    free = {"responses.vllm.", "training.args."}  # arguments of other packages
    assert {name for name in names(content) if not name.startswith(tuple(free))} <= set(table)


def test_defaults_and_nested_sections(table: dict[str, list[str]]) -> None:
    assert table["training.learning_rate"][-1] == "1e-06" and table["mask.r_max"][-1] == "0.2"
    assert table["student"][-1] == "to be given" and table["training.lora"][-1] == "none"
    assert table["teacher_cache"][-1] == "top_k: 64" and table["training.bf16"][-1] == "false"
    assert {"reward.llm.server", "data.eval.split_from_train", "teachers.dtype"} <= set(table)
    assert "file" not in table
