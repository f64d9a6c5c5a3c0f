"""What would change our mind: from the tables of the study, one fold per claim."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from study_files import Kept, write

from masters_book.claims.claims import CLAIMS
from masters_book.claims.comparisons import COLUMNS
from masters_book.claims.verdicts import judge_claims
from masters_book.pages.first import Judged
from masters_book.pages.mind import mind_page


@pytest.fixture
def study(tmp_path: Path) -> Any:
    trials = [("masters", rate, rate == 1e-3) for rate in (1e-4, 3e-4, 1e-3)]
    trials += [("masked", rate, rate == 1e-3) for rate in (1e-4, 1e-3, 2e-3)]
    rows = pd.DataFrame(trials, columns=["arm", "learning_rate", "chosen"])
    write(tmp_path / "trials.csv", rows.assign(setting=[f"setting {at}" for at in rows.index]))
    return Kept(tmp_path)


@pytest.fixture
def folds(study: Any) -> dict[str, str]:
    compared = [
        ("C3", "masters", "masked", "accuracy", -0.5, -1.0, 0.0, 9.0, 10, -0.1, -0.2, 0.0, 30.0),
        ("C10", "masters", "responses=2", "accuracy", 0.3, -0.1, 0.7, 4.0, 5, 1.0, 0.9, 1.1, 30.0),
        ("C15", "masters", "base", "tokens", -2.1, -3.4, -0.8, 9.0, 10, None, None, None, None),
    ]
    effects = pd.DataFrame(compared, columns=COLUMNS)
    settings = {"masters": "weight <0.03>", "masked": "no weight", "base": "not trained"}
    text = mind_page(Judged("x", judge_claims(effects), effects, settings), study)
    found = re.findall(r'<details id="mind-(c\d+)"[^>]*>(.*?)</details>', text, re.DOTALL)
    return {name: " ".join(re.sub("<[^>]+>", "", words).split()) for name, words in found}


def test_every_claim_has_a_fold(folds: dict[str, str]) -> None:
    assert list(folds) == [claim.id.lower() for claim in CLAIMS]
    assert "needs a run of its arms" in folds["c8"] and "the arms were not run" in folds["c8"]


def test_a_fold_says_what_was_detectable_and_where_tuning_ended(folds: dict[str, str]) -> None:
    words = folds["c3"]
    assert "needs an interval that reaches the margin. Now: -0.5 points (-1.0 to 0.0)." in words
    assert (
        "0.7 points, four times out of five, before the correction for all claims. The margin is 1.00 "
        "points; the paper has +2.0 points." in words
    )
    assert "Replicates: 10; 10 are planned for the main arms." in words
    assert (
        "Masters: learning rate 0.001, the largest tried; mask-progressive: learning rate 0.001, inside the"
        in words
    )
    assert (
        "tuned apart: Masters with learning rate 0.001; mask-progressive with learning rate 0.0001." in words
    )
    assert CLAIMS[2].limits in words


def test_a_fold_of_an_undecided_claim(folds: dict[str, str]) -> None:
    words = folds["c10"]
    assert "Replicates: 5; 10 are planned for the main arms." in words
    assert "or an effect of at least the margin, significant after the correction" in words
    assert "2 responses: learning rate 0.001, chosen for Masters, the largest tried" in words
    assert "the paper gives none" in words


def test_other_kinds_of_claims_have_their_own_rule(folds: dict[str, str]) -> None:
    assert "needs an interval that reaches above the margin of 10.00 percent" in folds["c15"]
    assert "trained apart" not in folds["c15"], "base was not trained"


def test_without_results(study: Any) -> None:
    assert "no results of a study" in mind_page(None, study)
