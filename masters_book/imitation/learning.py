"""Does a changed teacher teach better? Students learn by Eq. 5 from a whole, a masked or a softer teacher.

All arms read the same tokens from the same start. A student is judged by its divergence from the WHOLE
teacher on held-out tokens, whatever it learned from. With AdamW the length of a step hardly depends on the
gradient's norm, so the arm ``step length`` scales each update of the whole teacher to the length that the
progressive mask's had at that step.

The teacher's last hidden states are computed once per seed, stage and mask ratio, and stored as float16.

Departures from the paper: plain text in place of responses, and no rewards.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from masters.masking.teacher_mask import TeacherMask
from masters.objective.divergence import jsd
from masters.runtime.files import cache_dir, write_atomic
from masters.runtime.keys import key_of
from masters.runtime.progress import report
from masters_book.imitation import plan
from masters_book.imitation.distances import divergences, read_tensors, whole_teacher
from masters_book.imitation.models import (
    WARM_UP,
    heal,
    hidden_states,
    load_teacher,
    load_tokenizer,
    optimizer_of,
    pruned,
)
from masters_book.imitation.texts import HeldOut, sources, training_sequences, validation

SAVED_EVERY = 50  # steps
# First seeds of the training texts; those of healing begin at 0.
LEARNING_TEXTS, TRIAL_TEXTS = 1_000, 2_000


class Run(NamedTuple):
    """A run; a trial is short and measured on the validation texts."""

    start: str
    arm: str
    seed: int
    rate: float
    trial: bool = False

    @property
    def steps(self) -> int:
        """Return the number of training steps."""
        return plan.TRIED_STEPS if self.trial else plan.STEPS

    @property
    def looks(self) -> tuple[int, ...]:
        """Return the steps after which the student is measured; 0 is before the first."""
        return (self.steps,) if self.trial else (0, *plan.LOOKS)

    @property
    def key(self) -> str:
        """Return a hash of all that determines the run."""
        names = (
            "TEACHER LENGTH BATCH HEALING_RATE QUESTION_SHARE STAGES R_MAX PLACES TEXTS QUESTIONS VALIDATION"
        )
        values = {name: getattr(plan, name) for name in names.split()}
        start = plan.STARTS[self.start]
        of_run = [*self, self.steps, *self.looks, start.layers, start.healed]
        softer = plan.TEMPERATURES if self.arm == "temperature" else None
        healed = max(plan.HEALED)
        return key_of("imitation", run=of_run, longest=healed, texts=sources(), softer=softer, **values)


def ratio_of(arm: str, stage: int) -> float:
    """Return the teacher's mask ratio in a stage of an arm."""
    if arm == "constant":
        return plan.R_MAX
    if arm == "progressive":
        return round(plan.R_MAX * (plan.STAGES - 1 - stage) / (plan.STAGES - 1), 9)
    return 0.0


def temperature_of(stage: int, doses: pd.DataFrame) -> float:
    """Return the temperature at which the whole teacher has the dose of the progressive mask in a stage.

    Args:
        stage: number of the stage; the first is 0.
        doses: the table ``teachers.csv``.
    """
    means = doses[doses["kind"] == "all"].set_index(["way", "value"])["dose"]
    ratio = ratio_of("progressive", stage)
    if ratio == 0:
        return 1.0
    curve = means["temperature"].sort_index()
    return float(np.interp(means["magnitude", ratio], [0.0, *curve], [1.0, *curve.index]))


