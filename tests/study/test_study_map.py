"""The map of effects: which arms form pairs, their difference with its interval, and the figure."""

import numpy as np
import pandas as pd
import pytest

from masters_book.claims.comparisons import paired_effect
from masters_book.claims.significance import minimum_detectable_effect
from masters_book.figures.study import effect_map
from masters_book.study.effects import AXES, COLUMNS, EFFECTS, measure_map

LADDER = pd.DataFrame({"model": ["student", "mid", "large"], "parameters": [50, 100, 300]})
QUESTIONS = 50
ACCURACY = {
    "naive_multi": 0.50,
    "masked": 0.52,
    "masters": 0.56,
    "r_max=0.0": 0.54,
    "masked+r_max=0.4": 0.48,
    "r_max=0.4": 0.50,
    "masked+student=mid": 0.60,
    "student=mid": 0.62,
    "masked+student=mid+learning_rate=1e-03": 0.58,
    "masters+learning_rate=1e-03": 0.54,
    "clipped": 0.9,
}


def predictions(seeds: int = 2, accuracy: dict[str, float] | None = None) -> pd.DataFrame:
    """Return answers whose first questions are correct, one question more with each seed."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "task": "charts",
            "question": question,
            "mode": "greedy",
            "correct": float(question < round(QUESTIONS * value) + seed),
            "tokens": 4,
        }
        for arm, value in (accuracy or ACCURACY).items()
        for seed in range(seeds)
        for question in range(QUESTIONS)
    ]
    return pd.DataFrame(rows)


def measured(answers: pd.DataFrame) -> pd.DataFrame:
    return measure_map(answers, LADDER, r_max=0.2, resamples=50)


def test_pairs_are_alike_but_for_the_part_that_is_switched_on() -> None:
    table = measured(predictions(1))
    points = table.set_index(["axis", "effect", "value"])["points"]
    assert dict(points.round(6)) == {
        ("gap", "rewards", 3.0): 2.0,
        ("gap", "rewards", 6.0): 4.0,
        ("r_max", "masking", 0.2): 2.0,
        ("r_max", "masking", 0.4): -2.0,
        ("r_max", "rewards", 0.0): 4.0,
        ("r_max", "rewards", 0.2): 4.0,
        ("r_max", "rewards", 0.4): 2.0,
        ("r_max", "masking under rewards", 0.2): 2.0,
        ("r_max", "masking under rewards", 0.4): -4.0,
    }
    order = {name: place for place, name in enumerate([*AXES, *EFFECTS])}
    places = [(order[axis], order[effect], value) for axis, effect, value in points.index]
    assert places == sorted(places)


def test_the_arms_of_a_place_have_the_names_of_their_runs() -> None:
    table = measured(predictions(1)).set_index(["axis", "effect", "value"])[["treatment", "control"]]
    assert tuple(table.loc[("r_max", "masking under rewards", 0.4)]) == ("r_max=0.4", "r_max=0.0")
    assert tuple(table.loc[("gap", "rewards", 3.0)]) == ("student=mid", "masked+student=mid")
    answers = predictions(1)
    same = answers.replace({"arm": {"r_max=0.0": "naive_rewards", "r_max=0.4": "masters+r_max=0.4"}})
    pd.testing.assert_series_equal(measured(same)["points"], measured(answers)["points"])


def test_an_effect_has_the_interval_of_its_pair_and_what_would_have_been_found() -> None:
    accuracy = {"masked": 0.6, "naive_multi": 0.5, "masked+r_max=0.4": 0.6}
    answers = predictions(3, accuracy)
    noise = np.random.default_rng(0).random(len(answers)) < 0.2
    answers["correct"] = answers["correct"].where(~noise, 1 - answers["correct"])
    row = measured(answers).set_index("value").loc[0.2]
    by_arm = dict(list(answers.groupby("arm")))
    found = paired_effect(by_arm["masked"], by_arm["naive_multi"], 50)
    assert found is not None and [row["points"], row["low"], row["high"]] == pytest.approx(found[0][:3])
    means = answers.groupby("arm")["correct"].mean()
    assert row["seeds"] == 3 and row["points"] == pytest.approx(
        100 * (means["masked"] - means["naive_multi"])
    )
    assert row["smallest"] == pytest.approx(minimum_detectable_effect(found[0]), rel=1e-3)


def test_one_place_is_no_axis() -> None:
    lone = {name: 0.5 for name in ("masters", "masked", "student=mid")}
    assert measured(predictions(1, lone)).empty
    pair = lone | {"masked+student=mid": 0.5, "naive_multi": 0.5}
    table = measured(predictions(1, pair))
    # Masking has one value on the axis of the gap, rewards have two.
    assert list(zip(table["axis"], table["effect"], table["value"], strict=True)) == [
        ("gap", "rewards", 3.0),
        ("gap", "rewards", 6.0),
    ]


def test_an_effect_is_of_the_seeds_that_both_arms_have() -> None:
    answers = predictions(3)
    lone = (answers["arm"] == "naive_multi") & (answers["seed"] == 2)
    table = measured(answers[~lone]).set_index(["axis", "effect", "value"])
    assert table.loc[("r_max", "masking", 0.2), "seeds"] == 2
    assert table.loc[("r_max", "rewards", 0.2), "seeds"] == 3
    never = answers[~((answers["arm"] == "naive_multi") ^ (answers["seed"] == 2))]
    assert not (measured(never)["control"] == "naive_multi").any(), "no seed has both arms"


def test_the_picture_has_a_panel_an_axis_and_a_line_an_effect() -> None:
    table = measured(predictions())
    figure = effect_map(table)
    assert [axis.get_xlabel() for axis in figure.axes] == list(AXES.values())
    ratios = figure.axes[1]
    handles, labels = ratios.get_legend_handles_labels()
    assert labels == list(EFFECTS)
    line, _, (bars,) = handles[labels.index("masking")].lines
    assert list(line.get_xdata()) == pytest.approx([0.2, 0.4], abs=0.01)
    assert list(line.get_ydata()) == pytest.approx([2.0, -2.0])
    rows = table[(table["axis"] == "r_max") & (table["effect"] == "masking")]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx(pair) for pair in zip(rows["low"], rows["high"], strict=True)]
    scales = dict(zip(AXES, (axis.get_xscale() for axis in figure.axes), strict=True))
    assert scales == {"gap": "log", "r_max": "linear"}


def test_nothing_to_draw_says_what_to_do() -> None:
    empty = measured(predictions()[:0])
    assert empty.empty and list(empty) == COLUMNS
    with pytest.raises(ValueError, match="run more of the study"):
        effect_map(empty)
