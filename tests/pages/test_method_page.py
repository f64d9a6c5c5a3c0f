"""The worked example: each equation with numbers that follow from the run's file, nothing without one."""

import re
from pathlib import Path

import pytest
from worked import worked

from masters_book.analysis.example import read_worked
from masters_book.pages.method import PARTS, method_parts


def test_every_section_has_its_numbers(tmp_path: Path) -> None:
    parts = {
        name: " ".join(re.sub(r"<[^>]+>", "", page).split())
        for name, page in method_parts(worked(), tmp_path / "m.svg").items()
    }
    assert (
        "the 2 smallest become 0, and λ = 0.3000" in parts["mask"]
        and "0.1000 → 0, 0.9000 → 0.9000" in parts["mask"]
    )
    assert "M = 0.2 / 0.1 + 1 = 3 stages over I = 300 steps" in parts["schedule"]
    assert "⌊150 · 3 / 300⌋ = 1, so r = 0.2 − 0.1 · 1 = 0.1." in parts["schedule"]
    assert "“how many?” has the label “two” and 4 responses" in parts["responses"]
    assert "0.2500 at “word”. D is their mean: 0.2500" in parts["divergence"]
    assert (
        "Rdistill = (0.3000 − 0.2500) / (0.3000 − 0.2000) = 0.500. R = 1 + 0.500 = 1.500" in parts["rewards"]
    )
    assert "mean of the 4 rewards is 0.875" in parts["objective"]
    assert "= +1.1." in parts["objective"] and "0.2375 + 1 · 0 + 0.1 · 0 = 0.2375" in parts["objective"]
    assert (tmp_path / "m.svg").is_file() and (tmp_path / "m-narrow.svg").is_file()


def test_text_of_models_and_data_is_escaped(tmp_path: Path) -> None:
    odd = "<script>alert(1)</script> {term}`x`"
    answers = tuple(
        answer.model_copy(update={"text": odd, "words": (odd,) * len(answer.words)})
        for answer in worked().answers
    )
    pages = method_parts(worked(question=odd, label=odd, answers=answers), tmp_path / "m.svg")
    assert not [name for name, page in pages.items() if "<script>" in page]


def test_nothing_is_shown_without_a_run(tmp_path: Path) -> None:
    assert read_worked(tmp_path / "example.json") is None
    assert method_parts(None, tmp_path / "m.svg") == dict.fromkeys(PARTS, "")
    (tmp_path / "example.json").write_text(worked().model_dump_json())
    assert read_worked(tmp_path / "example.json") == worked()
    (tmp_path / "example.json").write_text("{}")
    with pytest.raises(ValueError, match=r"example\.json"):
        read_worked(tmp_path / "example.json")
