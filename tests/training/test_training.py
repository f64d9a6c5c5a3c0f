import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from masters.data.questions import Questions
from masters.masking.teacher_mask import TeacherMask
from masters.models.packing import PackedBatch, response_logits, response_projection
from masters.objective.logits import Logits
from masters.objective.options import LossOptions
from masters.settings import TrainerOptions
from masters.training import trainer as trainer_module
from masters.training.checkpoints import COMPLETE, last_checkpoint
from masters.training.examples import Collator, Example, Examples
from masters.training.train import Budget, train
from masters.training.trainer import MastersTrainer, Objective

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "trajectory.json"
TEXTS = ["the answer is {} .", "{} .", "it is a {} square .", "no , it is {}"]
STAGES = [(0, 0.0), (0, 0.3), (1, 0.1), (0, 0.0)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    return small.questions(tmp_path_factory.mktemp("training") / "questions")


def zeros(model: PreTrainedModel) -> float:
    """The share of weights that are 0 in what a mask may touch."""
    weights = [model.get_parameter(name) for name in TeacherMask(model).names]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def grouped(asked: Questions, stages: list[tuple[int, float]], budget: Budget) -> Examples:
    """Examples of four responses with rewards; the stage changes along the run."""

    def make(position: int) -> Example:
        index = position % len(asked)
        stage = stages[position // budget.batch * len(stages) // budget.steps]
        responses = [small.tokens(text.format(asked.table["answer"][index])) for text in TEXTS]
        return Example(index, responses, stage, accuracy=np.array([1, 0, 1, 0]))

    return Examples(budget.steps * budget.batch, make)


def trainer(objective: Objective, model: PreTrainedModel, asked: Questions, folder: Path) -> MastersTrainer:
    arguments = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True)
    return MastersTrainer(model=model, args=arguments, data_collator=Collator(asked), objective=objective)


def supervised(asked: Questions, folder: Path, budget: Budget = small.BUDGET) -> tuple[str, pd.DataFrame]:
    model, _ = small.build()
    log = train(model, asked, small.labeled(asked, budget), Objective(), budget, folder, "test")
    return small.weights_hash(model), log


def test_the_loss_goes_down_and_the_pictures_are_told_apart(asked: Questions, tmp_path: Path) -> None:
    budget = Budget(steps=60, batch=4, learning_rate=1e-2, log_every=10)
    model, _ = small.build()
    log = train(model, asked, small.labeled(asked, budget), Objective(), budget, tmp_path / "run", "test")
    assert list(log["step"]) == [10, 20, 30, 40, 50, 60]
    assert log["loss"].iloc[0] > 0.5 and log["loss"].iloc[-1] < 0.1
    assert not model.training
    kept = str(tmp_path / "run" / "checkpoint-60")
    assert last_checkpoint(tmp_path / "run") == kept, "until the student is saved"
    batch: PackedBatch = Collator(asked)([small.labeled(asked)[i] for i in range(4)]).packed
    with torch.no_grad():
        guessed = response_logits(model, batch)[:, 0, 0].argmax(-1)
    assert guessed.tolist() == batch.tokens[:, 0, 0].tolist()


def test_the_same_seed_gives_the_same_weights_bit_for_bit(asked: Questions, tmp_path: Path) -> None:
    first, log = supervised(asked, tmp_path / "a")
    again, same_log = supervised(asked, tmp_path / "b")
    other, _ = supervised(asked, tmp_path / "c", Budget(steps=8, batch=2, learning_rate=2e-2, log_every=1))
    assert first == again != other
    pd.testing.assert_frame_equal(log[["step", "loss"]], same_log[["step", "loss"]])


def test_a_budget_makes_the_arguments_of_the_trainer(asked: Questions, tmp_path: Path) -> None:
    options = TrainerOptions(
        warmup_ratio=0.5, max_grad_norm=0.25, optim="sgd", args={"weight_decay": 0.1, "adam_beta2": 0.9}
    )
    budget = Budget(4, 2, 1e-2, "constant", log_every=1, options=options)
    made = TrainingArguments(**budget.arguments(tmp_path, use_cpu=True))
    assert (made.max_grad_norm, made.optim, made.weight_decay, made.adam_beta2) == (0.25, "sgd", 0.1, 0.9)
    model, _ = small.build()
    examples = small.labeled(asked, budget)
    log = train(model, asked, examples, Objective(), budget, tmp_path / "run", "test")
    assert list(log["learning_rate"]) == pytest.approx([0, 0.005, 0.01, 0.01]), "two steps of warm-up"
    usual = TrainingArguments(**Budget(100, 2, 1e-2).arguments(tmp_path, use_cpu=True))
    assert (usual.warmup_steps, usual.lr_scheduler_type, usual.optim) == (2, "linear", "adamw_torch_fused")
    assert (usual.max_grad_norm, usual.adam_beta2, usual.save_steps, usual.report_to) == (1.0, 0.98, 500, [])
    assert Budget(100, 2, 1e-2, "constant").warmup_steps == 0
    for args, problem in (
        ({"learning_rat": 1}, "TrainingArguments has no 'learning_rat'"),
        ({"max_steps": 1}, "args cannot set 'max_steps'"),
        ({"bf16": True}, "args cannot set 'bf16'"),
    ):
        with pytest.raises(ValueError, match=problem):
            wrong = replace(budget, options=TrainerOptions(args=args))
            train(model, asked, examples, Objective(), wrong, tmp_path / "r", "test")


def test_a_killed_training_goes_on_and_ends_bit_for_bit_as_if_undisturbed(
    asked: Questions, tmp_path: Path
) -> None:
    killed = subprocess.run(
        [sys.executable, small.__file__, str(tmp_path), "5"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -9, killed.stderr
    run = tmp_path / "run"
    assert (run / "checkpoint-3" / COMPLETE).is_file()
    half = run / "checkpoint-6"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of a file")

    read: list[int] = []
    examples = small.labeled(asked)

    def watched(position: int) -> Example:
        read.append(position)
        return examples[position]

    model, _ = small.build()
    again = Examples(len(examples), watched)
    log = train(model, asked, again, Objective(), small.BUDGET, run, "resumed")
    expected, whole_log = supervised(asked, tmp_path / "undisturbed")
    assert small.weights_hash(model) == expected
    assert list(log["step"]) == list(range(1, 9))
    assert list(log["loss"]) == list(whole_log["loss"])
    assert min(read) == 3 * small.BUDGET.batch, "what was trained before the kill is not trained again"


def test_a_half_written_checkpoint_is_ignored_and_removed(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") is None
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path) is None and not list(tmp_path.iterdir())
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10"), "by number, not by name"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


@pytest.mark.parametrize("free", [0, 60, 130, 200])  # KiB: the weights, or the optimizer's state, do not fit
def test_a_full_disk_at_a_checkpoint_is_one_line(asked: Questions, small_disk: Path, free: int) -> None:
    (small_disk / "filled").write_bytes(bytes((252 - free) << 10))
    model, _ = small.build()
    with pytest.raises(
        OSError, match=r"^\[Errno 28\] No space left on device: free some for .*run and start"
    ) as told:
        train(model, asked, small.labeled(asked), Objective(), small.BUDGET, small_disk / "run", "full")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("kind", "tolerance"), [(np.float32, 1e-5), (np.float16, 1e-3)])
def test_cached_log_probabilities_give_the_gradients_of_the_live_models(
    asked: Questions, tmp_path: Path, kind: type[np.floating], tolerance: float
) -> None:
    teacher, reference = small.build(seed=1, width=32)[0], small.build(seed=2)[0]
    budget = Budget(steps=1, batch=3, learning_rate=1e-3)
    plain = [grouped(asked, [(0, 0.2)], budget)[i] for i in range(3)]
    batch: PackedBatch = Collator(asked)(plain).packed
    with torch.no_grad(), TeacherMask(teacher).apply(0.2):
        of_teacher = response_logits(teacher, batch).log_softmax(-1)
    with torch.no_grad():
        of_reference = response_logits(reference, batch).log_softmax(-1)

    def rows(values: Tensor, row: int) -> list[np.ndarray]:
        return [values[row, j][batch.mask[row, j]].numpy().astype(kind) for j in range(batch.mask.shape[1])]

    cached = [
        Example(
            e.question,
            e.responses,
            e.stage,
            e.accuracy,
            teacher=rows(of_teacher, i),
            reference=rows(of_reference, i),
        )
        for i, e in enumerate(plain)
    ]

    def gradients(examples: list[Example], objective: Objective) -> dict[str, Tensor]:
        student, _ = small.build()
        trainer(objective, student, asked, tmp_path).compute_loss(
            student, Collator(asked)(examples)
        ).backward()
        return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}

    live = gradients(plain, Objective(LossOptions(), [teacher], reference))
    from_cache = gradients(cached, Objective(LossOptions()))
    assert live.keys() == from_cache.keys() and max(float(g.abs().max()) for g in live.values()) > 0.01
    for name, gradient in live.items():
        torch.testing.assert_close(from_cache[name], gradient, atol=tolerance, rtol=tolerance)


def test_each_stage_has_its_teacher_and_its_mask_and_the_teachers_come_back(
    asked: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = [small.build(seed=1)[0], small.build(seed=2, width=32)[0]]
    before = [small.weights_hash(teacher) for teacher in teachers]
    student, _ = small.build()
    seen: list[tuple[int, float]] = []

    def watching(model: PreTrainedModel, batch: PackedBatch, vocabulary: int | None) -> Logits:
        if model in teachers:
            seen.append((teachers.index(model), zeros(model)))
        return response_projection(model, batch, vocabulary)

    monkeypatch.setattr(trainer_module, "response_projection", watching)
    budget = Budget(steps=8, batch=2, learning_rate=1e-3, schedule="constant", log_every=1)
    objective = Objective(LossOptions(rewards=()), teachers)
    log = train(student, asked, grouped(asked, STAGES, budget), objective, budget, tmp_path / "r", "t")
    expected = [stage for stage in STAGES for _ in range(2)]
    assert [index for index, _ in seen] == [index for index, _ in expected]
    assert [ratio for _, ratio in seen] == pytest.approx([ratio for _, ratio in expected], abs=0.01)
    assert list(log["mask_ratio"]) == [ratio for _, ratio in expected]
    assert [small.weights_hash(teacher) for teacher in teachers] == before
    assert {"divergence", "learning_rate", "grad_norm", "tokens"} <= set(log.columns)


def test_output_heads_of_different_sizes_are_compared_on_the_tokens_alone(
    asked: Questions, tmp_path: Path
) -> None:
    """As in families whose members pad their heads to 151,936 and to 152,064 rows."""
    budget = Budget(steps=3, batch=2, learning_rate=1e-3, schedule="constant", log_every=1)
    losses = []
    for extra in (0, 5):
        student, teacher, reference = (small.build(seed)[0] for seed in (0, 1, 0))
        tokens = student.get_input_embeddings().weight.shape[0]
        teacher.resize_token_embeddings(tokens + extra, mean_resizing=False)
        objective = Objective(LossOptions(), [teacher], reference, vocabulary=tokens)
        examples = grouped(asked, [(0, 0.0)], budget)
        log = train(student, asked, examples, objective, budget, tmp_path / f"r{extra}", "t")
        losses.append(list(log["loss"]))
    assert losses[0] == losses[1]


def test_two_stages_in_one_step_are_refused(asked: Questions) -> None:
    answer = [small.tokens("red .")]
    with pytest.raises(ValueError, match=r"one teacher and one mask ratio, got \[\(0, 0.1\), \(0, 0.2\)\]"):
        Collator(asked)([Example(0, answer, (0, 0.1)), Example(1, answer, (0, 0.2))])


def test_a_prompt_of_the_example_replaces_that_of_the_question(asked: Questions) -> None:
    prompt = asked.prompt(0)[::-1].copy()
    made = Collator(asked)([Example(0, [small.tokens("red .")], prompt=prompt)])
    assert made.packed.input_ids[0, : len(prompt)].tolist() == prompt.tolist()
    assert torch.equal(made.packed.images["pixel_values"], asked.image_features([0])["pixel_values"])


def test_a_loss_that_is_not_finite_stops_the_run_with_one_line(asked: Questions, tmp_path: Path) -> None:
    model, _ = small.build()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan at step 0; lower the learning rate") as caught:
        train(model, asked, small.labeled(asked), Objective(), small.BUDGET, tmp_path / "r", "t")
    assert "\n" not in str(caught.value)


def test_a_wrong_number_of_examples_is_refused(asked: Questions, tmp_path: Path) -> None:
    model, _ = small.build()
    short = Examples(15, small.labeled(asked).make)
    with pytest.raises(ValueError, match="short run: 15 examples for 8 steps of 2"):
        train(model, asked, short, Objective(), small.BUDGET, tmp_path / "r", "short run")


def test_the_trajectory_of_masters_is_the_recorded_one(asked: Questions, tmp_path: Path) -> None:
    """Twelve steps of the full objective: no loss may jump, and together they may not drift."""
    student, teacher, reference = (small.build(seed)[0] for seed in (0, 1, 0))
    budget = Budget(steps=12, batch=2, learning_rate=3e-3, schedule="constant", log_every=1)
    examples = grouped(asked, [(0, 0.0), (0, 0.1), (0, 0.2)], budget)
    objective = Objective(LossOptions(), [teacher], reference)
    log = train(student, asked, examples, objective, budget, tmp_path / "run", "golden")
    loss = log["loss"]
    assert list(loss) == pytest.approx(list(log["divergence"] + log["policy"] + 0.1 * log["kl"]), abs=1e-6)
    if os.environ.get("MASTERS_GOLDEN") == "write":
        content = {"torch": torch.__version__, "losses": [round(value, 7) for value in loss]}
        GOLDEN.write_text(json.dumps(content, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    difference = (loss - pd.Series(golden["losses"])).to_numpy()
    told = (
        f"losses differ from {GOLDEN.name} (torch {golden['torch']}, here {torch.__version__}) by "
        f"{np.abs(difference).max():.2g} at most and {difference.mean():.2g} on average; if the change is "
        "meant, write the file again: "
        "MASTERS_GOLDEN=write pytest tests/training/test_training.py -k trajectory"
    )
    assert len(golden["losses"]) == 12 and np.ptp(golden["losses"]) > 0.01
    assert np.abs(difference).max() < 3e-4, told
    assert abs(difference.mean()) < 1e-4, told


def test_on_several_gpus_without_a_launcher_one_is_used(tmp_path: Path) -> None:
    """Otherwise the Trainer multiplies the batch, and splits it among copies of the model."""
    model = small.build()[0]
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, use_cpu=True)
    arguments._n_gpu = 4
    trainer = MastersTrainer(model=model, args=arguments, objective=Objective(), train_dataset=[])
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 2
