"""How masks change teachers: accuracy and distributions, by mask ratio and way of choosing weights.

The paper masks by magnitude within each layer and reports that one threshold for the whole model breaks some
layers. It leaves open whether other weights are a better choice, so other ways are compared here.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from masters.data.questions import Ragged
from masters.experiments.curriculum import WantedResponses
from masters.experiments.evaluation import evaluate
from masters.experiments.lab import Lab
from masters.masking.choice import MaskChoice
from masters.masking.teacher_mask import TeacherMask
from masters.models.loading import load
from masters.objective.divergence import jsd
from masters.responses.teacher_logprobs import distributions
from masters.runtime.files import cache_dir, write_atomic
from masters.runtime.keys import key_of
from masters.runtime.workers import Job
from masters_book.analysis.groups import grouped

WAYS = {
    "magnitude": "magnitude within a layer (the paper's)",
    "whole model": "magnitude within the whole model",
    "activation": "magnitude times input norm (Wanda)",
    "random": "at random",
}


def masked_accuracy(
    lab: Lab, models: Sequence[str], ratios: Sequence[float], ways: Sequence[str] = ("magnitude",)
) -> pd.DataFrame:
    """Return the greedy validation accuracy of masked models. Missing results are computed in parallel.

    Args:
        lab: lab with the models.
        models: names of the ladder.
        ratios: mask ratios.
        ways: how the weights are chosen, from ``WAYS``.

    Returns:
        One row per model, way, ratio and task: model, way, ratio, task, accuracy, questions.

    Raises:
        ValueError: a way is unknown.
    """
    for way in ways:
        if way not in WAYS:
            raise ValueError(f"there is no way {way!r} to choose weights; there are: {', '.join(WAYS)}")
    for model in models:
        lab.folder(model)  # trains missing models before the workers need them
    wanted = [(model, way, float(ratio)) for model in models for way in ways for ratio in ratios]
    jobs: list[Job] = [(examine, one) for one in wanted if not _path(lab, *one).is_file()]
    lab.parallel(jobs, "masked teachers")
    return pd.concat([_read(_path(lab, *one)) for one in wanted], ignore_index=True)


def over_tasks(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy over the questions of all tasks, ``(models, ratios)``.

    Args:
        frame: from :func:`masked_accuracy`.
    """
    correct = frame.assign(correct=frame["accuracy"] * frame["questions"])
    total = correct.groupby(["model", "ratio"], sort=False)[["correct", "questions"]].sum()
    return (total["correct"] / total["questions"]).unstack()


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError):
        raise ValueError(f"{path} is damaged: delete it, and it is measured again") from None


def examine(lab: Lab, name: str, way: str, ratio: float) -> None:
    """Evaluate one masked model on the validation questions and store the result."""
    model, _ = load(lab.folder(name))
    mask(lab, name, model, way, ratio)
    longest = lab.profile.sampling.max_new_tokens
    frame = evaluate(model, lab.processor, lab.questions("validation"), lab.judge, longest, None)
    by_task = (
        frame.groupby("task", sort=False)["correct"].agg(accuracy="mean", questions="size").reset_index()
    )
    columns = ["model", "way", "ratio", "task", "accuracy", "questions"]
    result = by_task.assign(model=name, way=way, ratio=ratio)[columns]
    write_atomic(_path(lab, name, way, ratio), result.to_parquet(write_page_checksum=True))


def mask(lab: Lab, name: str, model: Any, way: str, ratio: float) -> None:
    """Mask a model, a rung by its name, in one of ``WAYS``."""
    if way == "whole model":
        remove_smallest(model, ratio)
        return
    criterion: Any = way
    lab.choice(name, MaskChoice(criterion)).mask(model).apply(ratio)


@torch.no_grad()
def remove_smallest(model: nn.Module, ratio: float) -> None:
    """Set the smallest weights of a model to zero, with one threshold for all layers that a mask reaches."""
    weights = [model.get_parameter(name) for name in TeacherMask(model).names]
    flat = torch.cat([weight.flatten().double() for weight in weights])
    flat[flat.abs().argsort(stable=True)[: math.floor(ratio * len(flat))]] = 0
    for weight, values in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.copy_(values.view_as(weight))


def mask_dose(lab: Lab, models: Sequence[str], ratios: Sequence[float], questions: int = 200) -> pd.DataFrame:
    """Return how far masks move the teachers' next-token distributions, and whether toward the student.

    Measured on the tokens of the base student's responses to the first questions of the pool. A mask can make
    imitation easier only if it changes the teacher and lowers the divergence to the student.

    Args:
        lab: lab with the models and responses.
        models: teachers, names of the ladder.
        ratios: mask ratios; 0 is added.
        questions: number of questions from the pool.

    Returns:
        One row per model and ratio: model, ratio, ``from_whole`` (JSD between the masked and the unmasked
        teacher, nats per token), ``argmax_changed`` (fraction of tokens), ``entropy`` (nats per token),
        ``to_student`` (JSD between the masked teacher and the base student, nats per token).
    """
    pool, n = lab.pool[:questions], lab.profile.distillation.student_responses
    tokens = list(lab.responses(WantedResponses("student", 0.0, n))["tokens"])[: len(pool) * n]
    texts, train = grouped(pd.Series(tokens), n), lab.questions("train")
    size = len(lab.processor.tokenizer)

    def log_probabilities(model: str, ratio: float = 0.0) -> torch.Tensor:
        stored = distributions(lab.source(model, ratio), train, pool, texts, None, size)
        assert isinstance(stored, Ragged)
        return torch.from_numpy(stored.values.astype(np.float32))

    student, rows = log_probabilities("student"), []
    for model in models:
        whole = log_probabilities(model)
        for ratio in sorted({0.0, *map(float, ratios)}):
            masked = log_probabilities(model, ratio)
            entropy = -(masked.exp() * masked).nan_to_num(0).sum(-1)
            rows.append(
                {
                    "model": model,
                    "ratio": ratio,
                    "from_whole": jsd(whole, masked).mean().item(),
                    "argmax_changed": (whole.argmax(-1) != masked.argmax(-1)).float().mean().item(),
                    "entropy": entropy.mean().item(),
                    "to_student": jsd(masked, student).mean().item(),
                }
            )
    return pd.DataFrame(rows)


def _path(lab: Lab, model: str, way: str, ratio: float) -> Path:
    key = key_of(
        "masked",
        weights=lab.source(model).weights(),
        way=way,
        ratio=ratio,
        questions=lab.questions("validation").hash,
        judge=lab.judge.name,
        max_new_tokens=lab.profile.sampling.max_new_tokens,
    )
    return cache_dir() / "masked" / f"{key}.parquet"
