"""The mask ratio during training: from a masked teacher to the whole one in equal steps (Eq. 3).

The student first learns from a simplified teacher, whose weights are then restored stage by stage. With
``M = r_max / step + 1`` stages, iteration i of I has the ratio ``r_max - step * floor(i * M / I)``.

Departures from the paper:
    * Iterations are counted from 0 to I - 1. Counted from 1 to I, as in the paper, the last iteration would
      fall into a stage M that does not exist, at ratio ``-step``.
    * The step must divide r_max, so that every schedule ends at the whole teacher. The paper does not cover
      other steps, for which M is not an integer.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class MaskSchedule:
    """Eq. 3: equal stages of falling mask ratio.

    Args:
        r_max: ratio of the first stage, in [0, 1). The paper's best is 0.2 for most teachers and 0.4 for
            some; 0 gives a single stage without a mask.
        step: decrease of the ratio from one stage to the next; 0.05 in the paper.

    Raises:
        ValueError: r_max is outside [0, 1); step is below 0.001, not finite, or does not divide r_max.
    """

    r_max: float
    step: float

    def __post_init__(self) -> None:
        if not 0 <= self.r_max < 1:
            raise ValueError(f"r_max is {self.r_max}: give a ratio in [0, 1), such as 0.2")
        if not 1e-3 <= self.step < math.inf:
            raise ValueError(f"the mask step is {self.step}: give one that divides r_max, such as 0.05")
        steps = self.r_max / self.step
        # In binary 0.3 / 0.1 is 2.9999999999999996: a value near an integer counts as that integer.
        if not math.isclose(steps, round(steps), rel_tol=1e-9):
            raise ValueError(
                f"a mask step of {self.step} does not divide r_max {self.r_max}: the schedule must end at 0"
            )

    @property
    def stages(self) -> int:
        """Return the number of stages, ``M = r_max / step + 1``."""
        return round(self.r_max / self.step) + 1

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return the ratio of each stage, down to exactly 0.0: (0.3, 0.2, 0.1, 0.0) for 0.3 and 0.1."""
        return tuple(self._ratio(stage) for stage in range(self.stages))

    def stage_at(self, iteration: int, iterations: int) -> int:
        """Return the stage of an iteration, ``floor(iteration * stages / iterations)``; both count from 0.

        With fewer iterations than stages some stages are skipped, including the last.

        Raises:
            ValueError: the iteration is not in 0 .. iterations - 1.
        """
        if not 0 <= iteration < iterations:
            raise ValueError(f"iteration {iteration} of {iterations} does not exist: they are counted from 0")
        return iteration * self.stages // iterations

    def ratio_at(self, iteration: int, iterations: int) -> float:
        """Return the mask ratio of an iteration, counted from 0.

        Raises:
            ValueError: the iteration is not in 0 .. iterations - 1.
        """
        return self._ratio(self.stage_at(iteration, iterations))

    def _ratio(self, stage: int) -> float:
        last = self.stages - 1
        # Rounded, so that a stage has 0.1 and not 0.09999999999999999.
        return 0.0 if stage == last else round(self.r_max * (last - stage) / last, 12)
