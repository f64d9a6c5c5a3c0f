"""Measure memory, for ``make bench`` and the tests of the memory estimate."""

import re
import weakref
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory() -> float:
    """Return the largest resident size of this process so far, in MiB.

    Read from Linux's ``/proc``: the peak that ``getrusage`` gives includes that of the process that started
    this one.
    """
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that operations return while they are alive; a context manager.

    Memory that an operation allocates and frees internally is not counted.

    Attributes:
        now: bytes alive now.
        peak: largest number of bytes alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[int] = set()
        self.now = self.peak = 0

    def see(self, tensor: Tensor) -> None:
        """Count a tensor that existed before."""
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
