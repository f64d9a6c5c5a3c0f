"""One run: from stored responses to a trained student, its answers and a row of results.

:mod:`masters.experiments.curriculum` says what a run reads, :mod:`masters.training.train` how it trains, and
:mod:`masters.experiments.results` where its result is stored.

Departures from the paper:
    * label_noise, off by default: each question of the pool has a wrong label with that probability, a
      plausible one and the same in every run (:func:`masters.data.labels.with_labels`). The accuracy
      reward of Eq. 6 is judged by it, and runs that learn from labels learn it. Responses and evaluation do
      not change.
"""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from masters.experiments.arms import LABELS, RunSpec
from masters.experiments.curriculum import (
    ResponseSet,
    Stage,
    WantedResponses,
    all_stages,
    curriculum,
    order,
    places_at,
    wanted_responses,
)
from masters.experiments.evaluation import evaluate, unanswered
from masters.experiments.lab import Lab
from masters.experiments.response_plan import reads_by_stage
from masters.models.loading import load, save_student, stored_dtype
from masters.models.source import Source
from masters.objective.diagnostics import NotFinite
from masters.runtime import distributed
from masters.runtime.checksums import SUMS, is_whole, write_list
from masters.runtime.files import cache_dir, write_folder
from masters.runtime.keys import key_of
from masters.settings import MemorySavings, Profile
from masters.training.online import train_online
from masters.training.train import Budget, train
from masters.training.trainer import Evaluation, Objective

ABOUT = ("training.json", "log.parquet", SUMS)  # beside the trained student's files


def run_folder(lab: Lab, spec: RunSpec, seed: int, split: str = "test") -> Path:
    """Return the folder of a run's result, named by a key of all that determines it."""
    settings = lab.profile.distillation
    key = key_of(
        "run",
        spec=spec.determining(),
        seed=seed,
        weights=[lab.source(name).weights() for name in spec.models],
        questions=[lab.questions("train").hash, lab.questions(split).hash],
        wrong_labels=lab.profile.wrong_labels,
        registers=lab.profile.registers,
        sampling=lab.profile.sampling.model_dump(),
        engine=lab.engine.name,
        judge=lab.judge_of(spec.judge).name,
        top_k=settings.top_k_logprobs and f"{settings.top_k_logprobs} and the rest as one event",
        fit=settings.memory_savings.model_dump(mode="json", exclude_defaults=True) or None,
        trainer=settings.trainer.model_dump(mode="json", exclude_defaults=True) or None,
        replicate=lab.profile.replicate or None,
    )
    return cache_dir() / "runs" / key


def run(lab: Lab, spec: RunSpec, seed: int, split: str = "test") -> Path:
    """Train and evaluate one run and store its row, predictions, log and weights, unless it is done.

    All ranks train; rank 0 evaluates and writes. The trained student is saved beside the folder before it is
    evaluated, and is removed there, with the checkpoints, once the result is stored. A run whose loss becomes
    infinite or NaN has a result too: no answers, and the reason in its row. One that ``watch`` ends has no
    result and keeps its checkpoints.

    Args:
        seed: seed of the question order and of the sampled answers.
        split: split of the evaluation questions.

    Returns:
        The folder of the result.
    """
    folder = run_folder(lab, spec, seed, split)
    folder.parent.mkdir(parents=True, exist_ok=True)
    main, work = distributed.rank() == 0, Path(f"{folder}.run")
    with FileLock(f"{folder}.lock") if main else nullcontext():
        if distributed.from_main(partial(is_whole, folder, "result.json")):
            return folder
        student = work / "student"
        trained = partial(is_whole, student, "training.json")
        if spec.learn_from != "nothing" and not distributed.from_main(trained):
            _train(lab, spec, seed, work, student)
        if main:
            write_folder(folder, partial(_evaluate, lab, spec, seed, split, student))
            shutil.rmtree(work, ignore_errors=True)
        distributed.wait()
    return folder


