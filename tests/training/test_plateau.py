import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from transformers import TrainingArguments

from masters.data.questions import Questions
from masters.experiments.arms import RunSpec
from masters.experiments.curriculum import ResponseSet, all_stages, curriculum
from masters.masking.schedule import PlateauSchedule
from masters.masking.teacher_mask import TeacherMask
from masters.models.packing import response_logits
from masters.objective.divergence import jsd
from masters.objective.options import LossOptions
from masters.training import plateau
from masters.training.checkpoints import last_checkpoint
from masters.training.examples import Collator, Example
from masters.training.plateau import PlateauStages, held_out
from masters.training.train import Budget, train
from masters.training.trainer import MastersTrainer, Objective

torch.set_num_threads(1)
BUDGET = Budget(steps=12, batch=2, learning_rate=3e-3, schedule="constant", save_steps=2, log_every=1)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    return small.questions(tmp_path_factory.mktemp("plateau") / "questions")


@pytest.fixture(scope="module")
def hard_to_please() -> Iterator[None]:
    """No gain counts, so a stage ends with its second measurement; one is made every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plateau, "MIN_IMPROVEMENT", 10.0)
        patch.setattr(plateau, "PATIENCE", 1)
        patch.setattr(plateau, "MEASUREMENTS", 12)
        yield


def stages(bounds: list[int]) -> PlateauStages:
    return PlateauStages(0.2, 0.1, bounds, lambda stage: [])


def go(made: PlateauStages, divergences: np.ndarray, start: int = 0, stop: int | None = None) -> list[Any]:
    """The stage of each step of a run whose loader reads one step ahead, and what was measured."""
    seen = []
    steps = made.bounds[-1]
    for step in range(start, steps if stop is None else stop):
        seen.append((made.stage_of(step), made.due(step)))
        if step + 1 < steps:
            made.stage_of(step + 1)
        if made.due(step) is not None:
            made.update(step, float(divergences[step]))
    return seen


@pytest.mark.parametrize(("size", "count"), [(2, 1), (9, 1), (20, 2), (47, 4), (320, 32), (100_000, 32)])
def test_held_out_questions_are_few_and_spread_over_the_pool(size: int, count: int) -> None:
    places = held_out(size)
    assert len(places) == len(set(places)) == count and min(places) >= 0 and max(places) < size
    gaps = np.diff([*places, size])
    assert gaps.max() - gaps.min() <= 1


def test_a_single_question_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="holds questions out, and the pool has 1"):
        held_out(1)


@pytest.mark.parametrize("bounds", [[0, 300], [0, 150, 300], [0, 7], [0, 3, 7]])
def test_stages_are_those_of_a_schedule_that_is_asked_anew_two_steps_later(bounds: list[int]) -> None:
    divergences = np.random.default_rng(len(bounds)).random(bounds[-1])
    made, steps = stages(bounds), bounds[-1]
    seen = go(made, divergences)
    every = max(1, steps // (3 * 6 * (len(bounds) - 1)))
    for teacher, (first, last) in enumerate(pairwise(bounds)):
        schedule = PlateauSchedule(0.2, 0.1, plateau.PATIENCE, plateau.MIN_IMPROVEMENT)
        # The measurement after step t is the first that step t + 2 knows; that after a teacher's last step is
        # the next one's.
        ratio = [schedule.ratio] * (steps + 3)
        for step in range(max(0, first - 1), last - 1):
            measured = (step + 1) % every == 0
            assert seen[step][1] == ((teacher, schedule.ratio) if measured else None)
            if measured:
                schedule.update(float(divergences[step]))
            ratio[step + 2] = schedule.ratio
        assert [stage for stage, _ in seen[first:last]] == [
            (teacher, ratio[step]) for step in range(first, last)
        ]
    if steps == 300:
        assert {stage for stage, _ in seen} == {
            (teacher, ratio) for teacher in range(len(bounds) - 1) for ratio in (0.2, 0.1, 0.0)
        }


@pytest.mark.parametrize("bounds", [[0, 60], [0, 30, 60]])
def test_a_resumed_run_has_the_same_stages_wherever_it_was_cut(bounds: list[int]) -> None:
    divergences = np.random.default_rng(5).random(60)
    whole = stages(bounds)
    expected = go(whole, divergences)
    assert len({stage for stage, _ in expected}) > 3 * (len(bounds) - 1) - 1
    for cut in range(60):
        first, second = stages(bounds), stages(bounds)
        seen = go(first, divergences, stop=cut)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert seen + go(second, divergences, start=cut) == expected
        assert second.logged(59) == whole.logged(59)


def test_a_curriculum_does_not_train_on_what_it_measures_on() -> None:
    spec = RunSpec(schedule="plateau", r_max=0.2, r_step=0.1, steps=40, batch=3, teachers=("mid", "large"))
    pool = list(range(100, 130))

    def part(stage: tuple[int, float]) -> list[ResponseSet]:
        words = [[np.array([place, stage[0], int(10 * stage[1])])] for place in range(len(pool))]
        return [ResponseSet(1, words, accuracy=np.ones((len(pool), 1)))]

    parts = {stage: part(stage) for stage in all_stages(spec)}
    assert list(parts) == [(teacher, ratio) for teacher in (0, 1) for ratio in (0.2, 0.1, 0.0)]
    made, plateau = curriculum(spec, 0, pool, parts)
    assert plateau is not None
    held = {example.question for example in plateau.examples((1, 0.1))}
    assert held == {pool[place] for place in held_out(30)} and len(held) == 3
    assert all(list(e.responses[0]) == [e.question - 100, 1, 1] for e in plateau.examples((1, 0.1)))
    trained = [made[position] for position in range(len(made))]
    assert {example.question for example in trained} == set(pool) - held
    assert [example.stage for example in trained] == [(0, 0.2)] * 60 + [(1, 0.2)] * 60, "nothing is measured"
    for example in trained:
        assert list(example.responses[0]) == [example.question - 100, example.stage[0], 2]


def test_the_measured_divergence_is_that_of_the_masked_teacher(asked: Questions, tmp_path: Path) -> None:
    student, teacher = small.build()[0], small.build(seed=1, width=32)[0]
    texts = ["the answer is red .", "no .", "it is a square ."]
    examples = [Example(i, [small.tokens(text) for text in texts], (0, 0.3)) for i in range(4)]
    batch = Collator(asked)(examples).packed
    with torch.no_grad(), TeacherMask(teacher).apply(0.3):
        values = jsd(response_logits(teacher, batch), response_logits(student, batch))
    expected = float(((values * batch.mask).sum(-1) / batch.mask.sum(-1)).mean())
    arguments = TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, per_device_train_batch_size=3
    )
    for options in ({}, {"rewards": ()}, {"averaging": "token"}):
        objective = Objective(LossOptions(**options), [teacher])
        trainer = MastersTrainer(
            model=student, args=arguments, data_collator=Collator(asked), objective=objective
        )
        if options.get("averaging") == "token":
            expected = float((values * batch.mask).sum() / batch.mask.sum())
        assert trainer.divergence(examples) == pytest.approx(expected, rel=1e-5) and expected > 1e-3
        assert not trainer._metrics and all(p.grad is None for p in student.parameters())


def trained(asked: Questions, folder: Path, seen: list[tuple[int, float]]) -> tuple[str, Any]:
    student, teacher, reference = (small.build(seed)[0] for seed in (0, 1, 0))
    (examples, stages), objective = (
        small.decided(asked, BUDGET, seen),
        Objective(LossOptions(), [teacher], reference),
    )
    log = train(student, asked, examples, objective, BUDGET, folder, "plateau", plateau=stages)
    return small.weights_hash(student), log


# --- stages that end with every second measurement: from here on ---


@pytest.mark.usefixtures("hard_to_please")
def test_a_loader_that_reads_further_ahead_is_refused() -> None:
    made = stages([0, 12])
    made.stage_of(3)
    made.update(0, 0.5)
    with pytest.raises(RuntimeError, match="already read examples of step 3: it may read one") as told:
        made.update(1, 0.5)
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def whole(
    hard_to_please: None, asked: Questions, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, pd.DataFrame, list[tuple[int, float]]]:
    seen: list[tuple[int, float]] = []
    return *trained(asked, tmp_path_factory.mktemp("whole") / "run", seen), seen


def test_a_run_logs_what_it_decided_on_and_trains_on_it(
    whole: tuple[str, pd.DataFrame, list[tuple[int, float]]],
) -> None:
    _, log, seen = whole
    # Measured after steps 0 and 1: the second decides about step 3; then after 2 and 3 about step 5.
    ratios = [0.2] * 3 + [0.1] * 2 + [0.0] * 7
    assert list(log["mask_ratio"]) == ratios == [ratio for _, ratio in seen[:: BUDGET.batch]]
    assert list(log["stage"]) == [{0.2: 0, 0.1: 1, 0.0: 2}[ratio] for ratio in ratios]
    assert log["held_out_divergence"].nunique() == 11, "after every step but the last"
    assert log["held_out_divergence"].iloc[-1] == log["held_out_divergence"].iloc[-2]


@pytest.mark.parametrize(("at", "kept"), [(2, 2), (5, 4), (9, 8)])
def test_a_run_that_was_stopped_decides_and_ends_the_same(
    whole: tuple[str, pd.DataFrame, list[tuple[int, float]]],
    asked: Questions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    kept: int,
) -> None:
    """Gone on from between a decision and its step, twice, and from after them."""
    expected, undisturbed, all_seen = whole
    compute = MastersTrainer.compute_loss

    def stopping(self: MastersTrainer, *args: Any, **options: Any) -> Any:
        if self.state.global_step == at:
            raise KeyboardInterrupt
        return compute(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MastersTrainer, "compute_loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            trained(asked, tmp_path / "run", [])
    seen: list[tuple[int, float]] = []
    weights, log = trained(asked, tmp_path / "run", seen)
    assert weights == expected
    assert seen == all_seen[kept * BUDGET.batch :]
    for column in ("loss", "mask_ratio", "stage", "held_out_divergence"):
        assert list(log[column]) == list(undisturbed[column])


@pytest.mark.usefixtures("hard_to_please")
def test_a_checkpoint_without_its_decisions_is_not_complete(
    asked: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plateau.Decider, "on_save", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(asked, tmp_path / "run", [])
    assert (tmp_path / "run" / "checkpoint-2").is_dir() and last_checkpoint(tmp_path / "run") is None
