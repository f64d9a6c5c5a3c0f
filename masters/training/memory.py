"""Estimate the memory of a training step on one device, before it begins, and advise when it is short.

A layer of the text model with width h, attention width a (heads times head size) and feed-forward width f
keeps about ``6 h + 5 a + 4 f`` numbers per token for its backward pass: two normalizations (input, normalized
and scaled, ``6 h``), queries, keys and values, each repeated to all heads (``3 a``), the output of attention
before and after its heads are joined (``2 a``), and the gate of the feed-forward, its activation, the other
branch and their product (``4 f``). Normalized queries and keys (Qwen3, Gemma 3) keep ``3 a`` more. A layer
without a gate, as in most vision towers, has LayerNorm and keeps ``4 h + 5 a + 3 f``. Embeddings, the last
normalization and the backward pass of one layer come to ``6 h + 3 f`` once. With gradient checkpointing each
layer keeps its input, and one layer at a time all of the above. In bfloat16 the normalizations stay in
float32.

Weights are stored in float32 (frozen bfloat16 weights as they are), those that are trained with as much again
for gradients and twice that for AdamW's moments. Gradients
come as activations go, so only the larger of the two counts, unless gradients accumulate over several parts
of a batch. DDP copies gradients into buckets. Teachers and the reference count as weights, and a mask holds
the values it has removed.

Not counted: fragments of the allocator, the runtime of an accelerator (about half a GiB on CUDA), other
buffers of collectives, and attention kernels that keep their ``length * length`` weights.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from masters.models.packing import head_output
from masters.objective import logits as logits_module
from masters.settings import MemorySavings

# Float32 buffers of the size of a chunk of logits at the peak of the loss; measured in the tests.
LOGITS = 4


@dataclass(frozen=True)
class Shape:
    """What one device processes at once: a step, or a part of it.

    Attributes:
        questions: rows.
        length: tokens per row, prompt and responses.
        tokens: tokens of the responses of all rows, padding included.
        patches: patches of the images of all rows, as the vision tower sees them.
        vocabulary: entries of the output head.
    """

    questions: int
    length: int
    tokens: int
    patches: int
    vocabulary: int


@dataclass(frozen=True)
class Memory:
    """Peak bytes on one device; ``gradients`` are those beside the activations."""

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    activations: int
    logits: int
    teachers: int
    mask: int

    @property
    def total(self) -> int:
        """Return the sum in bytes."""
        return sum(getattr(self, field.name) for field in fields(self))

    def line(self) -> str:
        """Return one line with the sum, its parts, and a warning if the device has less memory."""
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        parts = ", ".join(f"{name} {size_in_words(size)}" for name, size in sizes.items() if size)
        has = device_memory()
        compared = "more than the" if self.total > has else "of"
        total = size_in_words(self.total)
        return f"memory per device: about {total} ({parts}), {compared} {size_in_words(has)}"


def device_memory() -> int:
    """Return the bytes of memory of a GPU, or of this machine if it has none."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return int(psutil.virtual_memory().total)


