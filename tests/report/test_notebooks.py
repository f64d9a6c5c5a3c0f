"""The seven notebooks as committed: parameters, outputs, order, and nothing of the machine they ran on.

That their outputs are what a new run gives is checked by nbval (`make test`), which passes on a notebook
without outputs too; so their presence is checked here.
"""

import json
import re
from typing import Any

import nbformat
import pytest

from masters.runtime.files import ROOT
from masters_book.pages.parameters import NOTEBOOKS, notebook_parameters


def _notebook(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def test_there_are_exactly_these_notebooks() -> None:
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_valid_and_starts_with_a_title(name: str) -> None:
    notebook = _notebook(name)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_one_parameters_cell_whose_defaults_are_the_smoke_profile(name: str) -> None:
    (cell,) = [cell for cell in _notebook(name).cells if "parameters" in _tags(cell)]
    defaults: dict[str, Any] = {}
    exec(cell.source, defaults)
    defaults.pop("__builtins__")
    expected = notebook_parameters("smoke", name).model_dump(mode="json")
    assert json.loads(json.dumps(defaults)) == json.loads(json.dumps(expected))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_ran_in_order_and_left_outputs_without_errors(name: str) -> None:
    cells = _code(_notebook(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum(bool(cell.outputs) for cell in cells) >= 3, "a notebook shows something"
    assert not [output for output in outputs if output.get("name") == "stderr"], (
        "warnings belong fixed, not shown"
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_that_are_not_compared_are_few_and_never_the_parameters(name: str) -> None:
    cells = _code(_notebook(name))
    ignored = [cell for cell in cells if {"nbval-ignore-output", "nbval-skip"} & set(_tags(cell))]
    assert len(ignored) < len(cells), "nbval would compare nothing"
    assert not [cell for cell in cells if "nbval-skip" in _tags(cell)], "every cell runs"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_of_the_machine_is_committed(name: str) -> None:
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    assert not re.search(r"(?<![\w.])/(work|root|home|tmp|Users|opt)/", text)
    notebook = _notebook(name)
    assert "papermill" not in notebook.metadata
    assert not [
        cell for cell in notebook.cells if "execution" in cell.metadata or "papermill" in cell.metadata
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pictures_in_the_prose_have_an_alternative_text(name: str) -> None:
    for cell in _notebook(name).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"!\[\]\(", cell.source), "a picture in the prose needs an alternative text"
