"""Notebooks as pages: the answer with minutes and downloads, no set-up, folded code, words for images."""

import shutil
from pathlib import Path

import nbformat
import pytest

from masters_book.pages.answers import answer_box
from masters_book.pages.parameters import NOTEBOOKS
from masters_book.report.notebook_pages import minutes, notebook_page, write_notebooks


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    """A notebook as papermill leaves it."""
    new, notebook = nbformat.v4, nbformat.v4.new_notebook()
    image = {"image/png": "aGk="}, {"image/png": {"alt": "Loss by step."}}
    drawn = {"image/png": {"alt": "Loss 2.", "caption": "Bars: <1 %.", "svg": "<svg/>"}}
    box = {"text/html": answer_box("4_reward_design", [("Yes.", "a <b> was found")])}
    notebook.cells = [
        new.new_markdown_cell("# A question?"),
        new.new_code_cell("a = 1", metadata={"tags": ["parameters"], "papermill": {"status": "completed"}}),
        new.new_code_cell("a = 2", metadata={"tags": ["injected-parameters"]}),
        new.new_code_cell("box()", outputs=[new.new_output("display_data", box)]),
        new.new_code_cell("plot()", outputs=[new.new_output("display_data", image[0], metadata=image[1])]),
        new.new_code_cell("plot()", outputs=[new.new_output("display_data", image[0], metadata=drawn)]),
    ]
    notebook.metadata["papermill"] = {"input_path": "somewhere"}
    path = tmp_path / "run" / "one.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook, path)
    return path


def test_set_up_is_left_out_and_other_code_folded(executed: Path) -> None:
    page = nbformat.reads(notebook_page(executed), as_version=4)
    tags = [cell.metadata.get("tags") for cell in page.cells]
    assert tags == [
        None,
        ["parameters", "remove-cell"],
        ["injected-parameters", "remove-cell"],
        ["hide-input"],
        ["hide-input"],
        ["hide-input"],
    ]
    assert page.cells[4].metadata["mystnb"] == {"image": {"alt": "Loss by step."}}
    assert page.cells[5].outputs[0].data == {"image/svg+xml": "<svg/>"}
    assert page.cells[5].outputs[1].data == {"text/html": '<p class="figure-caption">Bars: &lt;1 %.</p>\n'}
    assert page.cells[5].metadata["mystnb"] == {"image": {"alt": "Loss 2."}}
    assert "papermill" not in page.metadata and "papermill" not in page.cells[1].metadata


def test_box_gets_minutes_and_downloads(executed: Path, tmp_path: Path) -> None:
    for name in NOTEBOOKS:
        shutil.copy(executed, executed.with_name(f"{name}.ipynb"))
    (executed.parent / "rewards.csv").write_text("what,value\n")
    entry = {"minutes": 0.31, "minutes_longest": 2.04}
    write_notebooks(executed.parent, tmp_path, {"4_reward_design": entry}, {"4_reward_design": 2.0})
    page = nbformat.read(tmp_path / "notebooks" / "4_reward_design.ipynb", as_version=4)
    box = page.cells[3].outputs[0].data["text/html"]
    assert "Minutes: 0.3 in this run (2.0 with nothing cached), 2 expected." in box
    assert '<a href="4_reward_design.ipynb" download>' in box and '<a href="rewards.csv" download>' in box
    assert "a &lt;b&gt; was found" in box and 'href="../verdicts.html#mind-c7"' in box
    downloads = tmp_path / "generated" / "extra" / "notebooks"
    assert (downloads / "rewards.csv").is_file() and (downloads / "1_tasks_and_models.ipynb").is_file()


def test_a_missing_notebook_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1_tasks_and_models\.ipynb is missing: run `make reproduce"):
        write_notebooks(tmp_path / "smoke", tmp_path, {}, {})


def test_minutes_of_the_run_stand_beside_the_expected_ones() -> None:
    assert (
        minutes({"minutes": 1.24, "minutes_longest": 1.24}, 1.5) == "Minutes: 1.2 in this run, 1.5 expected."
    )
    assert minutes(None, 0.4) == "Minutes: 0.4 expected."
    assert minutes(None, None) == ""
