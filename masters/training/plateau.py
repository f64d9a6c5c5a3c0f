"""Stages that end when the student stops improving, decided during training.

:class:`masters.masking.schedule.PlateauSchedule` ends a stage after several measurements in a row without
improvement. Every few steps the student's divergence from the teacher at the current ratio is measured on
questions held out of the training, and decides the stage of the following steps. Each teacher has an equal
share of the steps and begins at r_max.

The mean of the training divergence costs nothing, but its questions change from one window to the next, which
hides improvements as small as those that end a stage. Held out are at most ``HELD_OUT`` questions and at most
a tenth of the pool (at least one), evenly spaced, the same for every seed.

A measurement after step t decides from step t + 2 on, since accelerate has already read the examples of step
t + 1. So the stages follow from the measurements alone. They are stored with every checkpoint, and a resumed
run begins by repeating them.

Departures from the paper:
    * All of it, off by default (arm ``plateau``). The paper's stages are equally long (Eq. 3).
    * A student that keeps improving keeps its stage, so a run may end before the unmasked teacher.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from masters.masking.schedule import PlateauSchedule
from masters.runtime import distributed
from masters.training.examples import Example, Stage

HELD_OUT = 32  # questions at most
PATIENCE = 2  # measurements without improvement that end a stage
MIN_IMPROVEMENT = 1e-3  # nats per token
MEASUREMENTS = 6  # per number of steps of an equal stage
AHEAD = 2  # from a decision to the first step that can follow it
FILE = "measured.json"  # in a checkpoint


def held_out(size: int) -> list[int]:
    """Return the places in a pool of the questions that a run measures on and does not train on.

    Raises:
        ValueError: the pool has a single question.
    """
    if size < 2:
        raise ValueError(f"the plateau schedule holds questions out, and the pool has {size}: give more")
    count = min(HELD_OUT, max(1, size // 10))
    return [size * i // count for i in range(count)]


class PlateauStages:
    """The stages of a run, as far as they are decided.

    Args:
        bounds: the first step of each teacher, then the number of steps.
        examples: returns the held-out questions as examples of a stage.

    Raises:
        ValueError: r_max or r_step is out of range.
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
        self.measured: list[tuple[int, float]] = []  # steps, and the divergence after each
        # The first step and the stage of all decisions so far, and of all teachers.
        self._begins: list[tuple[int, Stage]] = [
            (bound, (index, self.ratios[0])) for index, bound in enumerate(bounds[:-1])
        ]
        self._read = -1

    def stage_of(self, step: int) -> Stage:
        """Return the stage of a step, counted from 0; later decisions do not change it."""
        self._read = max(self._read, step)
        return self._at(step)

    def due(self, step: int) -> Stage | None:
        """Return the stage to measure after a step, or None."""
        following = step + 1
        if following % self.every or following >= self.bounds[-1]:
            return None
        teacher = self._at(following)[0]
        return teacher, self.schedules[teacher].ratio

    def update(self, step: int, divergence: float) -> None:
        """Record the divergence measured after a step at which it was due.

        Raises:
            ValueError: the divergence is not finite.
            RuntimeError: the loader has already read examples of a step whose stage changes now.
        """
        teacher, begin = self._at(step + 1)[0], step + AHEAD
        self.measured.append((step, float(divergence)))
        schedule = self.schedules[teacher]
        if not schedule.update(divergence) or begin >= self.bounds[teacher + 1]:
            return
        if self._read >= begin:
            raise RuntimeError(
                f"a stage begins at step {begin}, but the loader has already read examples of step "
                f"{self._read}: it may read one batch ahead, so set dataloader_num_workers to 0"
            )
        self._begins = sorted([*self._begins, (begin, (teacher, schedule.ratio))])

    def logged(self, step: int) -> dict[str, float]:
        """Return the log row of a step: the number of its stage, from 0, and the last measurement."""
        teacher, ratio = self._at(step)
        row = {"stage": float(teacher * len(self.ratios) + self.ratios.index(ratio))}
        return row | {"held_out_divergence": self.measured[-1][1]} if self.measured else row

    def _at(self, step: int) -> Stage:
        return self._begins[bisect_right([begin for begin, _ in self._begins], step) - 1][1]

    def save(self, checkpoint: Path) -> None:
        """Store the measurements in a checkpoint."""
        (checkpoint / FILE).write_text(json.dumps(self.measured))

    def load(self, checkpoint: Path) -> None:
        """Repeat the measurements that a run with the same arguments stored, before any example is read."""
        path = checkpoint / FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing: delete {checkpoint.parent}, and the run starts again")
        for step, divergence in json.loads(path.read_text()):
            self.update(step, divergence)


class Decider(TrainerCallback):
    """Measures when it is due, and stores the measurements in every checkpoint.

    Args:
        measure: returns the student's divergence from the teacher on examples of one stage, nats per token.
    """

    def __init__(self, stages: PlateauStages, measure: Callable[[list[Example]], float]) -> None:
        self.stages, self.measure = stages, measure

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step - 1  # global_step counts finished steps
        if (stage := self.stages.due(step)) is not None:
            self.stages.update(step, self.measure(self.stages.examples(stage)))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if distributed.rank() == 0:
            self.stages.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")
