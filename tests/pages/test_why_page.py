"""The page that explains the null results says what its files say."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
from study_files import Kept, write

from masters.settings import load_profile
from masters_book.pages.why import why_page


def nothing(folder: Path) -> Any:
    """A study without results."""
    return Kept(folder / "none")


def test_each_reason_stands_with_its_numbers(tmp_path: Path) -> None:
    dose = {"from_whole": [0, 0.001, 0, 0.0014], "argmax_changed": [0, 0.03, 0, 0.032], "entropy": 0.3}
    mini = pd.DataFrame({"replicate": [0, 0, 1, 1], "model": "large", "ratio": [0.0, 0.2] * 2, **dose})
    mini.assign(to_student=[0.01, 0.01, 0.0102, 0.0106]).to_csv(tmp_path / "mini.csv", index=False)
    ratios = [0.0, 0.15, 0.2, 0.5]
    big = pd.DataFrame({"way": "magnitude", "value": ratios, "kind": "all", "dose": 0.0873})
    big = big.assign(argmax_changed=0.367, entropy=[3.04, 3.4, 3.3, 3.8], loss=[3.66, 3.64, 3.76, 6.99])
    facts = {"correlation_correct": 0.01, "correlation_length": -0.23, "flat_accuracy": 0.4}
    facts |= {"advantage_large": 0.22, "advantage_student": -0.22}
    pd.Series(facts, name="value").rename_axis("what").to_csv(tmp_path / "rewards.csv")
    write(tmp_path / "blind.csv", pd.DataFrame({"task": ["all"], "accuracy": [0.37]}))
    rows = [
        ("base", 0, 0.44),
        ("base", 1, 0.46),
        ("large", 0, 0.781),
        ("masters+learning_rate=1e-04", 0, 0.375),
        ("masters", 0, 0.46),
        ("masters+learning_rate=1e-04+policy_weight=0.1", 0, 0.57),
        ("masters+learning_rate=1e-04+policy_weight=0.01", 0, 0.602),
        ("masters+learning_rate=1e-02+policy_weight=0.01", 0, 0.1),
        ("masked", 0, 0.61),
        ("masked", 1, 0.99),
    ]
    write(tmp_path / "runs.csv", pd.DataFrame(rows, columns=["arm", "replicate", "accuracy"]))
    big.to_csv(tmp_path / "teachers.csv", index=False)
    kept: Any = Kept(tmp_path)
    text = why_page(load_profile("mini"), tmp_path, tmp_path, kept)
    text = re.sub(r">\s+<", "><", text).replace("<wbr>", "")
    for words in (
        "moves by 0.0012 nats per token, and 3.1 % of its most likely tokens change",
        "goes from 0.0101 to 0.0103",
        "it moves by 0.087 nats per token, and 37 % of its most likely",
        "(loss 6.99)",
        "SmolLM2-135M-Instruct</th><td>0.20</td><td>0.0873</td><td>36.7</td><td>3.300</td><td>3.760</td>",
        "weight 0.03, beta 0.003, lr 0.001 constant, 5 mask stages from r 0.2",
        "replicates that have all of these): 0.0001: 37.5 %; the student before training scores 44.0 %.",
        "by policy weight: 0.01: 60.2 %, 0.1: 57.0 %, 1: 37.5 %; the mask without rewards scores 61.0 %.",
        "scores 37.0 %. The student before training scores 45.0 %, the large teacher 78.1 %",
        "-0.23 with the length",
        "+0.22 for those of the large teacher, -0.22 for those of the student",
        "In 40 % of the groups all responses are correct or all are wrong",
    ):
        assert words in text, words


def test_what_no_file_holds_is_left_out(tmp_path: Path) -> None:
    text = why_page(load_profile("mini"), tmp_path, tmp_path, nothing(tmp_path))
    assert text.strip() == "## What the mask does to the teachers"


def test_a_correlation_without_a_value_is_left_out(tmp_path: Path) -> None:
    """If all responses are wrong, none is more correct than another."""
    facts = {"correlation_correct": None, "correlation_length": -0.23, "flat_accuracy": 1.0}
    pd.Series(facts, name="value").rename_axis("what").to_csv(tmp_path / "rewards.csv")
    text = why_page(load_profile("mini"), tmp_path, tmp_path / "none.csv", nothing(tmp_path))
    assert "a rank correlation of -0.23 with the length of the response. It favors" in text
    assert "In 100 % of the groups" in text
