"""One run: from the parts that the cache holds to a trained student, its answers and a row of results.

What a run reads is laid out in :mod:`masters.experiments.curriculum`, how it trains in
:mod:`masters.training.train`, and where its result is kept in :mod:`masters.experiments.lab`.

Departures from the paper:
    * label_noise, off by default: each question of the pool has a wrong label with that probability, a
      plausible one and the same in every run (:func:`masters.data.questions.training_labels`). The accuracy
      reward of Eq. 6 is then judged by it, and a run that learns from labels learns it. The responses stay
      what they are, and so does what the evaluation takes for right.
"""

import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from masters.experiments.arms import LABELS, RunSpec
from masters.experiments.curriculum import Part, Stage, all_stages, authors, curriculum, grouped, order
from masters.experiments.evaluation import evaluate, unanswered
from masters.experiments.lab import Lab
from masters.experiments.refreshing import first_step, refreshed
from masters.masking.choice import MaskChoice
from masters.models.loading import load
from masters.objective.diagnostics import NotFinite
from masters.responses.source import Source
from masters.runtime import distributed
from masters.runtime.files import write_folder
from masters.settings import Fit
from masters.training.examples import Examples
from masters.training.online import train_online
from masters.training.train import Budget, train
from masters.training.trainer import Objective


def run(lab: Lab, spec: RunSpec, seed: int, folder: Path, split: str = "test") -> None:
    """Train and evaluate one run, and keep its row, predictions, log and weights, unless they are there.

    All ranks train, one evaluates and writes. A run whose loss is not finite has a result too: it answers
    nothing, and its row has the reason. One that ``watch`` ends has none, and keeps its checkpoints.

    Args:
        lab: that has the models, questions and responses.
        spec: of the run.
        seed: of the order of the questions, and of answers at temperature one.
        folder: of the result.
        split: on whose questions it is evaluated.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    alone = distributed.rank() == 0
    with FileLock(f"{folder}.lock") if alone else nullcontext():
        if distributed.from_main((folder / "result.json").is_file):
            return
        start = time.perf_counter()
        model, processor = load(lab.folder(spec.student))
        log, diverged = pd.DataFrame(), ""
        if spec.learn_from != "nothing":
            try:
                log = distil(lab, model, spec, seed, Path(f"{folder}.run"))
            except NotFinite as reason:
                diverged = str(reason)
        trained = time.perf_counter() - start
        # Of a run that was stopped and went on, the log has the seconds of all sittings.
        earlier = max(0.0, float(log["seconds"].sum()) - trained) if len(log) else 0.0
        if not alone:
            distributed.wait()
            return
        questions, longest = lab.questions(split), lab.profile.sampling.max_new_tokens
        if diverged:
            predictions = unanswered(questions)
            shutil.rmtree(f"{folder}.run", ignore_errors=True)
        else:
            predictions = evaluate(model, processor, questions, lab.judge, longest, seed)
        evaluated = time.perf_counter() - start - trained
        by_mode = predictions.groupby("mode")[["correct", "tokens"]].mean()
        tail = log["kl"].tail(max(1, len(log) // 10)).mean() if "kl" in log else float("nan")
        row = {
            **spec.model_dump(mode="json", exclude={"teachers", "rewards"}),
            "teachers": "+".join(spec.teachers),
            "rewards": "+".join(spec.rewards),
            "accuracy": by_mode.loc["greedy", "correct"],
            "sampled_accuracy": by_mode.loc["sampled", "correct"],
            "tokens": by_mode.loc["greedy", "tokens"],
            "kl": float(tail),
            "seconds": trained + earlier,
            "evaluation_seconds": evaluated,
            "diverged": diverged,
        }

        def save(target: Path) -> None:
            predictions.to_parquet(target / "predictions.parquet")
            if len(log):
                log.to_parquet(target / "log.parquet")
                model.save_pretrained(target / "model")
                processor.save_pretrained(target / "model")
            (target / "result.json").write_text(json.dumps(row))

        write_folder(folder, save)
        distributed.wait()


def distil(lab: Lab, model: Any, spec: RunSpec, seed: int, folder: Path) -> pd.DataFrame:
    """Train a student as a spec says, in place.

    Returns:
        The log, one row a logged step.
    """
    budget = Budget(
        spec.steps,
        spec.batch,
        spec.learning_rate,
        spec.lr_schedule,
        seed,
        log_every=max(1, spec.steps // 40),
        planned=spec.steps,
    )
    if spec.learn_from == "online":
        if spec.rewards != ("accuracy",) or lab.profile.distillation.fit != Fit():
            raise ValueError(
                "the online baseline has the accuracy reward alone and trains all weights in float32: leave "
                f"rewards ({'+'.join(spec.rewards) or 'none'}) and distillation.fit as they are by default"
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
        teachers=[load(lab.folder(name))[0] for name in spec.teachers] if live else (),
        reference=load(lab.folder(spec.student))[0] if live else None,
        vocabulary=len(lab.processor.tokenizer),
        choices=[lab.choice(name, spec.choice()) for name in spec.teachers] if live else (),
    )
    first, *later = all_stages(spec)
    parts = {first: parts_of(lab, spec, first)}
    examples, plateau = curriculum(spec, seed, lab.pool, parts)

    def learn(student: Any, steps: int) -> pd.DataFrame:
        return train(
            student,
            lab.questions("train"),
            Examples(steps * spec.batch, examples.make),
            objective,
            replace(budget, steps=steps),
            folder,
            "a run",
            fit=lab.profile.distillation.fit,
            watch=lab.profile.distillation.watch,
            goes_on=steps < spec.steps,
            plateau=plateau,
        )

    def as_before(stage: Stage) -> Any:
        before, _ = load(lab.folder(spec.student))
        learn(before, first_step(spec, stage))
        return before

    for stage in later:
        own = None
        if spec.refreshed:
            own = refreshed(lab, spec, seed, stage, folder, partial(as_before, stage))
        parts[stage] = parts_of(lab, spec, stage, own)
    return learn(model, spec.steps)


def parts_of(lab: Lab, spec: RunSpec, stage: Stage, own: Part | None = None) -> list[Part]:
    """What each author contributes to a stage: responses, verdicts, log-probabilities, distributions.

    Args:
        lab: of the profile.
        spec: of the run.
        stage: one of the run.
        own: the student's contribution where its responses are refreshed.
    """
    choice, judge = spec.choice(), (spec.judge, spec.label_noise)
    teacher = lab.source(spec.teachers[stage[0]], stage[1], choice) if spec.teachers else None
    return [
        own if own and who == "refreshed" else part(lab, teacher, spec.student, judge, choice, who, *rest)
        for who, *rest in authors(spec, stage)
    ]


@lru_cache(maxsize=8)  # the next run may have the same
def part(
    lab: Lab,
    teacher: Source | None,
    student: str,
    judge: tuple[str, float],
    choice: MaskChoice,
    author: str,
    at: float,
    n: int,
) -> Part:
    """What an author contributes.

    Args:
        lab: of the profile.
        teacher: of the stage.
        student: the reference.
        judge: who says what is right, and for which share of the questions by a wrong label.
        choice: of what is masked of an author.
        author: who wrote the responses, or one of ``LABELS``.
        at: the author's mask ratio, or the share of wrong labels.
        n: responses a question.
    """
    if author in LABELS:
        made = Part(1, lab.labels_of_pool(at, author))
    else:
        frame = lab.groups(author, at, n, judge[0], choice)
        made = Part(
            n,
            tokens=grouped(frame["tokens"], n),
            behaviour=None if frame["logprobs"].isna().any() else grouped(frame["logprobs"], n),
            accuracy=accuracy_reward(lab, frame, *judge).reshape(-1, n),
        )
    if teacher is None or not lab.profile.distillation.cache_teacher:
        return made
    reference = lab.scores(lab.source(student), made.tokens)
    return replace(made, teacher=lab.scores(teacher, made.tokens), reference=reference)


def accuracy_reward(lab: Lab, frame: pd.DataFrame, judge: str, noise: float) -> np.ndarray:
    """The accuracy reward of responses, Eq. 6, where some questions have a wrong label.

    Args:
        lab: of the profile.
        frame: responses to every question of the pool, judged by the right labels.
        judge: who judges the responses to the questions with a wrong label anew.
        noise: share of the questions with a wrong label, see :meth:`masters.experiments.lab.Lab.labels_with`.

    Returns:
        ``(rows of frame,)`` float32, 1 where a response is right, or passes for it.
    """
    right = (frame["correct"] == 1).to_numpy(np.float32)
    if noise:
        cores = lab.labels_with(noise)[0]["core"].iloc[lab.pool]
        labels = np.repeat(cores.to_numpy(), len(frame) // len(lab.pool))
        wrong = labels != frame["label"].to_numpy()
        asked, text = frame["asked"][wrong], frame["text"][wrong]
        anew = lab.judge_of(judge).score_many(list(asked), list(labels[wrong]), list(text))
        right[wrong] = [verdict == 1 for verdict in anew]
    return right
