"""``masters distill``: from model folders and a file of questions to one student."""

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import families
import labs
import own_models
import pandas as pd
import pytest
import small
import torch
import yaml
from filelock import FileLock
from fuzzing import count, rounds
from judge_server import explains, said, serving, verdict
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import masters
from masters.distillation.estimate import Speed
from masters.distillation.outputs import resolved
from masters.distillation.run import check
from masters.distillation.run_file import load_run_file
from masters.experiments.lab import Lab
from masters.objective.diagnostics import Diverged
from masters.runtime.files import ROOT


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with small.scratch(tmp_path / "data"):
        monkeypatch.setenv("MASTERS_CACHE", str(tmp_path / "out" / "responses"))
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own_models.models(tmp_path)
    own_models.rows(tmp_path)
    return tmp_path


def test_a_run_ends_in_a_student_with_a_card_answers_and_scores(folder: Path) -> None:
    said: list[str] = []
    model = masters.distill(own_models.file(folder), said.append)
    output = folder / "out"
    assert model == output / "model"
    AutoModelForImageTextToText.from_pretrained(model)
    AutoProcessor.from_pretrained(model)
    answers = {path.stem: pd.read_parquet(path) for path in (output / "eval").glob("*.parquet")}
    assert answers.keys() == {"before", "after", "teacher-1-teacher"}
    scores = json.loads((output / "eval" / "scores.json").read_text())
    assert scores["questions"] == 4
    for name, frame in answers.items():
        assert len(frame) == 4
        assert scores[name]["score"] == pytest.approx(frame["score"].mean())
        assert scores[name]["low"] <= scores[name]["score"] <= scores[name]["high"]
    card = (model / "README.md").read_text()
    assert f"{100 * scores['after']['score']:.1f} %" in card and "r_max: 0.2" in card
    assert yaml.safe_load((output / "config.yaml").read_text())["training"]["lr_schedule"] == "constant"
    assert len(pd.read_parquet(output / "log.parquet"))
    assert not (output / "checkpoints").exists()
    assert any("masters chat" in line for line in said)
    # 8 questions, each answered twice by the student and by the teacher at the one ratio it is seen at.
    shards = (output / "responses" / "responses").rglob("part-*.parquet")
    assert sum(len(pd.read_parquet(path)) for path in shards) == 8 * (2 + 2)
    # A second start does nothing again.
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    masters.distill(folder / "run.yaml", said.append)
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}


def test_the_student_differs_from_its_start_and_a_restart_ends_the_same(folder: Path) -> None:
    quiet = [].append
    masters.distill(own_models.file(folder), quiet)
    undisturbed = (folder / "out" / "model" / "model.safetensors").read_bytes()
    assert undisturbed != (folder / "student" / "model.safetensors").read_bytes()
    own_models.file(folder, output_dir="again")

    class Killed(BaseException):
        pass

    for phase in ("data:", "disk:", "eval/before", "student saved", "eval/teacher", "eval/after", "gain"):

        def die(line: str, phase: str = phase) -> None:
            if line.startswith(phase):
                raise Killed

        with pytest.raises(Killed):
            masters.distill(folder / "run.yaml", die)
    masters.distill(folder / "run.yaml", quiet)
    assert (folder / "again" / "model" / "model.safetensors").read_bytes() == undisturbed
    assert (folder / "again" / "eval" / "scores.json").read_text() == (
        folder / "out" / "eval" / "scores.json"
    ).read_text()


@pytest.mark.slow
@pytest.mark.fuzz
def test_kills_at_any_moment_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    masters.distill(own_models.file(folder), [].append)
    seconds, rng = time.monotonic() - start, random.Random(0)
    for number in range(rounds(1)):
        monkeypatch.setenv("MASTERS_CACHE", str(folder / f"cache-{number}"))
        file, ended = own_models.file(folder, output_dir=f"again-{number}"), False
        while not ended:
            run = multiprocessing.get_context("fork").Process(target=masters.distill, args=(file, [].append))
            run.start()
            run.join(rng.uniform(0, 0.6 * seconds))
            ended = run.exitcode is not None
            run.kill()
            run.join()
            if not ended:
                count("runs of own models, killed", named=False)
        assert run.exitcode == 0
        for same in ("model/model.safetensors", "eval/scores.json"):
            again = (folder / f"again-{number}" / same).read_bytes()
            assert again == (folder / "out" / same).read_bytes()


