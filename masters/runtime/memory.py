"""Free memory, and how errors tell that it is full."""

import gc
import re

import psutil
import torch

_FULL = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device, in bytes; what PyTorch holds and does not use is free."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return int(psutil.virtual_memory().available)


def is_full(error: Exception) -> bool:
    """Return whether an error means that the memory is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _FULL.search(str(error)) is not None


def release() -> None:
    """Return unused memory to the GPU, for the next try or for another process."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
