import math
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from masters.masking import selection, teacher_mask
from masters.masking.criteria import Activation, Criterion, Magnitude, Random
from masters.masking.teacher_mask import TeacherMask

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


def raw(model: nn.Module) -> dict[str, bytes]:
    values = {name: value.detach().view(torch.uint8) for name, value in model.named_parameters()}
    return {name: value.numpy().tobytes() for name, value in values.items()}


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def layer_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(1, 1)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=weight.is_floating_point())
    return layer


def by_sorting(weight: Tensor, ratio: float) -> Tensor:
    """Eq. 1, 2 by a stable sort of the magnitudes."""
    order = weight.detach().double().abs().flatten().argsort(stable=True)
    kept = torch.ones(weight.numel(), dtype=torch.bool)
    kept[order[: math.floor(ratio * weight.numel())]] = False
    return weight.detach().where(kept.view(weight.shape), 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(7, 13, generator=torch.Generator().manual_seed(1)),
        torch.tensor([[0.3]]),
        torch.full((1, 10), 0.5),
        torch.tensor([[0.0, -0.0] * 5]),
        torch.tensor([[1.0, -1, 2, -2, 1, -1, 2, -2, 1, 3]]),
    ],
    ids=["random", "single", "equal", "zero", "ties"],
)
def test_the_smallest_are_removed_and_among_equals_the_first(weight: Tensor, dtype: torch.dtype) -> None:
    layer = layer_of(weight.to(dtype))
    mask = TeacherMask(layer)
    for ratio in RATIOS:
        mask.apply(ratio)
        assert torch.equal(layer.weight, by_sorting(weight.to(dtype), ratio))


def test_the_product_is_that_of_floats() -> None:
    for ratio, size, removed in ((0.3, 10, 3), (0.7, 10, 7), (0.29, 100, 28)):
        layer = layer_of(torch.arange(1.0, size + 1)[None])
        TeacherMask(layer).apply(ratio)
        assert int((layer.weight == 0).sum()) == removed


@pytest.mark.parametrize("seed", range(5))
def test_against_torch_pruning(seed: int) -> None:
    torch.manual_seed(seed)
    pruned = nn.Linear(16, 10)
    layer = layer_of(pruned.weight.detach())
    TeacherMask(layer).apply(0.2)
    prune.l1_unstructured(pruned, "weight", amount=32)
    assert torch.equal(layer.weight, pruned.weight)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan, math.inf])
def test_ratios_out_of_range_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio"):
        TeacherMask(toy()).apply(ratio)


@pytest.mark.parametrize("weight", [torch.tensor([[1.0, math.nan]]), torch.arange(4)[None]])
def test_weights_that_cannot_be_masked_are_refused(weight: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^weight .*(NaN|int64)"):
        TeacherMask(layer_of(weight)).apply(0.5)


def test_infinite_weights_are_the_largest() -> None:
    layer = layer_of(torch.tensor([[-math.inf, 1.0, math.inf, 2.0]]))
    TeacherMask(layer).apply(0.5)
    assert layer.weight[0].tolist() == [-math.inf, 0, math.inf, 0]


def test_only_linear_layers_are_masked_and_no_tied_head() -> None:
    model = toy()
    before = raw(model)
    mask = TeacherMask(model)
    assert mask.names == ("vision.1.weight", "text.0.weight", "text.2.weight", "head.weight")
    mask.apply(1.0)
    changed = {name for name, value in raw(model).items() if value != before[name]}
    assert changed == set(mask.names)
    assert all(not model.get_parameter(name).any() for name in mask.names)


def test_a_pattern_selects_the_layers() -> None:
    model = toy()
    assert TeacherMask(model, include="text").names == ("text.0.weight", "text.2.weight")
    assert TeacherMask(model, include=r"\.0$").names == ("text.0.weight",)
    assert TeacherMask(nn.Linear(3, 2)).names == ("weight",)
    with pytest.raises(ValueError, match="txet"):
        TeacherMask(model, include="txet")
    with pytest.raises(ValueError, match="'tied'"):  # a tied head is never masked
        TeacherMask(model, include="tied")
    with pytest.raises(ValueError, match="regular expression"):
        TeacherMask(model, include="(")


def test_a_shared_layer_is_masked_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert TeacherMask(nn.Sequential(first, second)).names == ("0.weight",)


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


def spoiled(spoil: Callable[[Tensor], None]) -> Toy:
    model = toy()
    with torch.no_grad():
        for name in TeacherMask(model).names:
            spoil(model.get_parameter(name))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spoil", SPOILERS)
def test_restore_is_bitwise(spoil: Callable[[Tensor], None], dtype: torch.dtype) -> None:
    model = spoiled(spoil).to(dtype)
    before = raw(model)
    pristine = {name: value.detach().clone() for name, value in model.named_parameters()}
    mask = TeacherMask(model)
    for ratio in RATIOS:
        mask.apply(ratio)
        assert mask.ratio == ratio
        for name in mask.names:
            assert torch.equal(model.get_parameter(name), by_sorting(pristine[name], ratio))
        mask.restore()
        assert mask.ratio == 0.0 and raw(model) == before


def test_the_context_restores_even_after_an_error() -> None:
    model = toy()
    before = raw(model)
    with pytest.raises(RuntimeError), TeacherMask(model).apply(0.5):
        assert raw(model) != before
        raise RuntimeError
    assert raw(model) == before


def test_a_failed_apply_leaves_no_mask_and_names_the_weight() -> None:
    model = toy()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    before = raw(model)
    mask = TeacherMask(model)
    with pytest.raises(ValueError, match=r"head\.weight.*NaN"):
        mask.apply(0.5)
    assert raw(model) == before and mask.ratio == 0.0


def test_a_masked_teacher_keeps_its_parameters_and_their_gradients() -> None:
    model = toy()
    identities = [id(parameter) for parameter in model.parameters()]
    with TeacherMask(model).apply(0.3):
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert [id(parameter) for parameter in model.parameters()] == identities
        model.text(torch.randn(2, 6)).sum().backward()
    assert model.text[0].weight.grad is not None


def test_more_weights_than_torch_quantile_takes() -> None:
    weight = (torch.arange(2**24 + 3, dtype=torch.int32).remainder_(1000) + 1).to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="too large"):
        weight.float().quantile(0.5)
    layer = layer_of(weight[None])
    TeacherMask(layer).apply(0.25)
    removed = layer.weight[0] == 0
    assert int(removed.sum()) == (2**24 + 3) // 4
    threshold = weight[removed].max()
    assert weight[~removed].min() == threshold == 250  # some of this value are removed, some kept
    ties = removed[weight == threshold].int()
    assert torch.equal(ties, ties.sort(descending=True).values)  # the first ones are removed