def test_two_teachers_teach_in_order_and_no_answers_mean_no_accuracy_reward(folder: Path) -> None:
    own_models.rows(folder, answers=False)
    said: list[str] = []
    masters.distill(own_models.file(folder, teachers=["teacher", "second"]), said.append)
    assert sum("of train have no answer" in line for line in said) == 1
    log = pd.read_parquet(folder / "out" / "log.parquet")
    assert (log["reward_accuracy"] == 0).all() and log["reward_distillation"].notna().all()
    assert (folder / "out" / "eval" / "teacher-1-teacher.parquet").is_file()
    assert not (folder / "out" / "eval" / "scores.json").exists()  # nothing to compare answers with


def test_a_check_generates_nothing(folder: Path) -> None:
    said: list[str] = []
    check(own_models.file(folder), said.append)
    text = "\n".join(said)
    assert "train 8, eval 4" in text and "minutes, rough: under 0.1 (encoding under 0.1, generating" in text
    for phase in ("generating one response", "scoring one question", "training"):
        assert f"memory, {phase}: about" in text
    assert not (folder / "out" / "model").exists()
    assert not list((folder / "out").rglob("part-*.parquet"))


def test_the_hours_of_a_check_count_the_pictures_of_every_phase(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour per question's pictures, everything else in no time."""
    monkeypatch.setattr(Speed, "measured", lambda *_: Speed(rate=1e300, learning=1e300, call=0, picture=3600))
    said: list[str] = []
    check(own_models.file(folder), said.append)
    (line,) = [line for line in said if line.startswith("hours")]
    # 8 questions: answered by the teacher at one mask ratio and by the student, the responses of each read by
    # both, trained on once. 4 others: answered by the student twice and the teacher.
    for phase in ("encoding 12", "generating 16", "reading 32", "training 8", "evaluating 12"):
        assert f"{phase} to {phase.split()[1]}" in line
    assert line.startswith("hours, rough: 80 to 80 (")
    own_models.file(folder, training={"learning_rate": 1e-3, "batch": 2, "eval_steps": 2})
    check(folder / "run.yaml", said.append)
    assert "evaluating 20 to 20" in said[-1]  # after the second and the fourth of four steps


def test_the_hours_of_a_check_grow_with_the_responses(folder: Path) -> None:
    speed = Speed(rate=1e9, learning=1e9, call=1e-5, picture=1e-3)
    model, _ = small.build()
    short, long = (speed.generate(model, 4, 2000, 20, length) for length in (8, 32))
    assert short < long < 4 * short
    assert speed.read(model, 100, 20, 10) > speed.read(model, 100, 20, 5) > 100 * speed.picture


def test_other_settings_in_the_same_folder_are_refused(folder: Path) -> None:
    masters.distill(own_models.file(folder), [].append)
    with pytest.raises(ValueError, match=r"other settings \(training.learning_rate differ.*MASTERS_CACHE="):
        masters.distill(own_models.file(folder, training={"learning_rate": 2e-3, "batch": 2}), [].append)
    how = {"learning_rate": 1e-3, "batch": 2, "accumulate": 2, "save_steps": 1}
    masters.distill(own_models.file(folder, training=how), [].append)


def test_settings_of_the_training_may_change_until_its_first_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("masters.distillation.run._train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            masters.distill(own_models.file(folder), [].append)
    changed = {"learning_rate": 2e-3, "batch": 2, "watch": {"kl": 1e-9}}
    with pytest.raises(Diverged):
        masters.distill(own_models.file(folder, training=changed), [].append)
    (folder / "out" / "checkpoints").mkdir(exist_ok=True)
    slower = own_models.file(folder, training={"learning_rate": 1e-4, "batch": 2})
    with pytest.raises(ValueError, match=r"training.watch.kl differ from .*: delete .*checkpoints"):
        masters.distill(slower, [].append)
    shutil.rmtree(folder / "out" / "checkpoints")
    assert (masters.distill(slower, [].append) / "config.json").is_file()
    other = own_models.file(folder, training={"learning_rate": 1e-4, "batch": 2}, reward="exact")
    with pytest.raises(ValueError, match=r"other settings \(reward differ"):
        masters.distill(other, [].append)


def test_where_a_teacher_is_loaded_may_change(folder: Path) -> None:
    masters.distill(own_models.file(folder), [].append)
    elsewhere = own_models.file(folder, teachers={"path": "teacher", "device_map": "cpu"})
    masters.distill(elsewhere, [].append)
    loader = {"learning_rate": 1e-3, "batch": 2, "args": {"dataloader_num_workers": 0}}
    masters.distill(own_models.file(folder, training=loader), [].append)
    with pytest.raises(ValueError, match=r"other settings \(teachers.1.dtype differ"):
        masters.distill(own_models.file(folder, teachers={"path": "teacher", "dtype": "bfloat16"}), [].append)


def test_a_batch_that_the_processes_cannot_share_is_refused_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own_models.file(folder)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="a batch of 2 questions cannot be shared by 3 processes in 1 parts"):
        check(file, [].append)


def test_rows_that_the_processor_refuses_do_not_count(folder: Path) -> None:
    lines = (folder / "train.jsonl").read_text().splitlines()
    refused = [json.dumps({"question": f"<IMAGE> {number}", "answer": "red"}) for number in range(4)]
    (folder / "train.jsonl").write_text("\n".join([*refused, *lines]) + "\n")
    data = {"train": "train.jsonl"}
    said: list[str] = []
    with pytest.warns(UserWarning, match="4 of 16 rows of train are left out"):
        masters.distill(own_models.file(folder, data=data), said.append)
    assert any("6 steps" in line for line in said)  # of 2 questions each
    skipped = [json.loads(line) for line in (folder / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [row["row"] for row in skipped] == [1, 2, 3, 4]
    stored = [
        set(pd.read_parquet(path)["asked"])
        for path in (folder / "out" / "responses" / "responses").rglob("part-*.parquet")
    ]
    assert set.union(*stored) == {"what colour is this square ?"}
    log = pd.read_parquet(folder / "out" / "log.parquet")
    assert log["step"].max() == 6
    encoded = list((folder / "out" / "responses" / "questions").glob("train-*[0-9a-f]"))
    assert len(encoded) == 2, "once, and the sample of the estimate"


def test_labels_that_no_response_can_reach_are_said(folder: Path) -> None:
    (folder / "mine.py").write_text("def score(question, answers, response):\n    return 0\n")
    said: list[str] = []
    check(own_models.file(folder, reward="mine.py:score"), said.append)
    assert any(
        "the labels of 8 of 8 rows of train score 0 with reward mine.py:score" in line for line in said
    )
    said.clear()
    check(own_models.file(folder), said.append)
    assert not any("score 0" in line for line in said)


def test_another_scorer_or_other_weights_under_the_same_name_are_refused(folder: Path) -> None:
    scorer = folder / "mine.py"
    scorer.write_text("def score(question, answers, response):\n    return 0.5\n")
    masters.distill(own_models.file(folder, reward="mine.py:score"), [].append)
    scorer.write_text("def score(question, answers, response):\n    return 1.0\n")
    with pytest.raises(ValueError, match=r"other data or models \(reward changed since\)"):
        masters.distill(folder / "run.yaml", [].append)
    scorer.write_text("def score(question, answers, response):\n    return 0.5\n")
    weights = load_file(folder / "teacher" / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, folder / "teacher" / "model.safetensors")
    with pytest.raises(ValueError, match=r"\(large changed since\)"):
        masters.distill(folder / "run.yaml", [].append)


def test_a_damaged_student_is_named_and_made_again(folder: Path) -> None:
    weights = masters.distill(own_models.file(folder), [].append) / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:2000])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged .*: delete .*/model and start again"):
        masters.distill(folder / "run.yaml", [].append)
    shutil.rmtree(folder / "out" / "model")
    masters.distill(folder / "run.yaml", [].append)
    assert weights.read_bytes() == before


def test_a_folder_with_files_of_something_else_is_left_alone(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "mine").touch()
    with pytest.raises(ValueError, match="holds checkpoints of something else: choose another output_dir"):
        masters.distill(own_models.file(folder, output_dir="."), [].append)
    assert (folder / "checkpoints" / "mine").is_file() and not (folder / "model").exists()


def test_a_judge_may_move_but_may_not_judge_otherwise(folder: Path) -> None:
    with serving() as first, serving() as second:
        for server in (first, second):
            server.reply = lambda prompt: said("right") if explains(prompt) else said(verdict(prompt, 1))
        llm = {"server": first.url, "model": "grader"}
        masters.distill(own_models.file(folder, reward={"llm": llm}), [].append)
        masters.distill(own_models.file(folder, reward={"llm": llm | {"server": second.url}}), [].append)
        with pytest.raises(ValueError, match=r"other settings \(reward.llm.max_tokens differ"):
            masters.distill(own_models.file(folder, reward={"llm": llm | {"max_tokens": 4000}}), [].append)


def test_no_password_reaches_the_card(folder: Path) -> None:
    reward = {"llm": {"server": "http://me:secret@localhost:1/v1", "model": "grader"}}
    run = load_run_file(own_models.file(folder, reward=reward))
    assert "secret" not in resolved(run) and "http://localhost:1/v1" in resolved(run)


def test_other_data_in_the_same_folder_is_refused(folder: Path) -> None:
    masters.distill(own_models.file(folder), [].append)
    masters.distill(own_models.file(folder), [].append)
    rows = (folder / "train.jsonl").read_text().replace('"answer": "red"', '"answer": "dark red"')
    (folder / "train.jsonl").write_text(rows)
    with pytest.raises(ValueError, match=r"other data or models \((train|train, eval|eval) changed since\)"):
        masters.distill(own_models.file(folder), [].append)


def test_runs_of_one_process_have_their_own_caches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTERS_CACHE")
    for name in ("one", "two"):
        masters.distill(own_models.file(folder, output_dir=name), [].append)
    for name in ("one", "two"):
        assert list((folder / name / "responses" / "responses").rglob("*.parquet"))
    assert "MASTERS_CACHE" not in os.environ


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "accuracy_only"}, "method 'accuracy_only' needs the accuracy reward, and no training"),
        ({"loss": {"flat": "skip"}}, "flat: skip} needs the accuracy reward, and no training question"),
    ],
)
def test_what_needs_answers_is_refused_without_any(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    own_models.rows(folder, answers=False)
    with pytest.raises(ValueError, match=message):
        masters.distill(own_models.file(folder, **changes), [].append)


def test_two_at_once_in_one_folder_are_refused(folder: Path) -> None:
    (folder / "out").mkdir()
    with FileLock(folder / "out" / ".lock"), pytest.raises(ValueError, match="another process is using"):
        masters.distill(own_models.file(folder), [].append)


def test_labels_alone_and_keywords(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    options = yaml.safe_load(own_models.file(folder, method="sft").read_text())
    assert options["teachers"]
    model = masters.distill(say=[].append, **options)
    assert (model / "config.json").is_file()
    assert "labels alone" in (model / "README.md").read_text()
    # A run that was stopped after it saved the student leaves its checkpoints to the next start.
    written = folder / "out" / "checkpoints" / "runs" / "events"
    for text in ("first", "second"):
        written.parent.mkdir(parents=True)
        written.with_name(text).write_text(text)
        masters.distill(say=[].append, **options)
        assert not (folder / "out" / "checkpoints").exists()
    assert {path.name for path in (folder / "out" / "logs").iterdir()} == {"first", "second"}
    with pytest.raises(ValueError, match="not both"):
        masters.distill("run.yaml", **options)


def test_a_language_model_that_rewards_also_judges_the_evaluation(folder: Path) -> None:
    with serving() as server:
        server.reply = lambda prompt: said("right") if explains(prompt) else said(verdict(prompt, 1))
        reward = {"llm": {"server": server.url, "model": "grader", "concurrency": 1}}
        masters.distill(own_models.file(folder, reward=reward), [].append)
        calls = len(server.requests)
    frame = pd.read_parquet(folder / "out" / "eval" / "before.parquet")
    answered = frame["answer"] != ""  # an empty response is wrong without a call
    assert calls and (frame["score"] == answered).all()


def test_a_method_without_rewards_goes_with_any_reward(folder: Path) -> None:
    reward = {"llm": {"server": "http://localhost:1/v1", "model": "grader"}}
    for method, judge in (("naive_multi", "rule"), ("masked", "rule"), ("masters", "llm")):
        run = load_run_file(own_models.file(folder, reward=reward, method=method))
        assert run.spec(run.profile(8, 4), True).judge == judge


def test_teachers_are_named_as_they_teach_and_none_by_labels(folder: Path) -> None:
    two = own_models.file(folder, teachers=["teacher", "second"], method="masked+teachers=teacher2,teacher1")
    card = (masters.distill(two, [].append) / "README.md").read_text()
    assert "from second, then teacher, on" in card
    answers = {path.stem for path in (folder / "out" / "eval").glob("teacher-*")}
    assert answers == {"teacher-1-second", "teacher-2-teacher"}
    labels = own_models.file(folder, teachers=["teacher", "second"], method="sft", output_dir="labels")
    assert "from labels alone, on" in (masters.distill(labels, [].append) / "README.md").read_text()


def test_a_prompt_that_leaves_no_room_for_a_response_is_named_before_anything_is_generated(
    folder: Path,
) -> None:
    limit = AutoConfig.from_pretrained(folder / "student").get_text_config().max_position_embeddings
    long = {"teacher": 2, "student": 2, "max_new_tokens": limit}
    with pytest.raises(ValueError, match=r"question '.*' of train: a prompt of .* do not fit .* positions"):
        masters.distill(own_models.file(folder, responses=long), [].append)
    assert not (folder / "out" / "config.yaml").exists() and not (folder / "out" / "eval").exists()


def test_too_few_steps_for_the_mask_ratios_are_said(folder: Path) -> None:
    told: list[str] = []
    check(own_models.file(folder, mask={"r_max": 0.6, "step": 0.05}), told.append)
    assert any(line.startswith("attention: 4 steps are too few for 13 mask ratios") for line in told)
    told.clear()
    check(own_models.file(folder), told.append)
    assert not any("attention" in line for line in told)


def test_adapters_learn_faster_unless_told_otherwise(folder: Path) -> None:
    rates = [
        load_run_file(own_models.file(folder, training=training)).training.learning_rate
        for training in (
            {},
            {"lora": {"rank": 2}},
            {"lora": None},
            {"lora": {"rank": 2}, "learning_rate": 1e-5},
        )
    ]
    assert rates == [1e-6, 1e-4, 1e-6, 1e-5]


def test_a_run_may_be_stopped_by_its_kl(folder: Path) -> None:
    training = {"learning_rate": 1e-1, "batch": 2, "watch": {"kl": 1e-6}}
    with pytest.raises(Diverged, match="stopped at step"):
        masters.distill(own_models.file(folder, training=training), [].append)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"student": "nowhere/at/all"}, "no folder .*nowhere/at/all"),
        ({"teachers": []}, "needs a teacher"),
        ({"teachers": [{"path": "teacher", "dtype": "int3"}]}, "teachers.0.dtype"),
        ({"training": {"eval_steps": 2}, "data": {"train": "train.jsonl"}}, "set data.eval"),
        ({"training": {"report_to": ["nothing"]}}, "report_to: 'nothing' is not a tracker"),
        ({"method": "best"}, "'best' is unknown"),
        ({"method": "reasoning"}, "rationales, which data of your own do not have"),
        ({"training": {"args": {"save_strategy": "no"}}}, "args cannot set 'save_strategy'"),
        ({"method": "base"}, "distills nothing"),
        (
            {"responses": {"teacher": 0, "student": 0}},
            "no responses to learn from: ask teacher or student",
        ),
        ({"mask": {"r_max": 1.0}}, "mask.r_max: .*less than 1"),
        ({"training": {"learning_rat": 1}}, r"training.learning_rat: .*\(known: .*lr_schedule"),
        ({"training": {"optim": "adam9"}}, "no optimizer 'adam9'"),
        ({"training": {"args": {"max_step": 3}}}, "no 'max_step'"),
        ({"training": {"args": {"seed": 3}}}, "cannot set 'seed'"),
        ({"training": {"args": {"eval_strategy": "steps"}}}, "cannot set 'eval_strategy'"),
        ({"training": {"args": {"gradient_accumulation_steps": 2}}}, "cannot set 'gradient_accum"),
        ({"training": {"args": {"num_train_epochs": 9}}}, "cannot set 'num_train_epochs'"),
        ({"method": "masters+student=large"}, "names a student"),
        ({"loss": {"teacher_temperature": 2}}, "teacher_cache.top_k: null"),
        ({"training": {"batch": 4, "accumulate": 3}}, "run.yaml: .*accumulate 3 does not divide"),
        ({"file": "/"}, "file is not a parameter"),
        ({"responses": {"engine": "openai"}}, "server"),
    ],
)
def test_a_wrong_parameter_is_one_line(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        masters.distill(own_models.file(folder, **changes), [].append)
    assert "\n" not in str(caught.value)
    assert not (folder / "out" / "model").exists()


def test_a_run_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the parameter file"):
        load_run_file(tmp_path / "no.yaml")
    for content, message in (("[1]", "holds list"), ("a: [", "not valid YAML"), ("#" * 1_000_001, "bytes")):
        (tmp_path / "run.yaml").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_run_file(tmp_path / "run.yaml")


@pytest.mark.parametrize("name", ["run", "run-gpu1", "run-paper", "run-gpu8"])
def test_the_example_files_run_with_tiny_models(folder: Path, name: str) -> None:
    content = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    load_run_file(ROOT / "examples" / f"{name}.yaml")
    content |= {"student": "student", "teachers": "teacher", "output_dir": "out"}
    content["data"] |= {"eval": {"split_from_train": 4}, "columns": {"images": "image"}}
    content["responses"] |= {"max_new_tokens": 6, "engine": "transformers"}
    content["teacher_cache"] = {"top_k": 8}
    content["training"] |= {"batch": 4, "accumulate": 2}
    pd.read_json(folder / "train.jsonl", lines=True).to_parquet(folder / "train.parquet")
    content["data"]["train"] = "train.parquet"
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    assert (masters.distill(folder / "run.yaml", [].append) / "config.json").is_file()


def test_files_of_a_tracker_outlive_the_checkpoints(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="no tracker is a pinned package: make test-extras")
    own_models.models(tmp_path)
    own_models.rows(tmp_path)
    training = {"learning_rate": 1e-3, "batch": 2, "report_to": ["tensorboard"]}
    masters.distill(own_models.file(tmp_path, training=training))
    assert list((tmp_path / "out" / "logs").rglob("events.out.tfevents.*"))
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
def test_a_bfloat16_student_of_another_family_with_several_pictures_or_none(
    tmp_path: Path, family: str
) -> None:
    """From a bfloat16 folder: trained in float32, saved as bfloat16, and no longer what it was."""
    if family == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor needs it: make test-extras")
    words = sorted({*small.WORDS, "which", "is", "brighter", "first", "second", "none"})
    for seed, name in enumerate(("student", "teacher")):
        model, _ = getattr(families, family)(tmp_path / name, words)
        families.build(model.config, seed).to(torch.bfloat16).save_pretrained(tmp_path / name)
    rows = []
    for index in range(8):
        pictures = []
        for number in range(index % 3):
            name = f"{index}-{number}.png"
            Image.new("RGB", (64 + 32 * (index % 2), 96), (30 * index, 80 * number, 9)).save(tmp_path / name)
            pictures.append(name)
        row = {"images": pictures, "question": f"which is brighter {words[index]} ?", "answer": "first"}
        rows.append(row)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "train.jsonl", "eval": {"split_from_train": 2}}
    said: list[str] = []
    saved = masters.distill(own_models.file(tmp_path, data=data), said.append)
    student = AutoModelForImageTextToText.from_pretrained(saved)
    assert student.dtype == torch.bfloat16
    before = AutoModelForImageTextToText.from_pretrained(tmp_path / "student")
    changed = [
        (a != b).float().mean().item() for a, b in zip(student.parameters(), before.parameters(), strict=True)
    ]
    assert sum(changed) / len(changed) > 0.5
    assert any(line.startswith("memory, training: about") for line in said)
    (share,) = (float(line.split()[1]) for line in said if line.startswith("weights: "))
    assert share > 50 and f" {share} % of the stored weights differ" in (saved / "README.md").read_text()
    # The learning rate of the paper, for a few steps: what changes is lost in bfloat16.
    slow = {"learning_rate": 1e-9, "batch": 4}
    masters.distill(own_models.file(tmp_path, data=data, training=slow, output_dir="slow"), said.append)
    assert any("bfloat16 cannot hold most changes" in line for line in said), said


