"""Distill one student: check, generate, judge, score, train, save, evaluate.

Killed at any moment and started again, a run continues: stored responses and log-probabilities are kept,
training resumes from its last checkpoint, and answers are generated once. The trained student is saved before
it is evaluated, so nothing that fails later can lose it.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from filelock import FileLock, Timeout
from transformers import PreTrainedModel

from masters.distillation.check import SAMPLE, estimate_run
from masters.distillation.outputs import card, mean_score, resolved, score_lines, scores, write_scores
from masters.distillation.run_file import RunFile, from_options, load_run_file
from masters.distillation.upload import check_upload, upload
from masters.experiments.arms import LABELS, RunSpec
from masters.experiments.curriculum import all_stages
from masters.experiments.evaluation import answers, check_labels
from masters.experiments.lab import Lab
from masters.experiments.response_plan import Asked, ResponsePlan, prepare
from masters.experiments.run import budget_of, train_student
from masters.judges import Judge
from masters.masking.schedule import MaskSchedule
from masters.models.compatibility import context
from masters.models.loading import changed_share, load, stored_dtype
from masters.own_data.question_set import OwnQuestions, encode_own, load_own_data
from masters.runtime import distributed
from masters.runtime.files import write_atomic, write_folder_once
from masters.runtime.memory import release
from masters.training.checkpoints import last_checkpoint
from masters.training.trainer import Evaluation

Say = Callable[[str], None]
FEW_CHANGED = 0.1  # share of changed weights below which a hint is given


@dataclass(frozen=True)
class Prepared:
    """A checked run: its file, data, assets and spec."""

    run: RunFile
    own: OwnQuestions
    lab: Lab
    spec: RunSpec

    @property
    def evaluation(self) -> str | None:
        """The split of the evaluation: test if there is one, else eval; None without either."""
        return next((split for split in ("test", "eval") if split in self.own.splits), None)

    @property
    def judge(self) -> Judge:
        """The judge of the reward, and of the evaluation."""
        return self.lab.judge_of("llm" if self.lab.profile.judge else "rule")

    @property
    def plan(self) -> ResponsePlan:
        """What the run reads."""
        pool, cached = self.lab.pool, self.lab.profile.distillation.cache_teacher
        return ResponsePlan.alone(self.spec, self.run.training.seed, pool, cached)

    @property
    def teachers(self) -> list[str]:
        """The teachers that the method uses, as the file names them, in order."""
        named = dict(zip(self.run.rungs, self.run.teachers, strict=True))
        return [named[rung].path for rung in self.spec.teachers]


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
    with _locked(run.output), _cache_in(run.output):
        return _distill(run, say)


def check(run_file: Path | str, say: Say = print) -> None:
    """Check a run file and print what the run needs; no weights are loaded and nothing is generated.

    Raises:
        ValueError: as :func:`distill`.
    """
    run = load_run_file(run_file)
    with _cache_in(run.output):
        _own_folder(run.output)
        _same_settings(run)
        _estimate(_prepare(run, say), say)


def responses_of(run_file: Path | str) -> tuple[Lab, Asked]:
    """Return the assets of a run and the questions that each model answers, to generate them elsewhere.

    From then on this process caches below the output folder, as the run does.

    Raises:
        ValueError: as :func:`distill`, or the method reads no responses.
    """
    run = load_run_file(run_file)
    os.environ.setdefault("MASTERS_CACHE", str(run.output / "responses"))
    prepared = _prepare(run, lambda line: None)
    if prepared.spec.learn_from != "responses":
        raise ValueError(f"method {run.method!r} reads no responses")
    return prepared.lab, prepared.plan.responses


def _distill(run: RunFile, say: Say) -> Path:
    output, model_folder = run.output, run.output / "model"
    main = distributed.rank() == 0
    if main:
        _own_folder(output)
        _same_settings(run)
    prepared = _prepare(run, say if main else lambda line: None)
    lab, spec = prepared.lab, prepared.spec
    if main:
        _same_data(prepared)
        if not model_folder.is_dir():
            _check_lengths(prepared)
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


def _prepare(run: RunFile, say: Say) -> Prepared:
    """Read the data and check models, labels and settings against each other."""
    if run.training.push_to_hub and distributed.rank() == 0:
        check_upload(run.training.push_to_hub)
    own = load_own_data(run.data, run.folder)
    train = own.splits["train"]
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in own.splits.items())
    say(f"data: {counts} questions; {len(own.skipped):,} rows skipped")
    for problem in own.problems:
        say(f"data: {problem}")
    evaluated = max((len(rows) for split, rows in own.splits.items() if split != "train"), default=0)
    profile = run.profile(len(train), evaluated)
    labeled = sum(answer != "" for answer in train["answer"])
    spec = run.spec(profile, labeled > 0)
    if spec.learn_from in LABELS and labeled < len(train):
        raise ValueError(
            f"method {run.method!r} learns from answers, and {len(train) - labeled} training questions have "
            "none: remove these rows or choose a method that learns from responses, such as masters"
        )
    if "eval" not in own.splits and "test" not in own.splits:
        say("no evaluation: set data.eval to a file or to {split_from_train: 500}")
    lab = Lab(profile)
    budget_of(profile, spec, run.training.seed).arguments(run.output)  # refuses unknown names
    vocabulary = len(lab.processor.tokenizer)  # reads every processor: student and teachers must agree
    if (profile.distillation.top_k_logprobs or 0) >= vocabulary:
        everything = profile.distillation.model_copy(update={"top_k_logprobs": None})
        lab = Lab(profile.model_copy(update={"distillation": everything}))
    teachers = ", ".join(f"teacher {teacher.path}" for teacher in run.teachers) or "no teacher"
    for rows in own.splits.values() if profile.judge is None else ():
        check_labels(lab.judge, rows.select_columns(["id", "question", "answer"]).to_pandas())
    say(f"student {run.student}, {teachers}, vocabulary {vocabulary:,}, {spec.steps:,} steps")
    ratios = MaskSchedule(spec.r_max, spec.r_step).ratios
    if spec.teachers and len(all_stages(spec)) < len(spec.teachers) * len(ratios):
        say(
            f"attention: {spec.steps} steps are too few for {len(ratios)} mask ratios of each teacher: some "
            "of them, and the whole teacher, are left out; raise training.epochs or mask.step"
        )
    return Prepared(run, own, lab, spec)


def _check_lengths(prepared: Prepared) -> None:
    """Check that every prompt and a response to it fit the models; a ``ValueError`` names what does not."""
    lab = prepared.lab
    limit = min(context(lab.skeleton(name)) for name in prepared.spec.models)
    longest = lab.profile.sampling.max_new_tokens
    others = {prepared.evaluation, "eval" if prepared.run.training.eval_steps else None}
    for split in ("train", *sorted(filter(None, others))):
        questions = lab.questions("validation" if split == "eval" else split)
        sizes = [len(questions.prompt(index)) for index in range(len(questions))]
        if max(sizes) + longest > limit:
            place = int(np.argmax(sizes))
            raise ValueError(
                f"question {questions.table['id'].iloc[place]!r} of {split}: a prompt of {sizes[place]:,} "
                f"tokens and a response of {longest:,} do not fit {limit:,g} positions of the models: lower "
                "data.max_pixels or responses.max_new_tokens, or remove the row"
            )


def _estimate(prepared: Prepared, say: Say) -> None:
    own = prepared.own
    rows = own.splits["train"]
    few = replace(
        own,
        splits={"train": rows.select(range(0, len(rows), -(-len(rows) // SAMPLE)))},
        hashes={"train": f"{own.hashes['train']}-{SAMPLE} spread"},
    )
    sample = encode_own(few, "train", prepared.lab.processor)
    split = prepared.evaluation
    evaluated = len(prepared.own.splits[split]) if split else 0
    lab, spec, run = prepared.lab, prepared.spec, prepared.run
    for line in estimate_run(lab, spec, run.training.seed, sample, evaluated, run.output).lines():
        say(line)


def _train(prepared: Prepared, say: Say) -> None:
    """Train the student and save it."""
    run, output, seed = prepared.run, prepared.run.output, prepared.run.training.seed
    checkpoints = output / "checkpoints"

    def describe(folder: Path, log: pd.DataFrame) -> None:
        write_atomic(
            folder / "README.md", card(run, prepared.teachers, len(prepared.own.splits["train"]), {}, 0)
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
    questions, changed = len(prepared.own.splits["train"]), changed_share(before, model)
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


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the lock of an output folder; ranks of one run share it."""
    lock = FileLock(output / ".lock")
    if distributed.rank() == 0:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another process is using {output}: wait for it, or choose another output_dir"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _cache_in(output: Path) -> Iterator[None]:
    """Cache below an output folder, unless the user chose another place; worker processes inherit it."""
    if "MASTERS_CACHE" in os.environ:
        yield
        return
    os.environ["MASTERS_CACHE"] = str(output / "responses")
    try:
        yield
    finally:
        del os.environ["MASTERS_CACHE"]


