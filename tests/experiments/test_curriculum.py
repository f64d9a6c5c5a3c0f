"""Which question is seen when."""

import numpy as np

from masters.experiments.arms import RunSpec
from masters.experiments.curriculum import ResponseSet, curriculum, order
from masters.training.ladder import epochs

SIZE = 10


def spec(**changes: object) -> RunSpec:
    return RunSpec(**{"steps": 6, "batch": 4, "r_max": 0.2, "r_step": 0.1} | changes)


def test_the_order_is_one_epoch_after_another() -> None:
    assert np.array_equal(order(spec(), 3, SIZE), epochs(np.random.default_rng([3, 1]), SIZE, 24))


def test_the_seed_decides_the_order_and_nothing_else_does() -> None:
    assert np.array_equal(order(spec(), 1, SIZE), order(spec(), 1, SIZE))
    assert not np.array_equal(order(spec(), 1, SIZE), order(spec(), 2, SIZE))
    longer = order(spec(steps=9), 1, SIZE)  # a longer run begins with the same questions
    assert np.array_equal(longer[:24], order(spec(), 1, SIZE))


def test_an_example_has_its_stage_and_the_responses_of_both_models() -> None:
    run = spec(teacher_responses=1, student_responses=1)

    def part(who: int) -> ResponseSet:
        return ResponseSet(1, [[np.array([who, place])] for place in range(SIZE)])

    stages = {(0, ratio): [part(number), part(9)] for number, ratio in enumerate((0.2, 0.1, 0.0))}
    examples = curriculum(run, 0, [100 + place for place in range(SIZE)], stages)
    assert len(examples) == 24
    for position, place in enumerate(order(run, 0, SIZE)):
        example, stage = examples[position], position // 8
        assert (example.question, example.stage) == (100 + place, (0, (0.2, 0.1, 0.0)[stage]))
        assert [tokens.tolist() for tokens in example.responses] == [[stage, place], [9, place]]
