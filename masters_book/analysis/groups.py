"""Groups of responses with the rewards and advantages of the first training step.

Training rewards each response by the divergence between the stage's masked teacher and the student (Eq. 5,
7); the responses of both models form one group. This module computes the same from the cache for the student
before training.
"""

import numpy as np
import pandas as pd
import torch

from masters.data.questions import Ragged
from masters.experiments.arms import arm
from masters.experiments.curriculum import all_stages, wanted_responses
from masters.experiments.lab import Lab
from masters.judges import accuracies
from masters.objective.divergence import jsd
from masters.objective.rewards import distillation_reward, group_advantages
from masters.objective.topk import Packed
from masters.responses.teacher_logprobs import TopK

BATCH = 64  # responses


def rewarded_groups(lab: Lab) -> pd.DataFrame:
    """Return all responses of the first stage of Masters, each with its rewards and its advantage.

    Returns:
        One row per response, grouped by question, in the order of training: question, task, skill, source,
        ratio (mask ratio of the source), index, text, tokens, asked, label, correct (R_acc, Eq. 6),
        divergence (mean JSD between the stage's masked teacher and the student before training, nats per
        token, Eq. 5), reward_distillation (Eq. 7), reward (R_acc + R_distill), advantage (Eq. 10) and flat
        (whether all rewards of the group are equal).
    """
    spec = arm("masters", lab.profile)
    stage = all_stages(spec)[0]
    teacher = lab.source(spec.teachers[stage[0]], stage[1], spec.choice())
    student = lab.source(spec.student)
    frames = []
    for wanted in wanted_responses(spec, stage):
        frame = lab.responses(wanted)
        texts = grouped(frame["tokens"], wanted.n)
        teacher_rows, student_rows = (lab.logprobs_of(scorer, texts) for scorer in (teacher, student))
        frame["divergence"] = [
            value
            for start in range(0, len(frame), BATCH)
            for value in _divergences(
                teacher_rows, student_rows, range(start, min(start + BATCH, len(frame)))
            )
        ]
        position = np.repeat(np.arange(len(lab.pool)), wanted.n)
        frames.append(frame.assign(source=wanted.model, ratio=wanted.ratio, position=position))
    table = pd.concat(frames, ignore_index=True).sort_values("position", kind="stable", ignore_index=True)
    groups = (len(lab.pool), -1)
    divergence = torch.tensor(table["divergence"].to_numpy()).reshape(groups)
    table["reward_distillation"] = distillation_reward(divergence, normalize=spec.normalize).flatten().numpy()
    table["correct"] = accuracies(table["correct"])
    table["reward"] = table["correct"] + table["reward_distillation"]
    advantages = group_advantages(torch.tensor(table["reward"].to_numpy()).reshape(groups))
    table["advantage"] = advantages.values.flatten().numpy()
    table["flat"] = np.repeat(advantages.flat.numpy(), divergence.shape[1])
    about = lab.questions("train").table.set_index("id").loc[table["question"]]
    for column in ("task", "skill"):
        table[column] = about[column].to_numpy()
    return table.drop(columns="position")


def grouped(column: pd.Series, n: int) -> list[list[np.ndarray]]:
    """Return a column of all responses as one list per question, ``n`` responses each."""
    values = list(column)
    return [values[start : start + n] for start in range(0, len(values), n)]


def _divergences(teacher: Ragged | TopK, student: Ragged | TopK, rows: range) -> list[float]:
    """Return the mean JSD of each response, in nats per token."""
    students = [log_probabilities(student[row]) for row in rows]
    teachers = [log_probabilities(teacher[row], like) for row, like in zip(rows, students, strict=True)]
    tokens = jsd(torch.cat(teachers), torch.cat(students))
    return [float(response.mean()) for response in tokens.split(list(map(len, students)))]


def log_probabilities(values: np.ndarray | Packed, like: torch.Tensor | None = None) -> torch.Tensor:
    """Return stored log-probabilities of a response as a tensor ``(tokens, vocabulary)``, in nats.

    Args:
        like: of the model that they are compared with, see :meth:`masters.objective.topk.Packed.logits`.
    """
    return values.logits(like) if isinstance(values, Packed) else torch.from_numpy(values.astype(np.float32))
