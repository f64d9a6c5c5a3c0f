"""One question carried through the method with its real numbers: mask, schedule, responses, rewards, loss.

The numbers are those of the first training step of Masters, in which the student is still the reference, so
the KL is 0 and the policy term has a gradient but no value.
"""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from masters.data.labels import accepted
from masters.experiments.arms import RunSpec, arm
from masters.experiments.curriculum import all_stages, wanted_responses
from masters.experiments.lab import Lab
from masters.models.loading import load
from masters.objective.divergence import jsd
from masters.objective.loss import masters_loss
from masters.runtime.parameters import Strict
from masters_book.analysis.groups import log_probabilities
from masters_book.results.intact import read_json

BINS = 24  # of the histogram of weights
WEIGHTS = 6  # shown one by one


class MaskedLayer(Strict):
    """A layer of the teacher before and after the mask (Eq. 1, 2).

    ``threshold`` is the smallest magnitude that is kept; ``histogram`` counts the magnitudes in equal bins
    from 0 to ``largest``.
    """

    name: str
    ratio: float
    weights: int
    removed: int
    threshold: float
    largest: float
    histogram: tuple[int, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


class Answer(Strict):
    """A response of the group: ``divergences`` are the JSD of its tokens, in nats (Eq. 4)."""

    source: str
    text: str
    words: tuple[str, ...]
    divergences: tuple[float, ...]
    correct: float
    divergence: float
    reward_distillation: float
    reward: float
    advantage: float


class Worked(Strict):
    """The example. ``picture`` is a PNG in base64, empty for a question without one."""

    profile: str
    task: str
    question: str
    label: str
    picture: str
    teacher: str
    mask: MaskedLayer
    r_max: float
    r_step: float
    steps: int
    answers: tuple[Answer, ...]
    normalize: bool
    policy_weight: float
    beta: float
    divergence: float
    policy: float
    kl: float
    loss: float

    @property
    def best(self) -> int:
        """Return the index of the response with the largest advantage."""
        return int(np.argmax([answer.advantage for answer in self.answers]))


def read_worked(path: Path) -> Worked | None:
    """Return the example of a run; None if the run wrote none.

    Raises:
        ValueError: the file is damaged.
    """
    return Worked.checked(read_json(path), path) if path.is_file() else None


def worked_example(lab: Lab, groups: pd.DataFrame) -> Worked:
    """Carry the first question through the first step of Masters that has both right and wrong responses.

    Args:
        lab: lab with models and responses.
        groups: result of :func:`masters_book.analysis.groups.rewarded_groups`.

    Raises:
        ValueError: there is no group.
    """
    spec = arm("masters", lab.profile)
    question = _chosen(groups)
    group = groups[groups["question"] == question]
    train = lab.questions("train")
    row = train.position()[question]
    shown = train.samples([row])
    teacher, student = _logits(lab, spec, lab.pool.index(row))
    answers = []
    for about, of_teacher, of_student in zip(group.to_dict("records"), teacher, student, strict=True):
        words = [lab.processor.tokenizer.decode([int(token)]) for token in about["tokens"]]
        divergences = jsd(of_teacher, of_student).tolist()
        numbers = {name: about[name] for name in Answer.model_fields if name in about}
        answers.append(Answer(**numbers, words=tuple(words), divergences=tuple(divergences)))
    options = spec.objective()
    assert options is not None
    student_logits, teacher_logits = (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).unsqueeze(0) for rows in (student, teacher)
    )
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(np.asarray(each, dtype=np.int64)) for each in group["tokens"]], batch_first=True
    ).unsqueeze(0)
    lengths = torch.tensor([len(each) for each in group["tokens"]])
    loss = masters_loss(
        student_logits,
        teacher_logits,
        tokens,
        (torch.arange(tokens.shape[-1]) < lengths.unsqueeze(1)).unsqueeze(0),
        accuracy=torch.tensor(group["correct"].to_numpy(np.float32)).unsqueeze(0),
        reference_logits=student_logits,
        options=options,
    )
    return Worked(
        profile=lab.profile.name,
        task=group["task"].iloc[0],
        question=train.table["question"].iloc[row],
        label=" | ".join(accepted(train.table["answer"].iloc[row])),
        picture=_png(shown[0]["image"]) if shown else "",
        teacher=spec.teachers[0],
        mask=_masked_layer(lab, spec),
        r_max=spec.r_max,
        r_step=spec.r_step,
        steps=spec.steps,
        answers=tuple(answers),
        normalize=spec.normalize,
        policy_weight=spec.policy_weight,
        beta=spec.beta,
        divergence=loss.metrics["divergence"],
        policy=loss.metrics["policy"],
        kl=loss.metrics["kl"],
        loss=float(loss.total),
    )


def _chosen(groups: pd.DataFrame) -> str:
    if groups.empty:
        raise ValueError("there is no group of responses to show: run `masters generate` first")
    by_question = groups.groupby("question", sort=False)
    right, flat = by_question["correct"].mean(), by_question["flat"].first()
    mixed = right.index[(right > 0) & (right < 1)]
    return str([*mixed, *flat.index[~flat], *right.index][0])


def _logits(lab: Lab, spec: RunSpec, place: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the log-probabilities of teacher and student for each response to a question of the pool."""
    stage = all_stages(spec)[0]
    sources = (lab.source(spec.teachers[stage[0]], stage[1], spec.choice()), lab.source(spec.student))
    teacher, student = [], []
    for wanted in wanted_responses(spec, stage):
        texts = lab.response_arrays(wanted).tokens
        of_teacher, of_student = (lab.logprobs_of(source, texts) for source in sources)
        for at in range(place * wanted.n, (place + 1) * wanted.n):
            student.append(log_probabilities(of_student[at]))
            teacher.append(log_probabilities(of_teacher[at], student[-1]))
    return teacher, student


def _masked_layer(lab: Lab, spec: RunSpec) -> MaskedLayer:
    """Mask the first teacher as in the first stage and return its first masked layer."""
    model, _ = load(lab.folder(spec.teachers[0]))
    choice = lab.choice(spec.teachers[0], spec.choice())
    mask = choice.mask(model)
    weight = model.get_parameter(mask.names[0])
    before = weight.detach().float().flatten().clone()
    with mask.apply(spec.r_max):
        after = weight.detach().float().flatten().clone()
    magnitudes, kept = before.abs(), after != 0
    largest = float(magnitudes.max())
    counts = torch.histc(magnitudes, BINS, 0.0, largest)
    return MaskedLayer(
        name=mask.names[0],
        ratio=spec.r_max,
        weights=len(before),
        removed=int((before != after).sum()),
        threshold=float(magnitudes[kept].min()) if kept.any() else largest,
        largest=largest,
        histogram=tuple(int(count) for count in counts),
        before=tuple(before[:WEIGHTS].tolist()),
        after=tuple(after[:WEIGHTS].tolist()),
    )


def _png(image: object) -> str:
    target = io.BytesIO()
    image.save(target, format="PNG")  # type: ignore[attr-defined]
    return base64.b64encode(target.getvalue()).decode()
