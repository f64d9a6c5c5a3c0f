"""What :class:`masters.settings.Fit` makes of a student: LoRA, bfloat16, gradient checkpointing,
accumulation.

The idea of LoRA (arXiv 2106.09685): a weight W stays, and ``W + alpha / rank * B A`` is used, where only A
and B, of ``rank`` rows and columns, are trained. In the end the product is added to W, so what is evaluated
and saved is an ordinary model.

bfloat16 has 8 bits: at the paper's learning rate, 1e-6, a step is below the last bit of almost every weight
and would be lost. So weights and optimiser are kept in float32, and only what is computed is in bfloat16.

Departures from the paper: all of this; nothing is switched on unless a profile asks for it.
"""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from masters.settings import Fit


def prepare(model: PreTrainedModel, fit: Fit, seed: int) -> Any:
    """What is trained in the place of a model: itself, or itself with adapters.

    Args:
        model: changed in place, by float32 weights and by adapters.
        fit: the settings.
        seed: of the adapters' initial values.
    """
    if fit.bf16:
        model.float()
    if fit.lora is None:
        return model
    # "all-linear" leaves out the output head.
    config = LoraConfig(r=fit.lora.rank, lora_alpha=fit.lora.alpha, target_modules="all-linear")  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def whole(model: Any) -> PreTrainedModel:
    """The model without the shell that adapters put around it; the adapters stay in its layers."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner


def finish(model: Any) -> None:
    """Add what adapters have learned to the weights, and take them away."""
    if isinstance(model, PeftModel):
        model.merge_and_unload().requires_grad_(True)


def arguments(fit: Fit) -> dict[str, Any]:
    """What ``transformers.TrainingArguments`` must know of the settings."""
    wanted: dict[str, Any] = {"bf16": fit.bf16, "gradient_accumulation_steps": fit.accumulate}
    if fit.gradient_checkpointing:
        wanted["activation_checkpointing"] = True
        wanted["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    return wanted
