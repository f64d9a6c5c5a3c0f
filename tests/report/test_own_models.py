"""The notebooks and the book with a profile of own models and own data: a student, one teacher, no mid."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import labs
import matplotlib
import nbformat
import pytest
import small
import yaml
from matplotlib import pyplot

from masters import settings
from masters.experiments.lab import Lab
from masters.runtime import files
from masters.settings import PARAMS
from masters_book.claims.table import read_claims
from masters_book.commands import app
from masters_book.pages.parameters import NOTEBOOKS
from masters_book.report import book
from masters_book.report.notebooks import checked_parameters, source_of

ROOT = files.ROOT


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with a trial folder, and the profile `mine` that book/your_models.md says how to make."""
    folder = tmp_path_factory.mktemp("mine")
    params = folder / "notebooks" / "params"
    shutil.copytree(PARAMS, params)
    shutil.copytree(params / "smoke", params / "mine")
    profile = yaml.safe_load((ROOT / "examples" / "profile.yaml").read_text())
    profile |= {"train_questions": 18, "validation_questions": 6, "test_questions": 6, "processes": 1}
    profile["tasks"][0]["eval"]["split_from_train"] = 6
    profile["sampling"]["max_new_tokens"] = 6
    # Fewer steps than stages, and as many log-probabilities stored as for a large vocabulary: not all.
    profile["distillation"] |= {"questions": 6, "steps": 2, "batch": 2, "top_k_logprobs": 8}
    (params / "mine" / "profile.yaml").write_text(yaml.safe_dump(profile))
    (folder / "data").symlink_to(ROOT / "data")
    backend = matplotlib.get_backend()
    with small.scratch(folder / "cache") as patch:
        patch.syspath_prepend(ROOT / "examples")
        import trial

        trial.write(folder / "trial", Lab(labs.profile()), 24, 6)
        patch.setattr(settings, "PARAMS", params)
        patch.setattr(files, "ROOT", folder)  # notebooks write to build/
        matplotlib.use("agg")
        yield folder
    pyplot.close("all")
    matplotlib.use(backend)


def test_the_profile_is_planned(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not app(["plan", "mine"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "profile mine" in shown and "It can show" in shown


@pytest.mark.slow
def test_every_notebook_runs_and_the_book_has_its_pages(root: Path) -> None:
    run = root / "build" / "mine"
    run.mkdir(parents=True)
    for name in NOTEBOOKS:
        source = source_of(name)
        parameters = checked_parameters(source, "mine", name)
        found: dict[str, Any] = {}
        for cell in nbformat.read(source, as_version=4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, name, "exec"), found)
            if "parameters" in cell.metadata.get("tags", []):
                found |= parameters
        shutil.copy(source, run)
    assert len(read_claims(run / "claims.csv"))
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("_build"))
    book.assemble("mine", root / "book", run)
    assert "Your run (mine)" in "".join(path.read_text() for path in root.glob("book/generated/*.md"))