WHOLE_FILE = """
student: Qwen/Qwen3-VL-2B-Instruct
teachers: [Qwen/Qwen3-VL-8B-Instruct]
output_dir: out/qwen3-vl-2b
data:
  train: train.jsonl
  eval: {split_from_train: 500}
  columns: {images: images, question: question, answer: answer, options: options}
  system: null
  max_pixels: 1_003_520
  on_bad_row: skip
method: masters
mask: {r_max: 0.2, step: 0.05}
responses: {teacher: 4, student: 4, max_new_tokens: 512, engine: vllm, batch: auto}
reward: rule
teacher_cache: {top_k: 64}
training:
  {learning_rate: 1.0e-6, epochs: 1, batch: 16, gradient_checkpointing: true, lora: null, warmup_ratio: 0,
   max_grad_norm: 1.0, optim: adamw_torch_fused, save_steps: 200, eval_steps: 200, report_to: [],
   push_to_hub: null, args: {}}
"""


def test_a_file_with_every_parameter_is_run_as_it_says(folder: Path) -> None:
    (folder / "run.yaml").write_text(WHOLE_FILE)
    run = load_run_file(folder / "run.yaml")
    spec, profile = run.spec(run.profile(1600, 500), True), run.profile(1600, 500)
    assert (spec.teacher_responses, spec.student_responses, spec.r_max, spec.r_step) == (4, 4, 0.2, 0.05)
    assert (spec.steps, spec.batch, spec.learning_rate, spec.lr_schedule) == (100, 16, 1e-6, "constant")
    assert profile.generation.engine == "vllm" and profile.generation.batch is None
    assert profile.distillation.top_k_logprobs == 64
    assert profile.distillation.memory_savings.gradient_checkpointing
    tiny = yaml.safe_load(WHOLE_FILE)
    tiny |= {"student": "student", "teachers": ["teacher"], "output_dir": "out"}
    tiny["data"] |= {"eval": {"split_from_train": 4}, "columns": {"images": "image"}}
    tiny["responses"] |= {"max_new_tokens": 6, "engine": "transformers"}
    tiny["teacher_cache"] = {"top_k": 8}
    tiny["training"] |= {"eval_steps": 1, "save_steps": 1, "batch": 2}
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny))
    masters.distill(folder / "run.yaml", [].append)
    assert pd.read_parquet(folder / "out" / "log.parquet")["eval_score"].notna().sum() == 4


