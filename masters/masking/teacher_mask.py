"""The masked teacher: each layer without its smallest weights, and restored bit for bit (Eq. 1, 2).

Zeroing the fraction r of weights of smallest magnitude makes a teacher simpler, hence easier to imitate. The
threshold is each layer's own; a global one broke some layers in the paper. The mask is temporary: it is
applied in memory and ``restore()`` undoes it exactly from what it removed.

Departures from the paper:
    * Eq. 2 keeps w where ``abs(w) >= lambda_r``, hence every weight that ties with the threshold. Here
      exactly ``floor(r * n)`` weights go, so that low-precision formats, where ties abound, reach the ratio
      asked for; among equals, those that come first in row-major order go first.
    * The paper does not say which modules are masked. Here: the weight of every linear layer; never
      embeddings, norms, biases, or an output head that shares its storage with an embedding.
    * The paper stores M masked checkpoints; here one teacher is masked and restored in memory.
    * Beside the paper's magnitudes within a layer there are other criteria (:mod:`masters.masking.criteria`)
      and other scopes: one threshold for the whole model, or one for each row.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import Self, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from masters.masking.criteria import Activation, Criterion, Magnitude, Scope
from masters.masking.layers import Layer, linear_layers, reshard
from masters.masking.selection import Cut, RowCut, blocks, cuts, magnitude_keys

_DAMAGED = "cannot mask a weight that contains NaN: is the checkpoint damaged?"
_RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def magnitude_mask(weight: Tensor, ratio: float) -> Tensor:
    """Return which weights of one layer stay (Eq. 1, 2).

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

    def keys() -> Iterator[Tensor]:
        return (magnitude_keys(flat[start:end]) for start, end in blocks(flat))

    (cut,) = cuts([keys], math.floor(ratio * len(flat)))
    return ~torch.cat([cut.taken(block) for block in keys()]).view(weight.shape)


class TeacherMask:
    """Mask a model's linear layers in place, at one ratio after the other, and restore them exactly.

    Outside the model it keeps ``floor(ratio * n)`` removed values per weight matrix, and one bit per weight.

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
        criterion: by what weights are ordered; the paper's is their magnitude.
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
        # By layer: the removed values in row-major order, and one bit per weight, set where it is removed.
        self._removed: dict[str, tuple[Tensor, Tensor]] = {}
        self.ratio = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the masked parameters, in the model's order."""
        return tuple(layer.name for layer in self._layers)

    @torch.no_grad()
    def apply(self, ratio: float) -> Self:
        """Mask at a ratio, whatever was applied before, from the pristine weights; return the mask.

        Raises:
            ValueError: the ratio is outside [0, 1], or a weight contains NaN or is not floating; the teacher
                is left without a mask. Or a weight was changed by other means while it was masked.
        """
        _check_ratio(ratio)
        self.restore()
        try:
            for layers in [self._layers] if self._scope == "global" else [[layer] for layer in self._layers]:
                self._mask(layers, ratio)
        except BaseException:
            self.restore()
            raise
        self.ratio = float(ratio)
        return self

    @torch.no_grad()
    def restore(self) -> None:
        """Restore every removed weight bit for bit; without effect on an untouched teacher.

        Raises:
            ValueError: a weight was changed by other means while it was masked.
        """
        reshard(self._model)
        for layer in self._layers:
            if layer.name in self._removed:
                self._restore(layer)
        self.ratio = 0.0

    def extra_bytes(self) -> int:
        """Return the bytes held outside the model in this process.

        At ratio r at most r times those of the masked weights, and one bit per weight.
        """
        return sum(held.nbytes for pair in self._removed.values() for held in pair)

    def _mask(self, layers: list[Layer], ratio: float) -> None:
        """Mask untouched layers that share a threshold."""
        row = self._scope == "row"
        count = math.floor(ratio * (layers[0].width if row else sum(layer.size for layer in layers)))
        if count == 0:
            return
        for layer in layers:
            _check_type(layer.weight, f"{layer.name}: ")
        _refuse_damage(layers)
        chosen: Sequence[Cut | RowCut] = [RowCut(count, layers[0].width)]
        if not row:
            chosen = cuts([partial(self._keys, layer) for layer in layers], count, layers[0].group)
        for layer, cut in zip(layers, chosen, strict=True):
            with layer.flat() as flat:
                taken = torch.cat([cut.taken(block) for block in self._keys(layer)])
                # Held before it is removed: an interruption in between loses nothing.
                self._removed[layer.name] = _raw(flat)[taken].view(flat.dtype), _pack(taken)
                _raw(flat).masked_fill_(taken, 0)

    def _keys(self, layer: Layer) -> Iterator[Tensor]:
        flat = layer.local().reshape(-1)
        for start, end in blocks(flat, layer.width):
            values = flat[start:end]
            if self._scope == "global" and isinstance(self._criterion, Magnitude):
                values = values.to(self._common)
            yield self._criterion.keys(layer.name, values, layer.first + start)

    def _restore(self, layer: Layer) -> None:
        values, bits = self._removed[layer.name]
        with layer.flat() as flat:
            taken = _unpack(bits, len(flat))
            raw = _raw(flat)
            now, before = raw[taken], _raw(values)
            if flat.dtype != values.dtype or not ((now == 0) | (now == before)).all():
                raise ValueError(
                    f"{layer.name} changed while it was masked and cannot be restored: reload the teacher"
                )
            raw[taken] = before
        del self._removed[layer.name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def _refuse_damage(layers: list[Layer]) -> None:
    # All processes refuse a weight, or none: the others would wait forever.
    found = [_has_nan(layer.local().reshape(-1)) for layer in layers]
    flags = torch.tensor(found, dtype=torch.int, device=layers[0].local().device)
    if layers[0].group is not None:
        dist.all_reduce(flags, group=layers[0].group)
    for layer, flag in zip(layers, flags.tolist(), strict=True):
        if flag:
            raise ValueError(f"{layer.name}: {_DAMAGED}")


def _has_nan(flat: Tensor) -> bool:
    if flat.element_size() == 1:
        flat = flat.to(torch.bfloat16)  # which has isnan
    return any(bool(flat[start:end].isnan().any()) for start, end in blocks(flat))


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:  # False for NaN too
        raise ValueError(f"the mask ratio is {ratio}: give a number in [0, 1]")


def _check_type(weight: Tensor, where: str = "") -> None:
    if not weight.is_floating_point():
        raise ValueError(
            f"{where}cannot mask a weight of type {weight.dtype}: load the model in a floating type"
        )


def _raw(values: Tensor) -> Tensor:
    # As integers of the same width, which every operation takes; some lack 8-bit floats.
    return values.view(_RAW[values.element_size()])


def _pack(mask: Tensor) -> Tensor:
    """Eight bools per byte, the last byte filled up."""
    octets = nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (octets << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def _unpack(bits: Tensor, length: int) -> Tensor:
    octets = bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1
    return octets.bool().flatten()[:length]
