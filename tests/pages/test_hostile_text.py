"""Text from profiles, plans, models and data is shown as text on every page."""

import html
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from claim_lines import claim_line, write_lines
from study_files import write

from masters.runtime.files import ROOT
from masters.settings import Profile, load_profile
from masters_book.claims.comparisons import COLUMNS
from masters_book.claims.table import read_claims
from masters_book.pages import first as first_page
from masters_book.pages.rendering import fill
from masters_book.pages.responses import responses_page
from masters_book.pages.study import study_page
from masters_book.pages.why import why_page
from masters_book.report import book
from masters_book.study.effects import COLUMNS as MAP
from masters_book.study.plan import load_study
from masters_book.study.tables import Tables

# HTML, MyST that reads a file, and jinja.
HOSTILE = (
    "</td></details><script>alert(1)</script>\"'\n\n```{include} /etc/passwd\n```\n\n"
    ":::{include} /etc/passwd\n:::\n\n# Title {{ 7 * 7 }} {% raw %} `code` $x$ [a](b)"
)
SHOWN = " ".join(HOSTILE.split())


def is_text(page: str, times: int = 1) -> None:
    """The page shows the text at least so often, and has only blocks of HTML and our headings."""
    assert "<script" not in page and "</td></details><" not in page
    for line in page.splitlines():
        assert not line or line.startswith("<") or re.match(r"## [A-Z][a-z' ,]+$|Shown in ", line), line
    words = html.unescape(re.sub(r"<br>|\s+", " ", page))
    assert " ".join(words.split()).count(SHOWN) >= times


@pytest.fixture
def profile() -> Profile:
    words = dict.fromkeys(("description", "shows", "cannot_show"), HOSTILE)
    return load_profile("smoke").model_copy(update=words)


@pytest.fixture
def own(tmp_path: Path) -> first_page.Judged:
    texts = ("statement", "limits", "cells", "disagree", "paper", "ours", "where", "unit", "excludes_paper")
    line = claim_line(1, "supported", **dict.fromkeys(texts, HOSTILE))
    write_lines(tmp_path / "claims.csv", [line | {"treatment": HOSTILE, "control": HOSTILE}])
    frame = read_claims(tmp_path / "claims.csv")
    return first_page.Judged(HOSTILE, frame, pd.DataFrame(columns=COLUMNS), {HOSTILE: HOSTILE})


class Hostile:
    """A study whose plan and tables hold the text."""

    name = "study"

    def __init__(self, folder: Path) -> None:
        plan, self.profile = load_study()
        self.folder, self.tables, self.plan = (
            folder,
            Tables(folder),
            plan.model_copy(update={"title": HOSTILE, "about": HOSTILE}),
        )
        run = {"replicate": 0, "arm": HOSTILE, "mode": "greedy", "task": HOSTILE, "register": HOSTILE}
        run |= dict.fromkeys(("accuracy", "sampled_accuracy", "tokens", "kl", "seconds"), 0.5)
        run |= {"correct": 0.5, "share": 0.5, "key": HOSTILE}
        self.runs = pd.DataFrame([run, run | {"arm": "base"}])
        settings = {"learning_rate": 1e-3, "policy_weight": 1.0, "beta": 0.1, "chosen": True}
        self.tried = self.runs.assign(**settings)
        costs = ("steps", "responses", "generation", "judging", "scoring", "training", "total", "total_equal")
        self.costs = self.runs.assign(**dict.fromkeys(costs, 1.0))
        for name in ("runs", "tasks", "registers", "trials", "costs"):
            write(folder / f"{name}.csv", self.runs)
        place = ["gap", 6.0, "masking", HOSTILE, HOSTILE, 0.1, -0.1, 0.5, 0.4, 10, 44.0]
        write(folder / "map.csv", pd.DataFrame([place], columns=MAP))
        write(folder / "blind.csv", pd.DataFrame({"task": [HOSTILE, "all"], "accuracy": 0.3}))
        (folder / "machine.json").write_text(json.dumps({HOSTILE: [HOSTILE], "packages": {HOSTILE: HOSTILE}}))

    def settings(self) -> dict[str, str]:
        return {"masters": "masters", "mid_then_large": "mid_then_large"}

    def refused(self) -> list[int]:
        return [0]

    def missing(self) -> dict[int, list[str]]:
        return {1: [HOSTILE]}