def activation() -> Activation:
    torch.manual_seed(9)
    norms = {"vision.1.weight": torch.rand(5), "text.0.weight": torch.rand(6)}
    norms |= {"text.2.weight": torch.rand(13), "head.weight": torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 4.0])}
    return Activation(norms)


WAYS: list[Criterion] = [Magnitude(), Random(), activation()]
WAY_NAMES = ["magnitude", "random", "activation"]


@pytest.mark.parametrize("way", WAYS, ids=WAY_NAMES)
@pytest.mark.parametrize("spoil", [spoil_nothing, spoil_mostly_zeros, spoil_equal])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2])
def test_from_any_ratio_to_any_other_as_a_fresh_mask(
    way: Criterion, spoil: Callable[[Tensor], None], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "BLOCK", 25)  # several blocks per layer
    model = spoiled(spoil).to(dtype)
    pristine, fresh = raw(model), {}
    for ratio in (0.0, 0.05, 0.2, 0.5, 1.0):
        with TeacherMask(model, criterion=way).apply(ratio):
            fresh[ratio] = raw(model)
    mask = TeacherMask(model, criterion=way)
    for ratio in (0.2, 0.05, 0.5, 0.2, 1.0, 0.5, 0.0, 1.0, 0.05, 0.05):
        assert mask.apply(ratio) is mask and raw(model) == fresh[ratio]
    mask.restore()
    assert raw(model) == pristine


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2]], ids=["magnitude", "activation"])
@pytest.mark.parametrize("step", ["_pack", "_raw", "_unpack"])
def test_an_interruption_anywhere_leaves_the_teacher_as_it_was(
    way: Criterion, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy()
    before, calls, original = raw(model), 0, getattr(teacher_mask, step)

    def interrupted(*arguments: object) -> object:
        nonlocal calls
        calls -= 1
        if calls == 0:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(teacher_mask, step, interrupted)
    for left in range(1, 9):
        mask = TeacherMask(model, criterion=way).apply(0.3)
        calls = left
        with suppress(KeyboardInterrupt):
            mask.apply(0.6)
        calls = 0
        mask.restore()
        assert raw(model) == before and mask.ratio == 0.0


@pytest.mark.parametrize("way", WAYS, ids=WAY_NAMES)
def test_a_weight_that_changed_while_masked_is_noticed(way: Criterion) -> None:
    model = toy()
    mask = TeacherMask(model, criterion=way).apply(0.5)
    with torch.no_grad():
        model.text[0].weight.fill_(1.0)
    with pytest.raises(ValueError, match=r"text\.0\.weight changed"):
        mask.apply(0.2)
    with pytest.raises(ValueError, match=r"text\.0\.weight changed"):
        mask.restore()


def test_weights_with_another_memory_layout_are_masked_too() -> None:
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


def test_a_quantized_weight_is_refused() -> None:
    """Its codes do not order its weights: the scale of each block belongs to them."""
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    model[0].weight_scale_inv = nn.Parameter(torch.ones(1, 1))
    with pytest.raises(
        ValueError, match=r"0\.weight: it is quantized \(weight_scale_inv\): mask a model that"
    ):
        TeacherMask(model)
