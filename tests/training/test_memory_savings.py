from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ranks
import small
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from masters.data.questions import Questions
from masters.models.packing import hidden_in_parts, response_hidden
from masters.objective.diagnostics import Diverged
from masters.objective.options import LossOptions
from masters.settings import Lora, MemorySavings, Watch
from masters.training import adapters
from masters.training.checkpoints import COMPLETE
from masters.training.examples import Collator
from masters.training.train import Budget, train
from masters.training.trainer import MastersTrainer, Objective

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    return small.questions(tmp_path_factory.mktemp("savings") / "questions")


def trained(
    asked: Questions,
    folder: Path,
    savings: MemorySavings | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, pd.DataFrame]:
    """A run of Masters with live teachers, groups of four and three stages."""
    student, teachers, reference = ranks.models()
    objective = Objective(LossOptions(**options), teachers, reference)
    rest = (ranks.examples(asked, []), objective, ranks.BUDGET, folder, "savings", savings, watch)
    return student, train(student, asked, *rest)


def distance(first: PreTrainedModel, second: PreTrainedModel) -> float:
    """How far two models are apart, as a share of how far the second is from where both began."""
    start = ranks.models()[0].state_dict()

    def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return sum(float((a[name].float() - b[name].float()).square().sum()) for name in a) ** 0.5

    return apart(first.state_dict(), second.state_dict()) / apart(second.state_dict(), start)


