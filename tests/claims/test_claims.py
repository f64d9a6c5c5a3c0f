"""The claims: the rule, the paper's effects from its tables, and synthetic runs with known verdicts."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from masters.experiments.arms import title
from masters_book.claims import table as claim_rows
from masters_book.claims import verdicts
from masters_book.claims.claims import CLAIMS, HELPS, SMALLEST_MARGIN, Claim, all_pairs
from masters_book.claims.comparisons import EFFECTS, measure, paired_effect
from masters_book.claims.evidence import Evidence
from masters_book.claims.significance import minimum_detectable_effect, p_value
from masters_book.claims.statistics import Interval
from masters_book.claims.verdicts import SEVERITY, excludes_paper, judge_comparisons, verdict, write_claims
from masters_book.pages.parameters import NOTEBOOKS
from masters_book.results.paper import paper_table
from masters_book.results.tables import read_table

C = {claim.id: claim for claim in CLAIMS}


def effects_of(
    table: pd.DataFrame,
    resamples: int,
    claims: Sequence[Claim] = CLAIMS,
    runs: pd.DataFrame | None = None,
    costs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    pairs = [(claim.id, each) for claim in claims for each in claim.comparisons]
    return measure(table, pairs, resamples, runs, costs)


def judge_claims(
    table: pd.DataFrame,
    resamples: int,
    claims: Sequence[Claim] = CLAIMS,
    runs: pd.DataFrame | None = None,
    costs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    return verdicts.judge_claims(effects_of(table, resamples, claims, runs, costs), claims)


def predictions(
    accuracy: dict[str, float],
    seeds: int = 3,
    questions: int = 400,
    tokens: dict[str, float] | None = None,
    swap: int = 0,
) -> pd.DataFrame:
    """Return answers of known accuracy: the first questions are right, shifted by ``swap`` for each seed."""
    rows = []
    for arm, value in accuracy.items():
        for seed in range(seeds):
            right = np.arange(questions) < round(value * questions)
            if swap:
                right = np.roll(right, seed * swap)
            for number in range(questions):
                for mode in ("greedy", "sampled"):
                    rows.append(
                        {
                            "arm": arm,
                            "seed": seed,
                            "task": ("digits", "charts")[number % 2],
                            "question": f"q{number}",
                            "mode": mode,
                            # Sampled answers are all wrong, so a verdict that used them would differ.
                            "correct": bool(right[number]) and mode == "greedy",
                            "tokens": (tokens or {}).get(arm, 4.0),
                        }
                    )
    return pd.DataFrame(rows)


def judged(name: str, *args: object, **options: object) -> pd.Series:
    frame = judge_claims(predictions(*args, **options), 300, claims=[C[name]])  # type: ignore[arg-type]
    return frame.iloc[0]


@pytest.mark.parametrize(
    ("effect", "kind", "expected"),
    [
        ((1.0, 0.2, 1.8), "gain", "supported"),
        ((0.4, 0.2, 0.6), "gain", "undecided"),
        ((0.2, 0.1, 0.3), "gain", "not supported"),
        ((1.0, -0.1, 2.1), "gain", "undecided"),
        ((0.0, -0.4, 0.4), "gain", "not supported"),
        ((-1.0, -1.8, -0.2), "gain", "reversed"),
        ((-0.3, -0.5, -0.1), "gain", "not supported"),
        ((-0.1, -0.4, 0.2), "no worse", "supported"),
        ((-0.1, -0.6, 0.4), "no worse", "undecided"),
        ((-2.0, -3.0, -1.0), "no worse", "not supported"),
        ((0.1, -0.4, 0.4), "at most", "supported"),
        ((0.6, 0.4, 0.8), "at most", "undecided"),
        ((0.9, 0.6, 1.2), "at most", "not supported"),
        ((0.9, 0.6, 1.2), "at least", "supported"),
        ((0.6, 0.4, 0.8), "at least", "undecided"),
        ((0.1, -0.2, 0.4), "at least", "not supported"),
    ],
)
def test_the_rule(effect: tuple[float, float, float], kind: str, expected: str) -> None:
    assert verdict(Interval(*effect), 0.5, kind) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("margin", [-0.1, math.nan])
def test_a_margin_is_not_negative(margin: float) -> None:
    with pytest.raises(ValueError, match="margin must be at least 0"):
        verdict(Interval(0, 0, 0), margin)


def test_every_claim_is_there_once_and_points_to_a_notebook() -> None:
    assert [claim.id for claim in CLAIMS] == [f"C{number}" for number in range(1, 16)]
    assert all(claim.where in NOTEBOOKS for claim in CLAIMS)
    assert {*SEVERITY, "not tested"} == set(claim_rows.VERDICTS)


def test_the_papers_effects_come_from_its_tables() -> None:
    frame = judge_claims(predictions({"base": 0.5}, questions=4), 10).set_index("id")
    # The paper gives no numbers for these.
    assert set(frame.index[frame["paper"] == ""]) == {"C10", "C15"}
    days = paper_table("section5_days").set_index("responses")["days"]
    assert frame.loc["C14", "paper_effect"] == days["online"] / days["offline"]
    table = paper_table("table1_components").set_index("variant")
    rounded = (table.loc["+large_teacher", "avg"] - table.loc["base", "avg"].to_numpy()).mean()
    assert frame.loc["C1", "paper_effect"] == pytest.approx(rounded, abs=0.1)
    parts = paper_table("table5d_components")
    naive, masked = (
        parts.loc[parts["masking"] == kind, "avg"].to_numpy() for kind in ("naive", "mask_progressive")
    )
    assert frame.loc["C11", "paper_effect"] == pytest.approx(naive[1] - naive[0])
    assert frame.loc["C2", "paper_effect"] == pytest.approx(masked[1] - naive[1])
    assert frame.loc["C5", "paper_effect"] == pytest.approx(masked[2] - naive[2])
    assert "table 5d" in frame.loc["C5", "cells"] and "mid teacher" not in frame.loc["C5", "cells"]
    source = paper_table("table5c_response_source").set_index("student_responses").iloc[:, 1:].mean(axis=1)
    assert C["C9"].comparisons[1].paper.effect() == pytest.approx(source[4] - source[8])  # type: ignore[union-attr]
    for claim in CLAIMS:
        for comparison in claim.comparisons:
            assert comparison.paper is None or math.isfinite(comparison.paper.effect())


def test_a_margin_is_half_of_the_papers_matched_effect_and_at_least_a_quarter_point() -> None:
    for claim in CLAIMS:
        for each in claim.comparisons:
            margin = claim.margin_of(each)
            if claim.margin is not None:
                assert margin == claim.margin
            elif each.paper is None:
                assert margin == SMALLEST_MARGIN == 0.25
            else:
                assert margin == max(0.25, abs(each.paper.effect()) / 2)
                # An effect as large as the paper's can pass, unless it is below the smallest margin.
                assert verdict(Interval(each.paper.effect(), 0.01, 9.0), margin) == (
                    "supported" if each.paper.effect() >= margin else "undecided"
                )
    assert [C[name].margin_of(C[name].comparisons[0]) for name in ("C2", "C5", "C11")] == [0.25] * 3
    assert C["C3"].margin_of(C["C3"].comparisons[0]) > 0.9
    # Of a claim that something matches, the margin is a tolerance: it must not grow with what is claimed.
    assert C["C13"].margin_of(C["C13"].comparisons[0]) == SMALLEST_MARGIN


def test_whether_an_interval_excludes_the_papers_effect() -> None:
    pair = C["C2"].comparisons[0]
    assert pair.paper is not None
    paper = pair.paper.effect()
    for low, high, word in (
        (paper - 1, paper + 1, "no"),
        (paper + 0.1, 2.0, "yes"),
        (-2.0, paper - 0.1, "yes"),
    ):
        assert excludes_paper(Interval((low + high) / 2, low, high), pair) == word
    assert excludes_paper(Interval(0, -1, 1), C["C10"].comparisons[0]) == "no figure"
    row = judged("C3", {"masters": 0.7, "masked": 0.5})
    assert row["excludes_paper"] == "yes" and judged("C3", {"masters": 0.7})["excludes_paper"] == ""


def test_effects_are_a_share_of_the_gap_between_student_and_teacher() -> None:
    arms = {"masters": 0.55, "masked": 0.5, "base": 0.4, "large": 0.8}
    assert judged("C3", arms)["share"] == pytest.approx(100 * 5 / 40)
    assert math.isnan(judged("C3", {"masters": 0.55, "masked": 0.5})["share"])
    assert math.isnan(judged("C3", arms | {"large": 0.4})["share"]), "no gap"
    of_mid = effects_of(predictions(arms | {"masters+student=mid": 0.6}), 50, [C["C13"]]).set_index(
        "treatment"
    )
    assert math.isnan(of_mid.loc["masters+student=mid", "gap"]), "another student has another gap"


def test_sampled_effects_are_measured_and_disagreement_is_reported() -> None:
    table = predictions({"masters": 0.5, "masked": 0.5}, swap=3)
    sampled = {"masters": [0.40, 0.42, 0.41], "masked": [0.30, 0.31, 0.32]}
    rows = [(arm, seed, score) for arm, scores in sampled.items() for seed, score in enumerate(scores)]
    runs = pd.DataFrame(rows, columns=["arm", "seed", "sampled_accuracy"])
    row = judge_claims(table, 300, [C["C3"]], runs).iloc[0]
    differences = 100 * (np.array(sampled["masters"]) - np.array(sampled["masked"]))
    expected = stats.ttest_1samp(differences, 0).confidence_interval()
    assert row["sampled"] == pytest.approx(10) and row["sampled_low"] == pytest.approx(expected.low, rel=0.01)
    assert row["disagree"].startswith("masters against masked: greedy 0.0") and "+10.0 (+" in row["disagree"]
    alike = judge_claims(predictions({"masters": 0.6, "masked": 0.5}), 300, [C["C3"]], runs).iloc[0]
    assert alike["disagree"] == "" and alike["sampled"] == pytest.approx(10)
    one = judge_claims(table, 300, [C["C3"]], runs[runs["seed"] == 0]).iloc[0]
    assert math.isnan(one["sampled"]) and one["disagree"] == ""


def test_whether_the_method_helps_is_measured_with_the_claims() -> None:
    arms = {"masters": 0.5, "base": 0.4, "naive_multi": 0.55}
    effects = measure(predictions(arms), all_pairs(), 50)
    helps = effects[effects["id"] == "helps"]
    assert list(helps["treatment"]) == [pair.treatment for pair in HELPS]
    assert list(helps["effect"]) == pytest.approx([10, 15, -5])


def test_an_insignificant_reversal_still_excludes_the_margin() -> None:
    others = ("naive_multi", "masters", "unnormalised", "responses=2", "naive")
    table = predictions({"masked": 0.4875} | dict.fromkeys(others, 0.5))
    assert judge_claims(table, 500, claims=[C["C2"]]).iloc[0]["verdict"] == "reversed"
    among = judge_claims(table, 500).set_index("id").loc["C2"]
    assert among["p_holm"] > 0.05 and among["effect_high"] < 0 and among["verdict"] == "not supported"


def test_evidence_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no row with \{'r_max': 0.7\}"):
        Evidence("", "table5a_rmax", {"r_max": 0.7}, {"r_max": 0.0}).effect()


def test_each_verdict() -> None:
    up = judged("C3", {"masters": 0.7, "masked": 0.5})
    assert (up["verdict"], up["ours"]) == ("supported", "+20.0")
    assert up["effect_low"] < up["effect"] < up["effect_high"]
    down = judged("C3", {"masters": 0.5, "masked": 0.7})
    assert (down["verdict"], down["ours"]) == ("reversed", "-20.0")
    same = judged("C3", {"masters": 0.5, "masked": 0.5})
    assert (same["verdict"], same["ours"], same["low"]) == ("undecided", "0.0", "0.0"), (
        "equal scores on every question"
    )
    assert (same["excludes_paper"], same["p"], np.isnan(same["smallest"])) == ("no", 1.0, True)
    noisy = judged("C3", {"masters": 0.52, "masked": 0.5}, questions=50)
    assert noisy["verdict"] == "undecided"
    absent = judged("C3", {"masters": 0.7})
    assert (absent["verdict"], absent["ours"], absent["low"]) == ("not tested", "", "")
    assert absent["paper"] == up["paper"] != ""


def test_verdicts_follow_from_the_stored_effects(tmp_path: Path) -> None:
    arms = {"masters": 0.7, "masked": 0.5, "source=0:8": 0.6, "source=8:0": 0.65}
    effects = effects_of(predictions(arms), 50)
    path = tmp_path / "comparisons.csv"
    unknown = effects.iloc[:1].assign(id="C99")
    pd.concat([effects, unknown]).to_csv(path, index=False)
    again = read_table(path, EFFECTS)
    pd.testing.assert_frame_equal(verdicts.judge_claims(again), verdicts.judge_claims(effects))
    effects.iloc[:0].to_csv(path, index=False)
    assert read_table(path, EFFECTS).empty


def test_the_margin_decides() -> None:
    table = predictions({"masters": 0.7, "masked": 0.5})
    verdicts = [
        judge_claims(table, 300, claims=[replace(C["C3"], margin=margin)])["verdict"][0]
        for margin in (0.5, 21.0, 60.0)
    ]
    assert verdicts == ["supported", "undecided", "not supported"]


def test_a_language_model_as_judge_is_tested_where_it_judged() -> None:
    row = judged("C8", {"accuracy_only+judge=llm": 0.6, "accuracy_only": 0.4})
    assert (row["verdict"], row["control"]) == ("supported", "accuracy_only")
    rewards = paper_table("table5e_rewards").set_index("reward").mean(axis=1)
    assert row["paper_effect"] == pytest.approx(rewards["acc"] - rewards["acc_rule_based"])
    assert judged("C8", {"masters": 0.6, "accuracy_only": 0.4})["verdict"] == "not tested"


def test_effects_that_are_insignificant_after_correction_are_undecided() -> None:
    others = ("naive_multi", "masters", "unnormalised", "responses=2", "naive")
    table = predictions({"masked": 0.5125} | dict.fromkeys(others, 0.5))
    alone = judge_claims(table, 500, claims=[C["C2"]]).iloc[0]
    assert alone["verdict"] == "supported" and alone["p"] == alone["p_holm"] < 0.05
    among = judge_claims(table, 500).set_index("id")
    assert among["p"].notna().sum() == 5
    assert among.loc["C2", "p"] == alone["p"] and among.loc["C2", "verdict"] == "undecided"
    assert 0.05 <= among.loc["C2", "p_holm"] == pytest.approx(5 * alone["p"])
    assert among.loc["C8", "verdict"] == "not tested" and math.isnan(among.loc["C8", "p_holm"])


def test_detectable_effects_and_p_values() -> None:
    row = judged("C3", {"masters": 0.55, "masked": 0.5}, swap=7)
    effect = verdicts.interval_of(
        effects_of(predictions({"masters": 0.55, "masked": 0.5}, swap=7), 300).iloc[0]
    )
    assert row["smallest"] == pytest.approx(minimum_detectable_effect(effect)) and row["seeds"] == 3
    assert row["p"] == pytest.approx(p_value(effect)) and math.isfinite(effect.freedom)
    # A claim of two comparisons has the larger of their p-values.
    both = judged("C6", {"masters": 0.6, "accuracy_only": 0.55, "distillation_only": 0.4})
    assert both["verdict"] == "supported" and both["control"] == "accuracy_only"
    assert both["p"] == judged("C3", {"masters": 0.6, "masked": 0.55})["p"]
    # Claims of other kinds are tested against their margin.
    ladder = {"mid": 0.6, "large": 0.6}
    far = judged("C13", {"masters": 0.7} | ladder), judged("C15", {"masters": 0.5, "base": 0.5})
    assert far[0]["p"] < 0.001 and far[1]["p"] <= 1
    assert judged("C13", {"masters": 0.4} | ladder)["p"] > 0.99
    # Their detectable effect is measured from the margin.
    table = predictions({"masters": 0.7, "mid": 0.6, "large": 0.5}, swap=7)
    effects = effects_of(table, 300, [C["C13"]]).set_index("control")
    away = minimum_detectable_effect(verdicts.interval_of(effects.loc["mid"]))
    row = judge_claims(table, 300, [C["C13"]]).iloc[0]
    assert row["control"] == "mid" and row["smallest"] == pytest.approx(-SMALLEST_MARGIN + away)
    noisy = judged("C15", {"masters": 0.5, "base": 0.5}, tokens={"masters": 4.1})
    assert noisy["smallest"] == pytest.approx(10, abs=0.01)


def test_several_comparisons_give_the_least_favorable_verdict() -> None:
    row = judged("C6", {"masters": 0.6, "accuracy_only": 0.4, "distillation_only": 0.8})
    assert (row["verdict"], row["control"]) == ("reversed", "distillation_only")
    row = judged("C6", {"masters": 0.8, "accuracy_only": 0.6, "distillation_only": 0.4})
    assert (row["verdict"], row["control"]) == ("supported", "accuracy_only")
    assert judged("C6", {"masters": 0.8, "accuracy_only": 0.6})["verdict"] == "not tested"


def test_a_comparison_that_is_not_always_run_counts_where_it_was() -> None:
    arms = {"masters": 0.7, "r_max=0.0": 0.5}
    assert judged("C5", arms)["verdict"] == "supported"
    row = judged("C5", arms | {"mid_then_large": 0.6, "mid_then_large+r_max=0.0": 0.7})
    assert (row["verdict"], row["treatment"]) == ("reversed", "mid_then_large")
    assert judged("C4", {"masters": 0.5, "mid_then_large": 0.5} | {"base": 0.1})["verdict"] == "undecided"
    alone = {"mid_then_large": 0.5, "mid_then_large+r_max=0.0": 0.6}
    assert judged("C5", alone)["verdict"] == "not tested"


def test_every_comparison_is_also_judged_alone() -> None:
    arms = {"masters": 0.6, "accuracy_only": 0.4, "distillation_only": 0.8, "masked": 0.6}
    effects = effects_of(predictions(arms), 300, claims=[C["C3"], C["C6"], C["C9"]])
    table = judge_comparisons(effects, [C["C3"], C["C6"], C["C9"]]).set_index("control")
    assert dict(table["verdict"]) == {
        "masked": "undecided", "accuracy_only": "supported", "distillation_only": "reversed",
    }  # fmt: skip
    assert list(table["id"]) == ["C3", "C6", "C6"] and set(table["seeds"]) == {3}
    worst = verdicts.judge_claims(effects, [C["C6"], C["C3"]]).iloc[0]
    same = ["effect", "effect_low", "effect_high"]
    assert list(table.loc["distillation_only", same]) == list(worst[same])


def test_no_worse_and_at_most() -> None:
    assert judged("C13", {"masters": 0.7, "mid": 0.6, "large": 0.6})["verdict"] == "supported"
    assert judged("C13", {"masters": 0.6, "mid": 0.6, "large": 0.5})["verdict"] == "undecided"
    assert judged("C13", {"masters": 0.4, "mid": 0.6, "large": 0.3})["verdict"] == "not supported"
    arms = {"masters": 0.6, "base": 0.5}
    short = judged("C15", arms, tokens={"masters": 4.2, "base": 4.0})
    assert (short["verdict"], short["ours"], short["unit"]) == ("supported", "+5.0", "percent")
    assert judged("C15", arms, tokens={"masters": 6.0, "base": 4.0})["verdict"] == "not supported"


def test_a_ratio_of_costs_needs_two_seeds_and_has_students_interval() -> None:
    table = predictions({"masters": 0.5}, questions=4)
    rows = [("online", 0, 60.0), ("online", 1, 80.0), ("online", 2, 50.0), ("online", 3, 10.0)]
    rows += [("own_accuracy", 0, 10.0), ("own_accuracy", 1, 10.0), ("own_accuracy", 2, 10.0)]
    costs = pd.DataFrame(rows, columns=["arm", "seed", "total_equal"])
    costs["total"] = 2 * costs["total_equal"].where(costs["arm"] == "online", costs["total_equal"] / 2)

    def row(costs: pd.DataFrame | None, margin: float = 3) -> pd.Series:
        claims = [replace(C["C14"], margin=margin)]
        return judge_claims(table, 300, claims=claims, costs=costs).iloc[0]

    found = row(costs)
    times = np.array([6.0, 8.0, 5.0])
    bounds = stats.t.interval(0.95, 2, times.mean(), stats.sem(times))
    assert (found["ours"], found["unit"], found["seeds"]) == (f"{times.mean():.2f}", "times", 3)
    assert (found["effect_low"], found["effect_high"]) == pytest.approx(bounds, rel=0.02)
    assert [row(costs, margin)["verdict"] for margin in (2, 3, 12)] == [
        "supported",
        "undecided",
        "not supported",
    ]
    alone = judge_comparisons(effects_of(table, 300, [C["C14"]], costs=costs), [C["C14"]])
    assert dict(zip(alone["metric"], alone["effect"], strict=True)) == pytest.approx(
        {"cost": times.mean(), "cost as run": 2 * times.mean()}
    )
    assert list(alone["role"]) == ["decides", "shown"] and list(alone["verdict"]) == ["undecided", ""]
    for few in (None, costs[costs["seed"] == 0], costs[costs["arm"] == "online"]):
        absent = row(few)
        assert (absent["verdict"], absent["ours"], absent["paper"]) == ("not tested", "", "15.0")


def test_the_unmasked_run_has_several_names() -> None:
    for name in ("naive_rewards", "r_max=0", "r_max=0.0"):
        assert judged("C5", {"masters": 0.7, name: 0.5})["verdict"] == "supported"


def effect(table: pd.DataFrame, treatment: str = "a", control: str = "b") -> tuple[Interval, int] | None:
    return paired_effect(*(table[table["arm"] == arm] for arm in (treatment, control)), 50)


def test_pairs_keep_shared_seeds_and_questions() -> None:
    """In a study each seed has its own models."""
    table = predictions({"a": 0.5, "b": 0.25, "base": 0.0}, questions=8, swap=1)
    whole, first = effect(table), (table["arm"] == "b") & (table["seed"] == 0)
    found, fewer = effect(table[~first]), effect(table[table["seed"] > 0])
    assert whole is not None and found == fewer and (found or whole)[1] == 2
    assert whole[0].estimate == pytest.approx(25)
    assert effect(table.sample(frac=1, random_state=1)) == whole
    other = table.assign(question=table["question"].where(table["arm"] == "a", "x" + table["question"]))
    assert effect(other) is None
    assert effect(table[(table["arm"] == "a") == (table["seed"] > 0)]) is None
    with pytest.raises(ValueError, match="'a' has two predictions of one question"):
        effect(pd.concat([table, table]))


def test_questions_about_one_picture_count_as_one() -> None:
    table = predictions({"a": 0.5, "b": 0.25}, questions=80, swap=1)
    pictures = table["task"] + "/test/" + table["question"].str[1:]
    once = effect(table.assign(question=pictures + "-0"))
    four = effect(pd.concat([table.assign(question=pictures + f"-{number}") for number in range(4)]))
    alone = effect(pd.concat([table.assign(question=f"{number}" + pictures + "-0") for number in range(4)]))
    assert once is not None and four is not None and alone is not None
    assert four[0] == pytest.approx(once[0]) and alone[0].estimate == pytest.approx(once[0].estimate)
    assert alone[0].high - alone[0].low < 0.9 * (once[0].high - once[0].low)
    assert once == effect(table), "other ids are pictures of their own"
    # A picture weighs as much as it has questions.
    more = table[table["question"].isin([f"q{number}" for number in range(20)])]
    both = effect(pd.concat([table.assign(question=pictures + "-0"), more.assign(question=pictures + "-1")]))
    by_question = effect(pd.concat([table, more.assign(question=more["question"] + "x")]))
    assert both is not None and by_question is not None
    assert both[0].estimate == pytest.approx(by_question[0].estimate)


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [(0.7, "times", "0.70"), (15, "times", "15.0"), (1.66, "points", "+1.7"), (-0.04, "percent", "-0.04")],
)
def test_a_ratio_has_no_sign(value: float, unit: str, words: str) -> None:
    assert claim_rows.shown(value, unit) == words
    assert claim_rows.shown(math.nan, unit) == ""
    row = {"unit": unit, "effect_low": value, "effect_high": value, "sampled_low": 1.0, "sampled_high": 2.0}
    assert claim_rows.span(row) == f"{words} to {words}"
    assert claim_rows.span(row, "sampled") == "+1.0 to +2.0"


def test_equal_arguments_give_equal_intervals() -> None:
    table = predictions({"masters": 0.6, "masked": 0.5})
    pd.testing.assert_frame_equal(judge_claims(table, 100), judge_claims(table, 100))


def test_the_file_is_what_the_book_reads(tmp_path: Path) -> None:
    frame = judge_claims(predictions({"masters": 0.7, "masked": 0.5, "base": 0.4}), 50)
    write_claims(frame, tmp_path / "deep" / "claims.csv")
    read = claim_rows.read_claims(tmp_path / "deep" / "claims.csv")
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)


def test_every_arm_of_a_claim_exists() -> None:
    for claim in CLAIMS:
        for comparison in claim.comparisons:
            assert title(comparison.treatment) and title(comparison.control)
