import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from judge_server import Reply, block, explains, said, serving, verdict
from labs import profile

from masters.experiments import run as runs
from masters.experiments.arms import RunSpec, arm
from masters.experiments.curriculum import (
    WantedLogprobs,
    WantedResponses,
    logprobs_at,
    wanted_responses,
)
from masters.experiments.curriculum import stages as stages_of
from masters.experiments.lab import Lab
from masters.experiments.memory import memory
from masters.experiments.response_plan import ResponsePlan, prepare, reads_by_stage
from masters.experiments.results import Results, run_arm, run_arms
from masters.experiments.run import response_set, run, run_folder
from masters.judges.rule import RuleJudge
from masters.masking.choice import PAPERS
from masters.masking.teacher_mask import TeacherMask
from masters.models.loading import load
from masters.models.packing import pack, response_logits
from masters.objective.diagnostics import Diverged
from masters.objective.divergence import jsd
from masters.runtime.keys import hash_of
from masters.settings import LanguageJudge, Lora, MemorySavings, ModelSpec, Sampling, TrainerOptions, Watch
from masters.training.ladder import epochs, labeled
from masters.training.memory import Memory
from masters_book.analysis import masked_teachers as teachers
from masters_book.analysis.ladder import rungs, training_curves
from masters_book.analysis.latency import answer_times

ARMS = ["base", "sft", "naive", "masked", "masters", "mid_then_large", "own_accuracy"]
RUN_COLUMNS = {
    "arm", "seed", "key", "student", "teachers", "r_max", "r_step", "teacher_responses", "student_responses",
    "rewards", "learning_rate", "beta", "steps", "accuracy", "sampled_accuracy", "tokens", "kl", "seconds",
}  # fmt: skip
PREDICTION_COLUMNS = {"arm", "seed", "task", "skill", "question", "mode", "correct", "tokens", "register"}
LOG_COLUMNS = {
    "arm", "seed", "step", "loss", "divergence", "policy", "kl", "flat_groups", "reward_accuracy",
    "reward_distillation", "mask_ratio",
}  # fmt: skip


SAVING = TrainerOptions(save_steps=2)  # part of a run's key, without effect on its weights


def stopping_at(step: int, log: pd.DataFrame) -> Watch:
    """Return a bound on the KL that ends a run with this log at a step, before its checkpoint is saved."""
    kl = log["kl"].to_numpy()
    before, then = kl[: step - 1].max(), kl[step - 1]
    assert before < then
    return Watch(kl=(before + then) / 2)


