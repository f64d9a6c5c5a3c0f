"""Executed notebooks as the book shows them: answer first, set-up cells left out, other code folded.

What is known only after a run is put into the box of the answer: its minutes, and files to download.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from masters.runtime.files import write_atomic
from masters_book.pages.answers import RUN
from masters_book.pages.parameters import NOTEBOOKS
from masters_book.pages.rendering import fill
from masters_book.report.finish import BETWEEN

# Tables that a notebook writes beside itself.
TABLES = {
    "2_masking_ablations": ("dose.csv",),
    "4_reward_design": ("rewards.csv",),
    "7_claims": ("claims.csv", "comparisons.csv"),
}


def write_notebooks(
    run: Path, book: Path, entries: Mapping[str, Mapping[str, Any]], expected: Mapping[str, float]
) -> None:
    """Write the notebooks of a run into the book's folder, with their downloads.

    Args:
        run: folder with the executed notebooks and the tables they wrote.
        book: folder of the book; ``notebooks`` in it gets the pages, ``generated/extra/notebooks`` the files.
        entries: the run's provenance, by notebook.
        expected: expected minutes, by notebook.

    Raises:
        ValueError: an executed notebook is missing.
    """
    downloads = book / "generated" / "extra" / "notebooks"
    for name in NOTEBOOKS:
        source = run / f"{name}.ipynb"
        if not source.is_file():
            raise ValueError(f"{source} is missing: run `make reproduce PROFILE={run.name}` first")
        tables = [table for table in TABLES.get(name, ()) if (run / table).is_file()]
        words = minutes(entries.get(name), expected.get(name))
        page = notebook_page(source, fill("answer_run.html", minutes=words, files=[source.name, *tables]))
        write_atomic(book / "notebooks" / source.name, page)
        write_atomic(downloads / source.name, page)
        for table in tables:
            shutil.copyfile(run / table, downloads / table)


def minutes(entry: Mapping[str, Any] | None, expected: float | None) -> str:
    """Return how long a notebook ran, beside the minutes expected; empty if neither is known."""
    words = []
    if entry is not None:
        longest = entry["minutes_longest"]
        cached = f" ({longest:.1f} with nothing cached)" if longest > entry["minutes"] else ""
        words.append(f"{entry['minutes']:.1f} in this run{cached}")
    if expected is not None:
        words.append(f"{expected:g} expected")
    return f"Minutes: {', '.join(words)}." if words else ""


def notebook_page(source: Path, about_run: str = "") -> str:
    """Return a notebook as the book shows it.

    Cells without output (imports, parameters) are left out, other code is folded, figures become SVG with
    the alternative texts and captions that their outputs carry, and execution metadata is removed.

    Args:
        source: the executed notebook.
        about_run: HTML for the box of the answer.
    """
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type != "code":
            continue
        tags = {*cell.metadata.get("tags", []), "hide-input" if cell.outputs else "remove-cell"}
        cell.metadata["tags"] = sorted(tags)
        shown = []
        for output in cell.outputs:
            data = output.get("data", {})
            if RUN in data.get("text/html", ""):
                data["text/html"] = data["text/html"].replace(RUN, about_run)
            if svg := output.get("metadata", {}).get("image/png", {}).pop("svg", None):
                data.pop("image/png", None)
                data["image/svg+xml"] = svg
            shown.append(output)
            if caption := output.get("metadata", {}).get("image/png", {}).get("caption"):
                words = {"text/html": fill("caption.html", caption=caption)}
                shown.append(nbformat.v4.new_output("display_data", words))
        cell.outputs = shown
        images = [output.get("metadata", {}).get("image/png", {}) for output in cell.outputs]
        # MyST-NB takes one text per cell; `finish` gives each image its own.
        if alt := BETWEEN.join(image["alt"] for image in images if "alt" in image):
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return str(nbformat.writes(notebook)) + "\n"
