"""The worked example holds what training computes for its question."""

from collections.abc import Iterator

import pytest
import small
from labs import profile

from masters.experiments.arms import arm
from masters.experiments.lab import Lab
from masters.experiments.response_plan import ResponsePlan, prepare
from masters_book.analysis.example import Worked, worked_example
from masters_book.analysis.groups import rewarded_groups


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Worked]]:
    with small.scratch(tmp_path_factory.mktemp("example")):
        lab = Lab(profile())
        prepare(lab, ResponsePlan.of([arm("masters", lab.profile)], lab.pool))
        yield lab, worked_example(lab, rewarded_groups(lab))


def test_its_numbers_agree_with_each_other(made: tuple[Lab, Worked]) -> None:
    _, example = made
    assert len(example.answers) == 4 and example.picture
    for answer in example.answers:
        assert answer.divergence == pytest.approx(sum(answer.divergences) / len(answer.divergences), abs=1e-5)
        assert len(answer.words) == len(answer.divergences)
        assert answer.reward == pytest.approx(answer.correct + answer.reward_distillation)
    mean = sum(answer.divergence for answer in example.answers) / 4
    assert example.divergence == pytest.approx(mean, abs=1e-5), "as the loss of training has it"
    assert example.kl == pytest.approx(0, abs=1e-5) and example.policy == pytest.approx(0, abs=1e-4)
    assert example.loss == pytest.approx(mean, abs=1e-3)
    assert sum(answer.advantage for answer in example.answers) == pytest.approx(0, abs=1e-5)
    assert example.answers[example.best].advantage == max(answer.advantage for answer in example.answers)


def test_mask_removes_the_smallest_weights(made: tuple[Lab, Worked]) -> None:
    mask = made[1].mask
    assert mask.removed == int(0.2 * mask.weights) and sum(mask.histogram) == mask.weights
    for before, after in zip(mask.before, mask.after, strict=True):
        assert after == (before if abs(before) >= mask.threshold else 0)


def test_first_group_with_right_and_wrong_responses_is_shown(made: tuple[Lab, Worked]) -> None:
    lab, _ = made
    groups = rewarded_groups(lab)
    last = groups["question"].iloc[-1]
    groups.loc[:, "correct"] = 0.0
    groups.loc[groups.index[-1], "correct"] = 1.0
    row = lab.questions("train").position()[last]
    assert worked_example(lab, groups).label == lab.questions("train").table["answer"].iloc[row]
    with pytest.raises(ValueError, match="no group of responses"):
        worked_example(lab, groups.iloc[:0])