def learn(run: Run, doses: pd.DataFrame) -> pd.DataFrame:
    """Train a student and measure it along the way; resume from its last checkpoint.

    Args:
        run: the run.
        doses: the table ``teachers.csv``, for the arm ``temperature``.

    Returns:
        One row per look and held-out sequence: step, kind, sequence, ``jsd`` (to the whole teacher) and
        ``loss`` (of the next token), in nats per token. The run's checkpoint stays until :func:`forget`.
    """
    student, optimizer = _start(run)
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    lengths, measured = _restore(run, trained, optimizer)
    if 0 in run.looks and not measured:
        measured.append(_measure(student, run.trial))
    goal = _lengths_of(run._replace(arm="progressive"), doses) if run.arm == "step length" else None
    for batch, target in _batches(run, doses, len(lengths)):
        step = len(lengths) + 1
        for group in optimizer.param_groups:
            group["lr"] = run.rate * min(1.0, step / WARM_UP)
        lengths.append(_update(student, trained, optimizer, batch, target, goal[step - 1] if goal else None))
        if step in run.looks:
            measured.append(_measure(student, run.trial))
        if step % SAVED_EVERY == 0 and step < run.steps:
            _save(run, trained, optimizer, lengths, measured)
        report(f"{run.start} {run.arm} {run.seed}", step, run.steps)
    write_atomic(_lengths_path(run), to_bytes({"lengths": torch.tensor(lengths, dtype=torch.float64)}))
    kinds = _test_set(run.trial).kinds
    rows = [
        pd.DataFrame(
            {"step": step, "kind": kinds, "sequence": range(len(kinds)), "jsd": each[0], "loss": each[1]}
        )
        for step, each in zip(run.looks, measured, strict=True)
    ]
    return pd.concat(rows, ignore_index=True)


