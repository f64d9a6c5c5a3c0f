"""The student in training: float32 weights, and the savings of :class:`masters.settings.MemorySavings`.

Weights that are trained are float32, whatever type they are stored in. bfloat16 has 8 significant bits: at
the paper's learning rate, 1e-6, a step is smaller than the last bit of almost every weight and would be lost.
With ``bf16`` the forward and backward pass compute in bfloat16; weights and optimizer states stay in float32.

LoRA (arXiv 2106.09685) freezes a weight W and uses ``W + alpha / rank * B A``, where only A and B, with
``rank`` rows and columns, are trained, in float32. Frozen bfloat16 weights stay as they are stored, and the
student then computes in bfloat16. After training the product is added to W in float32, layer by layer, so the
result is an ordinary model.

Departures from the paper: LoRA, bf16, gradient checkpointing and accumulation are off unless a profile sets
them.
"""

import sys
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from masters.runtime import distributed
from masters.settings import MemorySavings


def in_float32(model: PreTrainedModel, name: str) -> None:
    """Convert the weights to float32 in place, and print one line if they had another type."""
    if model.dtype != torch.float32:
        stored = str(model.dtype).removeprefix("torch.")
        model.float()
        if distributed.rank() == 0:
            print(f"{name}: the {stored} weights are trained in float32", file=sys.stderr, flush=True)


def prepare(model: PreTrainedModel, savings: MemorySavings, seed: int) -> Any:
    """Return the model to train: the same, or with adapters in float32 added to it if LoRA is set."""
    if savings.lora is None:
        return model
    # "all-linear" leaves out the output head.
    config = LoraConfig(r=savings.lora.rank, lora_alpha=savings.lora.alpha, target_modules="all-linear")  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def whole(model: Any) -> PreTrainedModel:
    """Return the model inside the wrapper that LoRA adds; the adapters stay in its layers."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner


def finish(model: Any) -> None:
    """Merge adapters into the weights, in float32, and remove them; do nothing without adapters."""
    if not isinstance(model, PeftModel):
        return
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
            weight: Any = module.get_base_layer().weight
            stored = weight.dtype
            weight.data = weight.data.float()
            module.merge()
            weight.data = weight.data.to(stored)
    model.unload().requires_grad_(True)


def arguments(savings: MemorySavings) -> dict[str, Any]:
    """Return the settings as arguments of ``transformers.TrainingArguments``."""
    wanted: dict[str, Any] = {"bf16": savings.bf16, "gradient_accumulation_steps": savings.accumulate}
    if savings.gradient_checkpointing:
        wanted["activation_checkpointing"] = True
        wanted["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    return wanted