def _same_data(prepared: Prepared) -> None:
    """Refuse to continue a run on other data, models or scorer than it began with."""
    output, lab = prepared.run.output, prepared.lab
    weights = {name: lab.source(name).weights() for name in prepared.spec.models}
    now = prepared.own.hashes | {"reward": prepared.judge.name} | weights
    path = output / "data.json"
    try:
        before = dict(json.loads(path.read_text())) if path.is_file() else now
    except (TypeError, ValueError):
        raise _unreadable(path, output) from None
    # Names that were added since the run began have nothing to compare with.
    if different := [name for name in before if before[name] != now.get(name)]:
        raise ValueError(
            f"{output} holds a run on other data or models ({', '.join(different)} changed since): "
            f"{_elsewhere(output)}"
        )
    write_atomic(path, json.dumps(now, indent=1) + "\n")


def _own_folder(output: Path) -> None:
    """Refuse a folder that holds files of something else, which a run would take for its own."""
    there = [name for name in ("model", "checkpoints", "adapter", "config.yaml") if (output / name).exists()]
    if there and not (output / "data.json").is_file():
        raise ValueError(f"{output} holds {', '.join(there)} of something else: choose another output_dir")


def _elsewhere(output: Path) -> str:
    """Return how to start over without losing the responses."""
    cache = os.environ["MASTERS_CACHE"]
    return (
        f"choose another output_dir, or delete that folder to start over; with MASTERS_CACHE={cache} another "
        "output_dir reads the responses that are there"
    )


