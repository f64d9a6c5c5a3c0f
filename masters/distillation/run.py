"""Distill one student: check, generate, judge, score, train, save, evaluate.

Killed at any moment and started again, a run continues: stored responses and log-probabilities are kept,
training resumes from its last checkpoint, and answers are generated once. The trained student is saved before
it is evaluated, so nothing that fails later can lose it.
"""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from masters.distillation.estimate import SAMPLE, estimate_run
from masters.distillation.output_folder import cache_in, check_data, check_folder, check_settings, locked
from masters.distillation.outputs import card, mean_score, resolved, score_lines, scores, write_scores
from masters.distillation.preparation import Prepared, Say, check_lengths, prepare_run
from masters.distillation.run_file import RunFile, from_options, load_run_file
from masters.distillation.upload import upload
from masters.experiments.evaluation import answers
from masters.experiments.lab import Lab
from masters.experiments.response_plan import Asked, prepare
from masters.experiments.run import train_student
from masters.models.loading import changed_share, load, stored_dtype
from masters.own_data.question_set import encode_own, refused_rows
from masters.runtime import distributed
from masters.runtime.files import write_atomic, write_folder_once
from masters.runtime.memory import release
from masters.training.checkpoints import last_checkpoint
from masters.training.trainer import Evaluation

FEW_CHANGED = 0.1  # share of changed weights below which a hint is given


def distill(run_file: Path | str | None = None, say: Say = print, **options: Any) -> Path:
    """Run a file, or the same parameters as keywords, and return the student's folder.

    Args:
        run_file: path of a run file; None takes ``options`` instead.
        say: called with each line for the user.
        **options: parameters of :class:`masters.distillation.run_file.RunFile`.

    Returns:
        ``output_dir/model``, a folder for ``AutoModelForImageTextToText`` and ``AutoProcessor``.

    Raises:
        ValueError: a parameter, a model or the data is wrong; nothing was started.
        Diverged: the loss is no longer finite.
        MemoryError: the device is full; the message says what to change.
    """
    if (run_file is None) == (not options):
        raise ValueError("give a run file or its parameters as keywords, not both")
    run = from_options(options) if run_file is None else load_run_file(run_file)
    run.output.mkdir(parents=True, exist_ok=True)
    with locked(run.output), cache_in(run.output):
        return _distill(run, say)


def check(run_file: Path | str, say: Say = print) -> None:
    """Check a run file and print what the run needs; no weights are loaded and nothing is generated.

    Raises:
        ValueError: as :func:`distill`.
    """
    run = load_run_file(run_file)
    say = say if distributed.rank() == 0 else lambda line: None
    with cache_in(run.output):
        check_folder(run.output)
        check_settings(run)
        _estimate(prepare_run(run, say, encoded=False), say)


def responses_of(run_file: Path | str) -> tuple[Lab, Asked]:
    """Return the assets of a run and the questions that each model answers, to generate them elsewhere.

    From then on this process caches below the output folder, as the run does.

    Raises:
        ValueError: as :func:`distill`, or the method reads no responses.
    """
    run = load_run_file(run_file)
    os.environ.setdefault("MASTERS_CACHE", str(run.output / "responses"))
    prepared = prepare_run(run, lambda line: None)
    if prepared.spec.learn_from != "responses":
        raise ValueError(f"method {run.method!r} reads no responses")
    return prepared.lab, prepared.plan.responses


def _distill(run: RunFile, say: Say) -> Path:
    output, model_folder = run.output, run.output / "model"
    main = distributed.rank() == 0
    if main:
        check_folder(output)
        check_settings(run)
    prepared = prepare_run(run, say if main else lambda line: None)
    lab, spec = prepared.lab, prepared.spec
    if main:
        check_data(prepared)
        if not model_folder.is_dir():
            check_lengths(prepared)
        write_atomic(output / "config.yaml", resolved(run))
        _write_skipped(prepared)
        if not model_folder.is_dir():
            _estimate(prepared, say)
            _evaluate(prepared, "before", lab.source(spec.student).load, say)
            prepare(lab, prepared.plan)
    distributed.wait()
    if not distributed.from_main(model_folder.is_dir):
        _train(prepared, say if main else lambda line: None)
    if main:
        for number, name in enumerate(spec.teachers):
            title = f"teacher-{number + 1}-{Path(prepared.teachers[number]).name}"
            _evaluate(prepared, title, lab.source(name).load, say)
        _evaluate(prepared, "after", lambda: load(model_folder)[0], say)
        _finish(prepared, say)
    distributed.wait()
    return model_folder


