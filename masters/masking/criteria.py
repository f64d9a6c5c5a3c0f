"""By what weights are ordered for masking: magnitude (the paper), share in the activations, or chance.

A criterion orders the weights, and the mask removes the first ones. The paper uses magnitude and leaves
data-driven masking open: ``Activation`` is that of Wanda (arXiv 2306.11695), ``Random`` the control.

A criterion has two things:

* ``keys(name, values, first)``: an integer for each value, smaller for those that go earlier, never negative.
  The values belong to the layer of that name and stand, in row-major order, at ``first`` and the following
  places; they begin and end with a row.
* ``scope``: among which weights it compares by default: those of a "row" (which feed one output), of a
  "layer", or all that are masked ("global").
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from masters.masking.layers import Layer, shard_group
from masters.masking.selection import magnitude_keys

Scope = Literal["row", "layer", "global"]


@dataclass(frozen=True)
class Magnitude:
    """Eq. 1, 2: the score of a weight is ``abs(w)``, compared within its layer."""

    scope: ClassVar[Scope] = "layer"

    def keys(self, name: str, values: Tensor, first: int) -> Tensor:
        """The bit patterns of the magnitudes; see the top of the module."""
        return magnitude_keys(values)


@dataclass(frozen=True)
class Random:
    """Any weight may go, with the same probability: what a mask does that knows nothing.

    The score is a hash of the seed, the layer's name and the weight's place. So a larger ratio removes the
    same weights and more, on every device and however the layer is sharded.

    Args:
        seed: another one, other weights.
    """

    seed: int = 0

    scope: ClassVar[Scope] = "layer"

    def keys(self, name: str, values: Tensor, first: int) -> Tensor:
        """30 random bits for each place; see the top of the module."""
        # An integer hash, a bijection on 32 bits; its factor is below 2**27, so no product overflows 63.
        bits = torch.arange(first, first + len(values), device=values.device) & 0xFFFFFFFF
        for _ in range(3):
            bits = bits ^ zlib.crc32(f"{self.seed} {name}".encode())
            bits = ((bits >> 16) ^ bits) * 0x45D9F3B & 0xFFFFFFFF
        return (((bits >> 16) ^ bits) >> 2).to(torch.int32)


@dataclass(frozen=True, eq=False)
class Activation:
    """Wanda, arXiv 2306.11695: ``abs(w[i, j]) * norm[j]``, with the L2 norm of input feature j over tokens.

    As there, weights are compared within a row, that is among those that feed the same output; give
    ``scope="layer"`` to compare them as the paper's magnitudes are. Computed in float32.

    Args:
        norms: for each parameter's name the norms ``(inputs,)``, such as :func:`input_norms` gives; the
            same in all processes that hold shards.
    """

    norms: Mapping[str, Tensor]

    scope: ClassVar[Scope] = "row"

    def keys(self, name: str, values: Tensor, first: int) -> Tensor:
        """The bit patterns of the scores; see the top of the module."""
        norms = self.norms[name].to(values.device, torch.float32)
        return magnitude_keys((values.float().view(-1, len(norms)) * norms).flatten())

    def check(self, layers: Iterable[Layer]) -> None:
        """Refuse layers for which the norms are missing or do not fit.

        Raises:
            ValueError: one line says which.
        """
        for layer in layers:
            norms = self.norms.get(layer.name)
            if norms is None or not norms.any():
                raise ValueError(
                    f"no input norms for {layer.name}: exclude it, or calibrate with inputs that reach it"
                )
            if norms.shape != (layer.width,) or not norms.isfinite().all():
                raise ValueError(
                    f"the input norms of {layer.name} must be {layer.width} finite numbers, "
                    f"got {tuple(norms.shape)}: were they taken from another model?"
                )


Criterion = Magnitude | Random | Activation


@torch.no_grad()
def input_norms(model: nn.Module, inputs: Iterable[Any]) -> dict[str, Tensor]:
    """The L2 norm of every input feature of every linear layer, over all tokens of a calibration set.

    Every position counts, so give inputs without padding. The model computes in the mode that it is in,
    training or evaluation. Under FSDP2 each process gives inputs of its own, all of them equally many; the
    squares are averaged over processes, which orders the scores as if one had seen all inputs.

    Args:
        model: the teacher, without a mask.
        inputs: what the model is called with: mappings as keywords, tuples and lists as positional arguments,
            anything else as the only argument.

    Returns:
        ``(inputs,)`` in float32 by parameter name; without the layers that no input reaches. Layers that
        share one weight share the norms.
    """
    modules = {
        f"{name}.weight" if name else "weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and isinstance(module.weight, nn.Parameter)
    }
    weights: dict[str, Tensor] = {name: module.weight for name, module in modules.items()}
    squares: dict[Tensor, Tensor] = {}
    for weight in weights.values():
        squares[weight] = torch.zeros(weight.shape[1], dtype=torch.float32, device=weight.device)

    def add(weight: Tensor, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = args[0] if args else kwargs["input"]
        features = features.reshape(-1, features.shape[-1])
        norms = torch.linalg.vector_norm(features, dim=0, dtype=torch.float32)
        squares[weight] += norms.square().to(squares[weight].device)

    hooks = []
    try:
        for name, module in modules.items():
            hook = partial(add, weights[name])
            hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        for batch in inputs:
            if isinstance(batch, Mapping):
                model(**batch)
            elif isinstance(batch, (tuple, list)):
                model(*batch)
            else:
                model(batch)
    finally:
        for handle in hooks:
            handle.remove()
    for weight, total in squares.items():
        group = shard_group(weight)
        if group is not None:
            dist.all_reduce(total, group=group)
            total /= group.size()
    return {name: squares[weight].sqrt() for name, weight in weights.items() if squares[weight].any()}
