"""Criteria that order the weights for masking: magnitude (the paper), input activations, or chance.

The mask removes the first weights of the order. The paper uses magnitude and leaves data-driven masks open:
``Activation`` is Wanda (arXiv 2306.11695), ``Random`` is the control.

A criterion has two members:

* ``keys(name, values, first)`` returns a non-negative integer per value; smaller ones are removed first. The
  values are whole rows of the layer of that name, in row-major order, and begin at its index ``first``.
* ``scope`` is the set of weights that are compared and share a threshold: those of a "row" (which feed one
  output), or of a "layer".
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from masters.masking.layers import Layer
from masters.masking.selection import magnitude_keys


@dataclass(frozen=True)
class Magnitude:
    """Eq. 1, 2: score a weight by ``abs(w)``, within its layer."""

    scope: ClassVar = "layer"

    def keys(self, name: str, values: Tensor, first: int) -> Tensor:
        """Return the bit patterns of the magnitudes."""
        return magnitude_keys(values)


@dataclass(frozen=True)
class Random:
    """Remove any weight with the same probability.

    The score is a hash of the layer's name and the weight's index. So a larger ratio removes the same weights
    and more, in every run, on every device, and however the layer is sharded.
    """

    scope: ClassVar = "layer"

    def keys(self, name: str, values: Tensor, first: int) -> Tensor:
        """Return 30 random bits per weight."""
        salt = zlib.crc32(f"0 {name}".encode())
        # An integer hash, a bijection on 32 bits. Its factor is below 2**27, so no product overflows 63 bits.
        bits = torch.arange(first, first + len(values), device=values.device) & 0xFFFFFFFF
        for _ in range(3):
            bits = bits ^ salt
            bits = ((bits >> 16) ^ bits) * 0x45D9F3B & 0xFFFFFFFF
        return (((bits >> 16) ^ bits) >> 2).to(torch.int32)


@dataclass(frozen=True, eq=False)
class Activation:
    """Wanda, arXiv 2306.11695: ``abs(w[i, j]) * norm[j]``, with the L2 norm of input feature j over tokens.

    As in Wanda, weights are compared within a row. Computed in float32.

    Args:
        norms: for each parameter name the norms ``(inputs,)``, as :func:`input_norms` returns them; the same
            in all processes that hold shards.
    """

    norms: Mapping[str, Tensor]

    scope: ClassVar = "row"

    def keys(self, name: str, values: Tensor, first: int) -> Tensor:
        """Return the bit patterns of the scores."""
        norms = self.norms[name].to(values.device, torch.float32)
        return magnitude_keys((values.float().view(-1, len(norms)) * norms).flatten())

    def check(self, layers: Iterable[Layer]) -> None:
        """Check that there are norms for all layers and that they fit.

        Raises:
            ValueError: norms are missing, not finite, or of the wrong length.
        """
        for layer in layers:
            norms = self.norms.get(layer.name)
            if norms is None or not norms.any():
                raise ValueError(
                    f"no input norms for {layer.name}: leave it out, or calibrate with inputs that reach it"
                )
            if norms.shape != (layer.width,) or not norms.isfinite().all():
                raise ValueError(
                    f"the input norms of {layer.name} must be {layer.width} finite numbers, "
                    f"got {tuple(norms.shape)}: were they measured on another model?"
                )


Criterion = Magnitude | Random | Activation


@torch.no_grad()
def input_norms(model: nn.Module, inputs: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the L2 norm of every input feature of every linear layer, over all tokens of a calibration set.

    Every position counts, so give inputs without padding.

    Args:
        model: the teacher, without a mask.
        inputs: keyword arguments of each call of the model.

    Returns:
        ``(inputs,)`` in float32 per parameter name, without layers that no input reaches. Layers that share a
        weight share the norms.
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
            model(**batch)
    finally:
        for handle in hooks:
            handle.remove()
    return {name: squares[weight].sqrt() for name, weight in weights.items() if squares[weight].any()}
