"""Find the weights that a mask may remove, and the rows of them that this process holds.

These are the weights of the linear layers, except an output head that shares its storage with an embedding.
Mixture-of-experts models store the matrices of all experts in one parameter of three dimensions; each
expert's matrix is a layer of its own. Under FSDP2 (``fully_shard``) a weight is a DTensor, and each process
holds some of its rows, or some of the experts.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard

# Of quantized layers: their codes do not order their weights, as each block is scaled differently.
SCALES = {"weight_scale_inv", "weight_scale", "quant_state"}
# A mask that leaves most weights alone would silently be another method.
LEAST_COVERED = 0.5


@dataclass(frozen=True)
class Layer:
    """The weight of a linear layer, ``(outputs, inputs)``, whole or sharded, or that of one expert.

    Attributes:
        name: the parameter's name in the model, with the number of the expert in brackets.
        weight: the parameter.
        expert: place of the expert among those in this process; None for a linear layer.
    """

    name: str
    weight: nn.Parameter
    expert: int | None = None

    @property
    def width(self) -> int:
        """Return the length of a row: the number of input features."""
        return self.weight.shape[-1]

    @property
    def count(self) -> int:
        """Return the number of weights in the whole layer."""
        return self.weight.numel() if self.expert is None else self.rows.numel()

    @property
    def rows(self) -> Tensor:
        """Return the rows in this process, as a view without gradient."""
        return local(self.weight) if self.expert is None else local(self.weight)[self.expert]

    def whole(self) -> Tensor:
        """Return all weights of the layer in row-major order, gathered from the processes that share it."""
        weight = self.weight.detach()
        gathered = weight.full_tensor() if isinstance(weight, DTensor) and self.expert is None else self.rows
        return gathered.reshape(-1)

    def own(self, flags: Tensor) -> Tensor:
        """Return the flags of the weights in this process, of those of all weights of the layer."""
        start = 0 if self.expert is not None else _first_row(self.weight) * self.width
        return flags[start : start + self.rows.numel()]

    @contextmanager
    def flat(self) -> Iterator[Tensor]:
        """Yield the rows in this process as one row-major sequence; changes to it reach the model."""
        rows = self.rows
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
    """Return the linear layers and experts of a model, in its order; a shared weight appears once.

    Args:
        include: regular expression searched in module names; default: all.

    Raises:
        ValueError: include is not a regular expression or matches no linear layer; a weight is sharded in
            another way than by rows; or the layers hold less than half of the weights of these modules.
    """
    try:
        wanted = re.compile(include or "")
    except re.error as error:
        raise ValueError(f"include is {include!r}, which is not a regular expression: {error}") from None
    shared = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    # Weights not to return: embeddings, and those already seen.
    taken = [_memory(weight) for weight in shared]
    layers: list[Layer] = []
    others = 0
    for name, module in model.named_modules():
        for parameter, weight in module.named_parameters(recurse=False) if wanted.search(name) else ():
            start, end = _memory(weight)
            # A shard without rows overlaps nothing, but it is the same object wherever it is shared.
            if weight in shared or any(start < other and begin < end for begin, other in taken):
                continue
            shared.add(weight)
            taken.append((start, end))
            name_of_weight = f"{name}.{parameter}" if name else parameter
            try:
                if isinstance(module, nn.Linear) and parameter == "weight":
                    if scale := SCALES.intersection(vars(module) | module._parameters | module._buffers):
                        raise ValueError(f"it is quantized ({min(scale)}): mask a model that is not")
                    _first_row(weight)  # refuses other shards than of rows
                    layers.append(Layer(name_of_weight, weight))
                elif weight.ndim == 3 and "Experts" in type(module).__name__:
                    layers += _experts(name_of_weight, weight)
                elif _is_matrix(module, weight):
                    others += weight.numel()
            except ValueError as error:
                raise ValueError(f"{name_of_weight}: {error}") from None
    if not layers:
        raise ValueError(f"nothing to mask: no linear layer matches include={include!r}")
    covered = sum(layer.weight.numel() if layer.expert in (None, 0) else 0 for layer in layers)
    if covered < LEAST_COVERED * (covered + others):
        share = 100 * covered / (covered + others)
        raise ValueError(
            f"{type(model).__name__}: a mask would reach only {share:.0f} % of the weights; the others are "
            "not in linear layers or known experts: choose another teacher, or select layers with include"
        )
    return layers


def _experts(name: str, weight: nn.Parameter) -> list[Layer]:
    """Return the experts in this process, each a layer that no other process shares."""
    first = _first_row(weight)
    return [Layer(f"{name}[{first + i}]", weight, i) for i in range(len(local(weight)))]


def _is_matrix(module: nn.Module, weight: Tensor) -> bool:
    """Return whether a weight multiplies features: no bias, norm, convolution, token or position."""
    other = isinstance(module, nn.Embedding | nn.modules.conv._ConvNd)
    return weight.ndim >= 2 and weight.shape[0] > 1 and not other


def reshard(model: nn.Module) -> None:
    """Drop the whole weights that FSDP2 may keep after a forward pass, which a change of shards misses."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _first_row(weight: Tensor) -> int:
    """Return the index of the first row, or expert, of a weight in this process.

    Raises:
        ValueError: the weight is sharded in another way than by rows.
    """
    if not isinstance(weight, DTensor):
        return 0
    sharded = [dim for dim, placement in enumerate(weight.placements) if placement != Replicate()]
    if not sharded:
        return 0
    if len(sharded) > 1 or weight.placements[sharded[0]] != Shard(0):
        raise ValueError(
            f"sharded as {weight.placements}: shard by rows, Shard(0), as fully_shard does by default"
        )
    group, rows = weight.device_mesh.get_group(sharded[0]), weight.shape[0]
    return min(rows, -(-rows // group.size()) * group.rank())  # DTensor splits rows as torch.chunk does


def _memory(weight: Tensor) -> tuple[int, int]:
    # Not the whole storage: weights read from one file may share one.
    weight = local(weight)
    return weight.data_ptr(), weight.data_ptr() + weight.nbytes