def test_first_page(profile: Profile, own: first_page.Judged, tmp_path: Path) -> None:
    is_text(first_page.headline(own, None, tmp_path / "claims.svg"), 3)
    is_text(first_page.claims_section(profile, own, own), 14)


def test_notebook_of_the_claims(profile: Profile, own: first_page.Judged) -> None:
    is_text(first_page.run_claims(own, profile), 8)
    is_text(first_page.run_summary(own, profile), 2)


def test_study_page(own: first_page.Judged, tmp_path: Path) -> None:
    study: Any = Hostile(tmp_path)
    is_text(study_page(study, own, tmp_path / "study.svg"), 14)


def test_why_page(tmp_path: Path) -> None:
    dose = {"model": HOSTILE, "from_whole": 0.1, "argmax_changed": 0.1, "entropy": 0.1, "to_student": 0.1}
    rows = [dose | {"replicate": 0, "ratio": ratio} for ratio in (0.0, 0.2)]
    pd.DataFrame(rows).to_csv(tmp_path / "mini.csv", index=False)
    facts = dict.fromkeys(("correlation_correct", "correlation_length", "flat_accuracy"), 0.1)
    facts[f"advantage_{HOSTILE}"] = 0.2
    pd.Series(facts, name="value").rename_axis("what").to_csv(tmp_path / "rewards.csv")
    profile = load_profile("smoke").model_copy(update={"name": HOSTILE, "cannot_show": HOSTILE})
    study: Any = Hostile(tmp_path)
    study.runs = study.runs[:0]
    is_text(why_page(profile, tmp_path, tmp_path, study), 6)


def test_responses_page(tmp_path: Path) -> None:
    response = dict.fromkeys(("source", "text", "register", "verdict"), HOSTILE)
    response |= {"accuracy": 1.0, "distillation": 0.5, "advantage": -0.1}
    question = dict.fromkeys(("task", "question", "answer"), HOSTILE)
    question |= {"pictures": ["data:,"], "more": 0, "spread": "differs", "responses": [response] * 8}
    found = dict.fromkeys(("profile", "teacher"), HOSTILE)
    found |= {"ratio": 0.2, "pool": 1, "seed": 0, "questions": [question]}
    (tmp_path / "responses.json").write_text(json.dumps(found))
    page = responses_page(tmp_path / "responses.json", HOSTILE)
    is_text(page, 32)
    assert "innerHTML" not in (ROOT / "book" / "_static" / "masters.js").read_text()


def test_tables_of_the_run(monkeypatch: pytest.MonkeyPatch, profile: Profile) -> None:
    monkeypatch.setattr(book, "load_profile", lambda name: profile)
    is_text(book.profiles_table(), 3)
    texts = dict.fromkeys(("commit", "started", "processor", "python", "parameters"), HOSTILE)
    entry = texts | {"dirty": False, "minutes": 1.0, "minutes_longest": 1.0, "cores": 2, "memory_gib": 8}
    entry |= {"packages": {HOSTILE: HOSTILE}, "data": {HOSTILE: HOSTILE}, "commit": None}
    is_text(book.provenance_page(HOSTILE, {HOSTILE: entry}, {HOSTILE: 1.0}), 8)


def test_markup_in_a_cell_is_text() -> None:
    page = fill("table.md", header=["<b>", "a\nb"], rows=[["{{ x }}", HOSTILE]], caption="<i>")
    assert '<th scope="col">&lt;b&gt;</th><th scope="col">a<br>b</th>' in page and ">{{ x }}</th>" in page
    assert "<caption>&lt;i&gt;</caption>" in page
    is_text(page)


def test_templates_are_shipped() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "pages/templates/*" in data["masters_book"]
