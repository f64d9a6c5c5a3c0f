"""The rewards shown in notebooks are those of training, with one teacher for all responses of a group."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import small
import torch
from labs import profile

from masters.experiments.arms import arm
from masters.experiments.curriculum import all_stages, curriculum
from masters.experiments.lab import Lab
from masters.experiments.response_plan import ResponsePlan, prepare
from masters.experiments.run import response_sets
from masters.models.loading import load
from masters.models.packing import response_logits
from masters.objective.loss import masters_loss
from masters.objective.rewards import distillation_reward, group_advantages
from masters.training.examples import Collator
from masters_book.analysis.groups import rewarded_groups


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with small.scratch(tmp_path_factory.mktemp("groups")):
        made = Lab(profile())
        prepare(made, ResponsePlan.of([arm("masters", made.profile)], made.pool))
        yield made


def test_the_groups_are_those_of_the_first_step_of_training(lab: Lab) -> None:
    """Rewards and advantages of a batch, computed by the loss from the training examples."""
    spec = arm("masters", lab.profile)
    stage = all_stages(spec)[0]
    examples = curriculum(spec, 0, lab.pool, {stage: response_sets(lab, spec, stage)})
    batch = Collator(lab.questions("train"))([examples[i] for i in range(spec.batch)])
    assert batch.stage == stage == (0, 0.2)
    student, _ = load(lab.folder("student"))
    with torch.inference_mode():
        logits = response_logits(student, batch.packed)[..., : len(lab.processor.tokenizer)]
    loss = masters_loss(
        logits,
        batch.teacher,
        batch.packed.tokens,
        batch.packed.mask,
        accuracy=batch.accuracy,
        reference_logits=batch.reference,
    )
    table = rewarded_groups(lab)
    ids = lab.questions("train").table["id"]
    rows = [table[table["question"] == ids[examples[i].question]] for i in range(spec.batch)]
    for one, example in zip(rows, (examples[i] for i in range(spec.batch)), strict=True):
        assert [list(tokens) for tokens in one["tokens"]] == [list(tokens) for tokens in example.responses]
        assert example.accuracy is not None and list(one["correct"]) == list(example.accuracy)
    shown = {
        "reward_accuracy": np.mean([one["correct"].mean() for one in rows]),
        "reward_distillation": np.mean([one["reward_distillation"].mean() for one in rows]),
        "divergence": np.mean([one["divergence"].mean() for one in rows]),
        "advantage_positive": np.mean([(one["advantage"] > 0).mean() for one in rows]),
        "advantage_std": np.sqrt(np.mean([np.square(one["advantage"]).mean() for one in rows])),
    }
    for name, value in shown.items():
        assert loss.metrics[name] == pytest.approx(value, rel=0.02), name  # the cache keeps float16


def test_rewards_and_advantages_are_those_of_the_equations(lab: Lab) -> None:
    table = rewarded_groups(lab)
    assert len(table) == 4 * len(lab.pool) and list(table["source"][:4]) == ["large"] * 2 + ["student"] * 2
    assert set(table.loc[table["source"] == "large", "ratio"]) == {0.2}
    assert table["divergence"].between(0, math.log(2)).all()
    for _, group in table.groupby("question"):
        divergence = torch.tensor(group["divergence"].to_numpy())[None]
        reward = distillation_reward(divergence)[0].numpy()
        assert group["reward_distillation"].to_numpy() == pytest.approx(reward)
        advantages = group_advantages(torch.tensor((group["correct"] + reward).to_numpy())[None])
        assert group["advantage"].to_numpy() == pytest.approx(advantages.values[0].numpy(), abs=1e-5)
        assert group["flat"].all() == group["flat"].any() == bool(advantages.flat[0])


def test_equal_texts_of_both_models_have_equal_rewards(lab: Lab) -> None:
    """One teacher scores all responses, so the divergence does not depend on their source."""
    table = rewarded_groups(lab)
    same = table.groupby(["question", "text"]).agg({"source": "nunique", "reward_distillation": np.ptp})
    assert (same["reward_distillation"] < 1e-6).all()
