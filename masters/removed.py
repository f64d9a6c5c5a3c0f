"""The weights that a mask took out of a model, held so that each goes back where it was, bit for bit.

The idea: a removed weight leaves a zero. Where the removed ones are the only zeros, the weights themselves
tell where the values belong, and nothing but the values is held. Where other zeros may stay, one bit a weight
tells.

Everything goes by blocks of a layer (:func:`masters.selection.blocks`). A block and what is held of it change
together, so that an interruption at any block leaves something that can be given back.
"""

import torch
from torch import Tensor, nn

from masters.layers import Layer
from masters.selection import blocks, equal_to, places

_RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Removed:
    """What was removed from the layers of a model, by layer and by the start of a block."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, int], Tensor] = {}
        self._bits: dict[tuple[str, int], Tensor] = {}

    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return sum(held.nbytes for group in (self._values, self._bits) for held in group.values())

    def values(self, layer: Layer, start: int) -> Tensor:
        """The removed values of a block, in row-major order."""
        return self._values[layer.name, start]

    def zeros_stay(self, layer: Layer) -> bool:
        """Whether zeros may be among a layer's weights that are not removed."""
        return (layer.name, 0) in self._bits

    def marked(self, layer: Layer, block: Tensor, start: int) -> Tensor | None:
        """As a bool a weight, which are removed; None where the removed ones are the only zeros."""
        bits = self._bits.get((layer.name, start))
        return None if bits is None else _unpack(bits.to(block.device), len(block))

    def find(self, layer: Layer, block: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """What was removed from a block: which, as a bool a weight and as indices, and the values.

        Raises:
            ValueError: the block was changed by other means.
        """
        values, marked = self._values[layer.name, start], self.marked(layer, block, start)
        fits = block.dtype == values.dtype
        if fits:
            zero = equal_to(_raw(block), 0)  # what was removed is +0
            which = zero if marked is None else marked
            at = places(which)
            fits = len(at) == len(values) and (marked is None or not (marked & ~zero).any())
        if not fits:
            raise ValueError(
                f"{layer.name} changed while it was masked and cannot be restored: reload the teacher"
            )
        return which, at, values.to(block.device)

    def take(self, layer: Layer, block: Tensor, start: int, taken: Tensor, zeros_stay: bool) -> Tensor:
        """Remove weights of a block, among them all that are removed already.

        Args:
            layer: whose block it is.
            block: its weights, which are changed.
            start: where it begins in the layer.
            taken: a bool a weight.
            zeros_stay: whether a weight that is not taken may be zero.

        Returns:
            The indices of the removed weights in the block.

        Raises:
            ValueError: the block was changed by other means.
        """
        at = places(taken)
        values = _raw(block).index_select(0, at)
        if (layer.name, start) in self._values:
            which, _, before = self.find(layer, block, start)
            values.index_copy_(0, places(which.index_select(0, at)), _raw(before))
        self._hold(layer, start, values.view(block.dtype), taken if zeros_stay else None)
        _raw(block).mul_(~taken)  # faster than to write zeros at the indices
        return at

    def give_back(
        self, layer: Layer, block: Tensor, start: int, back: Tensor, at: Tensor, taken: Tensor | None = None
    ) -> None:
        """Write some of the removed values of a block to where they belong.

        Args:
            layer: whose block it is.
            block: its weights, which are changed.
            start: where it begins in the layer.
            back: the indices of those that go back among the removed values.
            at: the indices in the block where these belong.
            taken: a bool a weight, which are removed afterwards, if a weight that is not may be zero.
        """
        values = _raw(self._values[layer.name, start].to(block.device))
        stay = torch.ones_like(values, dtype=torch.bool).index_fill_(0, back, False)
        kept = values.index_select(0, places(stay)).view(block.dtype)
        _raw(block).index_copy_(0, at, values.index_select(0, back))
        self._hold(layer, start, kept, taken)

    def restore(self, layer: Layer) -> None:
        """Give everything back that was removed from a layer.

        Raises:
            ValueError: the layer was changed by other means.
        """
        with layer.flat() as flat:
            for start, end in blocks(flat, layer.width):
                if (layer.name, start) not in self._values:
                    continue  # whoever was interrupted had not come to this block
                _, at, values = self.find(layer, flat[start:end], start)
                _raw(flat[start:end]).index_copy_(0, at, _raw(values))
                del self._values[layer.name, start]
                self._bits.pop((layer.name, start), None)

    def _hold(self, layer: Layer, start: int, values: Tensor, taken: Tensor | None) -> None:
        self._values[layer.name, start] = values
        if taken is not None:
            self._bits[layer.name, start] = _pack(taken)
        else:
            self._bits.pop((layer.name, start), None)


def _raw(values: Tensor) -> Tensor:
    # As integers, which every operation takes, in a type for each width: some have none for 8-bit floats.
    return values.view(_RAW[values.element_size()])


def _pack(mask: Tensor) -> Tensor:
    """Eight bools a byte, the last byte filled up."""
    octets = nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (octets << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def _unpack(bits: Tensor, length: int) -> Tensor:
    octets = bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1
    return octets.bool().flatten()[:length]
