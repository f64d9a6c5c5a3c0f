"""What several test modules share: no network, and one built book."""

import csv
import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from masters import book
from masters.files import ROOT
from masters.settings import NOTEBOOKS

HOSTILE = "a <b>bold</b> claim & $x_1$ `code` *star* | pipe"


@pytest.fixture(scope="session")
def example_claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A claims.csv with one claim of each verdict and characters that mean something to Markdown and HTML."""
    path = tmp_path_factory.mktemp("claims") / "claims.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(book.ClaimRow._fields)
        for number, verdict in enumerate(book.VERDICTS, start=1):
            row = [f"C{number}", HOSTILE, "+1.3", "+0.4", "-0.2", "1.0", "points", verdict, "5_offline_rl"]
            writer.writerow(row)
    return path


@pytest.fixture(scope="session")
def example_run(tmp_path_factory: pytest.TempPathFactory, example_claims: Path) -> Path:
    """A run folder as `make reproduce` leaves it: the committed notebooks, some claims, no provenance."""
    run = tmp_path_factory.mktemp("run")
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", run)
    shutil.copy(example_claims, run)
    return run


@pytest.fixture(scope="session")
def built_book(tmp_path_factory: pytest.TempPathFactory, example_run: Path) -> Path:
    """The HTML folder of a book built from the committed notebooks, with every warning an error."""
    folder = tmp_path_factory.mktemp("book") / "book"
    ignored = shutil.ignore_patterns("_build", "generated", "notebooks")
    shutil.copytree(ROOT / "book", folder, ignore=ignored)
    book.assemble("smoke", folder, example_run)
    return book.render(folder).parent
