"""The mask ratio over training: from a heavily masked teacher to the untouched one, in equal steps (Eq. 3).

The idea: a student first learns from a simplified teacher, which then gets its weights back stage by stage.
With ``M = r_max / step + 1`` stages, iteration i of I uses the ratio ``r_max - step * floor(i * M / I)``.

Departures from the paper:
    * Iterations are counted from 0 to I - 1. Counted from 1 to I, as the paper writes, the last iteration
      would fall into a stage M that does not exist and its ratio would be ``-step``.
    * The paper does not say what happens when the step does not divide r_max (M is then no integer); here it
      is refused, so that every schedule ends at the untouched teacher.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class MaskSchedule:
    """Eq. 3: equal stages of falling mask ratio.

    Args:
        r_max: the ratio of the first stage, in [0, 1); the paper's best is 0.2 for most teachers, 0.4 for
            some. 0 is a teacher that is never masked: one stage.
        step: by how much the ratio falls from one stage to the next; the paper's is 0.05.

    Raises:
        ValueError: r_max is outside [0, 1), step is below 1e-6 or no number, or step does not divide r_max.
    """

    r_max: float
    step: float

    def __post_init__(self) -> None:
        if not 0 <= self.r_max < 1:
            raise ValueError(f"r_max is {self.r_max}: give a ratio in [0, 1), such as 0.2")
        if not 1e-6 <= self.step < math.inf:
            raise ValueError(f"the mask step is {self.step}: give one that divides r_max, such as 0.05")
        steps = self.r_max / self.step
        # 0.3 / 0.1 is 2.9999999999999996 in binary: near an integer is meant as that integer.
        if not math.isclose(steps, round(steps), rel_tol=1e-9):
            raise ValueError(
                f"a mask step of {self.step} does not divide r_max {self.r_max}: it would not end at 0"
            )

    @property
    def stages(self) -> int:
        """The number of stages, ``M = r_max / step + 1``."""
        return round(self.r_max / self.step) + 1

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratio of each stage, descending to exactly 0.0; (0.3, 0.2, 0.1, 0.0) for 0.3 and 0.1."""
        return tuple(self._ratio(stage) for stage in range(self.stages))

    def stage_at(self, iteration: int, iterations: int) -> int:
        """The stage, from 0, of an iteration counted from 0: ``floor(iteration * stages / iterations)``.

        With fewer iterations than stages some stages are left out, the last ones among them.

        Raises:
            ValueError: the iteration is not in 0 .. iterations - 1.
        """
        if not 0 <= iteration < iterations:
            raise ValueError(f"iteration {iteration} of {iterations} does not exist: they are counted from 0")
        return iteration * self.stages // iterations

    def ratio_at(self, iteration: int, iterations: int) -> float:
        """The mask ratio of an iteration counted from 0; the paper counts from 1, see the top of the module.

        Raises:
            ValueError: the iteration is not in 0 .. iterations - 1.
        """
        return self._ratio(self.stage_at(iteration, iterations))

    def _ratio(self, stage: int) -> float:
        # Rounding cleans the ratios in between: 0.1, not 0.09999999999999999.
        last = self.stages - 1
        return 0.0 if stage == last else round(self.r_max * (last - stage) / last, 12)
