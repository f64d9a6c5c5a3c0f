import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from masters.masking import selection, teacher_mask
from masters.masking.criteria import Activation, Criterion, Magnitude, Random, Scope
from masters.masking.teacher_mask import TeacherMask, magnitude_mask

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
RATIOS = [0.0, 0.05, 0.1, 0.2, 0.29, 0.3, 0.5, 0.7, 0.999, 1.0]


class Toy(nn.Module):
    """An embedding, a tied and an untied head, norms, biases, linear layers in two towers, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.vision = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Linear(5, 7), nn.LayerNorm(7))
        self.text = nn.Sequential(nn.Linear(6, 13), nn.LayerNorm(13), nn.Linear(13, 6, bias=False))
        self.tied = nn.Linear(6, 11, bias=False)
        self.tied.weight = self.embedding.weight
        self.head = nn.Linear(6, 11)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in model.named_parameters()}


def toy(seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    return Toy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (100,), (7, 13), (3, 4, 5)])
def test_exactly_floor_ratio_n_of_the_smallest_go(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for ratio in RATIOS:
        keep = magnitude_mask(weight, ratio)
        assert keep.dtype == torch.bool and keep.shape == weight.shape
        assert int((~keep).sum()) == math.floor(ratio * weight.numel())
        magnitude = weight.double().abs()
        if 0 < keep.sum() < keep.numel():
            assert magnitude[~keep].max() <= magnitude[keep].min()


@pytest.mark.parametrize("values", [[0.5] * 10, [0.0, -0.0] * 5, [1, -1, 2, -2, 1, -1, 2, -2, 1, 3]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_among_ties_the_first_go_as_in_a_stable_sort(values: list[float], dtype: torch.dtype) -> None:
    weight = torch.tensor(values).to(dtype)
    for ratio in (0.1, 0.3, 0.5, 0.9):
        expected = np.ones(len(values), dtype=bool)
        expected[np.argsort(np.abs(values), kind="stable")[: math.floor(ratio * len(values))]] = False
        assert magnitude_mask(weight, ratio).tolist() == expected.tolist()


def test_the_product_is_that_of_floats() -> None:
    weight = torch.arange(100.0)
    assert int((~magnitude_mask(weight[:10], 0.3)).sum()) == 3
    assert int((~magnitude_mask(weight[:10], 0.7)).sum()) == 7
    assert int((~magnitude_mask(weight, 0.29)).sum()) == 28


@pytest.mark.parametrize("seed", range(5))
def test_against_torch_pruning(seed: int) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(16, 10)
    keep = magnitude_mask(layer.weight, 0.2)
    prune.l1_unstructured(layer, "weight", amount=32)
    assert torch.equal(keep, layer.weight_mask.bool())


def test_order_in_memory_does_not_matter() -> None:
    weight = torch.randint(-3, 4, (9, 8), generator=torch.Generator().manual_seed(0)).float()
    strided = weight.t().contiguous().t()
    assert not strided.is_contiguous()
    assert torch.equal(magnitude_mask(strided, 0.4), magnitude_mask(weight, 0.4))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan, math.inf])
def test_bad_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio"):
        magnitude_mask(torch.ones(4), ratio)


@pytest.mark.parametrize("weight", [torch.tensor([1.0, math.nan]), torch.arange(4)])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_bad_weights_are_refused(weight: Tensor, ratio: float) -> None:
    with pytest.raises(ValueError, match=r"NaN|int64"):
        magnitude_mask(weight, ratio)


def test_infinite_weights_are_the_largest() -> None:
    assert magnitude_mask(torch.tensor([-math.inf, 1.0, math.inf, 2.0]), 0.5).tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_only_linear_layers_are_masked_and_no_tied_head() -> None:
    model = toy()
    before = bits(model)
    mask = TeacherMask(model)
    assert mask.names == ("vision.1.weight", "text.0.weight", "text.2.weight", "head.weight")
    mask.apply(1.0)
    changed = {name for name, value in bits(model).items() if value != before[name]}
    assert changed == set(mask.names)
    assert all(not model.get_parameter(name).any() for name in mask.names)


def test_patterns_choose_the_layers() -> None:
    model = toy()
    assert TeacherMask(model, include="text").names == ("text.0.weight", "text.2.weight")
    assert TeacherMask(model, exclude="vision|head").names == ("text.0.weight", "text.2.weight")
    assert TeacherMask(model, include=r"\.0$").names == ("text.0.weight",)
    assert TeacherMask(nn.Linear(3, 2)).names == ("weight",)
    with pytest.raises(ValueError, match="txet"):
        TeacherMask(model, include="txet")
    with pytest.raises(ValueError, match="'tied'"):  # the tied head is never masked, not even when asked for
        TeacherMask(model, include="tied")
    with pytest.raises(ValueError, match="regular expression"):
        TeacherMask(model, exclude="(")


def test_a_shared_layer_is_masked_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert TeacherMask(nn.Sequential(first, second)).names == ("0.weight",)


@pytest.mark.parametrize("order", [(0.2, 0.5), (0.5, 0.2), (0.2, 0.0, 0.2, 1.0), (1.0, 0.3, 0.3)])
def test_each_ratio_starts_from_the_pristine_weights(order: tuple[float, ...]) -> None:
    model, fresh = toy(), toy()
    mask = TeacherMask(model)
    for ratio in order:
        assert mask.apply(ratio) is mask
        assert mask.ratio == ratio
    keep = {name: magnitude_mask(fresh.get_parameter(name), order[-1]) for name in mask.names}
    for name, value in model.named_parameters():
        pristine = fresh.get_parameter(name)
        assert torch.equal(value, pristine * keep[name] if name in keep else pristine)


def spoil_nothing(weight: Tensor) -> None:
    pass


def spoil_negative_zeros(weight: Tensor) -> None:
    weight.view(-1)[::5] = -0.0


def spoil_mostly_zeros(weight: Tensor) -> None:
    weight.view(-1)[2:] = 0.0
    weight.view(-1)[::3] = -0.0


def spoil_equal(weight: Tensor) -> None:
    weight.copy_(weight.sign() * 0.25)


def spoil_subnormal(weight: Tensor) -> None:
    weight.view(-1)[::4] = 1e-40


SPOILERS = [spoil_nothing, spoil_negative_zeros, spoil_mostly_zeros, spoil_equal, spoil_subnormal]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spoil", SPOILERS)
def test_restore_is_bitwise(spoil: Callable[[Tensor], None], dtype: torch.dtype) -> None:
    model = toy().to(dtype)
    with torch.no_grad():
        for name in TeacherMask(model).names:
            spoil(model.get_parameter(name))
    before = {name: value.detach().view(torch.uint8).clone() for name, value in model.named_parameters()}
    pristine = {name: value.detach().clone() for name, value in model.named_parameters()}
    mask = TeacherMask(model)
    for ratio in RATIOS:
        mask.apply(ratio)
        for name in mask.names:
            assert torch.equal(
                model.get_parameter(name), pristine[name].where(magnitude_mask(pristine[name], ratio), 0)
            )
        mask.restore()
        assert mask.ratio == 0.0 and mask.extra_bytes() == 0
        for name, value in model.named_parameters():
            assert torch.equal(value.detach().view(torch.uint8), before[name])


def test_the_context_restores_even_after_an_error() -> None:
    model = toy()
    before = bits(model)
    with pytest.raises(RuntimeError), TeacherMask(model).apply(0.5):
        assert bits(model) != before
        raise RuntimeError
    assert bits(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0])
def test_what_is_held_is_the_removed_values_and_one_bit_per_weight(dtype: torch.dtype, ratio: float) -> None:
    model = nn.Sequential(nn.Linear(301, 207), nn.Linear(207, 511)).to(dtype)
    mask = TeacherMask(model).apply(ratio)
    weights = [model.get_parameter(name) for name in mask.names]
    removed = sum(math.floor(ratio * weight.numel()) for weight in weights)
    bits = sum(-(-weight.numel() // 8) for weight in weights)
    assert mask.extra_bytes() == removed * dtype.itemsize + bits


def test_a_failed_apply_leaves_no_mask_and_names_the_weight() -> None:
    model = toy()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    before = bits(model)
    mask = TeacherMask(model)
    with pytest.raises(ValueError, match=r"head\.weight.*NaN"):
        mask.apply(0.5)
    assert bits(model) == before and mask.ratio == 0.0
    with pytest.raises(ValueError, match="ratio"):
        TeacherMask(toy()).apply(1.5)


def test_weights_that_changed_under_the_mask_are_noticed() -> None:
    model = toy()
    mask = TeacherMask(model).apply(0.5)
    with torch.no_grad():
        model.text[0].weight.add_(1.0)
    with pytest.raises(ValueError, match=r"text\.0\.weight"):
        mask.restore()


def test_a_masked_teacher_needs_no_gradient_mode_and_keeps_its_parameters() -> None:
    model = toy()
    identities = [id(parameter) for parameter in model.parameters()]
    with TeacherMask(model).apply(0.3):
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert [id(parameter) for parameter in model.parameters()] == identities
        model.text(torch.randn(2, 6)).sum().backward()
    assert model.text[0].weight.grad is not None


def test_more_weights_than_torch_quantile_takes() -> None:
    weight = torch.arange(2**24 + 3, dtype=torch.int32).remainder_(1000).to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="too large"):
        weight.float().quantile(0.5)
    keep = magnitude_mask(weight, 0.25)
    assert int((~keep).sum()) == (2**24 + 3) // 4
    threshold = weight[~keep].max()
    assert weight[keep].min() == threshold == 249  # some of this value go, some stay
    ties = keep[weight == threshold].int()
    assert torch.equal(ties, ties.sort().values)  # the first ones went


def activation() -> Activation:
    torch.manual_seed(9)
    norms = {"vision.1.weight": torch.rand(5), "text.0.weight": torch.rand(6)}
    norms |= {"text.2.weight": torch.rand(13), "head.weight": torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 4.0])}
    return Activation(norms)


WAYS: list[tuple[Criterion, Scope | None]] = [
    (Magnitude(), None), (Magnitude(), "row"), (Magnitude(), "global"), (Random(3), None), (Random(3), "row"),
    (Random(3), "global"), (activation(), None), (activation(), "layer"), (activation(), "global"),
]  # fmt: skip


def raw(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().view(torch.uint8).clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("way", WAYS, ids=[f"{type(judge).__name__}-{scope}" for judge, scope in WAYS])
@pytest.mark.parametrize("spoil", [spoil_nothing, spoil_mostly_zeros, spoil_equal])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2])
def test_from_any_ratio_to_any_other_as_a_fresh_mask(
    way: tuple[Criterion, Scope | None],
    spoil: Callable[[Tensor], None],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "BLOCK", 25)  # several blocks in a layer
    model = toy()
    with torch.no_grad():
        for name in TeacherMask(model).names:
            spoil(model.get_parameter(name))
    model.to(dtype)
    pristine, fresh = raw(model), {}
    mask = TeacherMask(model, criterion=way[0], scope=way[1])
    weights = sum(model.get_parameter(name).numel() for name in mask.names)
    for ratio in (0.0, 0.05, 0.2, 0.5, 1.0):
        fresh[ratio] = raw(model) if ratio == 0 else raw_of_fresh(model, way, ratio)
    for ratio in (0.2, 0.05, 0.5, 0.2, 1.0, 0.5, 0.0, 1.0, 0.05, 0.05):
        mask.apply(ratio)
        after = raw(model)
        assert all(torch.equal(after[name], fresh[ratio][name]) for name in after)
        bits = sum(-(-model.get_parameter(name).numel() // 8) for name in mask.names)
        blocks = weights // 5  # a block's last byte may be filled up, and a row may be a block
        assert mask.extra_bytes() <= ratio * weights * dtype.itemsize + bits + blocks
    mask.restore()
    after = raw(model)
    assert all(torch.equal(after[name], pristine[name]) for name in after)
    assert mask.extra_bytes() == 0


def raw_of_fresh(model: nn.Module, way: tuple[Criterion, Scope | None], ratio: float) -> dict[str, Tensor]:
    with TeacherMask(model, criterion=way[0], scope=way[1]).apply(ratio):
        return raw(model)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2], WAYS[6]], ids=["magnitude", "global", "activation"])
@pytest.mark.parametrize("step", ["_pack", "_raw", "_unpack"])
def test_an_interruption_anywhere_leaves_the_teacher_as_it_was(
    way: tuple[Criterion, Scope | None], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy()
    before, calls, original = bits(model), 0, getattr(teacher_mask, step)

    def interrupted(*arguments: object) -> object:
        nonlocal calls
        calls -= 1
        if calls == 0:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(teacher_mask, step, interrupted)
    for left in range(1, 9):
        mask = TeacherMask(model, criterion=way[0], scope=way[1]).apply(0.3)
        calls = left
        with suppress(KeyboardInterrupt):
            mask.apply(0.6)
        calls = 0
        mask.restore()
        assert bits(model) == before and mask.ratio == 0.0


def test_a_weight_that_changed_is_noticed_when_the_ratio_changes() -> None:
    for way in WAYS:
        model = toy()
        mask = TeacherMask(model, criterion=way[0], scope=way[1]).apply(0.5)
        with torch.no_grad():
            model.text[0].weight.fill_(1.0)
        with pytest.raises(ValueError, match=r"text\.0\.weight changed"):
            mask.apply(0.2)


def test_weights_that_stand_otherwise_in_memory_are_masked_too() -> None:
    layer, other = nn.Linear(9, 8), nn.Linear(9, 8)
    with torch.no_grad():
        other.weight.copy_(layer.weight)
        other.weight.data = other.weight.t().contiguous().t()
    assert not other.weight.is_contiguous()
    masks = TeacherMask(layer), TeacherMask(other)
    pristine = layer.weight.detach().clone()
    for ratio in (0.4, 0.2, 0.3):
        for mask in masks:
            mask.apply(ratio)
        assert torch.equal(layer.weight, other.weight) and not torch.equal(layer.weight, pristine)
    masks[1].restore()
    assert torch.equal(other.weight, pristine)


def test_a_global_threshold_against_torch_pruning() -> None:
    model, other = toy(), toy()
    mask = TeacherMask(model, scope="global").apply(0.3)
    chosen = [(other.get_submodule(name.removesuffix(".weight")), "weight") for name in mask.names]
    total = sum(layer.weight.numel() for layer, _ in chosen)
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=math.floor(0.3 * total))
    for (layer, _), name in zip(chosen, mask.names, strict=True):
        assert torch.equal(model.get_parameter(name), layer.weight)


def test_a_global_threshold_breaks_layers_of_small_weights_and_the_paper_s_does_not() -> None:
    torch.manual_seed(0)
    small, large = nn.Linear(50, 20), nn.Linear(50, 80)
    with torch.no_grad():
        small.weight.mul_(1e-6)
    model = nn.Sequential(small, large)
    with TeacherMask(model, scope="global").apply(0.2):
        assert not small.weight.any()
    with TeacherMask(model).apply(0.2):
        assert int((small.weight == 0).sum()) == 200 and int((large.weight == 0).sum()) == 800


def test_a_global_threshold_compares_across_precisions() -> None:
    layers = [nn.Linear(30, 20), nn.Linear(30, 20).bfloat16(), nn.Linear(30, 20).half()]
    scores = torch.cat([layer.weight.detach().double().abs().flatten() for layer in layers])
    model = nn.Sequential(*layers)
    before = raw(model)
    with TeacherMask(model, scope="global").apply(0.25):
        gone = torch.cat([(layer.weight == 0).flatten() for layer in layers])
        expected = torch.zeros(1800, dtype=torch.bool)
        expected[scores.argsort(stable=True)[:450]] = True
        assert torch.equal(gone, expected)
    assert all(torch.equal(before[name], value) for name, value in raw(model).items())


def test_a_row_s_threshold_is_that_of_a_layer_of_one_row() -> None:
    model = toy()
    rows = {name: model.get_parameter(name).detach().clone() for name in TeacherMask(model).names}
    mask = TeacherMask(model, scope="row").apply(0.4)
    for name in mask.names:
        expected = torch.stack([row.where(magnitude_mask(row, 0.4), 0) for row in rows[name]])
        assert torch.equal(model.get_parameter(name), expected)


def test_unknown_scopes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'model'.*row, layer, global"):
        TeacherMask(toy(), scope="model")  # type: ignore[arg-type]
