"""The page of earlier studies shows every claim of every kept table."""

import shutil
from pathlib import Path

import pytest

from masters_book.pages.earlier import FOLDER, TITLES, earlier_page


def test_each_claim_has_the_verdict_of_each_study() -> None:
    text = earlier_page()
    assert all(title in text for title in TITLES.values())
    assert text.count("<tr>") == 16 and text.count("not supported") > 1
    assert "C1. Distilling from the large teacher on one label per question" in text
    assert "not supported<br>-0.2 points<br>-0.7 to +0.2<br>3 replicates" in text


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "plateau.csv"
    path.write_text(path.read_text().replace("undecided", "supported", 1))
    with pytest.raises(ValueError, match=r"plateau.csv has another checksum"):
        earlier_page(tmp_path)
