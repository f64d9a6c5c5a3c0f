"""Which weights of a model a mask touches, and which rows of them are in this process.

The weights are those of the linear layers; never an embedding, nor an output head that shares its storage
with one. Under FSDP2 (``fully_shard``) a weight is a DTensor, and a process holds some of its rows only.
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
        weight: the parameter.
        group: the processes that hold its rows between them; None where this one holds all.
    """

    name: str
    weight: nn.Parameter
    group: dist.ProcessGroup | None

    @property
    def width(self) -> int:
        """The length of a row: the number of input features."""
        return self.weight.shape[1]

    @property
    def size(self) -> int:
        """The number of weights, those of other processes included."""
        return self.weight.numel()

    @property
    def first(self) -> int:
        """Where the first weight held here stands in the whole layer, in row-major order."""
        if self.group is None:
            return 0
        rows = self.weight.shape[0]
        each = -(-rows // self.group.size())  # as torch.chunk deals them out, and so does DTensor
        return min(rows, each * self.group.rank()) * self.width

    def local(self) -> Tensor:
        """The rows in this process, ``(rows, inputs)``, in the memory of the model."""
        return local(self.weight)

    @contextmanager
    def flat(self) -> Iterator[Tensor]:
        """The rows in this process as one sequence, in row-major order, whose changes reach the model."""
        rows = self.local()
        flat = rows.reshape(-1)  # a copy where the rows stand otherwise in memory
        try:
            yield flat
        finally:
            if flat.data_ptr() != rows.data_ptr():
                rows.copy_(flat.view_as(rows))


def local(weight: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory, without gradient."""
    weight = weight.detach()
    return weight.to_local() if isinstance(weight, DTensor) else weight


def linear_layers(model: nn.Module, include: str | None = None, exclude: str | None = None) -> list[Layer]:
    """The linear layers of a model whose names match, each weight once, in the model's order.

    Args:
        model: any module.
        include: regular expression searched in module names; default: all.
        exclude: regular expression of module names to leave out.

    Raises:
        ValueError: a pattern is no regular expression, no layer is left, or a weight is sharded in another
            way than by rows.
    """
    try:
        wanted, unwanted = re.compile(include or ""), re.compile(exclude) if exclude else None
    except re.error as error:
        raise ValueError(
            f"include={include!r}, exclude={exclude!r}: no regular expression, {error}"
        ) from None
    shared = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    # Not to be masked, or not again: embeddings, and layers already seen, as two may share one weight.
    taken = [_memory(weight) for weight in shared]
    layers: list[Layer] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not isinstance(module.weight, nn.Parameter):
            continue  # a weight that is computed (parametrised) would not remember a mask
        weight = module.weight
        chosen = wanted.search(name) and not (unwanted and unwanted.search(name))
        start, end = _memory(weight)
        # A shard without rows overlaps nothing, but it is the same object wherever it is shared.
        seen = weight in shared or any(
            start < other_end and other_start < end for other_start, other_end in taken
        )
        if chosen and not seen:
            shared.add(weight)
            taken.append((start, end))
            name = f"{name}.weight" if name else "weight"
            try:
                layers.append(Layer(name, weight, shard_group(weight)))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    if not layers:
        raise ValueError(f"nothing to mask: no linear layer matches include={include!r}, exclude={exclude!r}")
    return layers


def reshard(model: nn.Module) -> None:
    """Drop the whole weights that FSDP2 may keep after a forward pass: a change of shards misses them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_group(weight: Tensor) -> dist.ProcessGroup | None:
    """The processes that hold a weight between them, or None where each holds all of it.

    Raises:
        ValueError: it is sharded in another way than by rows.
    """
    if not isinstance(weight, DTensor):
        return None
    sharded = [dim for dim, placement in enumerate(weight.placements) if placement != Replicate()]
    if not sharded:
        return None
    if len(sharded) > 1 or weight.placements[sharded[0]] != Shard(0):
        raise ValueError(
            f"sharded as {weight.placements}: only rows can be, Shard(0), as fully_shard does by default"
        )
    return weight.device_mesh.get_group(sharded[0])


def _memory(weight: Tensor) -> tuple[int, int]:
    # Not the whole storage: weights read from one file may be parts of one large storage.
    weight = local(weight)
    return weight.data_ptr(), weight.data_ptr() + weight.nbytes