def _train(lab: Lab, spec: RunSpec, seed: int, work: Path, student: Path) -> None:
    """Save the trained student with its log, the seconds and, if it diverged, the reason instead."""
    start = time.perf_counter()

    def describe(target: Path, log: pd.DataFrame, diverged: str = "") -> None:
        seconds = time.perf_counter() - start
        if len(log):
            log.to_parquet(target / "log.parquet")
            seconds = max(seconds, float(log["seconds"].sum()))  # a resumed run's log begins before the stop
        (target / "training.json").write_text(json.dumps({"seconds": seconds, "diverged": diverged}))
        write_list(target)

    try:
        train_student(lab, spec, seed, work, student, describe)
    except NotFinite as reason:
        if distributed.rank() == 0:
            write_folder(student, partial(describe, log=pd.DataFrame(), diverged=str(reason)))


def _evaluate(lab: Lab, spec: RunSpec, seed: int, split: str, student: Path, target: Path) -> None:
    """Write the result of a run into its new folder; ``student`` is missing if the run does not train."""
    about, log, questions = {"seconds": 0.0, "diverged": ""}, pd.DataFrame(), lab.questions(split)
    if student.is_dir():
        about = json.loads((student / "training.json").read_text())
        if not about["diverged"]:
            log = pd.read_parquet(student / "log.parquet")
    start = time.perf_counter()
    if about["diverged"]:
        predictions = unanswered(questions)
    else:
        model, processor = load(student if student.is_dir() else lab.folder(spec.student))
        longest = lab.profile.sampling.max_new_tokens
        predictions = evaluate(model, processor, questions, lab.judge, longest, seed)
    by_mode = predictions.groupby("mode")[["correct", "tokens"]].mean()
    row = {
        **spec.model_dump(mode="json", exclude={"teachers", "rewards"}),
        "teachers": "+".join(spec.teachers),
        "rewards": "+".join(spec.rewards),
        "accuracy": by_mode.loc["greedy", "correct"],
        "sampled_accuracy": by_mode.loc["sampled", "correct"],
        "tokens": by_mode.loc["greedy", "tokens"],
        "kl": float(log["kl"].tail(max(1, len(log) // 10)).mean()) if "kl" in log else float("nan"),
        "seconds": about["seconds"],
        "evaluation_seconds": time.perf_counter() - start,
        "diverged": about["diverged"],
    }
    predictions.to_parquet(target / "predictions.parquet")
    if len(log):
        log.to_parquet(target / "log.parquet")
        # Copied, not moved: this write may still fail.
        shutil.copytree(student, target / "model", ignore=shutil.ignore_patterns(*ABOUT))
        write_list(target / "model")
    (target / "result.json").write_text(json.dumps(row))
    write_list(target)


def train_student(
    lab: Lab,
    spec: RunSpec,
    seed: int,
    checkpoints: Path,
    folder: Path,
    describe: Callable[[Path, pd.DataFrame], None],
    evaluation: Evaluation | None = None,
    alone: bool = False,
) -> None:
    """Train the student of a run; rank 0 saves it in the type of the weights that it started from.

    Args:
        alone: no other run shares its responses, see :meth:`ResponsePlan.alone`.
        checkpoints: kept there, so remove them once the student is saved.
        folder: where the student is saved once it is trained.
        describe: gets the student's new folder and the log, and may add files.
        evaluation: what is measured of the student during training.

    Raises:
        Diverged: the loss is not finite, or beyond what ``watch`` allows; nothing was saved.
    """
    base = lab.folder(spec.student)
    model, processor = load(base)
    dtype = stored_dtype(base)
    log = train_in_place(lab, model, spec, seed, checkpoints, evaluation, alone)

    def save(target: Path) -> None:
        save_student(model, processor, target, dtype)
        describe(target, log)

    if distributed.rank() == 0:
        write_folder(folder, save)


def budget_of(profile: Profile, spec: RunSpec, seed: int) -> Budget:
    """Return how long and with which optimizer a run trains; about 40 rows are logged."""
    return Budget(
        spec.steps,
        spec.batch,
        spec.learning_rate,
        spec.lr_schedule,
        seed,
        log_every=max(1, spec.steps // 40),
        options=profile.distillation.trainer,
    )


def train_in_place(
    lab: Lab,
    model: Any,
    spec: RunSpec,
    seed: int,
    folder: Path,
    evaluation: Evaluation | None = None,
    alone: bool = False,
) -> pd.DataFrame:
    """Train a student in place as a spec says and return the log, see :func:`masters.training.train.train`.

    The folder keeps the checkpoints, so remove it once the student is saved. For ``alone`` see
    :meth:`ResponsePlan.alone`.
    """
    budget = budget_of(lab.profile, spec, seed)
    if spec.learn_from == "online":
        if spec.rewards != ("accuracy",) or lab.profile.distillation.memory_savings != MemorySavings():
            raise ValueError(
                "the online baseline has the accuracy reward alone and trains all weights in float32: leave "
                f"rewards ({'+'.join(spec.rewards) or 'none'}) and memory_savings at their defaults"
            )
        return train_online(
            model,
            lab.processor,
            lab.questions("train"),
            [lab.pool[place] for place in order(spec, seed, len(lab.pool))],
            lab.judge_of(spec.judge),
            lab.profile.sampling,
            budget,
            spec.student_responses,
            spec.beta,
            folder,
        )
    live = spec.objective() is not None and not lab.profile.distillation.cache_teacher
    objective = Objective(
        spec.objective(),
        teachers=[lab.source(name).load() for name in spec.teachers] if live else (),
        reference=lab.source(spec.student).load() if live else None,
        vocabulary=len(lab.processor.tokenizer),
        choices=[lab.choice(name, spec.choice()) for name in spec.teachers] if live else (),
    )
    staged = alone and reads_by_stage(spec, len(lab.pool))

    sets = {
        stage: response_sets(
            lab, spec, stage, places_at(spec, seed, len(lab.pool), stage) if staged else None
        )
        for stage in all_stages(spec)
    }
    return train(
        model,
        lab.questions("train"),
        curriculum(spec, seed, lab.pool, sets),
        objective,
        budget,
        folder,
        "a run",
        savings=lab.profile.distillation.memory_savings,
        watch=lab.profile.distillation.watch,
        evaluation=evaluation,
    )


def _teacher(lab: Lab, spec: RunSpec, stage: Stage) -> Source | None:
    return lab.source(spec.teachers[stage[0]], stage[1], spec.choice()) if spec.teachers else None


def response_sets(
    lab: Lab,
    spec: RunSpec,
    stage: Stage,
    places: np.ndarray | None = None,
) -> list[ResponseSet]:
    """Return what a stage reads, as :func:`wanted_responses`; ``places`` as in :class:`ResponseSet`."""
    # The next run often reads the same responses to the whole pool.
    read = _of_the_pool if places is None else partial(response_set, places=places)
    return [
        read(lab, wanted, spec.label_noise, _teacher(lab, spec, stage), spec.student)
        for wanted in wanted_responses(spec, stage)
    ]


def response_set(
    lab: Lab,
    wanted: WantedResponses,
    label_noise: float,
    teacher: Source | None,
    student: str,
    places: np.ndarray | None = None,
) -> ResponseSet:
    """Return the responses of one model, or the labels, with their log-probabilities if they are stored."""
    asked = None if places is None else [lab.pool[place] for place in places]
    if wanted.model in LABELS:
        found = ResponseSet(1, lab.tokens_of_labels(wanted.ratio, wanted.model, asked), places=places)
    else:
        found = ResponseSet(wanted.n, *lab.response_arrays(wanted, label_noise, asked), places=places)
    if teacher is None or not lab.profile.distillation.cache_teacher:
        return found
    reference = lab.logprobs_of(lab.source(student), found.tokens, asked)
    return replace(found, teacher=lab.logprobs_of(teacher, found.tokens, asked), reference=reference)


_of_the_pool = lru_cache(maxsize=8)(response_set)
