"""Stages that end when the student stops to gain: which stage a step learns from, decided while it trains.

The idea: :class:`masters.masking.schedule.PlateauSchedule` ends a stage after some measurements in a row
without gain. Here it meets a run. Every few steps the student's divergence from the teacher at the present
ratio is measured on questions that are held out of the training, and the following steps take the stage that
results. Each teacher has its equal share of the steps, as with equal stages, and begins at r_max.

Why not the mean of the training divergence, which costs nothing: its questions change from one window to the
next, and at the small gains that end a stage this is seen instead of the student. Held out are at most
``HELD_OUT`` questions and at most a tenth of the pool (one at least), spread evenly over it, at every seed
the same.

A measurement after step t decides from step t + 2 on: by then the examples of step t + 1 are read, as
accelerate reads a batch ahead. So the stage of a step follows from the decisions alone, whatever the loader
does. They are kept with every checkpoint, and a resumed run takes the same ones.

Departures from the paper:
    * All of it. The paper's stages are equally long (Eq. 3), as they are here by default; these are the
      arm ``plateau``.
    * A student that goes on gaining keeps its stage, so a run may end before it meets the untouched teacher.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from transformers import TrainerCallback

from masters.masking.schedule import PlateauSchedule, PlateauState
from masters.runtime import distributed
from masters.training.examples import Example, Stage

HELD_OUT = 32  # questions at most
PATIENCE = 2  # measurements without a gain that end a stage
MIN_IMPROVEMENT = 1e-3  # nats a token: what counts as a gain
MEASUREMENTS = 6  # in as many steps as an equal stage has
AHEAD = 2  # from a decision to the first step that can follow it
FILE = "plateau.json"  # in a checkpoint


def held_out(size: int) -> list[int]:
    """Places of the questions of a pool that a run measures on and does not train on.

    Raises:
        ValueError: the pool has a single question.
    """
    if size < 2:
        raise ValueError(f"the plateau schedule holds questions out, and the pool has {size}: give more")
    count = min(HELD_OUT, max(1, size // 10))
    return [size * i // count for i in range(count)]


class PlateauStages:
    """The stage of each step of a run, as far as it is decided.

    Args:
        r_max: as for :class:`masters.masking.schedule.MaskSchedule`.
        r_step: as for :class:`masters.masking.schedule.MaskSchedule`.
        bounds: the first step of each teacher, and the number of steps.
        examples: the held-out questions as examples of a stage.

    Raises:
        ValueError: :class:`masters.masking.schedule.MaskSchedule` refuses r_max or r_step.
    """

    def __init__(
        self, r_max: float, r_step: float, bounds: Sequence[int], examples: Callable[[Stage], list[Example]]
    ) -> None:
        self.bounds, self.examples = bounds, examples
        self.schedules = [
            PlateauSchedule(r_max, r_step, PATIENCE, MIN_IMPROVEMENT) for _ in range(len(bounds) - 1)
        ]
        self.ratios = self.schedules[0].ratios
        self.every = max(1, bounds[-1] // (len(self.schedules) * len(self.ratios) * MEASUREMENTS))
        self.measured: float | None = None
        # The first step of every stage that has begun or will, teachers whose time has not come included.
        self._begins: list[tuple[int, Stage]] = [
            (bound, (index, self.ratios[0])) for index, bound in enumerate(bounds[:-1])
        ]
        self._read = -1

    def stage_of(self, step: int) -> Stage:
        """The stage whose examples a step takes, from 0; later decisions do not change it."""
        self._read = max(self._read, step)
        return self._at(step)

    def due(self, step: int) -> Stage | None:
        """The stage whose divergence is to be measured after a step, None where nothing is."""
        following = step + 1
        if following % self.every or following >= self.bounds[-1]:
            return None
        teacher = self._at(following)[0]
        return teacher, self.schedules[teacher].ratio

    def update(self, step: int, divergence: float) -> None:
        """Take note of what was measured after a step for which it was due.

        Raises:
            ValueError: the divergence is no finite number.
            RuntimeError: the loader has read examples of a step whose stage changes now.
        """
        teacher, begin = self._at(step + 1)[0], step + AHEAD
        self.measured = float(divergence)
        schedule = self.schedules[teacher]
        if not schedule.update(divergence) or begin >= self.bounds[teacher + 1]:
            return
        if self._read >= begin:
            raise RuntimeError(
                f"a stage is to begin at step {begin}, and examples of step {self._read} are read already: "
                "the loader may read one batch ahead; take it without workers of its own"
            )
        self._begins = sorted([*self._begins, (begin, (teacher, schedule.ratio))])

    def logged(self, step: int) -> dict[str, float]:
        """What a log row after a step says: the number of its stage, from 0, and what was measured last."""
        teacher, ratio = self._at(step)
        row = {"stage": float(teacher * len(self.ratios) + self.ratios.index(ratio))}
        return row if self.measured is None else row | {"held_out_divergence": self.measured}

    def _at(self, step: int) -> Stage:
        return self._begins[bisect_right([begin for begin, _ in self._begins], step) - 1][1]

    def state_dict(self) -> "State":
        """What a resumed run needs; JSON can hold it."""
        return State(
            begins=list(self._begins),
            schedules=[schedule.state_dict() for schedule in self.schedules],
            measured=self.measured,
        )

    def load_state_dict(self, state: "State") -> None:
        """Go on from the state of a run with the same arguments."""
        self._begins = [(begin, (stage[0], stage[1])) for begin, stage in state["begins"]]
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.measured = state["measured"]
        self._read = -1

    def load(self, checkpoint: Path) -> None:
        """Go on from what :class:`Decider` left in a checkpoint."""
        self.load_state_dict(json.loads((checkpoint / FILE).read_text()))


class State(TypedDict):
    """What is decided, and what it was decided on."""

    begins: list[tuple[int, Stage]]
    schedules: list[PlateauState]
    measured: float | None


class Decider(TrainerCallback):
    """Measures when it is due, and keeps what was decided in every checkpoint.

    Args:
        stages: of the run.
        measure: the student's divergence from the teacher on some examples of one stage, nats a token.
    """

    def __init__(self, stages: PlateauStages, measure: Callable[[list[Example]], float]) -> None:
        self.stages, self.measure = stages, measure

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step - 1  # global_step is the number of those done
        if (stage := self.stages.due(step)) is not None:
            self.stages.update(step, self.measure(self.stages.examples(stage)))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if distributed.rank() == 0:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / FILE).write_text(json.dumps(self.stages.state_dict()))
