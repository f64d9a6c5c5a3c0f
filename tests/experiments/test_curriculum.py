"""Which question is seen when: the plain order, and the one in which hard questions come back."""

import numpy as np
import pytest

from masters.experiments.arms import RunSpec
from masters.experiments.curriculum import ResponseSet, curriculum, order
from masters.training.ladder import epochs
from masters_book.analysis.trained_with import learning_rate_shares

SIZE = 10
ACCURACY = np.array([1, 1, 1, 1, 0.75, 0.75, 0.5, 0.5, 0, 0])


def spec(**changes: object) -> RunSpec:
    return RunSpec(**{"steps": 6, "batch": 4, "r_max": 0.2, "r_step": 0.1, "replay": True} | changes)


def batches(run: RunSpec, seed: int = 0, accuracy: np.ndarray | None = ACCURACY) -> np.ndarray:
    return order(run, seed, SIZE, accuracy).reshape(run.steps, run.batch)


def test_a_falling_rate_leaves_little_for_the_last_stage_and_a_constant_one_shares_equally() -> None:
    run = RunSpec(steps=1000, batch=1, r_max=0.2, r_step=0.05, teachers=("mid", "large"))
    assert list(learning_rate_shares(run).values()) == pytest.approx([0.1] * 10)
    falling = RunSpec(steps=1000, batch=1, r_max=0.2, r_step=0.1, lr_schedule="linear")

    # By hand: the area below a line that falls from step 20 on, over thirds of the steps.
    def area(a: float, b: float) -> float:
        return ((1000 - a) ** 2 - (1000 - b) ** 2) / (2 * 980)

    areas = [10 + area(20, 1000 / 3), area(1000 / 3, 2000 / 3), area(2000 / 3, 1000)]
    expected = [each / sum(areas) for each in areas]
    assert list(learning_rate_shares(falling).values()) == pytest.approx(expected, abs=0.002)


def test_without_replay_the_order_is_one_epoch_after_another() -> None:
    expected = epochs(np.random.default_rng([3, 1]), SIZE, 24)
    assert np.array_equal(order(spec(replay=False), 3, SIZE), expected)


@pytest.mark.parametrize(("batch", "hard"), [(2, 1), (4, 2), (5, 2)])
def test_half_of_each_batch_comes_from_the_plain_order(batch: int, hard: int) -> None:
    run = spec(batch=batch)
    plain = order(spec(batch=batch, replay=False), 0, SIZE)
    found = batches(run)
    assert found.shape == (6, batch) and found.min() >= 0 and found.max() < SIZE
    assert np.array_equal(found[:, : batch - hard].ravel(), plain[: 6 * (batch - hard)])
    assert (ACCURACY[found[:, batch - hard :]] < 1).all()  # what is never wrong is not replayed


def test_hard_questions_are_drawn_in_proportion_to_how_often_the_student_fails() -> None:
    drawn = batches(spec(steps=10_000, batch=2))[:, 1]
    shares = np.bincount(drawn, minlength=SIZE) / len(drawn)
    expected = (1 - ACCURACY) / (1 - ACCURACY).sum()
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / len(drawn))
    assert (shares[:4] == 0).all()


def test_a_student_that_is_always_right_finds_everything_alike() -> None:
    drawn = batches(spec(steps=10_000, batch=2), accuracy=np.ones(SIZE))[:, 1]
    shares = np.bincount(drawn, minlength=SIZE) / len(drawn)
    assert np.abs(shares - 1 / SIZE).max() < 4 * np.sqrt(0.09 / len(drawn))


def test_the_seed_decides_the_order_and_nothing_else_does() -> None:
    run = spec()
    assert np.array_equal(batches(run, 1), batches(run, 1))
    assert not np.array_equal(batches(run, 1)[:, 2:], batches(run, 2)[:, 2:])
    longer = batches(spec(steps=9), 1)  # whoever goes on sees the same again
    assert np.array_equal(longer[:6], batches(run, 1))


def test_without_accuracy_there_is_nothing_to_replay() -> None:
    with pytest.raises(ValueError, match="needs the accuracy of the student's responses"):
        batches(spec(), accuracy=None)


def test_what_is_hard_is_what_the_base_student_failed_not_the_teacher() -> None:
    run = spec(teacher_responses=2, student_responses=2)

    def part(accuracy: np.ndarray) -> ResponseSet:
        tokens = [[np.array([place]), np.array([place])] for place in range(SIZE)]
        return ResponseSet(2, tokens, accuracy=accuracy.astype(np.float32))

    teacher, failed = np.zeros((SIZE, 2)), np.ones((SIZE, 2))
    failed[[2, 7], 1] = 0
    stages = {(0, ratio): [part(teacher), part(failed)] for ratio in (0.2, 0.1, 0.0)}
    pool = [100 + place for place in range(SIZE)]
    examples, _ = curriculum(run, 0, pool, stages)
    asked = np.array([examples[position].question for position in range(len(examples))]).reshape(6, 4)
    assert len(examples) == 24 and set(asked[:, 2:].ravel()) == {102, 107}
    assert np.array_equal(asked.ravel() - 100, order(run, 0, SIZE, failed.mean(1)))
