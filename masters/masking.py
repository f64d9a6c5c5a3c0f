"""The masked teacher: each layer without its smallest weights, and back again bit for bit (Eq. 1, 2).

The idea: zeroing the fraction r of weights of smallest magnitude makes a teacher simpler, hence easier to
imitate. The threshold is each layer's own (a global one broke some layers in the paper). The mask is a loan:
it is applied in memory and undone from what it removed.

Departures from the paper:
    * Eq. 2 keeps w where ``abs(w) >= lambda_r``, hence every weight that ties with the threshold. Here
      exactly ``floor(r * n)`` weights go, so that low-precision formats, where ties abound, reach the ratio
      that was asked for; among equals, those that come first in row-major order go first.
    * The paper does not say which modules are masked. Here: the weight of every linear layer; never
      embeddings, norms, biases, or an output head that shares its storage with an embedding.
    * The paper stores M masked checkpoints; here one teacher is masked and restored in memory.
    * Beside the paper's magnitudes within a layer there are other criteria (:mod:`masters.criteria`) and
      other scopes: one threshold for the whole model, or one for each row.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import Self, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from masters.criteria import Activation, Criterion, Magnitude, Scope
from masters.layers import Layer, linear_layers, reshard
from masters.removed import Removed
from masters.selection import (
    Cut,
    RowCut,
    blocks,
    bracket,
    cuts,
    has_nan,
    magnitude_keys,
    one_thread,
    places,
    sample,
    up_to,
)

MANY = 1 << 20  # weights of a layer, from which on a sample of them costs little beside a pass
_FEW = 1 / 8  # share of the weights that may be unsure after a look at a sample
_DAMAGED = "cannot mask a weight that contains NaN: is the checkpoint damaged?"


@one_thread()
def magnitude_mask(weight: Tensor, ratio: float) -> Tensor:
    """Eq. 1, 2 for one layer: which weights stay.

    Exactly ``floor(ratio * n)`` of the n entries are False, those of smallest magnitude; among equal
    magnitudes the lower index in row-major order goes first. The product is that of Python floats:
    ``0.7 * 10`` is 7, but ``0.29 * 100`` is 28.999999999999996, so 28 go (the double for 0.29 is smaller).

    Args:
        weight: any shape, any floating dtype.
        ratio: the share to remove, in [0, 1].

    Returns:
        A bool tensor of the weight's shape, True where the weight is kept.

    Raises:
        ValueError: the ratio is outside [0, 1] or NaN; the weight is not floating or contains NaN.
    """
    _check_ratio(ratio)
    flat = weight.detach().reshape(-1)
    _check_type(flat)
    if _has_nan(flat):
        raise ValueError(_DAMAGED)
    keep = torch.ones_like(flat, dtype=torch.bool)

    def keys() -> Iterator[Tensor]:
        return (magnitude_keys(flat[start:end]) for start, end in blocks(flat))

    (cut,) = cuts([keys], math.floor(ratio * len(flat)))
    for (start, end), block in zip(blocks(flat), keys(), strict=True):
        torch.logical_not(cut.taken(block), out=keep[start:end])
    return keep.view(weight.shape)


class TeacherMask:
    """Masks a model's linear layers in place, at one ratio after the other, and gives everything back.

    Outside the model it keeps the removed values only, ``floor(ratio * n)`` of each weight; and one bit a
    weight where zeros may stay (:mod:`masters.removed`). By magnitude none do: what was 0 before goes first.

    From one ratio to the next it changes only the weights between them, with the result of a fresh mask.

    As a context manager it restores on exit, whatever happened inside::

        with TeacherMask(teacher) as mask:
            for ratio in schedule.ratios:
                mask.apply(ratio)
                ...

    A teacher sharded by FSDP2 (``fully_shard``) is masked in its shards as the whole one would be; every
    process must then make the same calls.

    Args:
        model: the teacher; its weights must not change by other means while a mask is applied.
        include: regular expression searched in module names, such as "language_model"; default: all.
        exclude: regular expression of module names to leave alone, such as "vision_tower".
        criterion: by what weights are judged; the paper's is their magnitude.
        scope: which weights share a threshold: those of a "row" (which feed one output), a "layer", or all
            that are masked ("global"); default: the criterion's own, for the paper's the layer.

    Attributes:
        ratio: the ratio applied now, 0.0 for the untouched teacher.

    Raises:
        ValueError: a pattern is no regular expression, or no linear layer is left to mask; an unknown
            scope; a criterion that does not fit the model; shards that cannot be masked.
    """

    def __init__(
        self,
        model: nn.Module,
        include: str | None = None,
        exclude: str | None = None,
        *,
        criterion: Criterion = Magnitude(),  # noqa: B008, it is frozen
        scope: Scope | None = None,
    ) -> None:
        self._model = model
        self._layers = linear_layers(model, include, exclude)
        self._criterion = criterion
        self._scope = criterion.scope if scope is None else scope
        if self._scope not in get_args(Scope):
            raise ValueError(f"scope is {scope!r}: choose from {', '.join(get_args(Scope))}")
        if self._scope == "global" and len({layer.group for layer in self._layers}) > 1:
            raise ValueError("a global threshold needs all layers sharded over the same processes, or none")
        if isinstance(criterion, Activation):
            criterion.check(self._layers)
        # In which magnitudes of different layers can be compared; torch does not promote 8-bit formats.
        dtypes = {
            layer.weight.dtype if layer.weight.element_size() > 1 else torch.bfloat16
            for layer in self._layers
        }
        self._common = reduce(torch.promote_types, dtypes)
        self._removed = Removed()
        self.ratio = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the masked parameters, in the model's order."""
        return tuple(layer.name for layer in self._layers)

    @torch.no_grad()
    @one_thread()
    def apply(self, ratio: float) -> Self:
        """Mask at a ratio, whatever was applied before, as if from the pristine weights; returns the mask.

        Raises:
            ValueError: the ratio is outside [0, 1], or a weight contains NaN or is not floating; the teacher
                is left without a mask. Or a weight was changed by other means while it was masked.
        """
        _check_ratio(ratio)
        try:
            reshard(self._model)
            for layers in [self._layers] if self._scope == "global" else [[layer] for layer in self._layers]:
                self._change(layers, float(ratio))
        except BaseException:
            self.restore()
            raise
        self.ratio = float(ratio)
        return self

    def _change(self, layers: list[Layer], ratio: float) -> None:
        """Go from the ratio that is applied to another one, in layers that share a threshold."""
        total = layers[0].width if self._scope == "row" else sum(layer.size for layer in layers)
        old, new = math.floor(self.ratio * total), math.floor(ratio * total)
        if new == old:
            return
        for layer in layers:
            _check_type(layer.weight, f"{layer.name}: ")
        if old == 0 and len(layers) == 1 and self._scope != "row" and self._grow_at_once(layers[0], new):
            return
        damaged: set[str] = set()
        chosen: Sequence[Cut | RowCut]
        if self._scope == "row":
            chosen = [RowCut(new, total if new > old else old)]
            damaged = {layer.name for layer in layers if old == 0 and _has_nan(layer.local().reshape(-1))}
        elif new > old:
            keys = [partial(self._kept_keys, layer, damaged if old == 0 else None) for layer in layers]
            chosen = cuts(keys, new, layers[0].group)
        else:
            chosen = cuts([partial(self._removed_keys, layer) for layer in layers], new, layers[0].group)
        if old == 0:
            self._refuse_damage(layers, damaged)
        for layer, cut in zip(layers, chosen, strict=True):
            if new > old:
                self._grow(layer, cut)
            else:
                self._shrink(layer, cut)

    def _grow(self, layer: Layer, cut: Cut | RowCut) -> None:
        """Remove what a cut takes of all weights, among it all that is removed already."""
        with layer.flat() as flat:
            zeros_stay = self._zeros_stay(cut, int(self._removed.zeros_stay(layer)))
            for start, end in blocks(flat, layer.width):
                taken = cut.taken(self._growing(layer, flat[start:end], start))
                self._removed.take(layer, flat[start:end], start, taken, zeros_stay)

    def _grow_at_once(self, layer: Layer, count: int) -> bool:
        """Remove so many weights of an untouched layer in one pass, by magnitude, if a sample tells how.

        By a threshold that is a little too high for certain: those near it are remembered, and given back
        as soon as their ranks are known. False where this is not possible; then the layer is as it was.
        """
        if layer.group is not None or layer.size <= MANY or not isinstance(self._criterion, Magnitude):
            return False
        flat = layer.local().reshape(-1)
        at = sample(len(flat)).to(flat.device)
        low, high = bracket(self._keys(layer, flat.index_select(0, at), 0, at), count / layer.size)
        if low == 0:  # zeros may stay
            return False
        sure, room = 0, int(_FEW * layer.size)
        unsure: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        with layer.flat() as flat:
            for start, end in blocks(flat, layer.width):
                block = flat[start:end]
                if has_nan(block):
                    raise ValueError(f"{layer.name}: {_DAMAGED}")
                taken = up_to(self._keys(layer, block, start, None), high)
                at = self._removed.take(layer, block, start, taken, zeros_stay=False)
                keys = self._keys(layer, self._removed.values(layer, start), start, at)
                near = places(~up_to(keys, low - 1))
                unsure[start] = near, at.index_select(0, near), keys.index_select(0, near)
                sure, room = sure + len(at) - len(near), room - len(near)
                if room < 0:
                    break
        keys = torch.cat([keys for *_, keys in unsure.values()])
        if room < 0 or not sure < count <= sure + len(keys):
            self._removed.restore(layer)
            return False
        (cut,) = cuts([partial(iter, [keys])], count - sure)
        with layer.flat() as flat:
            for start, end in blocks(flat, layer.width):
                near, at, keys = unsure[start]
                back = places(~cut.taken(keys))
                near, at = near.index_select(0, back), at.index_select(0, back)
                self._removed.give_back(layer, flat[start:end], start, near, at)
        return True

    def _shrink(self, layer: Layer, cut: Cut | RowCut) -> None:
        """Give back what a cut does not take of the removed weights."""
        zeros_stay = self._zeros_stay(cut, 0)
        with layer.flat() as flat:
            for start, end in blocks(flat, layer.width):
                block = flat[start:end]
                which, at, values = self._removed.find(layer, block, start)
                back = places(~cut.taken(self._keys(layer, values, start, at)))
                at = at.index_select(0, back)
                taken = which.index_fill_(0, at, False) if zeros_stay else None
                self._removed.give_back(layer, block, start, back, at, taken)

    @torch.no_grad()
    @one_thread()
    def restore(self) -> None:
        """Give every removed weight back, bit for bit; without effect on an untouched teacher.

        Raises:
            ValueError: a weight was changed by other means while it was masked.
        """
        reshard(self._model)
        for layer in self._layers:
            self._removed.restore(layer)
        self.ratio = 0.0

    def extra_bytes(self) -> int:
        """Bytes held outside the model now, in this process.

        At ratio r at most r times the bytes of the masked weights; and one bit a weight where zeros may stay:
        with another criterion than magnitude, in scope "row", or with more zeros than weights to remove.
        """
        return self._removed.nbytes()

    def _kept_keys(self, layer: Layer, damaged: set[str] | None) -> Iterator[Tensor]:
        """Keys of a layer's weights, from which more are to be removed; notes the layer if one is NaN."""
        flat = layer.local().reshape(-1)
        for start, end in blocks(flat, layer.width):
            # Here, where the block comes into the cache anyhow: a pass of its own would cost more.
            if damaged is not None and has_nan(flat[start:end]):
                damaged.add(layer.name)
            yield self._growing(layer, flat[start:end], start)

    def _removed_keys(self, layer: Layer) -> Iterator[Tensor]:
        flat = layer.local().reshape(-1)
        for start, end in blocks(flat, layer.width):
            values, at = self._removed.values(layer, start), None
            if self._criterion.positional:
                _, at, values = self._removed.find(layer, flat[start:end], start)
            yield self._keys(layer, values, start, at)

    @staticmethod
    def _refuse_damage(layers: list[Layer], damaged: set[str]) -> None:
        # All processes refuse a weight, or none: the others would wait for ever.
        flags = torch.tensor([layer.name in damaged for layer in layers], device=layers[0].local().device)
        if layers[0].group is not None:
            flags = flags.int()
            dist.all_reduce(flags, group=layers[0].group)
        for layer, flag in zip(layers, flags.tolist(), strict=True):
            if flag:
                raise ValueError(f"{layer.name}: {_DAMAGED}")

    def _keys(self, layer: Layer, values: Tensor, start: int, within: Tensor | None) -> Tensor:
        if self._scope == "global" and isinstance(self._criterion, Magnitude):
            values = values.to(self._common)
        return self._criterion.keys(layer.name, values, layer.first + start, within)

    def _growing(self, layer: Layer, block: Tensor, start: int) -> Tensor:
        """Keys of a block in which what is removed already comes first."""
        keys = self._keys(layer, block, start, None)
        marked = self._removed.marked(layer, block, start)
        if marked is not None:  # else what is removed, and nothing else, is zero, which comes first
            keys = (keys + 1).masked_fill_(marked, 0)
        return keys

    def _zeros_stay(self, cut: Cut | RowCut, lowest: int) -> bool:
        """Whether a zero may be among the weights that a cut leaves; its key would be the lowest one."""
        return not (
            isinstance(self._criterion, Magnitude) and isinstance(cut, Cut) and cut.threshold > lowest
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:  # False for NaN too
        raise ValueError(f"the mask ratio is {ratio}: give a number in [0, 1]")


def _check_type(weight: Tensor, where: str = "") -> None:
    if not weight.is_floating_point():
        raise ValueError(
            f"{where}cannot mask a weight of type {weight.dtype}: load the model in a floating type"
        )


def _has_nan(flat: Tensor) -> bool:
    return any(has_nan(flat[start:end]) for start, end in blocks(flat))
