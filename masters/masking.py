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
"""

import math
import re
from typing import Self

import torch
from torch import Tensor, nn


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
    if not weight.is_floating_point():
        raise ValueError(f"cannot mask a weight of type {weight.dtype}: load the model in a floating type")
    magnitude = weight.detach().contiguous().flatten()
    # torch has no selection for the 8-bit formats; each of their values is exact in float32.
    magnitude = (magnitude.float() if magnitude.element_size() == 1 else magnitude).abs()
    if magnitude.isnan().any():
        raise ValueError("cannot mask a weight that contains NaN: is the checkpoint damaged?")
    remove = math.floor(ratio * magnitude.numel())
    if remove == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    # Selection, not a sort; and not torch.quantile, which refuses more than 2**24 entries.
    threshold = magnitude.kthvalue(remove).values
    keep = magnitude > threshold
    surplus = magnitude.numel() - remove - int(keep.sum())
    if surplus:
        ties = (magnitude == threshold).nonzero().squeeze(1)
        keep[ties[len(ties) - surplus :]] = True
    return keep.view(weight.shape)


class TeacherMask:
    """Masks a model's linear layers in place, at one ratio after the other, and gives everything back.

    Outside the model it keeps the removed values only, ``floor(ratio * n)`` of each weight. Where they belong
    needs no record: weights that were 0 before go first, so after masking the zeros are the places.

    As a context manager it restores on exit, whatever happened inside::

        with TeacherMask(teacher) as mask:
            for ratio in schedule.ratios:
                mask.apply(ratio)
                ...

    Args:
        model: the teacher; its weights must not change by other means while a mask is applied.
        include: regular expression searched in module names, such as "language_model"; default: all.
        exclude: regular expression of module names to leave alone, such as "vision_tower".

    Attributes:
        ratio: the ratio applied now, 0.0 for the untouched teacher.

    Raises:
        ValueError: a pattern is no regular expression, or no linear layer is left to mask.
    """

    def __init__(self, model: nn.Module, include: str | None = None, exclude: str | None = None) -> None:
        self._weights = _linear_weights(model, include, exclude)
        self._removed: dict[str, Tensor] = {}
        self.ratio = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the masked parameters, in the model's order."""
        return tuple(self._weights)

    @torch.no_grad()
    def apply(self, ratio: float) -> Self:
        """Mask at a ratio, from the pristine weights whatever was applied before; returns the mask itself.

        Raises:
            ValueError: the ratio is outside [0, 1], or a weight contains NaN or is not floating; the teacher
                is left without a mask.
        """
        _check_ratio(ratio)
        self.restore()
        self.ratio = float(ratio)
        try:
            for name, weight in self._weights.items():
                self._mask(name, weight)
        except BaseException as error:
            self.restore()
            if isinstance(error, ValueError):
                raise ValueError(f"{name}: {error}") from None
            raise
        return self

    def _mask(self, name: str, weight: nn.Parameter) -> None:
        removed = ~magnitude_mask(weight, self.ratio)
        count = int(removed.sum())
        # Where there are more zeros than weights to remove, masking changes no value: nothing to do or undo.
        if count and int((weight == 0).sum()) <= count:
            self._removed[name] = weight[removed]
            weight[removed] = 0

    @torch.no_grad()
    def restore(self) -> None:
        """Give every removed weight back, bit for bit; without effect on an untouched teacher.

        Raises:
            ValueError: a weight was changed by other means while it was masked.
        """
        for name in list(self._removed):
            weight, values = self._weights[name], self._removed[name]
            places = weight == 0
            if weight.dtype != values.dtype or int(places.sum()) != values.numel():
                raise ValueError(
                    f"{name} changed while it was masked and cannot be restored: reload the teacher"
                )
            weight[places] = values.to(weight.device)
            del self._removed[name]
        self.ratio = 0.0

    def extra_bytes(self) -> int:
        """Bytes held outside the model now: at ratio r at most r times the bytes of the masked weights."""
        return sum(values.nbytes for values in self._removed.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:  # False for NaN too
        raise ValueError(f"the mask ratio is {ratio}: give a number in [0, 1]")


def _linear_weights(model: nn.Module, include: str | None, exclude: str | None) -> dict[str, nn.Parameter]:
    try:
        wanted, unwanted = re.compile(include or ""), re.compile(exclude) if exclude else None
    except re.error as error:
        raise ValueError(
            f"include={include!r}, exclude={exclude!r}: no regular expression, {error}"
        ) from None
    # Not to be masked, or not again: embeddings, and layers already seen, as two may share one weight.
    taken = [_memory(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)]
    weights: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not isinstance(module.weight, nn.Parameter):
            continue  # a weight that is computed (parametrised) would not remember a mask
        chosen = wanted.search(name) and not (unwanted and unwanted.search(name))
        start, end = _memory(module.weight)
        if chosen and not any(start < other_end and other_start < end for other_start, other_end in taken):
            taken.append((start, end))
            weights[f"{name}.weight" if name else "weight"] = module.weight
    if not weights:
        raise ValueError(f"nothing to mask: no linear layer matches include={include!r}, exclude={exclude!r}")
    return weights


def _memory(weight: Tensor) -> tuple[int, int]:
    # Not the whole storage: weights read from one file may be parts of one large storage.
    return weight.data_ptr(), weight.data_ptr() + weight.nbytes
