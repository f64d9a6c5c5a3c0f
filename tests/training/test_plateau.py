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
from masters.settings import TrainerOptions
from masters.training import plateau
from masters.training.checkpoints import last_checkpoint
from masters.training.examples import Collator, Example, Examples
from masters.training.plateau import PlateauStages, held_out
from masters.training.train import Budget, train
from masters.training.trainer import MastersTrainer, Objective

torch.set_num_threads(1)
# At this rate no gain reaches MIN_IMPROVEMENT, so a stage ends with its third measurement, one per step.
SAVING = TrainerOptions(save_steps=2)
BUDGET = Budget(steps=12, batch=2, learning_rate=1e-6, schedule="constant", log_every=1, options=SAVING)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    return small.questions(tmp_path_factory.mktemp("plateau") / "questions")


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
def test_a_resumed_run_has_the_same_stages_wherever_it_was_cut(bounds: list[int], tmp_path: Path) -> None:
    divergences = np.random.default_rng(5).random(60)
    whole = stages(bounds)
    expected = go(whole, divergences)
    assert len({stage for stage, _ in expected}) > 3 * (len(bounds) - 1) - 1
    for cut in range(60):
        first, second = stages(bounds), stages(bounds)
        seen = go(first, divergences, stop=cut)
        first.save(tmp_path)
        second.load(tmp_path)
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


def trained(
    asked: Questions, folder: Path, seen: list[tuple[int, float]], stop_at: int | None = None
) -> tuple[str, pd.DataFrame]:
    """Train; ``stop_at`` is the step before which the run is interrupted."""
    student, teacher, reference = (small.build(seed)[0] for seed in (0, 1, 0))
    decided, stages = small.decided(asked, BUDGET, seen)

    def make(position: int) -> Example:
        if stop_at is not None and position == (stop_at + 1) * BUDGET.batch:  # read one step ahead
            raise KeyboardInterrupt
        return decided.make(position)

    objective = Objective(LossOptions(), [teacher], reference)
    examples = Examples(len(decided), make)
    log = train(student, asked, examples, objective, BUDGET, folder, "plateau", plateau=stages)
    return small.weights_hash(student), log


def test_a_loader_that_reads_further_ahead_is_refused() -> None:
    made = stages([0, 12])
    made.stage_of(4)
    for step in (0, 1):
        made.update(step, 0.5)
    with pytest.raises(RuntimeError, match="already read examples of step 4: it may read one") as told:
        made.update(2, 0.5)
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def whole(
    asked: Questions, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, pd.DataFrame, list[tuple[int, float]]]:
    seen: list[tuple[int, float]] = []
    return *trained(asked, tmp_path_factory.mktemp("whole") / "run", seen), seen


def test_a_run_logs_what_it_decided_on_and_trains_on_it(
    whole: tuple[str, pd.DataFrame, list[tuple[int, float]]],
) -> None:
    _, log, seen = whole
    # Measured after steps 0, 1 and 2: the third decides about step 4; then after 3, 4 and 5 about step 7.
    ratios = [0.2] * 4 + [0.1] * 3 + [0.0] * 5
    assert list(log["mask_ratio"]) == ratios == [ratio for _, ratio in seen[:: BUDGET.batch]]
    assert list(log["stage"]) == [{0.2: 0, 0.1: 1, 0.0: 2}[ratio] for ratio in ratios]
    assert log["held_out_divergence"].nunique() == 11, "after every step but the last"
    assert log["held_out_divergence"].iloc[-1] == log["held_out_divergence"].iloc[-2]


@pytest.mark.parametrize(("at", "kept"), [(3, 2), (6, 6), (9, 8)])
def test_a_stopped_run_decides_and_ends_the_same(
    whole: tuple[str, pd.DataFrame, list[tuple[int, float]]],
    asked: Questions,
    tmp_path: Path,
    at: int,
    kept: int,
) -> None:
    """Resumed before a decision, between a decision and its step, and after all of them."""
    expected, undisturbed, all_seen = whole
    with pytest.raises(KeyboardInterrupt):
        trained(asked, tmp_path / "run", [], at)
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint == str(tmp_path / "run" / f"checkpoint-{kept}")
    written = {path.name: path.stat().st_mtime_ns for path in Path(checkpoint).iterdir()}
    assert written["measured.json"] <= written["complete"] == max(written.values())
    seen: list[tuple[int, float]] = []
    weights, log = trained(asked, tmp_path / "run", seen)
    assert weights == expected
    assert seen == all_seen[kept * BUDGET.batch :]
    for column in ("loss", "mask_ratio", "stage", "held_out_divergence"):
        assert list(log[column]) == list(undisturbed[column])
