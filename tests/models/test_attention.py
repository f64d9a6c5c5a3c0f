"""FlexAttention against SDPA. On a CPU torch has its backward pass as a reference only; here it is let in."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from transformers import PreTrainedModel
from transformers.integrations import flex_attention as transformers_flex
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLPreTrainedModel

from masters.models import attention, compatibility
from masters.models.attention import FLEX, attending, is_flex, may_flex
from masters.models.compatibility import measure
from masters.models.packing import PackedBatch, pack, response_logits
from masters.objective.loss import cross_entropy
from masters.objective.options import LossOptions
from masters.training import train as training
from masters.training.examples import Example, Examples
from masters.training.train import Budget, train
from masters.training.trainer import MastersTrainer, Objective

torch.set_num_threads(1)
VALIDATE = torch_flex._validate_device


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """FlexAttention uncompiled, with its backward pass; the block masks that it was given."""
    seen: list[Any] = []

    def uncompiled(*arguments: Tensor, training: bool = False, **named: Any) -> Any:
        seen.append(named["block_mask"])
        return torch_flex.flex_attention(*arguments, **named)

    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(transformers_flex, "compile_friendly_flex_attention", uncompiled)
    monkeypatch.setattr(attention, "has_backward", lambda device: True)
    monkeypatch.setattr(compatibility, "_warned", set())
    # Its code takes the mask, only nobody has said so.
    monkeypatch.setattr(Qwen3VLPreTrainedModel, "_supports_flex_attn", True, raising=False)
    yield seen


def long() -> tuple[PackedBatch, list[int]]:
    """Groups that fill several blocks of places, and the lengths of their prompts."""
    rng = np.random.default_rng(0)
    sizes = [(70, [260, 250, 60]), (150, [1, 30, 5]), (3, [2, 140, 128])]
    prompts = [rng.integers(1, 9, prompt) for prompt, _ in sizes]
    groups = [[rng.integers(1, 9, size) for size in responses] for _, responses in sizes]
    return pack(prompts, groups, [{}] * 3), [len(prompt) for prompt in prompts]


def one_by_one(batch: PackedBatch, prompts: list[int]) -> Tensor:
    """Who sees whom, from where the tokens were put."""
    rows, length = batch.input_ids.shape
    seen = torch.eye(length, dtype=torch.bool).repeat(rows, 1, 1)
    for question, size in enumerate(prompts):
        row, last = divmod(int(batch.predictors[question, 0, 0]), length)
        prompt = list(range(last - size + 1, last + 1))
        parts = [prompt]
        for response, tokens in zip(batch.predictors[question], batch.mask[question], strict=True):
            own = [int(place) % length for place in response[1 : int(tokens.sum())]]
            seen[row][np.ix_(own, prompt)] = True
            parts.append(own)
        for part in parts:
            seen[row][np.ix_(part, part)] = torch.ones(len(part), len(part), dtype=torch.bool).tril()
    return seen[:, None]


def test_matrix_and_blocks_hold_the_pairs_that_one_by_one_gives() -> None:
    batch, prompts = long()
    rows, length = batch.input_ids.shape
    assert (rows, length) == (3, 637)
    expected, padding = one_by_one(batch, prompts), batch.segment < 0
    assert torch.equal(batch.matrix & ~padding[:, None, :, None], expected & ~padding[:, None, :, None])
    assert batch.matrix.any(-1).all(), "a softmax over no token would be NaN"
    expected = batch.matrix
    assert torch.equal(create_mask(batch.blocks.mask_mod, rows, 1, length, length, "cpu"), expected)
    size, count = batch.blocks.BLOCK_SIZE[0], -(-length // batch.blocks.BLOCK_SIZE[0])
    padded = torch.zeros(rows, count * size, count * size, dtype=torch.bool)
    padded[:, :length, :length] = expected[:, 0]
    needed = padded.view(rows, count, size, count, size).any(4).any(2)
    assert torch.equal(batch.blocks.to_dense()[:, 0].bool(), needed)
    causal = count * (count + 1) // 2
    assert needed[0].sum() < causal, "no response sees those before it, so whole blocks are skipped"


def test_masks_are_made_once_and_not_before_they_are_needed(reference: list[Any]) -> None:
    here = families.setting("llava")
    batch = here.pack([0, 1, 2])
    assert not {"matrix", "blocks"} & vars(batch).keys()
    with torch.no_grad():
        response_logits(here.model, batch)
        assert "matrix" in vars(batch) and "blocks" not in vars(batch)
        assert not {"matrix", "blocks"} & vars(batch.to("cpu")).keys(), "they belong to a device"
        with attending([here.model], FLEX):
            moved = batch.to("cpu")
            for _ in range(2):
                response_logits(here.model, moved)
            assert "blocks" in vars(moved) and "matrix" not in vars(moved)
    assert len(reference) == 4 and all(mask is moved.blocks for mask in reference), "two layers, read twice"


def gradients(model: PreTrainedModel, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
    logits = response_logits(model, batch)
    model.zero_grad()
    cross_entropy(logits, batch.tokens, batch.mask).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits[batch.mask], found


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "internvl"])
def test_logits_and_gradients_are_those_of_sdpa(family: str, reference: list[Any]) -> None:
    here = families.setting(family)
    batch = here.pack([0, 1, 2])
    logits, expected = gradients(here.model, batch)
    assert not reference and expected
    with attending([here.model], FLEX):
        found, ours = gradients(here.model, batch)
    assert len(reference) == 2 and all(mask is batch.blocks for mask in reference), "the layers of the text"
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", [name for name in families.FAMILIES if name != "qwen2_5_vl"])
def test_every_family_that_takes_the_blocks_passes_the_check(
    family: str, reference: list[Any], tmp_path: Path
) -> None:
    here = families.setting(family)
    assert measure([here.model], here.questions(tmp_path / "questions")).flex and len(reference) == 2


@pytest.mark.parametrize("family", [*families.FAMILIES, "gemma3"])
def test_the_text_model_alone_changes_and_only_for_a_while(family: str) -> None:
    model = families.build(families.configuration(family)[0])
    own = model.config._attn_implementation, model.config.vision_config._attn_implementation
    if not may_flex_but_for_the_device(model):
        assert "qwen" in family, "transformers says so"
        with pytest.raises(ValueError, match="does not support"), attending([model], FLEX):
            pass
    else:
        with pytest.raises(KeyboardInterrupt), attending([model], FLEX):
            assert is_flex(model)
            assert own == (
                model.config._attn_implementation,
                model.config.vision_config._attn_implementation,
            )
            raise KeyboardInterrupt
    assert not is_flex(model)


def may_flex_but_for_the_device(model: PreTrainedModel) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "has_backward", lambda device: True)
        return may_flex(model)


def test_a_device_without_the_backward_pass_and_dropout_keep_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.build(families.configuration("llava")[0])
    assert not may_flex(model) and may_flex_but_for_the_device(model)
    model.config.text_config.attention_dropout = 0.1
    assert not may_flex_but_for_the_device(model)
    assert attention.has_backward(torch.device("cuda")) and not attention.has_backward(torch.device("mps"))


def test_models_are_asked_whether_they_read_packed_rows_with_flex_attention(
    reference: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = families.setting("llava")
    questions = here.questions(tmp_path / "questions")
    other = families.build(families.configuration("llava")[0], seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure([here.model, other], questions)
        assert found.flex and found.together and not is_flex(other)
        other.config.text_config.attention_dropout = 0.1
        found = measure([here.model, other], questions)
        assert not found.flex and found.together, "all of them, or none"

    def wrong(segment: Tensor) -> Any:
        rows, length = segment.shape
        return create_block_mask(lambda b, h, q, k: q >= k, rows, None, length, length, "cpu")

    monkeypatch.setattr(attention, "blocks", wrong)
    with pytest.warns(
        UserWarning, match="cannot read packed rows with FlexAttention: its logits differ"
    ) as told:
        found = measure([here.model], questions)
    assert not found.flex and found.together and len(told) == 1 and "\n" not in str(told[0].message)
    asked = [name for name, p in other.named_parameters() if p.requires_grad]
    assert asked == [name for name, _ in other.named_parameters()]


def test_a_kernel_that_fails_in_either_pass_leaves_it_to_sdpa(
    reference: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = families.setting("llava")
    questions = here.questions(tmp_path / "questions")
    here.model.model.vision_tower.requires_grad_(False)
    frozen = [p.requires_grad for p in here.model.parameters()]
    with (
        monkeypatch.context() as patch,
        pytest.warns(UserWarning, match="support backward on CPU.*; SDPA reads"),
    ):
        patch.setattr(torch_flex, "_validate_device", VALIDATE)
        found = measure([here.model], questions)
    assert not found.flex and found.together and reference, "without gradients it went well"
    assert [p.requires_grad for p in here.model.parameters()] == frozen and not all(frozen)
    here.model.requires_grad_()
    monkeypatch.setattr(transformers_flex, "compile_friendly_flex_attention", None)
    monkeypatch.setattr(compatibility, "_warned", set())
    with pytest.warns(UserWarning, match="FlexAttention: TypeError: .*; SDPA reads them"):
        assert not measure([here.model], questions).flex


def test_training_with_flex_attention_gives_the_losses_of_sdpa(
    reference: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = families.setting("llava")
    questions = here.questions(tmp_path / "questions")

    def trained(name: str) -> tuple[list[float], set[bool]]:
        student, teacher, before = (families.build(here.model.config, seed) for seed in (1, 2, 1))
        models, used = [student, teacher, before], set()

        class Watched(MastersTrainer):
            def compute_loss(self, *arguments: Any, **named: Any) -> Any:
                used.update(map(is_flex, models))
                return super().compute_loss(*arguments, **named)

        def make(position: int) -> Example:
            index = position % 3
            return Example(index, here.responses[index], accuracy=np.array([1, 0, 1]))

        monkeypatch.setattr(training, "MastersTrainer", Watched)
        budget = Budget(steps=2, batch=3, learning_rate=1e-3, schedule="constant", log_every=1)
        objective = Objective(LossOptions(), [teacher], before)
        log = train(student, questions, Examples(6, make), objective, budget, tmp_path / name, name)
        assert not any(map(is_flex, models)), "generation needs them as they were"
        return log["loss"].tolist(), used

    losses, used = trained("flex")
    assert used == {True} and reference
    monkeypatch.setattr(attention, "has_backward", lambda device: False)
    reference.clear()
    expected, used = trained("sdpa")
    assert used == {False} and not reference
    assert losses == pytest.approx(expected, abs=1e-5) and np.ptp(losses) > 1e-4
