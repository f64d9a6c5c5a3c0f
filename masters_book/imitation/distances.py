"""Divergence between students and changed teachers, and the dose of each change.

Models are compared at the judged places of held-out texts over the whole vocabulary. All share the teacher's
head, so a model is stored as its last hidden states at these places.

With p the teacher, q the student and m their mean:

* JSD = sum(p log p + q log q) / 2 - sum(m log m), Eq. 5;
* forward KL = sum(p log p) - sum(p log q), reverse KL = sum(q log q) - sum(q log p).

The cross terms of all pairs at one place are one matrix product.

Departures from the paper: it reports no divergences, so all of this is an addition.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from masters.masking.criteria import Activation, Criterion, Magnitude, Random, input_norms
from masters.masking.teacher_mask import TeacherMask
from masters.runtime.files import cache_dir, write_atomic
from masters.runtime.keys import key_of
from masters.runtime.workers import Job
from masters_book.imitation import plan
from masters_book.imitation.models import heal, hidden_states, load_teacher, optimizer_of, pruned, steps_of
from masters_book.imitation.texts import HeldOut, held_out, sources, training_sequences

AT_ONCE = 8  # places whose distributions are in memory
TEACHER_WAYS = ("whole", "magnitude", "activation", "random", "temperature")
DIVERGENCES = ("jsd", "forward_kl", "reverse_kl")


class Teacher(NamedTuple):
    """A teacher: how it is changed, and by how much (a mask ratio, or a temperature)."""

    way: str
    value: float


class Student(NamedTuple):
    """A student: its layers, its training tokens after pruning, and the order of its training texts."""

    layers: int
    healed: int
    draw: int


WHOLE = Teacher("whole", 0.0)


def masked_teachers() -> list[Teacher]:
    """Return the whole teacher and all masked ones."""
    ratios = {"magnitude": plan.RATIOS, "activation": plan.RATIOS, "random": plan.RANDOM_RATIOS}
    return [WHOLE, *(Teacher(way, ratio) for way, values in ratios.items() for ratio in values)]


def teachers() -> list[Teacher]:
    """Return every teacher that students are compared with."""
    return [*masked_teachers(), *(Teacher("temperature", value) for value in plan.TEMPERATURES)]


def students() -> list[Student]:
    """Return every student. Without healing there is one draw, as nothing is drawn."""
    return [
        Student(layers, healed, draw)
        for layers in plan.LAYERS
        for healed in plan.HEALED
        for draw in range(plan.DRAWS if healed else 1)
    ]


def states_path(model: Teacher | Student) -> Path:
    """Return the file of a model's hidden states; its folder is named by all that determines them."""
    names = ("TEACHER", "LENGTH", "BATCH", "HEALING_RATE", "QUESTION_SHARE", "TEXTS", "QUESTIONS", "PLACES")
    values = {name: getattr(plan, name) for name in (*names, "CALIBRATION")}
    key = key_of("imitation", longest=max(plan.HEALED), texts=sources(), **values)
    name = "-".join([type(model).__name__.lower(), *map(str, model)])
    return cache_dir() / "imitation" / f"states-{key}" / f"{name}.safetensors"


def missing_jobs() -> list[Job]:
    """Return the jobs that compute the missing hidden states; the longest first."""
    jobs: list[Job] = [
        (student_states, (layers, draw))
        for layers in sorted(plan.LAYERS, reverse=True)
        for draw in range(plan.DRAWS)
        if not all(states_path(each).is_file() for each in students() if each[::2] == (layers, draw))
    ]
    return jobs + [(teacher_states, (each,)) for each in masked_teachers() if not states_path(each).is_file()]


def teacher_states(teacher: Teacher) -> None:
    """Mask the teacher and store its hidden states."""
    model, test = whole_teacher()
    if teacher == WHOLE:
        _write(teacher, hidden_states(model, test))
        return
    with TeacherMask(model, criterion=_criterion(teacher.way)).apply(teacher.value):
        states = hidden_states(model, test)
    _write(teacher, states)


