"""Bytes that a training step needs on one device, before it begins, and what to change when they are missing.

A layer of the text model, of width h and feed-forward width f, keeps about ``11 h + 4 f`` numbers a token
for its backward pass: two normalisations (input, normalised and scaled, ``6 h``), queries, keys and values
(``3 h``), what attention gives before and after its heads are put together (``2 h``), and the
feed-forward's gate, its activation, the other branch and their product (``4 f``). A layer of a vision
tower, with LayerNorm and without a gate, keeps ``9 h + 3 f``. Embeddings, the last normalisation and what
the backward pass of one layer needs for itself come to ``6 h + 3 f`` once. With gradient checkpointing each
layer keeps its input, and one layer at a time all of the above. In bfloat16 the normalisations stay in
float32.

Weights are there once more as gradients and twice as AdamW's moments. Gradients come as activations go, so
only the larger of the two counts, unless a step is taken in parts: then gradients wait for the next part.
Teachers and the reference count as weights, and a mask holds outside the model what it has removed.

Not counted: the allocator's fragments, the runtime of an accelerator (about half a GiB on CUDA), buffers of
collectives, and attention that keeps its ``length * length`` weights (kernels of today do not).
"""

import weakref
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText

from masters.objective import logits as logits_module
from masters.settings import Fit

# Buffers of the size of the logits, or of a chunk of them, in float32, that the loss has at once at its peak;
# measured, see the tests.
LOGITS = 4


@dataclass(frozen=True)
class Shape:
    """What one device sees at once: a step, or a part of it.

    Attributes:
        questions: rows.
        length: tokens of a row, prompt and responses.
        tokens: of the responses of all rows, padding included.
        patches: of the pictures of all rows, as the vision tower sees them.
        vocabulary: of the output head.
    """

    questions: int
    length: int
    tokens: int
    patches: int
    vocabulary: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device when most are needed; ``gradients`` are those beside the activations."""

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
        unit, name = (2**30, "GiB") if self.total >= 2**30 else (2**20, "MiB")
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / unit:.1f}" for field in fields(self))
        return f"memory a device: about {self.total / unit:.1f} {name} ({parts})"


def estimate(
    student: nn.Module,
    shape: Shape,
    fit: Fit,
    teachers: tuple[nn.Module, ...] = (),
    mask_ratio: float = 0.0,
    shards: int = 1,
    teacher_shards: int = 1,
) -> Memory:
    """What a training step needs.

    Args:
        student: on any device, the meta device too; before adapters are put in.
        shape: what a device sees at once.
        fit: LoRA, gradient checkpointing, bfloat16, accumulation.
        teachers: teachers and reference that run along.
        mask_ratio: the largest.
        shards: devices that share weights, gradients and optimiser (FSDP2, ZeRO-3); 1 with DDP.
        teacher_shards: devices that share teachers and reference (FSDP2); 1 where each is whole on every one.
    """
    count = sum(p.numel() for p in student.parameters())
    size = 4 if fit.bf16 else next(student.parameters()).element_size()
    adapters = 0 if fit.lora is None else _adapters(student, fit.lora.rank)
    trained = adapters or count
    cast = 2 * count if fit.bf16 else 0  # autocast keeps its copies for the time of a step
    activations = _activations(student.config, shape, fit, size)
    logits = 4 * LOGITS * min(shape.tokens * shape.vocabulary, logits_module.CHUNK)
    gradients = size * trained // shards
    along = sum(p.numel() * p.element_size() for teacher in teachers for p in teacher.parameters())
    return Memory(
        weights=size * (count + adapters) // shards + cast,
        gradients=gradients if fit.accumulate > 1 else max(0, gradients - activations - logits),
        optimiser=2 * size * trained // shards,
        activations=activations,
        logits=logits,
        teachers=along // teacher_shards,
        # One teacher is masked at a time, as each ends without a mask.
        mask=int(max((_mask_bytes(teacher, mask_ratio) for teacher in teachers), default=0) / teacher_shards),
    )


def skeleton(folder: str) -> Any:
    """A saved model without its weights, for :func:`estimate`."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=config.dtype or torch.float32)


