"""Bytes that a training step needs on one device, before it is begun, and what to do when they are not there.

A layer of a transformer of width h, with feed-forward width f and as many key and value heads as query heads,
keeps about ``11 h + 4 f`` numbers a token for its backward pass: two normalisations (input, normalised and scaled,
``6 h``), queries, keys and values (``3 h``), what attention gives, before and after its heads are put together
(``2 h``), and the feed-forward's gate, its activation, the other branch and their product (``4 f``). A layer of a
vision tower, with LayerNorm and without a gate, keeps ``9 h + 3 f``. The peak is at the start of the backward
pass: all activations are there, and gradients too once the second step begins.

The student's weights count once more as gradients and twice as AdamW's moments. Teachers and the reference count
as weights, and a mask holds outside the model what it has removed. With gradient checkpointing a layer keeps its
input, and one layer at a time all of the above.

Not counted: the allocator's fragments, the runtime of the accelerator (about 0.5 GB on CUDA), buffers of NCCL.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from masters.settings import Fit

# Buffers of the size of a batch's logits that the loss needs at once, in float32: those of student, teacher and
# reference, log-probabilities, and the gradients of divergence, KL and both together.
LOGITS = 8
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """What one device sees of a step, or of a part of it, at once.

    Attributes:
        questions: rows.
        length: tokens of a row: prompt and responses but their last tokens.
        tokens: of all responses of all rows, padding included.
        patches: of all pictures of all rows, as the vision tower sees them.
        vocabulary: of the output head.
    """

    questions: int
    length: int
    tokens: int
    patches: int
    vocabulary: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, at the peak."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    teachers: int
    mask: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))

    def line(self) -> str:
        """For people: the sum and its parts."""
        unit, name = (GIB, "GiB") if self.total >= GIB else (2**20, "MiB")
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / unit:.1f}" for field in fields(self))
        return f"memory needed a device: about {self.total / unit:.1f} {name} ({parts})"


def estimate(
    student: nn.Module,
    shape: Shape,
    fit: Fit,
    teachers: tuple[nn.Module, ...] = (),
    mask_ratio: float = 0.0,
    shards: int = 1,
) -> Memory:
    """What a training step needs.

    Args:
        student: on any device, the meta device too; before adapters are put in.
        shape: what a device sees at once.
        fit: LoRA, gradient checkpointing, bfloat16.
        teachers: teachers and reference that run along.
        mask_ratio: the largest, of the teachers.
        shards: devices that share weights, gradients and optimiser (FSDP2, ZeRO-3); 1 with DDP.
    """
    count = sum(p.numel() for p in student.parameters())
    size = 4 if fit.bf16 else next(student.parameters()).element_size()
    trained = count if fit.lora is None else _adapters(student, fit.lora.rank)
    extra = 0 if fit.lora is None else trained * size
    activation = 2 if fit.bf16 else size
    whole = sum(p.numel() * p.element_size() for teacher in teachers for p in teacher.parameters())
    cast = 2 * count if fit.bf16 else 0  # autocast keeps weights in bfloat16 for the time of a step
    return Memory(
        weights=(count * size + extra) // shards + cast,
        gradients=trained * size // shards,
        optimiser=2 * trained * size // shards,
        activations=activation * _activations(student.config, shape, fit.gradient_checkpointing),
        logits=4 * LOGITS * shape.tokens * shape.vocabulary,
        teachers=whole,
        mask=int(mask_ratio * whole),
    )


def is_full(error: BaseException) -> bool:
    """Whether an error says that the device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def advice(name: str, fit: Fit, questions: int, teachers: bool) -> str:
    """One line: which setting of the profile saves most of what is not saved yet.

    Args:
        name: of the run.
        fit: as it is now.
        questions: that a device takes at once.
        teachers: whether teachers run along.
    """
    if questions > 1:
        knob = f"set distillation.fit.accumulate to {2 * fit.accumulate} (now {questions} questions at once)"
    elif not fit.gradient_checkpointing:
        knob = "set distillation.fit.gradient_checkpointing"
    elif teachers:
        knob = "set distillation.cache_teacher, so that no teacher is there"
    elif fit.lora is None:
        knob = "set distillation.fit.lora, or shard the student (masters/launch/fsdp2.yaml)"
    else:
        knob = "lower distillation.teacher_responses and student_responses, or shard over more devices"
    return f"{name}: out of memory; {knob}"


def _activations(config: Any, shape: Shape, checkpointing: bool) -> int:
    """Numbers kept for the backward pass."""
    total = 0
    text, vision = config.get_text_config(), config.vision_config
    for layers, tokens, a_token in (
        (text.num_hidden_layers, shape.questions * shape.length, _layer(text, gated=True)),
        (_depth(vision), shape.patches, _layer(vision, gated=False)),
    ):
        if checkpointing:
            width = (text if tokens != shape.patches else vision).hidden_size
            total += layers * tokens * width + tokens * a_token
        else:
            total += layers * tokens * a_token
    return total


def _layer(config: Any, gated: bool) -> int:
    """Numbers a token that one layer keeps; see the top of the module."""
    h, f = config.hidden_size, config.intermediate_size
    return 11 * h + 4 * f if gated else 9 * h + 3 * f


def _depth(config: Any) -> int:
    return config.num_hidden_layers if hasattr(config, "num_hidden_layers") else config.depth


def _adapters(student: nn.Module, rank: int) -> int:
    head = student.get_output_embeddings()
    linear = [m for m in student.modules() if isinstance(m, nn.Linear) and m is not head]
    return sum(rank * (m.in_features + m.out_features) for m in linear)