# Settings that change nothing in the result, or only its last digits.
HOW = re.compile(
    r"file|processes|output_dir|responses\.(batch|server|served_as|concurrency|vllm)\b.*"
    r"|reward\.llm\.(server|timeout|concurrency)"
    r"|training\.(gradient_checkpointing|accumulate|responses_at_once|save_steps|report_to|push_to_hub)"
)
# Settings that nothing reads before training.
OF_TRAINING = re.compile(r"(training|loss|mask|teacher_cache)\b.*|method|responses\.(teacher|student)")


def _same_settings(run: RunFile) -> None:
    """Refuse to continue a run with other settings than those it began with.

    Those of the training may change until its first checkpoint.
    """
    path = run.output / "config.yaml"
    if not path.is_file():
        return
    try:  # parameters that were added since the run began have their defaults
        stored = RunFile.checked(yaml.safe_load(path.read_text(encoding="utf-8")) | {"file": run.file}, path)
    except (TypeError, ValueError, yaml.YAMLError):
        raise _unreadable(path, run.output) from None
    before, now = (dict(_leaves(one.model_dump())) for one in (stored, run))
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    different = [name for name in changed if not HOW.fullmatch(name)]
    if not different:
        return
    names = ", ".join(different)
    said = f"{run.output} holds a run with other settings ({names} differ from its config.yaml)"
    if (run.output / "model").is_dir() or not all(map(OF_TRAINING.fullmatch, different)):
        raise ValueError(f"{said}: {_elsewhere(run.output)}")
    if (run.output / "checkpoints").is_dir():
        raise ValueError(f"{said}: delete {run.output / 'checkpoints'} to train with them from the start")


def _leaves(values: Any, head: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the parameters of all sections, with dots."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{head}{name}.")
        else:
            yield f"{head}{name}", value


def _unreadable(path: Path, output: Path) -> ValueError:
    return ValueError(
        f"{path} is damaged, or of another version of masters: choose another output_dir, or delete {output} "
        "to start over"
    )


def _write_skipped(prepared: Prepared) -> None:
    rows = prepared.own.skipped.to_dict("records")
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    write_atomic(prepared.run.output / "skipped.jsonl", text)