def student_states(layers: int, draw: int) -> None:
    """Prune the teacher, and store the student's hidden states before and along its healing."""
    model, tokenizer = load_teacher()
    student, test = pruned(model, layers), held_out(tokenizer)
    sequences = training_sequences(tokenizer, max(plan.HEALED) // plan.LENGTH, draw)
    optimizer, read = optimizer_of(student, plan.HEALING_RATE), 0
    for healed in sorted(plan.HEALED):
        if healed:
            some = sequences[read // plan.LENGTH : healed // plan.LENGTH]
            heal(student, some, optimizer, steps_of(read))
            read = healed
        if healed or draw == 0:
            _write(Student(layers, healed, draw), hidden_states(student, test))


@lru_cache(maxsize=1)
def whole_teacher() -> tuple[Any, HeldOut]:
    """Return the teacher and the test set, loaded once per process."""
    model, tokenizer = load_teacher()
    return model, held_out(tokenizer)


@lru_cache(maxsize=1)
def _norms() -> Mapping[str, Tensor]:
    model, tokenizer = load_teacher()
    sequences = training_sequences(tokenizer, plan.CALIBRATION, seed=0)
    return input_norms(model, ({"input_ids": batch} for batch in sequences.split(plan.BATCH)))


def _criterion(way: str) -> Criterion:
    if way == "activation":
        return Activation(_norms())
    return Random() if way == "random" else Magnitude()


def _write(model: Teacher | Student, states: Tensor) -> None:
    write_atomic(states_path(model), to_bytes({"states": states}))


def read_states(model: Teacher | Student) -> Tensor:
    """Return stored hidden states, ``(sequences, PLACES, width)``.

    Raises:
        ValueError: the file is damaged.
        OSError: it is not there.
    """
    return read_tensors(states_path(model))["states"]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: the file is damaged.
        OSError: it is not there.
    """
    content = path.read_bytes()
    try:
        return from_bytes(content)
    except Exception:  # safetensors raises its own error
        raise ValueError(f"{path} is damaged: delete it, and it is computed again") from None


# --- from hidden states to tables -----------------------------------------------------------------------


@torch.inference_mode()
def measure() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare all students with all teachers.

    Returns:
        Two tables, all values in nats per token, means over the judged places of a sequence. One row per
        teacher and sequence: way, value, kind, sequence, ``dose`` (JSD from the whole teacher), ``entropy``,
        ``argmax_changed``, ``loss`` (of the next token). One row per student, teacher and sequence: layers,
        healed, draw, way, value, kind, sequence, and the three divergences.
    """
    model, test = whole_teacher()
    head, next_tokens = model.lm_head.weight, test.next_tokens.flatten()
    models: tuple[Teacher | Student, ...] = (*masked_teachers(), *students())
    flat = {each: read_states(each).flatten(0, 1) for each in models}
    of_teachers, of_students = teachers(), students()
    facts: list[Tensor] = []
    pairs: list[Tensor] = []
    for first in range(0, len(next_tokens), AT_ONCE):
        here = slice(first, first + AT_ONCE)
        logits = {each: flat[each][here] @ head.T for each in masked_teachers()}
        logits |= {each: logits[WHOLE] / each.value for each in of_teachers if each.way == "temperature"}
        log_p = torch.stack([logits[each].log_softmax(-1) for each in of_teachers], 1)
        log_q = torch.stack([(flat[each][here] @ head.T).log_softmax(-1) for each in of_students], 1)
        facts.append(_facts(log_p, next_tokens[here]))
        pairs.append(divergences(log_p, log_q))
    sequences = len(test.tokens)
    fact = torch.cat(facts).unflatten(0, (sequences, -1)).mean(1)  # (sequences, teachers, facts)
    pair = torch.cat(pairs).unflatten(0, (sequences, -1)).mean(1)  # (sequences, teachers, students, 3)
    of_sequence = {"kind": test.kinds, "sequence": range(sequences)}
    teacher_rows = [
        pd.DataFrame(
            {**each._asdict(), **of_sequence}
            | dict(zip(("dose", "entropy", "argmax_changed", "loss"), fact[:, place].T.tolist(), strict=True))
        )
        for place, each in enumerate(of_teachers)
    ]
    student_rows = [
        pd.DataFrame(
            {**student._asdict(), **teacher._asdict(), **of_sequence}
            | dict(zip(DIVERGENCES, pair[:, row, column].T.tolist(), strict=True))
        )
        for column, student in enumerate(of_students)
        for row, teacher in enumerate(of_teachers)
    ]
    return pd.concat(teacher_rows, ignore_index=True), pd.concat(student_rows, ignore_index=True)


def divergences(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return JSD, forward and reverse KL of all pairs of teachers and students, in nats.

    Args:
        log_p: log-probabilities of the teachers, ``(places, teachers, vocabulary)``.
        log_q: log-probabilities of the students, ``(places, students, vocabulary)``.

    Returns:
        ``(places, teachers, students, 3)``.
    """
    p, q = log_p.exp(), log_q.exp()
    of_p, of_q = (p * log_p).sum(-1)[:, :, None], (q * log_q).sum(-1)[:, None]
    forward, reverse = of_p - p @ log_q.mT, of_q - log_p @ q.mT
    mixed = torch.empty_like(forward)
    mean = torch.empty_like(p[0, 0])
    for place in range(len(p)):
        for teacher in range(p.shape[1]):
            for student in range(q.shape[1]):
                torch.add(p[place, teacher], q[place, student], out=mean)
                mean.mul_(0.5).clamp_(min=torch.finfo(mean.dtype).tiny)
                mixed[place, teacher, student] = torch.dot(mean, mean.log())
    return torch.stack([(of_p + of_q) / 2 - mixed, forward, reverse], -1).clamp_(min=0)


def _facts(log_p: Tensor, next_tokens: Tensor) -> Tensor:
    """Return dose, entropy, changed argmax and loss of teachers, ``(places, teachers, 4)``."""
    place = torch.arange(len(next_tokens))
    whole = log_p[:, [teachers().index(WHOLE)]]
    dose = divergences(log_p, whole)[:, :, 0, 0]
    changed = (log_p.argmax(-1) != whole.argmax(-1)).float()
    entropy = -(log_p.exp() * log_p).sum(-1)
    return torch.stack([dose, entropy, changed, -log_p[place, :, next_tokens]], -1)