def size_in_words(count: int) -> str:
    """Return bytes in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"


def estimate(
    student: nn.Module,
    shape: Shape,
    savings: MemorySavings,
    teachers: tuple[nn.Module, ...] = (),
    mask_ratio: float = 0.0,
    shards: int = 1,
    teacher_shards: int = 1,
    replicas: int = 1,
) -> Memory:
    """Estimate the peak memory of a training step.

    Args:
        student: before adapters are added; may be on the meta device.
        teachers: teachers and reference that are in memory during training.
        shards: devices that share weights, gradients and optimizer states (FSDP2, ZeRO-3).
        teacher_shards: devices that share teachers and reference (FSDP2).
        replicas: devices with a whole student each (DDP).

    Raises:
        ValueError: the configuration of the student does not give the sizes of its layers.
    """
    count = sum(p.numel() for p in student.parameters())
    stored = (2 if student.dtype == torch.bfloat16 else 4) * count
    adapters = 0 if savings.lora is None else adapter_weights(student, savings.lora.rank)
    trained = 4 * (adapters or count)
    weights = 4 * count if savings.lora is None else stored + 4 * adapters
    cast = 2 * count if savings.bf16 and weights >= 4 * count else 0  # copies that autocast keeps for a step
    half = savings.bf16 or (savings.lora is not None and student.dtype == torch.bfloat16)
    activations = _activations(student, shape, half, savings.gradient_checkpointing)
    several = shape.tokens * shape.vocabulary
    # Capped logits are not computed in chunks.
    logits = 4 * LOGITS * (several if head_output(student).cap else min(several, logits_module.CHUNK))
    gradients = trained // shards
    along = sum(p.numel() * p.element_size() for teacher in teachers for p in teacher.parameters())
    # Teachers are masked one at a time.
    masks = [_mask_bytes(teacher, mask_ratio) for teacher in teachers]
    return Memory(
        weights=weights // shards + cast,
        gradients=gradients if savings.accumulate > 1 else max(0, gradients - activations - logits),
        optimizer=2 * trained // shards,
        buckets=trained if replicas > 1 else 0,
        activations=activations,
        logits=logits,
        teachers=along // teacher_shards,
        mask=int(max(masks, default=0) / teacher_shards),
    )


def patches(config: Any, pixel_values: Tensor) -> int:
    """Return how many tokens the vision tower makes of processed images.

    Args:
        pixel_values: ``(..., channels, height, width)``, or ``(patches, values)`` for Qwen-VL.

    Raises:
        ValueError: the images have another layout, or the configuration has no patch size.
    """
    if pixel_values.ndim == 2:
        return len(pixel_values)
    size = getattr(config.vision_config, "patch_size", None)
    if pixel_values.ndim < 4 or size is None:
        raise ValueError(f"images of shape {tuple(pixel_values.shape)} and patches of size {size}")
    *count, _, height, width = pixel_values.shape
    rows, columns = size if isinstance(size, list | tuple) else (size, size)
    return math.prod(count) * ((height // rows) * (width // columns) + 1)  # and the class token


def advice(name: str, savings: MemorySavings, questions: int, teachers: bool) -> str:
    """Return one line that names the next setting to change.

    Args:
        savings: the settings that ran out of memory.
        questions: questions that a device processes at once.
        teachers: whether teachers are in memory during training.
    """
    if questions > 1:
        more = next(k for k in range(2, questions + 1) if questions % k == 0) * savings.accumulate
        knob = f"set accumulate: {more} (now {questions} questions at once)"
    elif not savings.gradient_checkpointing:
        knob = "set gradient_checkpointing: true"
    elif teachers:
        knob = "set cache_teacher: true (in a run file teacher_cache: {top_k: 64}): no teacher is in memory"
    elif savings.responses_at_once != 1:
        knob = f"set responses_at_once: {(savings.responses_at_once or 4) // 2}"
    elif savings.lora is None:
        knob = "set lora: {rank: 16}, or shard the student (masters/launch/fsdp2.yaml)"
    else:
        knob = "ask for fewer responses per question"
    return f"{name}: out of memory; {knob}"


def _activations(student: Any, shape: Shape, half: bool, checkpointing: bool) -> int:
    """Return the bytes kept for the backward pass of text model and vision tower, bfloat16 if ``half``."""
    config, total = student.config, 0
    names = [name for name, module in student.named_modules() if not isinstance(module, nn.Identity)]
    vision = [name for name in names if "vis" in name]  # vision_tower, vision_model, visual
    for part, tokens, modules in (
        (config.get_text_config(), shape.questions * shape.length, set(names) - set(vision)),
        (config.vision_config, shape.patches, vision),
    ):
        layers, h, a, f = _sizes(part)
        gated = any(name.endswith(("gate_proj", "gate_up_proj", "experts")) for name in modules)
        normed = any(name.endswith("q_norm") for name in modules)
        norms = (6 if gated else 4) * h + (3 * a if normed else 0)
        linear = 5 * a + (4 if gated else 3) * f
        if half:  # a linear layer keeps a copy of the normalized input
            layer, once, kept = 4 * norms + 2 * (2 * h + linear), 2 * (6 * h + 3 * f), 4 * h
        else:
            layer, once, kept = 4 * (norms + linear), 4 * (6 * h + 3 * f), 4 * h
        total += tokens * (once + (layers * kept + layer if checkpointing else layers * layer))
    return total


def _sizes(config: Any) -> tuple[int, int, int, int]:
    """Return layers, width, attention width and feed-forward width; ``ValueError`` without such names."""

    def first(*names: str) -> Any:
        return next((found for name in names if (found := getattr(config, name, None))), None)

    layers = first("num_hidden_layers", "depth")
    h = first("embed_dim", "hidden_size")  # where Qwen2-VL's vision tower has both, the second is its output
    heads = first("num_attention_heads", "num_heads")
    f = first("intermediate_size") or (h or 0) * (first("mlp_ratio") or 0)
    if experts := first("num_experts_per_tok"):
        f = experts * (first("moe_intermediate_size") or f) + (first("shared_expert_intermediate_size") or 0)
    if not (layers and h and heads and f):
        raise ValueError(f"{type(config).__name__} does not say how wide its layers are")
    return int(layers), int(h), int(heads * (first("head_dim") or h // heads)), int(f)


def adapter_weights(student: Any, rank: int) -> int:
    """Return the weights of LoRA in every linear layer except the output head."""
    return sum(rank * (m.in_features + m.out_features) for m in _linear(student))


def _mask_bytes(teacher: Any, ratio: float) -> float:
    """Return what a mask holds: the removed values, and one bit per weight."""
    if not ratio:
        return 0
    masked = [m.weight for m in _linear(teacher)] + [w for w in teacher.parameters() if w.ndim == 3]
    return sum(weight.numel() * (ratio * weight.element_size() + 1 / 8) + 1 for weight in masked)


def _linear(model: Any) -> list[nn.Linear]:
    head = model.get_output_embeddings()
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
