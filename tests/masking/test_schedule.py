import math
from fractions import Fraction

import pytest

from masters.masking.schedule import MaskSchedule


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
