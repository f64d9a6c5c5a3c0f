"""The page "Paper and ours": every row of the paper has an arm that can run, or words."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from study_files import Kept, write

from masters.experiments.arms import arm
from masters.runtime.files import ROOT
from masters_book.pages.paper import NOT_RUN, TABLES, Beside, paper_page
from masters_book.results.paper import paper_table
from masters_book.study.plan import load_study


@pytest.fixture
def study(tmp_path: Path) -> Any:
    runs = [
        ("base", 0, 0.40),
        ("base", 1, 0.44),
        ("masters", 0, 0.41),
        ("masters", 1, 0.47),
        ("naive", 0, 0.5),
    ]
    write(tmp_path / "runs.csv", pd.DataFrame(runs, columns=["arm", "replicate", "accuracy"]))
    costs = [("own_accuracy", 0, 20.0), ("own_accuracy", 1, 40.0), ("online", 0, 50.0), ("online", 1, 70.0)]
    rows = pd.DataFrame(costs, columns=["arm", "seed", "total"])
    write(tmp_path / "costs.csv", rows.assign(replicate=rows["seed"]))
    return Kept(tmp_path)


def test_every_table_and_row_of_the_paper_is_there(study: Any) -> None:
    assert {of.name for of in TABLES} == {path.stem for path in (ROOT / "data" / "paper").glob("*.csv")}
    text = paper_page(study)
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for of in TABLES:
        assert len(of.rows()) == len(of.arms), of.name
        numbers = set(re.findall(r"\d+(?:\.\d+)?", sections[of.title]))
        for value in paper_table(of.name).select_dtypes("number").to_numpy().ravel():
            assert {f"{value:g}", f"{value:.1f}"} & numbers, (of.name, value)


def test_arms_beside_the_paper_can_run() -> None:
    _, profile = load_study()
    for of in TABLES:
        for name in of.arms.values():
            if not name.startswith(NOT_RUN):
                arm(name, profile)


def test_effects_are_taken_within_replicates(study: Any) -> None:
    text = re.sub(r">\s+<", "><", paper_page(study))
    assert "<td>base student</td><td>42.0 ± 2.8</td>" in text
    assert "<td>Masters</td><td>44.0 ± 4.2<br>(+2.0)</td>" in text
    assert '<th scope="colgroup" colspan="4">Paper</th><th scope="colgroup" colspan="2">Ours</th>' in text
    assert "<td>first mask ratio 0.4</td>" in text and "the study has other ratios" in text
    assert "acc+<wbr>distill" in text, "a name may break into lines"
    assert "<td>naive distillation, one label</td><td>50.0<br>(+10.0)</td>" in text, (
        "of the replicate that both have"
    )
    assert "<td>mask-<wbr>progressive</td><td>not run: planned</td>" in text
    assert "as judge</td><td>not run</td>" in text
    assert "<td>15 s ± 7</td>" in text and "<td>30 s ± 7<br>(2.0 times)</td>" in text
    assert "<td>30<br>(15.0 times)</td>" in text, "the paper's days"


def test_a_row_without_words_is_named() -> None:
    of = Beside("table5a_rmax", "Table", {"0": "base"}, ["r_max"])
    with pytest.raises(ValueError, match=r"says nothing of table5a_rmax: 0\.1"):
        of.rows()


def test_claims_lead_to_their_row(study: Any) -> None:
    text = paper_page(study)
    assert '<a href="study.html#c2">C2</a>' in text and '<a href="study.html#c14">C14</a>' in text
    assert "<caption>Paper and ours. Table 5d, components one by one</caption>" in text
