"""The mask ratio over training: from a heavily masked teacher to the untouched one, in equal steps (Eq. 3).

The idea: a student first learns from a simplified teacher, which then gets its weights back stage by stage.
With ``M = r_max / step + 1`` stages, iteration i of I uses the ratio ``r_max - step * floor(i * M / I)``.

Departures from the paper:
    * Iterations are counted from 0 to I - 1. Counted from 1 to I, as the paper writes, the last iteration
      would fall into a stage M that does not exist and its ratio would be ``-step``.
    * The paper does not say what happens when the step does not divide r_max (M is then no integer); here it
      is refused, so that every schedule ends at the untouched teacher.
    * Beside the paper's equal stages there are stages that last until the student stops to gain; how a run
      decides about them stands in :mod:`masters.training.plateau`.
"""

import math
from dataclasses import dataclass
from typing import TypedDict


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


class PlateauState(TypedDict):
    """Where a plateau schedule is: its stage, the least divergence in it, the updates since."""

    stage: int
    least: float | None
    waited: int


class PlateauSchedule:
    """A stage lasts as long as the student still comes nearer to the masked teacher of that stage.

    Not in the paper, whose stages are equally long (Eq. 3); the ratios are the same. After ``patience``
    updates in a row that did not bring the divergence below its least value in this stage by more than
    ``min_improvement``, the next stage begins. There only its own divergences count: with more weights the
    teacher is further away.

    The caller (:mod:`masters.training.plateau`) trains at :attr:`ratio`; now and then it measures the
    divergence at that ratio on held-out questions, gives it to :meth:`update`, and goes on at another if that
    returns True. To resume a run it saves :meth:`state_dict` with the student. The stages depend on the
    training, so the responses of every ratio must be at hand before.

    Args:
        r_max: as for :class:`MaskSchedule`.
        step: as for :class:`MaskSchedule`.
        patience: how many updates without improvement end a stage, at least 1.
        min_improvement: by how much the divergence must fall to count, in its unit (nats), at least 0.

    Raises:
        ValueError: :class:`MaskSchedule` refuses r_max or step; patience or min_improvement is out of range.
    """

    def __init__(self, r_max: float, step: float, patience: int, min_improvement: float) -> None:
        self.ratios = MaskSchedule(r_max, step).ratios
        if patience < 1:
            raise ValueError(f"patience is {patience}: give a number of updates, at least 1")
        if not 0 <= min_improvement < math.inf:
            raise ValueError(f"min_improvement is {min_improvement}: give a number of nats, at least 0")
        self.patience, self.min_improvement = patience, min_improvement
        self._stage, self._waited = 0, 0
        self._least: float | None = None

    @property
    def ratio(self) -> float:
        """The ratio to mask at now; 0.0 in the last stage, which does not end."""
        return self.ratios[self._stage]

    def update(self, divergence: float) -> bool:
        """Take note of the student's divergence from the teacher at the present ratio.

        Returns:
            Whether the next stage begins, with another ratio.

        Raises:
            ValueError: the divergence is no finite number.
        """
        if not math.isfinite(divergence):
            raise ValueError(f"the divergence is {divergence}: has the training diverged?")
        if self._least is None or divergence < self._least - self.min_improvement:
            self._least, self._waited = float(divergence), 0
            return False
        self._waited += 1
        if self._waited < self.patience or self._stage == len(self.ratios) - 1:
            return False
        self._stage, self._least, self._waited = self._stage + 1, None, 0
        return True

    def state_dict(self) -> PlateauState:
        """What a resumed run needs; JSON can hold it."""
        return PlateauState(stage=self._stage, least=self._least, waited=self._waited)

    def load_state_dict(self, state: PlateauState) -> None:
        """Go on from the state of a schedule with the same arguments.

        Raises:
            ValueError: this schedule has no such stage.
        """
        if not 0 <= state["stage"] < len(self.ratios):
            raise ValueError(
                f"there is no stage {state['stage']} of {len(self.ratios)}: the state is of another schedule"
            )
        self._stage, self._least, self._waited = state["stage"], state["least"], state["waited"]