def _estimate(prepared: Prepared, say: Say) -> None:
    own = prepared.own
    rows = own.splits["train"]
    few = replace(
        own,
        splits={"train": rows.select(range(0, len(rows), -(-len(rows) // SAMPLE)))},
        hashes={"train": f"{own.hashes['train']}-{SAMPLE} spread"},
    )
    sample = encode_own(few, "train", prepared.lab.processor)
    lab, spec, run = prepared.lab, prepared.spec, prepared.run
    split, seed, often = prepared.evaluation, run.training.seed, run.training.eval_steps
    evaluated = len(own.splits[split]) if split else 0
    watched = len(own.splits["eval"]) * (spec.steps // often) if often else 0
    for line in estimate_run(lab, spec, seed, sample, evaluated, watched, run.output).lines():
        say(line)


def _train(prepared: Prepared, say: Say) -> None:
    """Train the student and save it."""
    run, output, seed = prepared.run, prepared.run.output, prepared.run.training.seed
    checkpoints = output / "checkpoints"

    def describe(folder: Path, log: pd.DataFrame) -> None:
        write_atomic(
            folder / "README.md",
            card(run, prepared.teachers, prepared.lab.profile.distillation.questions, {}, 0),
        )
        write_atomic(output / "log.parquet", log.to_parquet())
        if run.training.lora is not None:
            write_folder_once(output / "adapter", partial(_copy_adapter, checkpoints))

    def score(student: PreTrainedModel) -> float:
        return mean_score(_answers(prepared, student, "eval", "answers during training"))

    steps = run.training.eval_steps
    evaluation = Evaluation(steps, score) if steps else None
    model = output / "model"
    train_student(prepared.lab, prepared.spec, seed, checkpoints, model, describe, evaluation, alone=True)
    release()
    if distributed.rank() == 0:
        say(f"student saved: {model}")
    distributed.wait()


def _copy_adapter(checkpoints: Path, folder: Path) -> None:
    """Copy the adapters of the last checkpoint, which peft can load onto the student before training."""
    last = last_checkpoint(checkpoints)
    for path in Path(str(last)).glob("adapter_*"):
        shutil.copy(path, folder)


def _evaluate(prepared: Prepared, name: str, load_model: Callable[[], PreTrainedModel], say: Say) -> None:
    """Answer the evaluation questions and store the answers, unless they are stored."""
    path, split = prepared.run.output / "eval" / f"{name}.parquet", prepared.evaluation
    if split is None or path.is_file():
        return
    frame = _answers(prepared, load_model(), split, f"answers {name}")
    release()  # the next process may need this GPU
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, frame.to_parquet())
    say(f"{path.relative_to(prepared.run.output)}: {len(frame)} answers")


def _answers(prepared: Prepared, model: PreTrainedModel, split: str, what: str) -> pd.DataFrame:
    """Return a model's greedy answers to the questions of a split, judged."""
    lab = prepared.lab
    questions = lab.questions("validation" if split == "eval" else split)
    sampling, everything, judge = lab.profile.sampling, range(len(questions)), prepared.judge
    frame = answers(model, lab.processor, questions, everything, 1, judge, sampling, None, what)
    frame = frame.assign(content=questions.table["content"].to_numpy(), judge=judge.name)
    return frame.assign(tokens=frame["tokens"].map(len)).drop(columns="logprobs")


def _finish(prepared: Prepared, say: Say) -> None:
    """Write scores and model card, clean up, upload if asked, and say what to do with the student."""
    run, output = prepared.run, prepared.run.output
    model, checkpoints = output / "model", output / "checkpoints"
    if (logs := checkpoints / "runs").is_dir():  # where trackers such as tensorboard write
        shutil.copytree(logs, output / "logs", dirs_exist_ok=True)
    shutil.rmtree(checkpoints, ignore_errors=True)
    files = sorted((output / "eval").glob("*.parquet"))
    frames = {path.stem: pd.read_parquet(path) for path in files}
    found = scores(frames)
    evaluated = int((frames["after"]["label"] != "").sum()) if "after" in frames else 0
    if found:
        write_scores(output / "eval", found, evaluated)
    before = prepared.lab.folder(prepared.spec.student)
    questions, changed = prepared.lab.profile.distillation.questions, changed_share(before, model)
    write_atomic(model / "README.md", card(run, prepared.teachers, questions, found, evaluated, changed))
    for line in score_lines(found, evaluated):
        say(line)
    for name, frame in frames.items():
        if unjudged := int((frame["score"].isna() & (frame["label"] != "")).sum()):
            say(f"{name}: {unjudged} answers have no verdict and count as wrong")
    if not math.isnan(changed):
        say(f"weights: {100 * changed:.1f} % differ from those of {run.student}")
    dtype = stored_dtype(model)
    if changed < FEW_CHANGED and dtype.itemsize == 2:
        name = str(dtype).removeprefix("torch.")
        say(f"         {name} cannot hold most changes: train longer, or raise training.learning_rate")
    say(f"the student: {model}")
    say(f"chat:    masters chat {model}")
    say(f"serve:   vllm serve {model}")
    say(f"measure: lmms-eval --model vllm --model_args model={model} --tasks mmstar")
    if run.training.push_to_hub:
        upload(run.training.push_to_hub, model)
        say(f"pushed:  https://huggingface.co/{run.training.push_to_hub}")
    else:
        say(f"push:    hf upload YOUR/NAME {model}")


def _write_skipped(prepared: Prepared) -> None:
    """List the rows that cannot be used, and those of the training that the processor refuses."""
    refused = refused_rows(prepared.own, "train", prepared.lab.processor)
    rows = pd.concat([prepared.own.skipped, refused]).to_dict("records")
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    write_atomic(prepared.run.output / "skipped.jsonl", text)
