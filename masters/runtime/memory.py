"""Free memory, and how errors tell that it is full."""

import re

import psutil
import torch

_FULL = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def is_full(error: Exception) -> bool:
    """Return whether an error means that the memory is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _FULL.search(str(error)) is not None


def release() -> None:
    """Return cached memory to the GPU, after :func:`is_full` and before the next, smaller try."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
