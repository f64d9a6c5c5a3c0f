"""The map of effects and the sweep: which arms are pairs, their difference, and what the pictures hold."""

import pandas as pd
import pytest

from masters.study_figures import AXES, effect_map, effects, sweep

LADDER = pd.DataFrame(
    {"model": ["tiny", "student", "mid", "large", "huge"], "parameters": [10, 50, 100, 300, 600]}
)
ACCURACY = {
    "naive_multi": 0.50,
    "masked": 0.52,
    "masters": 0.51,
    "masked+r_max=0.4": 0.49,
    "r_max=0.4": 0.50,
    "naive_multi+student=tiny": 0.20,
    "masked+student=tiny": 0.21,
    "naive_multi+student=tiny+teachers=huge": 0.21,
    "masked+student=tiny+teachers=huge": 0.24,
    "masked+student=mid": 0.60,
    "masters+student=mid": 0.62,
    "masked+learning_rate=1e-04": 0.55,
    "masters+learning_rate=1e-04": 0.45,
    "masked+learning_rate=1e-03": 0.50,
    "masters+learning_rate=1e-03": 0.54,
    "masters+steps=1200": 0.56,
    "masked+steps=1200": 0.51,
    "label_noise=0.2": 0.48,
    "masters+teacher_temperature=2": 0.53,
    "masked+teacher_temperature=2": 0.50,
    "masked+teacher_temperature=0.5": 0.46,
    "naive_multi+teacher_temperature=0.5": 0.45,
    "clipped": 0.9,
}


def runs(replicates: int = 2) -> pd.DataFrame:
    rows = [
        {"arm": arm, "replicate": replicate, "accuracy": value + 0.01 * replicate}
        for arm, value in ACCURACY.items()
        for replicate in range(replicates)
    ]
    return pd.DataFrame(rows)


def test_pairs_are_alike_but_for_the_part_that_is_switched_on() -> None:
    table = effects(runs(1), LADDER, r_max=0.2, steps=300).set_index(["axis", "value", "effect"])["points"]
    assert dict(table.round(6)) == {
        ("gap", 6.0, "masking"): 2.0,
        ("gap", 30.0, "masking"): 1.0,
        ("gap", 60.0, "masking"): 3.0,
        ("r_max", 0.2, "masking"): 2.0,
        ("r_max", 0.4, "masking"): -1.0,
        ("gap", 3.0, "rewards"): 2.0,
        ("gap", 6.0, "rewards"): -1.0,
        ("r_max", 0.2, "rewards"): -1.0,
        ("r_max", 0.4, "rewards"): 1.0,
        ("learning_rate", 1e-4, "rewards"): -10.0,
        ("learning_rate", 1e-3, "rewards"): 4.0,
        ("steps", 300.0, "rewards"): -1.0,
        ("steps", 1200.0, "rewards"): 5.0,
        ("label_noise", 0.0, "rewards"): -1.0,
        ("label_noise", 0.2, "rewards"): -4.0,
        ("teacher_temperature", 0.5, "masking"): 1.0,
        ("teacher_temperature", 1.0, "masking"): 2.0,
        ("teacher_temperature", 1.0, "rewards"): -1.0,
        ("teacher_temperature", 2.0, "rewards"): 3.0,
    }


def test_one_place_is_no_axis() -> None:
    lone = ["masters", "masked", "masters+steps=1200"]
    assert effects(runs(1)[lambda table: table["arm"].isin(lone)], LADDER, r_max=0.2, steps=300).empty
    pair = [*lone, "masked+steps=1200", "naive_multi"]
    table = effects(runs(1)[lambda table: table["arm"].isin(pair)], LADDER, r_max=0.2, steps=300)
    # Of masking there is one place of the steps, of rewards there are two.
    assert list(zip(table["axis"], table["effect"], table["value"], strict=True)) == [
        ("steps", "rewards", 300.0),
        ("steps", "rewards", 1200.0),
    ]


def test_an_effect_is_taken_within_a_replicate() -> None:
    table = runs(3)
    lone = (table["arm"] == "naive_multi") & (table["replicate"] == 2)
    found = effects(table[~lone], LADDER, r_max=0.2, steps=300)
    masking = found[(found["effect"] == "masking") & (found["axis"] == "r_max") & (found["value"] == 0.2)]
    assert list(masking["replicate"]) == [0, 1] and masking["points"].tolist() == pytest.approx([2.0, 2.0])
    assert set(found["axis"]) == set(AXES)


def test_the_picture_has_a_panel_an_axis_and_a_line_an_effect() -> None:
    figure = effect_map(effects(runs(), LADDER, r_max=0.2, steps=300))
    assert [axis.get_xlabel() for axis in figure.axes] == list(AXES.values())
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["masking", "rewards"]
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    assert list(lines["masking"].get_xdata()) == [0.2, 0.4]
    assert list(lines["masking"].get_ydata()) == pytest.approx([2.0, -1.0])
    scales = dict(zip(AXES, (axis.get_xscale() for axis in figure.axes), strict=True))
    assert {axis for axis, scale in scales.items() if scale == "linear"} == {"r_max", "label_noise"}


def test_nothing_to_draw_says_what_to_do() -> None:
    empty = effects(runs()[:0], LADDER, r_max=0.2, steps=300)
    assert empty.empty
    with pytest.raises(ValueError, match="run more of the study"):
        effect_map(empty)


def test_the_sweep_has_a_line_a_form() -> None:
    rows = [
        {"arm": f"{form}+learning_rate={rate}", "accuracy": 0.5, "tokens": 7.0, "kl": value}
        for form in ("masters", "clipped", "naive", "masked", "accuracy_only")
        for rate, value in (("1e-06", 0.001), ("1e-03", 2.0))
    ]
    figure = sweep(pd.DataFrame([*rows, {"arm": "base", "accuracy": 0.4, "tokens": 5.0, "kl": float("nan")}]))
    accuracy, tokens, kl = figure.axes
    lines = {line.get_label(): line for line in kl.lines}
    assert list(lines["clipped ratio"].get_xdata()) == [1e-6, 1e-3]
    assert list(lines["clipped ratio"].get_ydata()) == [0.001, 2.0]
    assert len(tokens.lines) == 10 and list(accuracy.lines[1].get_ydata()) == [50.0, 50.0]
    with pytest.raises(ValueError, match="no arm at several learning rates"):
        sweep(pd.DataFrame([{"arm": "base", "accuracy": 0.4, "tokens": 5.0, "kl": 0.0}]))