@pytest.fixture(scope="module")
def plain(asked: Questions, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, pd.DataFrame]:
    return trained(asked, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("options", [{}, {"averaging": "token"}])
@pytest.mark.parametrize(
    "savings",
    [
        MemorySavings(accumulate=2),
        MemorySavings(accumulate=4),
        MemorySavings(gradient_checkpointing=True),
        MemorySavings(responses_at_once=1),
        MemorySavings(responses_at_once=3, accumulate=2),
    ],
)
def test_accumulation_and_checkpointing_change_nothing_but_rounding(
    asked: Questions, tmp_path: Path, plain: Any, savings: MemorySavings, options: dict[str, Any]
) -> None:
    """Although the parts of a step have different numbers of tokens."""
    whole, log = plain if not options else trained(asked, tmp_path / "whole", **options)
    model, in_parts = trained(asked, tmp_path / "run", savings, **options)
    for name in ("loss", "grad_norm"):
        assert list(in_parts[name]) == pytest.approx(list(log[name]), abs=1e-5), name
    assert distance(model, whole) < 1e-2
    if not options:
        assert list(in_parts["kl"]) == pytest.approx(list(log["kl"]), abs=1e-5)


def test_a_group_in_parts_has_the_states_and_gradients_of_the_whole(asked: Questions) -> None:
    student, _, _ = ranks.models()
    examples = [ranks.examples(asked, [])[i] for i in range(2)]
    made = Collator(asked, at_once=3)(examples)
    assert [part.tokens.shape[1] for part in made.parts] == [3, 1]
    weights = list(student.parameters())
    mask = made.packed.mask.unsqueeze(-1)
    results = []
    for hidden in (response_hidden(student, made.packed), hidden_in_parts(student, made.parts)):
        states = hidden * mask
        loss = (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum()
        found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        results.append((states.detach(), *found))
    for whole, in_parts in zip(*results, strict=True):
        torch.testing.assert_close(in_parts, whole, rtol=1e-5, atol=1e-5)


def test_checkpointing_keeps_less_for_the_backward_pass(asked: Questions, tmp_path: Path) -> None:
    kept: dict[bool, int] = {}
    for checkpointing in (False, True):
        student, teachers, reference = ranks.models()
        arguments = adapters.arguments(MemorySavings(gradient_checkpointing=checkpointing))
        options = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, **arguments)
        trainer = MastersTrainer(
            model=student,
            args=options,
            data_collator=Collator(asked),
            objective=Objective(LossOptions(rewards=()), teachers, reference),
        )
        if checkpointing:
            student.activation_checkpointing_enable(options.activation_checkpointing_kwargs)
        student.train()
        inputs = trainer.data_collator([ranks.examples(asked, [])[i] for i in range(4)])
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.compute_loss(student, inputs)
        kept[checkpointing] = sum(sizes.values())
    assert kept[True] < 0.7 * kept[False]


def test_lora_trains_adapters_alone_and_leaves_an_ordinary_model(asked: Questions, tmp_path: Path) -> None:
    model, log = trained(asked, tmp_path / "run", MemorySavings(lora=Lora(rank=2)))
    with safe_open(tmp_path / "run" / "checkpoint-6" / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names and all("lora_" in name for name in names) and not any("lm_head" in name for name in names)
    start = ranks.models()[0]
    shapes = [{name: p.shape for name, p in one.named_parameters()} for one in (model, start)]
    assert shapes[0] == shapes[1]
    assert all(p.requires_grad for p in model.parameters()) and np.isfinite(log["loss"]).all()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, start.get_parameter(name))}
    assert changed and all(name.endswith(".weight") and "norm" not in name for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank(model.get_parameter(name) - start.get_parameter(name), rtol=1e-4) <= 2
    model.save_pretrained(tmp_path / "saved")
    assert small.weights_hash(type(model).from_pretrained(tmp_path / "saved")) == small.weights_hash(model)


def test_a_stopped_run_with_adapters_resumes_and_ends_the_same(asked: Questions, tmp_path: Path) -> None:
    savings = MemorySavings(lora=Lora(rank=2), accumulate=2)
    undisturbed, log = trained(asked, tmp_path / "undisturbed", savings)
    assert log["kl"][:4].max() < log["kl"][4]
    bound = Watch(kl=(log["kl"][:4].max() + log["kl"][4]) / 2)
    with pytest.raises(Diverged, match=r"^stopped at step 5"):
        trained(asked, tmp_path / "run", savings, bound)
    assert (tmp_path / "run" / "checkpoint-4" / COMPLETE).is_file()
    again, log = trained(asked, tmp_path / "run", savings)
    assert small.weights_hash(again) == small.weights_hash(undisturbed)
    assert list(log["step"]) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("savings", [MemorySavings(), MemorySavings(bf16=True)])
def test_a_bfloat16_student_keeps_small_steps(
    asked: Questions, tmp_path: Path, capsys: pytest.CaptureFixture[str], savings: MemorySavings
) -> None:
    """At the paper's learning rate a weight that is itself in bfloat16 would hardly ever change."""
    budget = Budget(steps=2, batch=4, learning_rate=1e-6, schedule="constant", log_every=1)
    student = small.build()[0].to(torch.bfloat16)
    start = {name: p.detach().clone() for name, p in student.named_parameters()}
    train(
        student, asked, small.labeled(asked, budget), Objective(), budget, tmp_path / "run", "mine", savings
    )
    moved = sum(int((p != start[name]).sum()) for name, p in student.named_parameters())
    assert student.dtype == torch.float32
    assert moved / sum(p.numel() for p in student.parameters()) > 0.7
    assert capsys.readouterr().err.splitlines() == ["mine: the bfloat16 weights are trained in float32"]


def test_bfloat16_is_near_float32(asked: Questions, tmp_path: Path, plain: Any) -> None:
    _, log = trained(asked, tmp_path / "run", MemorySavings(bf16=True))
    assert list(log["loss"]) == pytest.approx(list(plain[1]["loss"]), abs=2e-2)
    assert list(log["loss"]) != list(plain[1]["loss"])


def test_parts_that_do_not_divide_a_batch_are_refused(asked: Questions, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 4 questions cannot be shared by 1 processes in 3 parts"):
        trained(asked, tmp_path / "run", MemorySavings(accumulate=3))


# --- what is watched ---


def test_a_run_that_leaves_its_reference_stops_with_the_reason(
    asked: Questions, tmp_path: Path, plain: Any
) -> None:
    bound = float(plain[1]["kl"].max()) / 2
    with pytest.raises(Diverged, match=r"^stopped at step \d: the KL to the student before") as caught:
        trained(asked, tmp_path / "run", watch=Watch(kl=bound))
    assert "lower the learning rate (0.003)" in str(caught.value) and "\n" not in str(caught.value)
    _, log = trained(asked, tmp_path / "other", watch=Watch(kl=4 * bound, growth=100))
    assert list(log["loss"]) == list(plain[1]["loss"])
