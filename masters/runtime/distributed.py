"""One run on several processes: torchrun (DDP), FSDP2 and DeepSpeed ZeRO-3, through ``transformers.Trainer``.

The mean over all responses of a global batch is ``sum_r (n_r / N) * mean_r``, with n_r of N responses (or
tokens) on rank r. A wrapper averages gradients over ranks, so each rank's mean is multiplied by
``world * n_r / N``; then any number of processes takes the same step as one.

A wrapper hooks into the model's ``forward``: DDP averages gradients, FSDP2 and ZeRO-3 gather weights. The
loss calls the model's submodules directly: hidden states first, then the output head where a response is
predicted. So the whole loss runs in place of that forward.

All ranks need one shared file system: rank 0 generates, evaluates and writes; the others read and wait.
"""

import os
import re
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

# What torchrun and accelerate tell a process of its launch.
LAUNCH = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+")


def rank() -> int:
    """Return the rank of this process under torchrun or ``accelerate launch``; 0 otherwise."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def asked_for() -> str | None:
    """Return ``FSDP`` or ``DEEPSPEED`` if the launch file shards the student, else None."""
    for kind in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            return kind
    return None


def forget() -> None:
    """Make this process, which a rank has started, no rank of the run."""
    for name in filter(LAUNCH.fullmatch, list(os.environ)):
        del os.environ[name]


def begin() -> None:
    """Join the process group, before the first :func:`wait`; do nothing in a single process."""
    if world_size() == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cuda:nccl,cpu:gloo")
    else:
        dist.init_process_group("gloo")
    _patient()


def end() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        _patient.cache_clear()
        dist.destroy_process_group()


def wait() -> None:
    """Wait for every rank, up to 7 days, because rank 0 may generate responses first."""
    if world_size() > 1:
        dist.barrier(group=_patient())


def from_main(make: Callable[[], Any]) -> Any:
    """Return the result of ``make`` on rank 0, on every rank."""
    if world_size() == 1:
        return make()
    held: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(held, src=0, group=_patient())
    return held[0]


def gathered(value: Any) -> list[Any]:
    """Return the values of all ranks, in order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_patient())
    return values


def check_launched(num_processes: int, kind: str) -> None:
    """Refuse a run if accelerate silently uses another setup than the launch requested.

    Args:
        num_processes: accelerate's number of processes.
        kind: accelerate's distributed type, such as ``MULTI_GPU`` or ``FSDP``.

    Raises:
        ValueError: the number of processes or the type differs.
    """
    if num_processes != world_size():
        raise ValueError(
            f"{world_size()} processes were started but accelerate uses {num_processes}; "
            "start them with torchrun, and on a CPU without `accelerate launch`"
        )
    wanted = asked_for()
    if wanted and kind != wanted:
        raise ValueError(
            f"the launch file sets {wanted} but accelerate uses {kind}, because weights are sharded on "
            "accelerators only; on a CPU use torchrun without a launch file"
        )


def in_pieces(weight: Tensor) -> bool:
    """Return whether a weight is sharded over processes."""
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


@torch.no_grad()
def load_whole(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights gathered from shards into an unsharded model.

    Raises:
        ValueError: weights are missing or unknown; a weight shared by layers may be given once.
    """
    own = model.state_dict()
    loaded = {own[name].data_ptr() for name in weights.keys() & own.keys()}
    missing = [name for name, parameter in model.named_parameters() if parameter.data_ptr() not in loaded]
    if missing or weights.keys() - own.keys():
        other = sorted(weights.keys() - own.keys())
        raise ValueError(f"gathered weights do not match the model: missing {missing}, unknown {other}")
    model.load_state_dict(weights, strict=False)


def name_layers(model: nn.Module) -> None:
    """Set the layer classes that FSDP2 wraps: those of the model's list that exist in the model.

    By default accelerate refuses a list with classes that the model lacks, such as that of LLaVA.
    """
    if wanted := _units(model):
        os.environ.setdefault("FSDP_TRANSFORMER_CLS_TO_WRAP", ",".join(sorted(wanted)))


def shard(model: nn.Module) -> None:
    """Shard the weights of a frozen model over all processes (FSDP2), permanently.

    All processes must hold the same weights and call the model at the same time.
    """
    wanted = _units(model)
    for module in [module for module in model.modules() if type(module).__name__ in wanted]:
        fully_shard(module)
    fully_shard(model, reshard_after_forward=True)


def _units(model: nn.Module) -> set[str]:
    """Return the names of the layer classes that are gathered one layer at a time."""
    present = {type(module).__name__ for module in model.modules()}
    return present & set(getattr(model, "_no_split_modules", None) or ())


def inside_forward(wrapper: nn.Module, inner: nn.Module, compute: Callable[[Any], Any], batch: Any) -> Any:
    """Run ``compute(batch)`` in place of the forward of the wrapped model.

    Args:
        wrapper: the Trainer's model: plain, or wrapped in DDP or a DeepSpeed engine.
        inner: the model inside the wrapper; may be the same.
        compute: returns the loss; may call any submodule of the model.
    """
    own = inner.__dict__.get("forward")  # set by accelerate for autocast

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
    """Return a CPU process group for short messages, with a timeout of 7 days."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=7))