def _start(run: Run) -> tuple[Any, torch.optim.Optimizer]:
    """Return the healed student and a fresh optimizer."""
    start = plan.STARTS[run.start]
    model, tokenizer = load_teacher()
    student = pruned(model, start.layers)
    sequences = training_sequences(tokenizer, max(plan.HEALED) // plan.LENGTH, run.seed)
    heal(student, sequences[: start.healed // plan.LENGTH], optimizer_of(student, plan.HEALING_RATE))
    return student.train(), optimizer_of(student, run.rate)


def _update(
    student: Any,
    trained: list[Tensor],
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    target: Tensor,
    length: float | None,
) -> float:
    """Take one step; return the length of the update, the L2 norm over all trained weights.

    Args:
        student: the student.
        trained: its trained weights.
        optimizer: theirs.
        batch: ``(BATCH, LENGTH)`` token ids.
        target: the teacher's logits, ``(BATCH, LENGTH, vocabulary)``.
        length: scale the update to this length.
    """
    jsd(target, student(input_ids=batch).logits).mean().backward()
    before = [weight.detach().clone() for weight in trained]
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        moved = [weight.detach() - old for weight, old in zip(trained, before, strict=True)]
        norm = float(torch.stack([each.square().sum() for each in moved]).sum().sqrt())
        if length is None:
            return norm
        for weight, old, each in zip(trained, before, moved, strict=True):
            weight.copy_(old + each * (length / norm))
    return length


# --- targets --------------------------------------------------------------------------------------------


def _batches(run: Run, doses: pd.DataFrame, done: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids and the teacher's logits per step, from step ``done`` on."""
    model, _ = whole_teacher()
    per_stage = run.steps // plan.STAGES
    for stage in range(done // per_stage, plan.STAGES):
        first = stage * per_stage * plan.BATCH
        sequences = _texts(run.seed, run.steps, run.trial)[first : first + per_stage * plan.BATCH]
        states = _target(run, stage, sequences)
        temperature = temperature_of(stage, doses) if run.arm == "temperature" else 1.0
        for step in range(max(done - stage * per_stage, 0), per_stage):
            here = slice(step * plan.BATCH, (step + 1) * plan.BATCH)
            with torch.no_grad():
                logits = model.lm_head(states[here].float()) / temperature
            yield sequences[here], logits


@lru_cache(maxsize=1)
def _texts(seed: int, steps: int, trial: bool) -> Tensor:
    apart = TRIAL_TEXTS if trial else LEARNING_TEXTS
    return training_sequences(load_tokenizer(), steps * plan.BATCH, apart + seed)


def _target(run: Run, stage: int, sequences: Tensor) -> Tensor:
    """Return the teacher's last hidden states for a stage, ``(sequences, LENGTH, width)``, stored once."""
    ratio = ratio_of(run.arm, stage)
    names = ("TEACHER", "LENGTH", "BATCH", "QUESTION_SHARE", "STAGES")
    values = {name: getattr(plan, name) for name in names}
    key = key_of("imitation", target=[run.seed, run.steps, run.trial], texts=sources(), **values)
    path = folder() / f"target-{key}-{stage}-{ratio:g}.safetensors"
    if not path.is_file():
        model, _ = whole_teacher()
        with TeacherMask(model).apply(ratio), torch.inference_mode():
            batches = [model.model(input_ids=batch).last_hidden_state.half() for batch in sequences.split(10)]
        write_atomic(path, to_bytes({"states": torch.cat(batches)}))
    return read_tensors(path)["states"]


# --- evaluation -----------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _test_set(trial: bool) -> HeldOut:
    _, test = whole_teacher()
    return validation(load_tokenizer()) if trial else test


@lru_cache(maxsize=2)
def _whole_states(trial: bool) -> Tensor:
    return hidden_states(whole_teacher()[0], _test_set(trial))


@torch.no_grad()
def _measure(student: Any, trial: bool) -> Tensor:
    """Return JSD to the whole teacher and loss per held-out sequence, ``(2, sequences)``."""
    test, head = _test_set(trial), student.lm_head
    student.eval()
    states = hidden_states(student, test)
    student.train()
    found = []
    for own, teachers, tokens in zip(states, _whole_states(trial), test.next_tokens, strict=True):
        log_p, log_q = head(teachers).log_softmax(-1), head(own).log_softmax(-1)
        apart = divergences(log_p[:, None], log_q[:, None])[:, 0, 0, 0]
        found.append(torch.stack([apart.mean(), -log_q.gather(1, tokens[:, None]).mean()]))
    return torch.stack(found, 1)


# --- files ----------------------------------------------------------------------------------------------


def folder() -> Path:
    """Return the folder of targets, checkpoints and update lengths."""
    return cache_dir() / "imitation" / "learning"


def _lengths_path(run: Run) -> Path:
    return folder() / f"lengths-{run.key}.safetensors"


def _lengths_of(run: Run, doses: pd.DataFrame) -> list[float]:
    """Return the lengths of a run's updates; repeat the run if the cache has lost them."""
    if not _lengths_path(run).is_file():
        learn(run, doses)
        forget(run)
    return [float(length) for length in read_tensors(_lengths_path(run))["lengths"]]


def _checkpoint(run: Run) -> Path:
    return folder() / f"checkpoint-{run.key}.safetensors"


def _save(
    run: Run,
    trained: list[Tensor],
    optimizer: torch.optim.Optimizer,
    lengths: list[float],
    measured: list[Tensor],
) -> None:
    tensors = {"lengths": torch.tensor(lengths, dtype=torch.float64)}
    if measured:
        tensors["measured"] = torch.stack(measured)
    for number, weight in enumerate(trained):
        tensors[f"weight.{number}"] = weight.detach()
        for name in ("exp_avg", "exp_avg_sq"):
            tensors[f"{name}.{number}"] = optimizer.state[weight][name]
    write_atomic(_checkpoint(run), to_bytes(tensors))


@torch.no_grad()
def _restore(
    run: Run, trained: list[Tensor], optimizer: torch.optim.Optimizer
) -> tuple[list[float], list[Tensor]]:
    """Continue from the run's checkpoint, if any; return the update lengths and measurements so far."""
    if not _checkpoint(run).is_file():
        return [], []
    tensors = read_tensors(_checkpoint(run))
    lengths = [float(length) for length in tensors["lengths"]]
    for number, weight in enumerate(trained):
        weight.copy_(tensors[f"weight.{number}"])
        optimizer.state[weight] = {
            "step": torch.tensor(float(len(lengths))),
            "exp_avg": tensors[f"exp_avg.{number}"].clone(),
            "exp_avg_sq": tensors[f"exp_avg_sq.{number}"].clone(),
        }
    return lengths, list(tensors["measured"].unbind()) if "measured" in tensors else []


def forget(run: Run) -> None:
    """Delete the checkpoint of a run whose result is stored."""
    _checkpoint(run).unlink(missing_ok=True)
