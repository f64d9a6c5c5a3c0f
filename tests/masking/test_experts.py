"""Mixture-of-experts models, whose experts are one parameter of three dimensions."""

import math
from typing import Any

import pytest
import torch
from families import IMAGE, START, STOP, VIDEO, build, qwen3_vl_config
from torch import nn
from transformers import PreTrainedModel, Qwen3VLMoeConfig

from masters.masking.criteria import Activation, Random
from masters.masking.teacher_mask import TeacherMask

torch.set_num_threads(1)


def mixture(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    plain = qwen3_vl_config(64, IMAGE, VIDEO, START, STOP)
    text = plain.text_config.to_dict() | {
        "model_type": "qwen3_vl_moe_text",
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    config = Qwen3VLMoeConfig(
        text_config=text,
        vision_config=plain.vision_config.to_dict() | {"model_type": "qwen3_vl_moe_vision"},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=STOP,
        tie_word_embeddings=True,
    )
    model = build(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 3:
                weight.normal_(std=0.2)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_expert_is_masked_on_its_own_and_restored_exactly(dtype: torch.dtype) -> None:
    model = mixture(dtype)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    fused = [name for name, weight in model.named_parameters() if weight.ndim == 3]
    assert len(fused) == 4, "gate_up_proj and down_proj in two layers"
    mask = TeacherMask(model)
    for ratio in (0.3, 0.05, 0.4):
        mask.apply(ratio)
        for name in fused:
            for expert, (now, was) in enumerate(zip(model.get_parameter(name), before[name], strict=True)):
                assert f"{name}[{expert}]" in mask.names
                count = math.floor(ratio * was.numel())
                assert int((now == 0).sum()) == count, "Eq. 1: a threshold of its own"
                removed = was.abs()[now == 0]
                assert removed.max() <= was.abs()[now != 0].min(), "Eq. 2: the smallest"
    mask.restore()
    for name, weight in model.named_parameters():
        assert torch.equal(weight.view(torch.uint8), before[name].view(torch.uint8)), name


def test_other_criteria_know_experts_or_say_that_they_do_not() -> None:
    model = mixture()
    with TeacherMask(model, criterion=Random()).apply(0.5):
        name = next(name for name, weight in model.named_parameters() if weight.ndim == 3)
        first, second = (model.get_parameter(name)[i] == 0 for i in (0, 1))
        assert first.float().mean() == second.float().mean() == 0.5 and not torch.equal(first, second)
    norms = {
        f"{name}.weight": torch.ones(module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    with pytest.raises(ValueError, match=r"no input norms for .*experts\.gate_up_proj\[0\]"):
        TeacherMask(model, criterion=Activation(norms))


class Odd(nn.Module):
    """Most weights in a parameter that is neither a linear layer nor known experts."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.kernel = nn.Parameter(torch.randn(size, 8))
        self.position = nn.Parameter(torch.randn(1, 500, 8))
        self.patches = nn.Conv2d(3, 64, 4)
        self.words = nn.Embedding(1000, 8)


def test_a_mask_that_would_reach_less_than_half_of_the_weights_is_refused() -> None:
    assert TeacherMask(Odd(8)).names == ("linear.weight",)
    with pytest.raises(ValueError, match=r"^Odd: a mask would reach only 10 % of the weights") as told:
        TeacherMask(Odd(72))
    assert "\n" not in str(told.value)
    assert TeacherMask(Odd(72), include="linear").names == ("linear.weight",)


def test_a_model_with_experts_answers_differently_under_its_mask() -> None:
    model: Any = mixture()
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with TeacherMask(model, include="experts").apply(0.5):
            masked = model(input_ids=ids).logits
        assert not torch.allclose(masked, whole, atol=1e-2)
        assert torch.equal(model(input_ids=ids).logits, whole)
