"""The answers of the notebooks: sentences follow from numbers, and say nothing that an interval does not."""

import math

import pandas as pd
import pytest

from masters_book.claims.claims import CLAIMS
from masters_book.claims.statistics import Interval
from masters_book.pages import answers

GAIN, NONE, LOSS = Interval(1.26, 0.4, 2.1), Interval(0.1, -0.5, 0.7), Interval(-1.0, -1.5, -0.5)


def test_box_links_the_claims_of_its_notebook() -> None:
    box = answers.answer_box("2_masking_ablations", [("What?", "a <b> & more")])
    assert '<a href="../verdicts.html#mind-c5"' in box and "mind-c1" not in box
    assert "<strong>What?</strong> a &lt;b&gt; &amp; more" in box and answers.RUN in box
    assert "No claim is tested here" in answers.answer_box("1_tasks_and_models", [])
    every = answers.answer_box(answers.JUDGING, [])
    assert all(f'#mind-{claim.id.lower()}"' in every for claim in CLAIMS)


def test_differences_have_intervals_where_there_are_some() -> None:
    assert answers.points(GAIN) == "+1.3 points (95 % interval +0.4 to +2.1)"
    assert answers.points(None) == "not measured"


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ([GAIN], "The interval lies above zero."),
        ([NONE], "The interval includes zero."),
        ([LOSS], "The interval lies below zero."),
        ([GAIN, NONE, LOSS, LOSS], "Of 4 intervals 1 lie above zero and 2 below it."),
        ([None], "No difference was measured."),
    ],
)
def test_what_is_established_follows_from_the_intervals(effects: list[answers.Found], words: str) -> None:
    assert answers.established({str(at): effect for at, effect in enumerate(effects)}) == words


def test_a_gap_is_claimed_only_if_its_interval_lies_above_zero() -> None:
    accuracy = {"base": 16.04, "large": 51.2}
    ((about, words),) = answers.of_models(Interval(35.2, 33.0, 37.4), accuracy, 12.5, 8.14)
    assert about == "Yes."
    assert words == (
        "The large teacher, with 8.1 times the student's weights, answers 51.2 % of the test questions and "
        "the student 16.0 %: a difference of +35.2 points (95 % interval +33.0 to +37.4). So there is "
        "something to distill. A lookup that sees no image answers 12.5 %."
    )
    assert answers.of_models(NONE, accuracy, 12.5, 8.14)[0][0] == "Not established."


def test_masks_are_judged_at_the_masked_ratio_nearest_to_training() -> None:
    rows = [("mid", 0.0, 0.0, 0.10), ("mid", 0.3, 0.01, 0.09), ("mid", 0.6, 0.2, 0.3)]
    rows += [("large", 0.0, 0.0, 0.2), ("large", 0.3, 0.02, 0.25), ("large", 0.6, 0.2, 0.3)]
    dose = pd.DataFrame(rows, columns=["model", "ratio", "from_whole", "to_student"])
    closer, gain = answers.of_masks(dose, 0.2, {"first mask ratio 0.2": NONE})
    assert closer[1] == (
        "1 of 2 teachers: at mask ratio 0.3 the mid teacher moves by 0.01 nats per token, and its divergence "
        "to the student, 0.1 nats, changes by -10 %; the large teacher moves by 0.02 nats per token, and its "
        "divergence to the student, 0.2 nats, changes by +25 %."
    )
    assert gain[1] == (
        "Greedy accuracy minus that of no mask. First mask ratio 0.2: +0.1 points (95 % interval -0.5 to "
        "+0.7). The interval includes zero."
    )


def test_three_topics_of_the_responses() -> None:
    assert "12,800 responses are stored with 141 bytes each; a second request returned the same" in (
        answers.of_cache(12_800, True, 141.4, 0)
    )
    assert "returned different responses" in answers.of_cache(1, False, 1, 2)
    assert answers.of_number(GAIN, 8, 2).startswith(
        "8 instead of 2 responses per question change the greedy accuracy by +1.3 points"
    )
    assert "8 student, 0 teacher responses: -1.0 points" in answers.of_sources(
        {"8 student, 0 teacher responses": LOSS}
    )
    assert "No other mix" in answers.of_sources({})
    costs = answers.of_costs(1.24, 9.87, 0.4, 15)
    assert "1.2 times an offline run" in costs and "9.9 times one" in costs and "estimates 15" in costs


def test_rewards_components_and_sizes() -> None:
    favor, help_ = answers.of_rewards({"correct": 0.12, "length": math.nan}, {"mask-progressive": LOSS})
    assert favor[1] == "It has a rank correlation of 0.12 with correctness."
    assert (
        "by -1.0 points (95 % interval -1.5 to -0.5) over mask-progressive. The interval lies below"
        in (help_[1])
    )
    whole, each = answers.of_components(GAIN, {("masked", "naive"): NONE, ("masters", "masked"): LOSS})
    assert whole[1].startswith("Training with Masters changes the student's greedy accuracy by +1.3 points")
    assert whole[1].endswith("The interval lies above zero.")
    assert each[1].startswith("Mask-progressive minus naive distillation, one label: +0.1 points")
    assert "Masters minus mask-progressive: -1.0 points" in each[1]
    match, time = answers.of_sizes({"masters": 18.24}, "masters", {"large teacher": LOSS}, 1.034)
    assert (
        "The best one, Masters, answers 18.2 % of the test questions: against the large teacher -1.0"
        in (match[1])
    )
    assert "1.03 times" in time[1]
