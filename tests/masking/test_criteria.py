import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from masters.masking.criteria import Activation, Random, input_norms
from masters.masking.teacher_mask import TeacherMask


class Net(nn.Module):
    """Layers in sequence, two of which share a weight, one without inputs, and one called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.again, self.never = nn.Linear(8, 8), nn.Linear(3, 3)
        self.again.weight = self.second.weight
        self.seen: dict[str, list[Tensor]] = {"first": [], "second": []}

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.seen["first"].append(x.detach())
        x = self.first(x).relu()
        self.seen["second"].append(x.detach())
        x = self.second(input=x).relu()
        self.seen["second"].append(x.detach())
        return self.again(x) + (0 if y is None else y)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def by_hand(inputs: list[Tensor]) -> Tensor:
    features = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).double()
    return features.square().sum(0).sqrt()


def test_input_norms_are_over_all_tokens_of_all_inputs() -> None:
    model = net()
    one, two, three = torch.randn(2, 5, 6), torch.randn(7, 6), torch.randn(1, 6)
    norms = input_norms(model, iter([{"x": one}, {"x": two, "y": torch.ones(8)}, {"x": three}]))
    assert set(norms) == {"first.weight", "second.weight", "again.weight"}
    for name in ("first", "second"):
        assert norms[f"{name}.weight"].dtype == torch.float32
        torch.testing.assert_close(norms[f"{name}.weight"].double(), by_hand(model.seen[name]))
    assert torch.equal(norms["again.weight"], norms["second.weight"])


def test_squares_are_summed_in_float32_also_for_half_precision_models() -> None:
    layer = nn.Linear(4, 2).half()
    inputs = [{"input": torch.full((300, 4), 100.0).half()} for _ in range(3)]  # squares overflow float16
    assert input_norms(layer, inputs)["weight"].tolist() == pytest.approx([math.sqrt(900) * 100] * 4)


def test_hooks_are_removed_even_after_an_error() -> None:
    model = net()
    good, bad = {"x": torch.randn(2, 6)}, {"x": torch.randn(2, 7)}
    with pytest.raises(RuntimeError):
        input_norms(model, [good, bad])
    norms = input_norms(model, [good])
    assert not any(module._forward_pre_hooks for module in model.modules())
    model(**good)
    torch.testing.assert_close(norms["first.weight"].double(), by_hand([good["x"]]))
    assert not any(value.requires_grad for value in norms.values())


def naive_wanda(weight: Tensor, norms: Tensor, ratio: float) -> Tensor:
    out = weight.detach().clone()
    for row in out:
        scores = [abs(np.float32(w)) * np.float32(norm) for w, norm in zip(row.tolist(), norms, strict=True)]
        for column in sorted(range(len(row)), key=lambda j: scores[j])[: math.floor(ratio * len(row))]:
            row[column] = 0
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5, 1.0])
def test_activation_against_a_naive_wanda(dtype: torch.dtype, ratio: float) -> None:
    model = net()
    norms = input_norms(model, [{"x": torch.randn(5, 6)} for _ in range(4)])
    model.to(dtype)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    mask = TeacherMask(model, include="first|second|again", criterion=Activation(norms))
    for start in (0.3, ratio):
        mask.apply(start)
    for name in mask.names:
        assert torch.equal(model.get_parameter(name), naive_wanda(before[name], norms[name], ratio))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first.weight": torch.ones(5)}, r"first\.weight must be 6 finite numbers, got \(5,\)"),
        ({"first.weight": torch.full((6,), math.inf)}, r"first\.weight must be 6 finite numbers"),
        ({"first.weight": torch.zeros(6)}, r"no input norms for first\.weight"),
        ({}, r"no input norms for never\.weight"),
    ],
)
def test_norms_that_do_not_fit_are_refused(change: Mapping[str, Any], message: str) -> None:
    model = net()
    norms = input_norms(model, [{"x": torch.randn(3, 6)}])
    with pytest.raises(ValueError, match=message):
        TeacherMask(model, criterion=Activation(norms | change))


def test_random_masks_are_repeatable_nested_and_spread_evenly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 400))

    def removed(ratio: float) -> list[Tensor]:
        with TeacherMask(model, criterion=Random()).apply(ratio):
            return [layer.weight == 0 for layer in model]

    first, same, more = removed(0.2), removed(0.2), removed(0.5)
    for a, b, c in zip(first, same, more, strict=True):
        assert int(a.sum()) == 24000 and torch.equal(a, b)
        assert (c | ~a).all()  # what 0.2 removes, 0.5 removes too
        for dim in (0, 1):  # binomial: standard deviation 0.02 to 0.023
            assert (a.float().mean(dim) - 0.2).abs().max() < 0.1
    assert 0.18 < (first[0].flatten() & first[1].flatten()).sum() / 24000 < 0.22  # layers are independent
    magnitudes = model[0].weight.detach().abs()
    assert float(magnitudes[first[0]].mean()) == pytest.approx(float(magnitudes.mean()), rel=0.02)
