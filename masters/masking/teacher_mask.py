"""Mask the smallest weights of each layer in place, and restore them bit for bit (Eq. 1, 2).

A teacher without its smallest weights is simpler, hence easier to imitate. Each layer has its own threshold;
a global threshold broke some layers in the paper. The mask is temporary: ``restore()`` undoes it exactly.

Departures from the paper:
    * Eq. 2 keeps w where ``abs(w) >= lambda_r``, so it keeps every weight that equals the threshold. Here
      exactly ``floor(r * n)`` weights are removed, so that low-precision formats, where ties are common,
      reach the requested ratio. Among equal magnitudes the first in row-major order are removed.
    * The paper does not say which modules are masked. Here the weight of every linear layer is, and each
      expert of a mixture of experts on its own; embeddings, norms, biases, and an output head that shares its
      storage with an embedding never are. A model whose weights are mostly elsewhere is refused.
    * The paper stores M masked checkpoints; here one teacher is masked and restored in memory.
    * Other criteria than magnitude are available (:mod:`masters.masking.criteria`).
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from masters.masking.criteria import Activation, Criterion, Magnitude
from masters.masking.layers import Layer, linear_layers, reshard
from masters.masking.selection import RowCut, blocks, smallest

_RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TeacherMask:
    """Mask a model's linear layers in place, at one ratio after the other, and restore them exactly.

    Exactly ``floor(ratio * n)`` of the n weights of a layer are removed, with the product of Python floats:
    ``0.29 * 100`` is 28.999999999999996, so 28. The removed values and one bit per weight are kept outside
    the model.

    As a context manager it restores on exit, also after an error::

        with TeacherMask(teacher) as mask:
            for ratio in schedule.ratios:
                mask.apply(ratio)
                ...

    A teacher sharded by FSDP2 (``fully_shard``) gets the mask of the whole one; every process must then make
    the same calls.

    Args:
        model: the teacher; its weights must not be changed while a mask is applied.
        include: regular expression searched in module names, such as "language_model"; default: all.
        criterion: score by which weights are ordered, and which of them share a threshold; default: the
            paper's, magnitude within each layer.

    Attributes:
        ratio: the ratio applied now; 0.0 without a mask.

    Raises:
        ValueError: include is not a regular expression or matches no linear layer; the criterion does not
            fit the model; weights are sharded in another way than by rows; or the mask would reach less than
            half of the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        include: str | None = None,
        *,
        criterion: Criterion = Magnitude(),  # noqa: B008, it is frozen
    ) -> None:
        self._model = model
        self._layers = linear_layers(model, include)
        self._criterion = criterion
        if isinstance(criterion, Activation):
            criterion.check(self._layers)
        # Per layer: the removed values in row-major order, and one bit per weight, set where it is removed.
        self._removed: dict[str, tuple[Tensor, Tensor]] = {}
        self.ratio = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the masked parameters, in the model's order."""
        return tuple(layer.name for layer in self._layers)

    @torch.no_grad()
    def apply(self, ratio: float) -> Self:
        """Mask the original weights at a ratio, whatever was applied before; return the mask.

        Raises:
            ValueError: the ratio is outside [0, 1], or a weight contains NaN or is not floating; the teacher
                is then left without a mask. Or a weight was changed while it was masked.
        """
        if not 0 <= ratio <= 1:  # False for NaN too
            raise ValueError(f"the mask ratio is {ratio}: give a number in [0, 1]")
        self.restore()
        try:
            for layer in self._layers:
                self._mask(layer, ratio)
        except BaseException:
            self.restore()
            raise
        self.ratio = float(ratio)
        return self

    @torch.no_grad()
    def restore(self) -> None:
        """Restore every removed weight bit for bit; do nothing without a mask.

        Raises:
            ValueError: a weight was changed while it was masked.
        """
        reshard(self._model)
        for layer in self._layers:
            if layer.name in self._removed:
                self._restore(layer)
        self.ratio = 0.0

    def _mask(self, layer: Layer, ratio: float) -> None:
        by_row = self._criterion.scope == "row"
        count = math.floor(ratio * (layer.width if by_row else layer.count))
        if count == 0:
            return
        weights = layer.whole()
        _check(layer.name, weights)
        keys = partial(self._keys, layer, weights)
        cut = RowCut(count, layer.width) if by_row else smallest(keys, count)
        taken = layer.own(torch.cat([cut.taken(block) for block in keys()]))
        with layer.flat() as flat:
            # Stored before it is removed, so that an interruption loses nothing.
            self._removed[layer.name] = _raw(flat)[taken].view(flat.dtype), _pack(taken)
            _raw(flat).masked_fill_(taken, 0)

    def _keys(self, layer: Layer, weights: Tensor) -> Iterator[Tensor]:
        for start, end in blocks(weights, layer.width):
            yield self._criterion.keys(layer.name, weights[start:end], start)

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


def _check(name: str, weights: Tensor) -> None:
    if not weights.is_floating_point():
        raise ValueError(f"{name} has type {weights.dtype}, which cannot be masked: load a floating type")
    if _has_nan(weights):
        raise ValueError(f"{name} contains NaN and cannot be masked: is the checkpoint damaged?")


def _has_nan(flat: Tensor) -> bool:
    if flat.element_size() == 1:
        flat = flat.to(torch.bfloat16)  # which has isnan
    return any(bool(flat[start:end].isnan().any()) for start, end in blocks(flat))


def _raw(values: Tensor) -> Tensor:
    # Integers of the same width: some operations are not implemented for 8-bit floats.
    return values.view(_RAW[values.element_size()])


def _pack(mask: Tensor) -> Tensor:
    """Pack eight bools per byte; the last byte is padded."""
    octets = nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (octets << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def _unpack(bits: Tensor, length: int) -> Tensor:
    octets = bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1
    return octets.bool().flatten()[:length]
