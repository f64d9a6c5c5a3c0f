"""The page of the study: what its files say, whichever of them are there."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from claim_lines import claim_line, write_lines
from study_files import Kept, write

from masters_book.claims.comparisons import COLUMNS
from masters_book.claims.table import read_claims
from masters_book.figures.names import title_of
from masters_book.pages import study as study_page
from masters_book.pages import study_tables
from masters_book.pages.first import Judged
from masters_book.study.effects import COLUMNS as MAP_COLUMNS
from masters_book.study.plan import load_study


@pytest.fixture
def own(tmp_path: Path) -> Judged:
    path = tmp_path / "own.csv"
    write_lines(path, [claim_line(1, "reversed", ours="-2.5")])
    return Judged("Your run (mini)", read_claims(path), pd.DataFrame(columns=COLUMNS), {})


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    runs = [("masters", 0, 0.70), ("masters", 1, 0.72), ("masters", 2, 0.74), ("r_max=0.4", 0, 0.5)]
    rows = pd.DataFrame(runs, columns=["arm", "replicate", "accuracy"])
    rows = rows.assign(sampled_accuracy=0.25, tokens=4.0, kl=float("nan"), seconds=60.4)
    write(folder / "runs.csv", rows)
    trials = [("masters", "1", 1e-4, 0.1, 0.61, False), ("masters", "2", 3e-5, 0, 0.625, True)]
    names = ["arm", "setting", "learning_rate", "policy_weight", "accuracy", "chosen"]
    rows = pd.DataFrame(trials, columns=names).assign(sampled_accuracy=0.5, beta=0.01)
    write(folder / "trials.csv", rows)
    tasks = [
        ("masters", mode, task, 0.5) for mode in ("greedy", "sampled") for task in ("digits", "<b>charts")
    ]
    write(folder / "tasks.csv", pd.DataFrame(tasks, columns=["arm", "mode", "task", "correct"]))
    registers = [("masters", "greedy", "bare", share, 0.875, 2.0) for share in (0.2, 0.3)]
    names = ["arm", "mode", "register", "share", "correct", "tokens"]
    frame = pd.DataFrame(registers, columns=names).assign(replicate=[0, 1])
    gone = frame.assign(arm="taken out of the plan")
    write(folder / "registers.csv", pd.concat([frame, gone]))
    write(folder / "map.csv", pd.DataFrame(columns=["axis"]))
    some = [3.0, 2.5, 3.5]
    compared = [
        ("C1", "naive", "base", "accuracy", 2.0, 1.5, 2.5, 20.0, 3, *some, 30.0),
        ("C2", "masked", "naive_multi", "accuracy", 0.44, -0.2, 1.0, 20.0, 3, *some, 30.0),
        ("C3", "masters", "masked", "accuracy", -2.0, -2.5, -1.5, 20.0, 3, *some, 30.0),
        ("C10", "masters", "responses=2", "accuracy", 0.1, -0.1, 0.2, 9.0, 2, *[None] * 3, 30.0),
        ("C11", "naive_multi", "naive+steps=1080", "accuracy", 0.9, -0.7, 2.4, 9.0, 2, *[None] * 3, 30.0),
        ("helps", "masters", "base", "accuracy", 1.6, 0.9, 2.4, 9.0, 3, *some, 30.0),
        ("helps", "naive_multi", "base", "accuracy", 2.1, 1.1, 3.0, 9.0, 3, *some, 30.0),
        ("helps", "masters", "naive_multi", "accuracy", -0.4, -0.9, 0.1, 9.0, 3, *some, 30.0),
    ]
    write(folder / "comparisons.csv", pd.DataFrame(compared, columns=COLUMNS))
    blind = [("digits", 0.2, 100), ("<b>charts", 0.4, 100), ("all", 0.3, 200)]
    write(folder / "blind.csv", pd.DataFrame(blind, columns=["task", "accuracy", "questions"]))
    costs = [("online", 0, 60.0, 90.0), ("online", 1, 64.0, 94.0), ("own_accuracy", 0, 10.0, 20.0)]
    rows = pd.DataFrame(costs, columns=["arm", "replicate", "training", "total"]).assign(
        steps=300, responses=1000, tokens=4000, generation=3.2, judging=0.25, scoring=0.1, accuracy=0.5
    )
    write(folder / "costs.csv", rows)
    machine = {"commit": "c0ffee", "cores": 2, "processor": "<x86>", "packages": {"torch": "2"}}
    (folder / "machine.json").write_text(json.dumps(machine))
    return folder


def _arm(name: str) -> str:
    """An arm as pages show it: its title, and its name when pointed at."""
    return f'<span class="arm" title="{name}">{title_of(name)}</span>'


def page(study: Path, own: Judged) -> str:
    """The page without the white space between tags and places where a line may break."""
    kept: Any = Kept(study)
    return re.sub(r">\s+<", "><", study_page.study_page(kept, own, study / "study.svg")).replace("<wbr>", "")


def test_the_page_says_what_the_files_say(study: Path, own: Judged) -> None:
    text = page(study, own)
    assert "The study tested 4 of the paper's 15 claims: <strong>1 supported</strong>, <strong>1 not" in text
    assert "Training with Masters helps: +1.6 points" in text and "together change it by -0.4 points" in text
    assert "answers 30.0 points more of the questions" in text
    assert "Replicates of an arm: 2 to 3." in text and load_study()[0].about in html.unescape(text)
    cells = {
        "Effect": "+2.0 points<br>+1.5 to +2.5<br><small>+7 % of the gap</small>",
        "Sampled answers": "+3.0 points<br>+2.5 to +3.5",
        "Paper's matched effect": "+0.7 points<br>table 1: +large_teacher minus base<br>"
        "<small>excluded: yes</small>",
        "The test": "p under 0.001<br>detects 0.7 points<br>3 replicates",
        "Your run (mini)": "reversed<br>-2.5",
    }
    assert "".join(f'<td data-label="{name}">{cell}</td>' for name, cell in cells.items()) in text
    assert '<th scope="col">Your run (mini)</th>' in text
    assert 'excluded: no</small></td><td data-label="The test">p 0.2' in text, "a p-value as a number"
    assert (
        "<li>C2: mask-progressive against naive distillation, responses: greedy +0.4 (-0.2 to +1.0), sampled "
        "+3.0" in text
    )
    assert "<small>weight 0.03, beta 0.003, lr 0.001 constant, 5 mask stages from r 0.2" in text
    assert "<td>72.0 ± 2.0</td><td>25.0 ± 0.0</td><td>4.0 ± 0.0</td><td></td><td>60 ± 0</td>" in text
    assert "<td>50.0</td><td>25.0</td>" in text, "one run has no spread"
    assert "Masters</th><td>3e-05</td><td>0</td><td>0.01</td><td>62.5</td><td>50.0</td><td>yes" in text
    assert "blind: the question&#39;s text alone</th><td></td><td>30.0</td>" in text, "base has no run here"
    assert "Masters</th><td>greedy</td><td>bare</td><td>16.7</td><td>87.5</td><td>2.0</td>" in text, (
        "of 3 replicates, one without it"
    )
    assert "taken out of the plan" not in text
    assert "Of 1 tuned arms 1 chose the smallest learning rate tried and 0 the largest" in text
    assert (
        f"C10</th><td>{_arm('masters')} against {_arm('responses=2')}<br>equal steps, not equal "
        "computation</td><td>+0.1 points<br>-0.1 to +0.2</td><td></td><td>no figure</td>"
        "<td>0.25</td>"
        "<td>2</td><td>not supported</td>"
    ) in text
    assert "<br><small>equal steps, not equal computation</small><details>" in text
    assert (
        "<small>2.7 times the steps for one label, against "
        f"{_arm('naive+steps=1080')}: +0.9 (-0.7 to +2.4)</small>"
    ) in text, "beside the verdict"
    assert "<td>62 ± 3</td><td>92 ± 3</td><td>46 ± 1</td><td>50.0 ± 0.0</td>" in text
    assert "<td>c0ffee</td>" in text and "<td>torch 2</td>" in text
    assert (study / "study.svg").is_file()


def test_the_page_says_whether_training_helped(study: Path, own: Judged) -> None:
    assert "above that of the student" not in page(study, own), "nothing to compare with"
    runs = pd.read_csv(study / "runs.csv")
    base = runs[runs["arm"] == "masters"].assign(arm="base", accuracy=[0.71, 0.71, 0.71])
    other = base.assign(arm="masters+student=mid", accuracy=0.9)
    write(study / "runs.csv", pd.concat([runs, base, other]))
    assert (
        "Of 2 arms that train the student, 1 have a mean above that of the student before "
        f"training, from -21.0 points ({_arm('r_max=0.4')}) to +1.0 points ({_arm('masters')})"
    ) in page(study, own)


def test_a_verdict_leads_to_its_rows_and_commands(study: Path, own: Judged) -> None:
    text = page(study, own)
    assert 'id="arm-masters"' in text and 'href="#arm-masters"' in text and 'id="arm-r-max-0-4"' in text
    assert "<code>make study</code>" in text


def test_what_the_files_hold_is_text(study: Path, own: Judged) -> None:
    text = page(study, own)
    assert "&lt;x86&gt;" in text and "&lt;k&gt;" in text and "&lt;b&gt;charts" in text
    assert "<b>" not in text


def test_nothing_there(tmp_path: Path, own: Judged) -> None:
    nothing = page(tmp_path / "nowhere", own)
    assert "This copy has no results of it</strong> yet: <code>make study</code> runs it" in nothing
    assert study_page.judged(Kept(tmp_path)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", study_page.FILES)
def test_a_file_that_is_not_there_is_named(study: Path, own: Judged, name: str) -> None:
    (study / name).unlink()
    text = page(study, own)
    assert f"Missing files: {name}. <code>make study</code> continues." in text


def test_fewer_seeds_than_planned(study: Path, own: Judged) -> None:
    kept: Any = Kept(study)
    found, unfinished = study_page.judged(kept), f"not finished: {kept.plan.seeds} are planned"
    assert found is not None and unfinished in page(study, own)
    assert unfinished in found.seeds
    kept.plan = kept.plan.model_copy(update={"seeds": 3, "few_seeds": 2})
    again = study_page.judged(kept)
    assert again is not None and "not finished" not in again.seeds


def test_what_an_arm_is_above_base_is_taken_within_a_replicate() -> None:
    rows = [
        (0, "base", 0.4),
        (1, "base", 0.6),
        (0, "masked", 0.42),
        (1, "masked", 0.61),
        (1, "masters", 0.63),
    ]
    runs = pd.DataFrame(rows, columns=["replicate", "arm", "accuracy"])
    runs = runs.assign(sampled_accuracy=0.5, tokens=5.0, kl=0.1, seconds=60.0, key="0123")
    blind = pd.Series({"all": 0.2})
    table = study_tables.arms(runs, study_tables.above_base(runs), {}, blind, ["base", "masked"])
    assert [row["name"] for row in table["main"]] == ["base", "masked"]
    assert table["blind"][1:3] == ["-30.0", "20.0"] and table["header"][1] == "Above\nbase, points"
    cells = {row["name"]: row["cells"][:2] for row in [*table["main"], *table["others"]]}
    assert cells["masked"] == ["1.5 ± 0.7", "51.5 ± 13.4"]
    assert cells["masters"] == ["3.0", "63.0"], "of the replicate that it has"


def test_the_map_says_where_an_effect_was_found_and_how_large_one_would_have_been(
    study: Path, own: Judged
) -> None:
    assert "Where masking and rewards help" not in page(study, own), "no pair of arms was run"
    places = [
        ("gap", 6.04, "masking", "masked", "naive_multi", -0.02, -0.1, 0.5, 0.4, 10, 44.1),
        ("r_max", 0.2, "masking", "masked", "naive_multi", 0.2, -0.1, 0.5, 0.4, 10, 44.1),
        ("gap", 61.2, "masking", "masked+student=mid", "<i>", 1.3, 0.8, 1.8, 0.8, 5, 23.8),
        ("r_max", 0.4, "rewards", "r_max=0.4", "masked+r_max=0.4", -0.6, -1.0, -0.2, 0.6, 5, None),
    ]
    write(study / "map.csv", pd.DataFrame(places, columns=MAP_COLUMNS))
    text = page(study, own)
    assert (
        "## Where masking and rewards help" in text
        and '<img src="study-map.svg" alt="' in text
        and "intervals over replicates and questions.</figcaption>" in text
    )
    assert (study / "study-map.svg").is_file()
    assert (
        "<em>masking</em>, 2 pairs of arms: the interval lies above zero in 1 of them and below in 0; "
        "estimates reach from +0.0 to +1.3 points. A true effect of 0.6 points would be detected four times "
        "out of five in half of the pairs, one of 0.8 in all.</li><li><em>rewards</em>, 1 pairs of arms: the "
        "interval lies above zero in 0 of them and below in 1;"
    ) in text
    assert (
        "size ratio 61.2</th><td>23.8 (below blind)</td><td>masking</td><td>"
        f"{_arm('masked+student=mid')} against {_arm('&lt;i&gt;')}</td>"
        "<td>+1.3<br>+0.8 to +1.8</td><td>0.8</td><td>5</td>"
    ) in text


def test_the_sweep_and_the_worst_of_each_form(study: Path, own: Judged) -> None:
    assert "## Learning rates" not in page(study, own)
    runs = pd.read_csv(study / "runs.csv")
    more = [
        runs.assign(arm=name, kl=0.5, accuracy=accuracy)
        for name, accuracy in (
            ("masters+learning_rate=1e-04", 0.3),
            ("masters+learning_rate=1e-05", 0.7),
            ("masked+learning_rate=1e-04", 0.72),
            ("masked+learning_rate=1e-05", 0.71),
            ("masters+learning_rate=1e-03", 0.1),
            ("base", 0.6),
        )
    ]
    write(study / "runs.csv", pd.concat([runs, *more]).drop_duplicates(["arm", "replicate"]))
    text = page(study, own)
    assert "## Learning rates" in text and '<img src="study-sweep.svg" alt="' in text
    assert (study / "study-sweep.svg").is_file()
    rates = "at the learning rate with the lowest mean, from 1e-05 to 0.0001"
    words = f"Greedy accuracy, mean of 3 replicates, {rates}: {_arm('masters')} 30.0 %"
    more_of_it = "; 4.0 tokens per answer, KL 0.500)"
    assert (
        f"{words} (at 0.0001{more_of_it}, {_arm('masked')} 71.0 % (at 1e-05{more_of_it}, the student "
        "before training 60.0 %."
    ) in text
    runs = pd.read_csv(study / "runs.csv")
    lost = (runs["replicate"] > 0) & (runs["arm"] == "masked+learning_rate=1e-05")
    runs[~lost].to_csv(study / "runs.csv", index=False)
    assert f"Greedy accuracy, one replicate, {rates}: " in page(study, own), "of that which has all"


def test_a_file_of_another_shape(study: Path, own: Judged) -> None:
    (study / "tasks.csv").write_text("arm,correct\n")
    with pytest.raises(ValueError, match=r"tasks.csv has no column replicate, mode, .*: restore"):
        page(study, own)
