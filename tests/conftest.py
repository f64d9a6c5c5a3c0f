"""What several test modules share: no network, a small disk, and one built book."""

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from claim_lines import claim_line, write_lines

from masters.runtime.files import ROOT
from masters_book.claims.table import VERDICTS
from masters_book.pages.parameters import NOTEBOOKS
from masters_book.pages.responses import FILE, SPREADS
from masters_book.report import book


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one process, and all notebooks: each reads what those before it stored."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "notebooks" if file.endswith(".ipynb") else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, which only root can mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def example_claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A claims.csv with one claim of each verdict."""
    path = tmp_path_factory.mktemp("claims") / "claims.csv"
    write_lines(path, [claim_line(number, verdict) for number, verdict in enumerate(VERDICTS, start=1)])
    return path


@pytest.fixture(scope="session")
def example_run(tmp_path_factory: pytest.TempPathFactory, example_claims: Path) -> Path:
    """A run folder as `make reproduce` leaves it: the committed notebooks, some claims, some responses."""
    run = tmp_path_factory.mktemp("run")
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", run)
    shutil.copy(example_claims, run)
    groups = {"profile": "smoke", "teacher": "large", "ratio": 0.2, "pool": 9, "seed": 0}
    questions = [answered_question(task, spread) for task in ("digits", "charts") for spread in SPREADS]
    (run / FILE).write_text(json.dumps(groups | {"questions": questions}))
    return run


def answered_question(task: str, spread: str) -> dict[str, Any]:
    """A question for the page of responses, with its eight responses."""
    responses = [
        {
            "source": "teacher" if number < 4 else "student",
            "text": f"the answer is {number} .",
            "register": "sentence" if number % 2 else "bare",
            "verdict": "correct" if number % 3 else "wrong",
            **{"accuracy": float(number % 3 > 0), "distillation": number / 7, "advantage": 0.3 - number / 10},
        }
        for number in range(8)
    ]
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "WEBP")
    address = f"data:image/webp;base64,{base64.b64encode(picture.getvalue()).decode()}"
    about = {"task": task, "question": f"how many {task} ?", "answer": "3", "spread": spread}
    return about | {"pictures": [address], "more": 0, "responses": responses}


@pytest.fixture(scope="session")
def built_book(tmp_path_factory: pytest.TempPathFactory, example_run: Path) -> Path:
    """The HTML folder of a book built from the committed notebooks, with every warning an error."""
    folder = tmp_path_factory.mktemp("book") / "book"
    ignored = shutil.ignore_patterns("_build", "generated", "notebooks")
    shutil.copytree(ROOT / "book", folder, ignore=ignored)
    book.assemble("smoke", folder, example_run)
    return book.render(folder).parent
