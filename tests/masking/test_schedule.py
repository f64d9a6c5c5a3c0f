import math
from fractions import Fraction

import numpy as np
import pytest

from masters.masking.schedule import MaskSchedule, PlateauSchedule


@pytest.mark.parametrize(
    ("r_max", "step", "ratios"),
    [
        (0.3, 0.1, (0.3, 0.2, 0.1, 0.0)),
        (0.2, 0.05, (0.2, 0.15, 0.1, 0.05, 0.0)),
        (0.4, 0.4, (0.4, 0.0)),
        (0.0, 0.05, (0.0,)),
    ],
)
def test_ratios_are_clean_decimals_down_to_zero(r_max: float, step: float, ratios: tuple[float, ...]) -> None:
    schedule = MaskSchedule(r_max, step)
    assert schedule.ratios == ratios
    assert schedule.stages == len(ratios)
    assert math.copysign(1, schedule.ratios[-1]) == 1  # 0.0, not -0.0


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 7, 10])
def test_every_grid_that_divides_is_accepted(parts: int) -> None:
    for hundredths in range(1, 100):
        r_max = hundredths / 100
        ratios = MaskSchedule(r_max, r_max / parts).ratios
        assert len(ratios) == parts + 1
        assert ratios[0] == r_max
        assert ratios[-1] == 0.0
        exact = [Fraction(hundredths, 100) * (parts - i) / parts for i in range(parts + 1)]
        assert ratios == pytest.approx([float(x) for x in exact], abs=1e-12)


@pytest.mark.parametrize(("r_max", "step"), [(0.2, 0.05), (0.4, 0.05), (0.3, 0.1), (0.0, 0.1), (0.6, 0.6)])
@pytest.mark.parametrize("iterations", [7, 100, 401])
def test_ratio_at_is_equation_3_in_exact_arithmetic(r_max: float, step: float, iterations: int) -> None:
    schedule = MaskSchedule(r_max, step)
    r, s = Fraction(str(r_max)), Fraction(str(step))
    stages = r / s + 1
    for i in range(iterations):
        expected = r - s * math.floor(i * stages / iterations)
        assert schedule.ratio_at(i, iterations) == pytest.approx(float(expected), abs=1e-12)
        assert schedule.ratios[schedule.stage_at(i, iterations)] == schedule.ratio_at(i, iterations)


def test_stages_are_equally_long_and_the_last_iteration_is_unmasked() -> None:
    schedule = MaskSchedule(0.3, 0.1)
    seen = [schedule.ratio_at(i, 400) for i in range(400)]
    assert [seen.count(ratio) for ratio in schedule.ratios] == [100] * 4
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0.0


@pytest.mark.parametrize(
    ("r_max", "step"),
    [
        (1.5, 0.1), (1.0, 0.1), (-0.1, 0.1), (math.nan, 0.1),
        (0.3, 0.0), (0.3, -0.1), (0.3, math.nan), (0.3, math.inf), (0.3, 1e-300),
        (0.3, 0.2), (0.1, 0.2), (0.2, 0.03),
    ],
)  # fmt: skip
def test_bad_schedules_are_refused_in_one_line(r_max: float, step: float) -> None:
    with pytest.raises(ValueError, match=r"r_max|step") as error:
        MaskSchedule(r_max, step)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("iteration", "iterations"), [(-1, 10), (10, 10), (0, 0)])
def test_iterations_outside_the_run_are_refused(iteration: int, iterations: int) -> None:
    with pytest.raises(ValueError, match="iteration"):
        MaskSchedule(0.2, 0.1).ratio_at(iteration, iterations)


def test_a_schedule_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        MaskSchedule(0.2, 0.1).r_max = 0.3  # type: ignore[misc]


def test_a_stage_ends_when_the_divergence_no_longer_falls() -> None:
    schedule = PlateauSchedule(0.2, 0.1, patience=2, min_improvement=0.01)
    assert schedule.ratios == MaskSchedule(0.2, 0.1).ratios and schedule.ratio == 0.2
    assert not any([schedule.update(value) for value in (0.5, 0.4, 0.395, 0.38)])  # 0.38 improves again
    assert [schedule.update(value) for value in (0.38, 0.375)] == [False, True]
    assert schedule.ratio == 0.1
    # The whole teacher is further away, so each stage has its own smallest divergence.
    assert [schedule.update(value) for value in (0.6, 0.55, 0.56, 0.57)] == [False, False, False, True]
    assert schedule.ratio == 0.0
    assert not any(schedule.update(0.7) for _ in range(10)) and schedule.ratio == 0.0


@pytest.mark.parametrize(("patience", "min_improvement"), [(1, 0.0), (3, 0.02), (5, 0.1)])
def test_plateaus_against_a_search_over_the_whole_history(patience: int, min_improvement: float) -> None:
    divergences = np.random.default_rng(0).random(200).tolist()
    schedule = PlateauSchedule(0.4, 0.05, patience, min_improvement)
    stage, start = 0, 0
    for now in range(len(divergences)):
        schedule.update(divergences[now])
        gains = [start]  # the updates of this stage that improved
        for i in range(start + 1, now + 1):
            if divergences[i] < divergences[gains[-1]] - min_improvement:
                gains.append(i)
        if now - gains[-1] >= patience and stage < 8:
            stage, start = stage + 1, now + 1
        assert schedule.ratio == MaskSchedule(0.4, 0.05).ratios[stage]
    assert stage == 8


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0.3, 0.2, 1, 0.0), "step"),
        ((1.5, 0.1, 1, 0.0), "r_max"),
    ],
)
def test_bad_plateau_schedules_are_refused(arguments: tuple[float, float, int, float], named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        PlateauSchedule(*arguments)
    assert "\n" not in str(error.value)


def test_a_divergence_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="nan"):
        PlateauSchedule(0.2, 0.1, 1, 0.0).update(math.nan)
