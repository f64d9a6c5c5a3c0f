"""Find the weights that a mask may remove, and the rows of them that this process holds.

These are the weights of the linear layers, except an output head that shares its storage with an embedding.
Under FSDP2 (``fully_shard``) a weight is a DTensor, and each process holds some of its rows.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard


@dataclass(frozen=True)
class Layer:
    """The weight of a linear layer, ``(outputs, inputs)``, whole or sharded.

    Attributes:
        name: the parameter's name in the model.
        group: the processes that share its rows; None where each holds all of them.
    """

    name: str
    weight: nn.Parameter
    group: dist.ProcessGroup | None

    @property
    def width(self) -> int:
        """Return the number of input features, the length of a row."""
        return self.weight.shape[1]

    @property
    def first(self) -> int:
        """Return the row-major index, in the whole layer, of the first weight in this process."""
        if self.group is None:
            return 0
        rows = self.weight.shape[0]
        each = -(-rows // self.group.size())  # DTensor splits rows as torch.chunk does
        return min(rows, each * self.group.rank()) * self.width

    @contextmanager
    def flat(self) -> Iterator[Tensor]:
        """Yield the rows in this process as one row-major sequence; changes to it reach the model."""
        rows = local(self.weight)
        flat = rows.reshape(-1)  # a copy where the rows are not contiguous
        try:
            yield flat
        finally:
            if flat.data_ptr() != rows.data_ptr():
                rows.copy_(flat.view_as(rows))


def local(weight: Tensor) -> Tensor:
    """Return the part of a tensor in this process, as a view without gradient."""
    weight = weight.detach()
    return weight.to_local() if isinstance(weight, DTensor) else weight


def linear_layers(model: nn.Module, include: str | None = None) -> list[Layer]:
    """Return the linear layers of a model, in its order; a shared weight appears once.

    Args:
        include: regular expression searched in module names; default: all.

    Raises:
        ValueError: include is not a regular expression or matches no linear layer, or a weight is sharded in
            another way than by rows.
    """
    try:
        wanted = re.compile(include or "")
    except re.error as error:
        raise ValueError(f"include is {include!r}, which is not a regular expression: {error}") from None
    shared = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    # Weights not to return: embeddings, and those already seen.
    taken = [_memory(weight) for weight in shared]
    layers: list[Layer] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not isinstance(module.weight, nn.Parameter):
            continue  # a computed (parametrized) weight would lose its mask
        weight = module.weight
        start, end = _memory(weight)
        # A shard without rows overlaps nothing, but it is the same object wherever it is shared.
        seen = weight in shared or any(
            start < other_end and other_start < end for other_start, other_end in taken
        )
        if wanted.search(name) and not seen:
            shared.add(weight)
            taken.append((start, end))
            name = f"{name}.weight" if name else "weight"
            try:
                layers.append(Layer(name, weight, shard_group(weight)))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    if not layers:
        raise ValueError(f"nothing to mask: no linear layer matches include={include!r}")
    return layers


def reshard(model: nn.Module) -> None:
    """Drop the whole weights that FSDP2 may keep after a forward pass, which a change of shards misses."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_group(weight: Tensor) -> dist.ProcessGroup | None:
    """Return the processes that share the rows of a weight; None where each holds all of them.

    Raises:
        ValueError: the weight is sharded in another way than by rows.
    """
    if not isinstance(weight, DTensor):
        return None
    sharded = [dim for dim, placement in enumerate(weight.placements) if placement != Replicate()]
    if not sharded:
        return None
    if len(sharded) > 1 or weight.placements[sharded[0]] != Shard(0):
        raise ValueError(
            f"sharded as {weight.placements}: shard by rows, Shard(0), as fully_shard does by default"
        )
    return weight.device_mesh.get_group(sharded[0])


def _memory(weight: Tensor) -> tuple[int, int]:
    # Not the whole storage: weights read from one file may share one.
    weight = local(weight)
    return weight.data_ptr(), weight.data_ptr() + weight.nbytes