def patches(config: Any, pixel_values: Tensor) -> int:
    """How many tokens the vision tower makes of processed pictures.

    Args:
        config: of the model.
        pixel_values: ``(pictures, channels, height, width)``, or ``(patches, values)`` as Qwen-VL has them.
    """
    if pixel_values.ndim == 2:
        return len(pixel_values)
    count, _, height, width = pixel_values.shape
    size = config.vision_config.patch_size
    return count * ((height // size) * (width // size) + 1)  # and the class token


def is_full(error: BaseException) -> bool:
    """Whether an error says that the device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def advice(name: str, fit: Fit, questions: int, teachers: bool) -> str:
    """One line: which setting of the profile to change next.

    Args:
        name: of the run.
        fit: as it is now.
        questions: that a device takes at once.
        teachers: whether teachers run along.
    """
    if questions > 1:
        more = next(k for k in range(2, questions + 1) if questions % k == 0) * fit.accumulate
        knob = f"set distillation.fit.accumulate: {more} (now {questions} questions at once)"
    elif not fit.gradient_checkpointing:
        knob = "set distillation.fit.gradient_checkpointing: true"
    elif teachers:
        knob = "set distillation.cache_teacher: true, so that no teacher runs along"
    elif fit.responses_at_once != 1:
        knob = f"set distillation.fit.responses_at_once: {(fit.responses_at_once or 4) // 2}"
    elif fit.lora is None:
        knob = "set distillation.fit.lora: {rank: 16}, or shard the student (masters/launch/fsdp2.yaml)"
    else:
        knob = "lower distillation.teacher_responses and student_responses"
    return f"{name}: out of memory; {knob}"


def _activations(config: Any, shape: Shape, fit: Fit, size: int) -> int:
    """Bytes kept for the backward pass, text model and vision tower."""
    text, vision = config.get_text_config(), config.vision_config
    total = 0
    for part, tokens, norms, width, forward in (
        (text, shape.questions * shape.length, 6, 5, 4),
        (vision, shape.patches, 4, 5, 3),
    ):
        layers = part.num_hidden_layers if hasattr(part, "num_hidden_layers") else part.depth
        h, f = part.hidden_size, part.intermediate_size
        if fit.bf16:  # a linear layer takes a copy of what a normalisation gave it
            layer = 4 * norms * h + 2 * ((width + 2) * h + forward * f)
            once, kept = 2 * (6 * h + 3 * f), 4 * h
        else:
            layer = size * ((norms + width) * h + forward * f)
            once, kept = size * (6 * h + 3 * f), size * h
        total += tokens * (once + (layers * kept + layer if fit.gradient_checkpointing else layers * layer))
    return total


def _adapters(student: Any, rank: int) -> int:
    """Weights of LoRA in every linear layer but the output head."""
    return sum(rank * (m.in_features + m.out_features) for m in _linear(student))


def _mask_bytes(teacher: Any, ratio: float) -> float:
    """What a mask holds outside the model: the removed values, and one bit per weight."""
    if not ratio:
        return 0
    return sum(m.weight.numel() * (ratio * m.weight.element_size() + 1 / 8) + 1 for m in _linear(teacher))


def _linear(model: Any) -> list[nn.Linear]:
    head = model.get_output_embeddings()
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]


class Peak(TorchDispatchMode):
    """Counts the bytes of what operations make, for as long as it lives; a context manager.

    What an operation needs for itself and gives back before it ends is not seen.

    Attributes:
        now: bytes that live.
        peak: the most there were at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[int] = set()
        self.now = self.peak = 0

    def see(self, tensor: Tensor) -> None:
        """Count a tensor that was there before."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self.see(value)
        return made