def test_evaluations_during_training_are_logged_and_change_nothing(folder: Path) -> None:
    training = {"learning_rate": 1e-3, "batch": 2}
    plain = masters.distill(own_models.file(folder, training=training), [].append)
    logged = masters.distill(
        own_models.file(folder, training=training | {"eval_steps": 2}, output_dir="logged"), [].append
    )
    weights = (path / "model.safetensors" for path in (plain, logged))
    assert next(weights).read_bytes() == next(weights).read_bytes()
    log = pd.read_parquet(folder / "logged" / "log.parquet").dropna(subset="eval_score")
    scores = json.loads((folder / "logged" / "eval" / "scores.json").read_text())
    assert list(log["step"]) == [2, 4]
    assert log["eval_score"].iloc[-1] == pytest.approx(scores["after"]["score"])


def test_five_teachers_teach_in_order_each_loaded_as_asked(folder: Path) -> None:
    teachers: list[Any] = ["teacher", "second"] * 2
    teachers.append({"path": "teacher", "device_map": "cpu", "dtype": "bfloat16"})
    training = {"learning_rate": 1e-3, "batch": 2, "epochs": 3}
    run = load_run_file(own_models.file(folder, teachers=teachers, training=training))
    assert run.spec(run.profile(8, 4), True).teachers == tuple(f"teacher{number}" for number in range(1, 6))
    lab = Lab(run.profile(8, 4))
    assert lab.source("teacher5").load().dtype == torch.bfloat16
    assert lab.source("teacher1").load().dtype == torch.float32
    assert lab.source("teacher5").weights() != lab.source("teacher1").weights()
    masters.distill(folder / "run.yaml", [].append)
    assert len(list((folder / "out" / "eval").glob("teacher-*.parquet"))) == 5


def test_lora_leaves_its_adapter_beside_the_merged_student(folder: Path) -> None:
    training = {"learning_rate": 1e-2, "batch": 2, "lora": {"rank": 2}}
    merged = AutoModelForImageTextToText.from_pretrained(
        masters.distill(own_models.file(folder, training=training), [].append)
    )
    start = AutoModelForImageTextToText.from_pretrained(folder / "student")
    adapted = PeftModel.from_pretrained(start, folder / "out" / "adapter").merge_and_unload()
    for ours, theirs in zip(merged.parameters(), adapted.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_trial_folder_can_be_distilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    import trial

    trial.write(tmp_path / "trial", Lab(labs.profile()), 16, 4)
    model = masters.distill(tmp_path / "trial" / "run.yaml", [].append)
    assert (model / "config.json").is_file()