def of_arm(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table[table["arm"] == name].reset_index(drop=True)


def files(folder: Path) -> dict[Path, int]:
    """Return when each file below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    data = tmp_path_factory.mktemp("experiments")
    with small.scratch(data):
        yield data


@pytest.fixture(scope="module")
def lab(folder: Path) -> Lab:
    """A lab whose ladder was trained in a worker process."""
    made = Lab(profile())
    made.folder("large")
    return made


@pytest.fixture(scope="module")
def results(lab: Lab) -> Results:
    return run_arms(lab, ARMS)


# --- the ladder ---


def test_the_ladder_is_trained_once(lab: Lab) -> None:
    first = rungs(lab)
    assert list(first["model"]) == ["student", "mid", "large"]
    assert first["parameters"].is_monotonic_increasing and (first["training_steps"] == 20).all()
    assert first["weights"].nunique() == 3 and (first["seconds"] > 0).all()
    pd.testing.assert_frame_equal(rungs(Lab(profile())), first)  # with the seconds of the training


def test_a_share_of_the_labels_belongs_to_the_last_pictures_of_each_task(lab: Lab) -> None:
    few = profile().model_copy(update={"tasks": ("charts", "digits"), "train_questions": 40})
    table = (questions := Lab(few).questions("train")).table
    assert labeled(questions, 1).tolist() == list(range(80))
    for share in (0.01, 0.3):
        chosen = table.iloc[labeled(questions, share)]
        for task, of_task in table.groupby("task"):
            pictures, some = list(of_task["picture"].unique()), chosen[chosen["task"] == task]
            last = pictures[-max(1, round(share * len(pictures))) :]
            assert set(some["picture"]) == set(last)
            assert len(some) == of_task["picture"].isin(last).sum()


def test_options_that_came_later_leave_the_keys_of_trained_models_as_they_were() -> None:
    before = ("path", "width", "layers", "vision_layers", "steps", "caption_steps", "caption_share", "batch")
    assert set(ModelSpec().determining()) == {*before, "learning_rate"}
    assert ModelSpec(label_share=0.2, averaging="token").determining()["label_share"] == 0.2


def test_a_rung_may_have_wrong_labels_of_its_own(lab: Lab) -> None:
    def weights(**changes: float) -> str:
        spec = ModelSpec(width=16, layers=1, steps=6, batch=2, **changes)
        return Lab(profile().model_copy(update={"ladder": {"huge": spec}})).source("huge").weights()

    assert weights() == weights(wrong_labels=0.0) != weights(wrong_labels=1.0)


def test_the_ladders_log(lab: Lab) -> None:
    log = training_curves(lab)
    assert list(log) == ["model", "step", "loss"]
    assert set(log["model"]) == {"student", "mid", "large"} and np.isfinite(log["loss"]).all()


def test_nothing_half_done_stays(results: Results, folder: Path) -> None:
    for place in ("models", "runs"):
        names = [path.name for path in (folder / "cache" / place).iterdir() if path.is_dir()]
        assert names and not [name for name in names if name.startswith(".") or name.endswith(".run")]


# --- runs ---


def test_runs_have_the_documented_columns(results: Results, lab: Lab) -> None:
    runs = results.runs.set_index("arm")
    assert set(results.runs) >= RUN_COLUMNS and list(runs.index) == ARMS
    assert runs["key"].nunique() == len(ARMS)
    for column in ("accuracy", "sampled_accuracy"):
        assert runs[column].between(0, 1).all()
    assert runs["tokens"].between(1, 8).all()
    assert dict(runs["teachers"]) == {
        "base": "", "sft": "", "naive": "large", "masked": "large", "masters": "large",
        "mid_then_large": "mid+large", "own_accuracy": "large",
    }  # fmt: skip
    assert runs["rewards"]["masters"] == "accuracy+distillation" and runs["rewards"]["masked"] == ""
    assert math.isnan(runs["kl"]["base"]) and runs["kl"]["masters"] > 0
    assert (runs["seconds"] >= 0).all()


def test_predictions_are_a_row_a_run_question_and_mode(results: Results, lab: Lab) -> None:
    predictions, ids = results.predictions, set(lab.questions("test").table["id"])
    assert set(predictions) >= PREDICTION_COLUMNS
    assert len(predictions) == len(ARMS) * len(ids) * 2
    assert not predictions.duplicated(["arm", "seed", "question", "mode"]).any()
    assert set(predictions["question"]) == ids and set(predictions["mode"]) == {"greedy", "sampled"}
    accuracy = predictions[predictions["mode"] == "greedy"].groupby("arm")["correct"].mean()
    assert dict(accuracy) == pytest.approx(dict(results.runs.set_index("arm")["accuracy"]))


def test_the_log_shows_what_an_arm_minimised(results: Results) -> None:
    log = results.log
    assert set(log) >= LOG_COLUMNS and "base" not in set(log["arm"])
    assert set(log["arm"]) == set(ARMS) - {"base"}
    for name, rows in log.groupby("arm"):
        assert list(rows["step"]) == list(range(1, 7)), name
        assert np.isfinite(rows["loss"]).all()
    by_arm = {name: rows.set_index("step") for name, rows in log.groupby("arm")}
    assert list(by_arm["masters"]["mask_ratio"]) == [0.2, 0.2, 0.1, 0.1, 0.0, 0.0]
    assert list(by_arm["mid_then_large"]["mask_ratio"]) == [0.2, 0.1, 0.0] * 2
    assert (by_arm["naive"]["mask_ratio"] == 0).all()
    assert by_arm["sft"]["divergence"].isna().all()
    assert by_arm["masters"]["kl"][1] == pytest.approx(0, abs=1e-3)  # the student is its own reference
    assert by_arm["masters"]["kl"][6] > by_arm["masters"]["kl"][1]


def test_training_changes_the_student_and_only_there(results: Results, lab: Lab, folder: Path) -> None:
    weights = {}
    for name in ARMS:
        saved = run_folder(lab, arm(name, lab.profile), 0) / "model"
        assert saved.is_dir() == (name != "base")
        if saved.is_dir():
            weights[name] = small.weights_hash(load(saved)[0])
    student = small.weights_hash(load(lab.folder("student"))[0])
    assert len({student, *weights.values()}) == len(ARMS)


def test_a_second_time_nothing_runs(results: Results, folder: Path) -> None:
    before = files(folder / "cache" / "runs")
    again = run_arms(Lab(profile()), ARMS)
    assert files(folder / "cache" / "runs") == before
    pd.testing.assert_frame_equal(again.runs, results.runs)
    pd.testing.assert_frame_equal(again.predictions, results.predictions)
    pd.testing.assert_frame_equal(again.log, results.log)
    base = run_arms(Lab(profile()), ["base"])
    assert len(base.log) == 0 and list(base.runs["arm"]) == ["base"]


def test_what_changes_a_result_changes_the_key(lab: Lab, results: Results) -> None:
    spec = arm("masters", lab.profile)
    changes: list[dict[str, Any]] = [
        {"learning_rate": 2e-3}, {"steps": 7}, {"batch": 3}, {"beta": 0.2}, {"questions": 5}, {"r_max": 0.1},
        {"teachers": ("mid",)}, {"teachers": ("mid", "large")}, {"rewards": ()}, {"normalize": False},
        {"policy_ratio": "clipped"}, {"student_responses": 3},
    ]  # fmt: skip
    folders = {run_folder(lab, spec, seed) for seed in (0, 1)}
    folders |= {run_folder(lab, RunSpec(**(spec.model_dump() | change)), 0) for change in changes}
    longer = profile().model_copy(update={"sampling": Sampling(max_new_tokens=9)})
    folders.add(run_folder(Lab(longer), spec, 0))
    fewer = profile().model_copy(update={"test_questions": 5})
    folders.add(run_folder(Lab(fewer), spec, 0))
    assert len(folders) == 4 + len(changes)
    assert run_folder(lab, spec, 0).name in set(results.runs["key"])


def test_what_makes_a_run_fit_changes_the_key_only_where_it_is_used(lab: Lab, results: Results) -> None:
    spec, expected = arm("masters", lab.profile), run_folder(lab, arm("masters", lab.profile), 0)

    def key(**changes: Any) -> Path:
        other = Lab(profile(**changes))
        assert arm("masters", other.profile) == spec
        return run_folder(other, spec, 0)

    assert (
        key(memory_savings=MemorySavings(), watch=Watch()) == key(watch=Watch(kl=0.5, growth=10)) == expected
    )
    used = [
        MemorySavings(lora=Lora()),
        MemorySavings(lora=Lora(rank=8)),
        MemorySavings(bf16=True),
        MemorySavings(accumulate=2),
    ]
    assert len({expected, *(key(memory_savings=fit) for fit in used)}) == 5


def test_the_memory_of_an_arm_is_estimated_before_it_runs(lab: Lab, results: Results) -> None:
    def memory_of(used: Lab) -> Memory:
        return memory(used, arm("masters", used.profile), used.questions("train"), used.pool)

    cached, along = memory_of(lab), memory_of(Lab(profile(cache_teacher=False)))
    sizes = rungs(lab).set_index("model")["parameters"]
    assert cached.weights == 4 * sizes["student"] and cached.teachers == cached.mask == 0
    assert along.teachers == 4 * (sizes["large"] + sizes["student"]) and 0 < along.mask < 0.2 * along.teachers
    halved = memory_of(Lab(profile(memory_savings=MemorySavings(accumulate=2))))
    assert halved.activations < 0.6 * cached.activations


def test_a_stopped_run_resumes_and_ends_the_same(results: Results, lab: Lab) -> None:
    spec, logged = arm("masters", lab.profile), of_arm(results.log, "masters")
    with pytest.raises(Diverged, match=r"^stopped at step 5: the KL"):
        run_arms(Lab(profile(trainer=SAVING, watch=stopping_at(5, logged))), ["masters"])
    saving = Lab(profile(trainer=SAVING))
    done = run_folder(saving, spec, 0)
    state = json.loads(Path(f"{done}.run", "checkpoint-4", "trainer_state.json").read_text())
    assert not done.exists()
    again = run_arms(saving, ["masters"])
    # Four steps are those before the stop, and what the run took is the sum over all starts.
    assert list(again.log["seconds"][:4]) == [row["seconds"] for row in state["log_history"]]
    assert again.runs["seconds"][0] >= again.log["seconds"].sum()
    undisturbed = load(run_folder(lab, spec, 0) / "model")[0]
    assert small.weights_hash(load(done / "model")[0]) == small.weights_hash(undisturbed)
    pd.testing.assert_frame_equal(again.predictions, of_arm(results.predictions, "masters"))
    assert list(again.log["step"]) == list(logged["step"])
    assert np.allclose(again.log["loss"], logged["loss"])


class Interrupting(RuleJudge):
    """A judge that is interrupted."""

    def score_many(self, questions: Any, labels: Any, responses: Any) -> list[int]:
        raise KeyboardInterrupt


def test_a_student_is_saved_before_its_evaluation_fails_and_is_not_trained_again(lab: Lab) -> None:
    spec, used = arm("masters+steps=3", lab.profile), Lab(profile())
    used.judge = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        run(used, spec, 0)
    folder = run_folder(lab, spec, 0)
    work = Path(f"{folder}.run")
    assert not folder.exists()
    saved = small.weights_hash(load(work / "student")[0])
    seconds = json.loads((work / "student" / "training.json").read_text())["seconds"]
    assert (work / "checkpoint-3").is_dir()
    assert run(lab, spec, 0) == folder
    assert json.loads((folder / "result.json").read_text())["seconds"] == seconds
    assert small.weights_hash(load(folder / "model")[0]) == saved
    assert {path.name for path in folder.iterdir()} == {
        "SHA256SUMS", "log.parquet", "model", "predictions.parquet", "result.json"
    }  # fmt: skip
    assert not work.exists()


def test_a_label_that_the_judge_refuses_is_named_before_anything_starts(lab: Lab, folder: Path) -> None:
    used, before = Lab(profile()), files(folder / "cache")
    table = used.questions("test").table
    table.loc[3, "answer"] = "..."
    name = table["id"][3]
    for start in (
        lambda: run_arms(used, ["masters+steps=4"]),
        lambda: run_arm(used, "masters+steps=4", 0),
    ):
        with pytest.raises(ValueError, match=f"^question '{name}': the label '...' of") as told:
            start()
        assert "\n" not in str(told.value)
    table.loc[3, "answer"] = "3"
    train = used.questions("train").table
    train.loc[used.pool[2], "answer"] = "?"
    with pytest.raises(ValueError, match=f"^question '{train['id'][used.pool[2]]}': the label"):
        run_arms(used, ["masters+steps=4"])
    assert {path for path in files(folder / "cache") if path.suffix != ".lock"} == {
        path for path in before if path.suffix != ".lock"
    }


def test_a_run_that_diverges_is_a_result_to_who_asks_for_it(lab: Lab, results: Results) -> None:
    name = f"naive+learning_rate=1{'0' * 15}"  # weights overflow
    with pytest.raises(Diverged, match=r"^arm 'naive\+learning_rate=10+' at seed 0: the loss is nan at"):
        run_arms(lab, [name])
    found = run_arms(lab, [name, "base"], diverged=True)  # what is known is not tried again
    ended, base = found.runs.to_dict("records")
    assert ended["diverged"].startswith("the loss is nan at step 1; lower the") and base["diverged"] == ""
    assert ended["accuracy"] == ended["sampled_accuracy"] == ended["tokens"] == 0 and math.isnan(ended["kl"])
    answers, usual = (found.predictions[found.predictions["arm"] == of] for of in (name, "base"))
    for column in ("question", "task", "skill", "mode"):
        assert sorted(answers[column]) == sorted(usual[column])
    assert not answers["correct"].any() and set(answers["register"]) == {"none"}
    folder = run_folder(lab, arm(name, lab.profile), 0)
    assert not Path(f"{folder}.run").exists() and not (folder / "model").exists()
    with pytest.raises(Diverged, match="the loss is nan"):
        run_arm(lab, name, 0)


@pytest.mark.parametrize(
    "name",
    ["masters+steps=4", "mid_then_large+steps=5", "naive+r_max=0.2+steps=4"],
)
def test_a_run_alone_reads_less_and_learns_the_same(
    lab: Lab, results: Results, folder: Path, tmp_path: Path, name: str
) -> None:
    spec = arm(name, lab.profile)
    assert reads_by_stage(spec, len(lab.pool))
    alone, whole = ResponsePlan.alone(spec, 0, lab.pool), ResponsePlan.of([spec], lab.pool)
    assert sum(len(asked) for _, asked in alone.logprobs) < len(whole.logprobs) * len(lab.pool)
    for wanted, asked in alone.responses.items():
        assert wanted in whole.responses and 0 < len(asked) <= len(lab.pool)
    learned = []
    for number in (False, True):
        if number:
            prepare(lab, alone)
            before = files(folder / "cache")
        model, _ = load(lab.folder("student"))
        log = runs.train_in_place(lab, model, spec, 0, tmp_path / f"{number}", alone=number)
        learned.append(log["loss"].tolist())
    assert files(folder / "cache") == before  # nothing was missing
    # Log-probabilities of other batches may differ in the last bit of float16 on some processors.
    assert learned[0] == pytest.approx(learned[1], rel=1e-4)


@pytest.mark.parametrize("what", ["criterion=random", "criterion=activation", "masked=vision"])
def test_another_mask_is_the_same_for_all_who_read_the_teacher(
    lab: Lab, results: Results, folder: Path, tmp_path: Path, what: str
) -> None:
    """Cached or beside the student, the teacher says the same, which differs from the paper's mask."""
    spec, along = arm(f"masters+{what}", lab.profile), Lab(profile(cache_teacher=False))
    assert run_folder(lab, spec, 0) != run_folder(lab, arm("masters", lab.profile), 0)
    prepare(lab, ResponsePlan.of([spec], lab.pool))
    before = files(folder / "cache")
    cached = runs.train_in_place(lab, load(lab.folder("student"))[0], spec, 0, tmp_path / "cached")
    assert files(folder / "cache") == before  # nothing was missing
    beside = runs.train_in_place(along, load(lab.folder("student"))[0], spec, 0, tmp_path / "beside")
    assert np.allclose(beside["divergence"], cached["divergence"], atol=2e-3)
    assert np.allclose(beside["kl"], cached["kl"], atol=2e-3)
    paper = of_arm(results.log, "masters")
    assert not np.allclose(cached["divergence"][:4], paper["divergence"][:4], atol=2e-3)
    written = [set(map(tuple, lab.responses(WantedResponses("large", 0.2, 2, choice))["logprobs"]))
               for choice in (PAPERS, spec.choice())]  # fmt: skip
    assert not written[0] & written[1]
    whole = [WantedResponses("large", 0.0, 2, choice) for choice in (PAPERS, spec.choice())]
    assert lab.responses(whole[0]).equals(lab.responses(whole[1]))


def test_a_run_on_the_largest_log_probabilities_is_near_and_has_a_key_of_its_own(
    lab: Lab, results: Results, tmp_path: Path
) -> None:
    top = Lab(profile(top_k_logprobs=70))
    spec = arm("masters", top.profile)
    assert run_folder(top, spec, 0) != run_folder(lab, arm("masters", lab.profile), 0)
    model, _ = load(top.folder("student"))
    log = runs.train_in_place(top, model, spec, 0, tmp_path / "run")
    whole = of_arm(results.log, "masters")
    assert np.allclose(log["divergence"], whole["divergence"], atol=2e-2)


class Fickle:
    """A judge whose verdicts hang on question, label and response alike, and who counts them."""

    name = "fickle"
    judged = 0

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
        self.judged += len(labels)
        triples = zip(questions, labels, responses, strict=True)
        return [(None, 0, 1, 1)[int(hash_of(triple), 16) % 4] for triple in triples]


def test_label_noise_judges_the_responses_of_some_questions_anew(lab: Lab, results: Results) -> None:
    noisy, judge = Lab(profile()), Fickle()
    noisy.judge = judge  # type: ignore[assignment]
    plain = response_set(noisy, WantedResponses("student", 0.0, 2), 0.0, None, "student")
    before, known, changes = judge.judged, 0, []
    for noise in (0.3, 0.7, 1.0):
        found = response_set(noisy, WantedResponses("student", 0.0, 2), noise, None, "student")
        labels = noisy.labels_with(noise)[0]["core"].iloc[noisy.pool]
        about = noisy.questions("train").table.iloc[noisy.pool]
        wrong = (labels != about["answer"]).to_numpy()
        assert judge.judged - before == 2 * (wrong.sum() - known)  # each wrong label once, and no others
        before, known = judge.judged, wrong.sum()
        frame = noisy.responses(WantedResponses("student", 0.0, 2))
        assert all(map(np.array_equal, [row for group in found.tokens for row in group], frame["tokens"]))
        for place, (asked, label) in enumerate(zip(about["question"], labels, strict=True)):
            texts = list(frame["text"][2 * place : 2 * place + 2])
            expected = [Fickle().score_many([asked], [label], [text])[0] == 1 for text in texts]
            assert found.accuracy is not None and plain.accuracy is not None
            assert found.accuracy[place].tolist() == expected
            assert wrong[place] or expected == plain.accuracy[place].tolist()
        changes.append(set(np.flatnonzero(wrong)))
    assert changes[0] < changes[1] < changes[2] == set(range(6))


def test_a_student_learns_from_the_verdicts_of_a_language_model(lab: Lab, results: Results) -> None:
    def choice(text: str) -> int:
        return int(hash_of(text), 16) % 3

    def fickle(prompt: str) -> Reply:
        if explains(prompt):
            return said(f"Score: {choice(block(prompt, 'response'))}")
        digit = int(block(prompt, "explanation")[-1])
        return said(verdict(prompt, digit) if digit < 2 else "I would rather not say")

    with serving() as server:
        server.reply = fickle
        named = profile().model_copy(update={"judge": LanguageJudge(server=server.url, model="grader")})
        judged = Lab(named)
        found = response_set(judged, WantedResponses("student", 0.0, 2, judge="llm"), 0.0, None, "student")
        texts = list(judged.responses(WantedResponses("student", 0.0, 2))["text"])
        expected = [text.strip() != "" and choice(text) == 1 for text in texts]
        assert found.accuracy is not None and found.accuracy.flatten().tolist() == expected
        assert 0 < sum(expected) < len(texts)
        arms = ["accuracy_only", "accuracy_only+judge=llm"]
        by_rule, by_model = run_arms(judged, arms).runs.set_index("arm").loc[arms, "key"]
        assert by_rule != by_model
        asked = len(server.requests)
        run_arms(Lab(named), arms)
        assert len(server.requests) == asked > 0
    other = named.model_copy(update={"judge": LanguageJudge(server=server.url, model="another")})
    spec = arm("accuracy_only+judge=llm", named)
    assert run_folder(Lab(other), spec, 0) != run_folder(judged, spec, 0)
    with pytest.raises(ValueError, match="profile tiny names no language model"):
        lab.judge_of("llm")


def test_a_student_that_reasons_first_learns_the_same_answers_behind_their_facts(
    lab: Lab, results: Results
) -> None:
    sets = [runs.response_sets(lab, arm(name, lab.profile), (0, 0.0)) for name in ("sft", "reasoning")]
    said, reasoned = (
        [lab.processor.tokenizer.decode(group[0], skip_special_tokens=True) for group in labels.tokens]
        for (labels,) in sets
    )
    table = lab.questions("train").table.iloc[lab.pool]
    assert reasoned == list(table["facts"] + " so the answer is " + table["answer"] + " .") != said


def test_a_run_that_learns_from_labels_learns_the_wrong_ones(lab: Lab, results: Results) -> None:
    spec = arm("naive+label_noise=1", lab.profile)
    wrong = WantedResponses("labels", 1.0, 1)
    assert {wanted.responses for wanted in logprobs_at(spec, (0, 0.0))} == {wrong}
    (labels,) = runs.response_sets(lab, spec, (0, 0.0))
    said = [lab.processor.tokenizer.decode(group[0], skip_special_tokens=True) for group in labels.tokens]
    answers = lab.questions("train").table["answer"].iloc[lab.pool]
    cores = lab.labels_with(1.0)[0]["core"].iloc[lab.pool]
    assert (cores != answers).all()
    assert all(text.endswith(f"{core} .") for text, core in zip(said, cores, strict=True))
    teacher = lab.logprobs(WantedLogprobs("large", wrong))
    assert all(np.array_equal(labels.teacher[row], teacher[row]) for row in range(6))


def test_a_tempered_teacher_is_the_same_cached_and_along(lab: Lab, results: Results, tmp_path: Path) -> None:
    logs = []
    for number, changes in enumerate(({}, {"cache_teacher": False})):
        where = Lab(profile(**changes))
        spec = arm("mid_then_large+teacher_temperature=2.5", where.profile)
        model, _ = load(where.folder("student"))
        logs.append(runs.train_in_place(where, model, spec, 0, tmp_path / str(number)))
    cached, along = logs
    plain = of_arm(results.log, "mid_then_large")
    assert np.allclose(cached["divergence"], along["divergence"], atol=2e-3)
    assert np.allclose(cached["kl"], along["kl"], atol=2e-3)
    assert np.abs(cached["divergence"] - plain["divergence"]).min() > 5e-3


def test_masked_teachers_are_examined_once_in_every_way(lab: Lab, folder: Path) -> None:
    ways = tuple(teachers.WAYS)
    frame = teachers.masked_accuracy(lab, ["large"], [0.0, 0.5], ways)
    assert list(frame) == ["model", "way", "ratio", "task", "accuracy", "questions"]
    assert list(frame["ratio"]) == [0.0, 0.5] * 4 and (frame["questions"] == 6).all()
    assert list(frame["way"].drop_duplicates()) == list(ways)
    assert frame.loc[frame["ratio"] == 0.0, "accuracy"].nunique() == 1
    before = files(folder / "cache" / "masked")
    again = teachers.masked_accuracy(Lab(profile()), ["large"], [0.0, 0.5], ways)
    assert files(folder / "cache" / "masked") == before
    pd.testing.assert_frame_equal(again, frame)
    with pytest.raises(ValueError, match="no way 'magic' to choose weights; there are: magnitude"):
        teachers.masked_accuracy(lab, ["large"], [0.0], ["magic"])


def test_damaged_files_of_masked_teachers_are_named(folder: Path) -> None:
    def again() -> pd.DataFrame:
        return teachers.masked_accuracy(Lab(profile()), ["large"], [0.5], ["activation"])

    def flip(pattern: str, place: int) -> list[Path]:
        paths = sorted((folder / "cache").glob(pattern))
        for path in paths:
            content = bytearray(path.read_bytes())
            content[place] ^= 1
            path.write_bytes(content)
        return paths

    expected = again()
    masked = flip("masked/*.parquet", 40)
    with pytest.raises(ValueError, match=r"masked/\w+\.parquet is damaged: delete it"):
        again()
    norms = flip("norms/*/*.safetensors", -1)
    for path in masked:
        path.unlink()
    with pytest.raises(ValueError, match=r"norms/\w+: \w+\.safetensors damaged: delete this folder"):
        again()
    for path in norms:
        shutil.rmtree(path.parent)
    pd.testing.assert_frame_equal(again(), expected)


def test_the_dose_of_a_mask_is_measured_against_the_whole_teacher_and_the_student(lab: Lab) -> None:
    dose = teachers.mask_dose(lab, ["large"], [0.5], questions=3).set_index("ratio")
    assert list(dose.index) == [0.0, 0.5] and set(dose["model"]) == {"large"}
    assert (
        dose["from_whole"][0.0] == dose["argmax_changed"][0.0] == 0 < dose["from_whole"][0.5] <= math.log(2)
    )
    assert 0 < dose["entropy"][0.5] <= math.log(len(lab.processor.tokenizer))
    # By hand: the divergence of the masked teacher and the student on the student's first responses.
    n = lab.profile.distillation.student_responses
    tokens = list(lab.responses(WantedResponses("student", 0.0, n))["tokens"])[: 3 * n]
    texts = [tokens[i : i + n] for i in range(0, 3 * n, n)]
    asked, train = lab.pool[:3], lab.questions("train")
    batch = pack([train.prompt(i) for i in asked], texts, [train.image_features([i]) for i in asked])
    teacher, student = load(lab.folder("large"))[0], load(lab.folder("student"))[0]
    with TeacherMask(teacher).apply(0.5), torch.inference_mode():
        pair = [
            response_logits(model, batch)[..., : len(lab.processor.tokenizer)] for model in (teacher, student)
        ]
    by_hand = jsd(*pair)[batch.mask].mean().item()
    assert dose["to_student"][0.5] == pytest.approx(by_hand, rel=0.02)


def test_each_way_of_masking_chooses_other_weights(lab: Lab) -> None:
    removed = {}
    for way in teachers.WAYS:
        model, _ = load(lab.folder("large"))
        teachers.mask(lab, "large", model, way, 0.4)
        masked = [model.get_parameter(name) == 0 for name in TeacherMask(model).names]
        shares = [float(layer.float().mean()) for layer in masked]
        removed[way] = torch.cat([layer.flatten() for layer in masked])
        assert removed[way].float().mean() == pytest.approx(0.4, abs=0.02)
        assert (np.ptp(shares) > 0.02) == (way == "whole model")
    assert len({tuple(places.tolist()) for places in removed.values()}) == 4


def test_the_online_baseline_refuses_what_it_has_not(lab: Lab, tmp_path: Path) -> None:
    fit = MemorySavings(lora=Lora())
    for used, name in ((lab, "online+distillation_only"), (Lab(profile(memory_savings=fit)), "online")):
        spec = arm(name, used.profile).model_copy(update={"learn_from": "online"})
        with pytest.raises(ValueError, match="the accuracy reward alone and trains all weights in float32"):
            runs.train_in_place(used, load(lab.folder("student"))[0], spec, 0, tmp_path / "run")


def test_latency(lab: Lab, results: Results) -> None:
    frame = answer_times(lab, ["base", "masters"], 3)
    assert list(frame) == ["arm", "seconds_per_question", "tokens"]
    assert (frame["seconds_per_question"] > 0).all() and frame["tokens"].between(1, 8).all()


# --- the order of things ---


def test_each_teacher_goes_through_the_mask_schedule() -> None:
    """Eq. 3 within each teacher's share of the steps."""
    spec = RunSpec(teachers=("mid", "large"), r_max=0.2, r_step=0.1, steps=12)
    stages = [stages_of(spec)(step) for step in range(12)]
    ratios = [0.2, 0.2, 0.1, 0.1, 0.0, 0.0]
    assert stages == [(0, ratio) for ratio in ratios] + [(1, ratio) for ratio in ratios]


@pytest.mark.parametrize("steps", [6, 7, 11, 13, 100])
@pytest.mark.parametrize("teachers", [("large",), ("mid", "large"), ("student", "mid", "large")])
def test_the_schedule_falls_within_each_teacher(steps: int, teachers: tuple[str, ...]) -> None:
    stage = stages_of(RunSpec(teachers=teachers, r_max=0.1, r_step=0.1, steps=steps))
    stages = [stage(step) for step in range(steps)]
    for index in range(len(teachers)):
        ratios = [ratio for teacher, ratio in stages if teacher == index]
        assert set(ratios) == {0.1, 0.0} and ratios == sorted(ratios, reverse=True)
        assert len(ratios) in (steps // len(teachers), steps // len(teachers) + 1)
    assert [index for index, _ in stages] == sorted(index for index, _ in stages)


def test_without_a_teacher_there_is_one_stage() -> None:
    stage = stages_of(RunSpec(teachers=(), steps=5))
    assert {stage(step) for step in range(5)} == {(0, 0.0)}


def test_who_writes_what_a_stage_learns_from() -> None:
    spec = arm("mid_then_large", profile())
    student = WantedResponses("student", 0.0, 2)
    assert wanted_responses(spec, (0, 0.2)) == [WantedResponses("mid", 0.2, 2), student]
    assert wanted_responses(spec, (1, 0.0)) == [WantedResponses("large", 0.0, 2), student]
    alone = wanted_responses(arm("own_accuracy", profile()), (0, 0.2))
    assert alone == [WantedResponses("student", 0.0, 8)]
    scored = [wanted for wanted in logprobs_at(spec, (1, 0.1)) if wanted.responses == student]
    assert scored == [WantedLogprobs("large", student, 0.1), WantedLogprobs("student", student)]
    labels = wanted_responses(arm("naive", profile()), (0, 0.0))
    assert labels == [WantedResponses("labels", 0.0, 1)]


@pytest.mark.parametrize(("size", "length"), [(5, 0), (5, 3), (5, 5), (5, 13), (1, 4)])
def test_epochs_take_every_question_equally_often(size: int, length: int) -> None:
    order = epochs(np.random.default_rng(0), size, length)
    assert len(order) == length
    counts = np.bincount(order, minlength=size) if length else np.zeros(size)
    assert counts.max() - counts.min() <= 1
    for start in range(0, length - size + 1, size):
        assert sorted(order[start : start + size]) == list(range(size))


def _fail(lab: Lab) -> None:
    raise ValueError("this one failed")


def _sleep(lab: Lab) -> None:
    time.sleep(600)


def test_a_failed_job_stops_the_others(folder: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="this one failed"):
        Lab(profile().model_copy(update={"processes": 2})).parallel([(_sleep, ()), (_fail, ())], "jobs")
    assert time.monotonic() - start < 300
