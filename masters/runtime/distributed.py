"""One run on several processes: torchrun (DDP), FSDP2 and DeepSpeed ZeRO-3, through ``transformers.Trainer``.

The idea: the mean over all responses of a global batch is ``sum_r (n_r / N) * mean_r`` with n_r of N
responses (or tokens) on rank r. A wrapper averages the gradients of the ranks, so each rank's mean is
multiplied by ``world * n_r / N``; then any number of processes takes the step of one.

Wrappers do their part (DDP: averages gradients; FSDP2 and ZeRO-3: gather weights) around the ``forward`` of
a model. The loss takes the model apart, hidden states first and the output head where a response is
predicted, so the whole loss is run in the place of that forward.

All ranks must see one file system: rank 0 generates, evaluates and writes, the others read and wait.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    """Number of this process among those that torchrun or ``accelerate launch`` started; 0 without them."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def asked_for() -> str | None:
    """``FSDP`` or ``DEEPSPEED`` where a launch file asks for a student in shards, None for a whole one."""
    for kind in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            return kind
    return None


def needs_cpu() -> bool:
    """Whether accelerate must be told to use the CPU: it runs one process a rank, each alone, otherwise."""
    return world_size() > 1 and not torch.accelerator.is_available() and asked_for() != "DEEPSPEED"


def begin() -> None:
    """Meet the other processes, before the first :func:`wait`; nothing to do for one alone."""
    if world_size() == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cuda:nccl,cpu:gloo")
    else:
        dist.init_process_group("gloo")
    _patient()


def end() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        _patient.cache_clear()
        dist.destroy_process_group()


def wait() -> None:
    """Until every rank is here: for days, as rank 0 may be generating responses meanwhile."""
    if world_size() > 1:
        dist.barrier(group=_patient())


def from_main(make: Callable[[], Any]) -> Any:
    """What rank 0 makes, on every rank."""
    if world_size() == 1:
        return make()
    held: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(held, src=0, group=_patient())
    return held[0]


def gathered(value: Any) -> list[Any]:
    """A value of each rank, in their order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_patient())
    return values


def check_launched(num_processes: int, kind: str) -> None:
    """Refuse a run that accelerate started otherwise than it was asked to, which it does without a word.

    Args:
        num_processes: that accelerate works with.
        kind: its distributed type, such as ``MULTI_GPU`` or ``FSDP``.

    Raises:
        ValueError: one line says what to do.
    """
    if num_processes != world_size():
        raise ValueError(
            f"{world_size()} processes were started and accelerate works with {num_processes}: "
            "start them with torchrun, and on a CPU without `accelerate launch`"
        )
    wanted = asked_for()
    if wanted and kind != wanted:
        raise ValueError(
            f"the launch file asks for {wanted} and accelerate made it {kind}: weights are sharded on "
            "accelerators only; on a CPU use torchrun without a launch file"
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a part of a model's weights (FSDP2, ZeRO-3)."""
    return any(in_pieces(weight) for weight in model.parameters())


def in_pieces(weight: Tensor) -> bool:
    """Whether a weight is spread over processes, and whole only while its module computes."""
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


@torch.no_grad()
def load_whole(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put weights that were gathered from shards into a whole model.

    Raises:
        ValueError: some are missing, or there are others; a weight that layers share may be named once.
    """
    own = model.state_dict()
    loaded = {own[name].data_ptr() for name in weights.keys() & own.keys()}
    missing = [name for name, parameter in model.named_parameters() if parameter.data_ptr() not in loaded]
    if missing or weights.keys() - own.keys():
        other = sorted(weights.keys() - own.keys())
        raise ValueError(f"gathered weights are not those of the model: without {missing}, with {other}")
    model.load_state_dict(weights, strict=False)


def name_layers(model: nn.Module) -> None:
    """Tell accelerate which layers FSDP2 takes as a unit: those of the model's list that the model has.

    Left to itself it refuses a model whose list names more than the model has, as that of LLaVA does.
    """
    if wanted := _units(model):
        os.environ.setdefault("FSDP_TRANSFORMER_CLS_TO_WRAP", ",".join(sorted(wanted)))


def shard(model: nn.Module) -> None:
    """Spread the weights of a model that is only read over all processes (FSDP2), for good.

    Every process must hold the same weights, and read the model when the others do.
    """
    wanted = _units(model)
    for module in [module for module in model.modules() if type(module).__name__ in wanted]:
        fully_shard(module)
    fully_shard(model, reshard_after_forward=True)


def _units(model: nn.Module) -> set[str]:
    """The classes of layers that are whole one at a time."""
    present = {type(module).__name__ for module in model.modules()}
    return present & set(getattr(model, "_no_split_modules", None) or ())


def inside_forward(wrapper: nn.Module, inner: nn.Module, compute: Callable[[Any], Any], batch: Any) -> Any:
    """``compute(batch)`` between what a wrapper does before and after the forward of the model inside.

    Args:
        wrapper: the model as the Trainer has it: itself, or wrapped in DDP or a DeepSpeed engine.
        inner: the model in the wrapper; may be the same.
        compute: gives a loss; may use the model and its parts as it likes.
        batch: handed through the wrapper.
    """
    own = inner.__dict__.get("forward")  # accelerate puts one there, for autocast

    def restore() -> None:
        if own is None:
            inner.__dict__.pop("forward", None)
        else:
            inner.__dict__["forward"] = own

    def once(batch: Any) -> Any:
        restore()  # the loss calls the model's own forward
        return compute(batch)

    inner.__dict__["forward"] = once
    try:
        return wrapper(batch)
    finally:
        restore()


@cache
def _patient() -> Any:
    """A group for short messages on the CPU that does not give up while rank 0 works."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=7))
