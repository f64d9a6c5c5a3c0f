"""Independent jobs in parallel processes, each with one thread and, if available, one GPU.

A job writes its result to disk, so it can be killed at any time; the next start skips finished jobs.

Importing torch and transformers takes seconds, so workers are forked from a server process, which imports
what the process of the first call has imported, and does nothing else.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, current_process, get_context, parent_process
from threading import Thread
from types import ModuleType
from typing import Any

import torch

from masters.runtime import distributed
from masters.runtime.progress import report

Job = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments


def run(jobs: Sequence[Job], processes: int, what: str) -> None:
    """Run all jobs; the first failure or Ctrl-C stops the others at once and is raised.

    Args:
        jobs: what to run, in starting order. The functions are of an importable module: the main script is
            not run again by the workers, so it needs no guard.
        processes: maximum number of parallel processes.
        what: name of the jobs for progress, in the plural.

    Raises:
        MemoryError: a process was killed, which the system does when memory is full.
    """
    if not jobs:
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    several, context = min(processes, len(jobs)), get_context("forkserver")
    packages = {function.__module__.partition(".")[0] for function, _ in jobs}
    # Without effect once the server runs.
    context.set_forkserver_preload([name for name in sys.modules if name.partition(".")[0] in packages])
    # The server has the environment of its start.
    arguments = (dict(os.environ), several, visible_devices())
    with ProcessPoolExecutor(several, context, _begin, arguments) as pool:
        with _without_main():
            waiting = [pool.submit(function, *given) for function, given in jobs]
        try:
            report(what, 0, len(waiting))  # the first job may take minutes
            for number, done in enumerate(as_completed(waiting), start=1):
                done.result()
                report(what, number, len(waiting))
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in active_children():
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise MemoryError(
                    f"a process at work on {what} was killed, most likely because memory was full: free "
                    "some, or set fewer processes, and start again; finished work is kept"
                ) from None
            raise


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep the processes that start now from running the main script again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def visible_devices() -> list[str]:
    """Return the GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(n) for n in range(torch.cuda.device_count())] if named is None else named.split(",")


def share(devices: Sequence[str], processes: int, number: int) -> list[str]:
    """Return the GPUs of one of several processes: its part of them, or one that it shares with others."""
    place = number % processes
    return list(devices[place::processes] or devices[place % len(devices) :][:1])


def _begin(environment: dict[str, str], processes: int, devices: Sequence[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    distributed.forget()  # a worker is no rank of a distributed run
    torch.set_num_threads(1)
    if devices and processes > 1:
        # Hidden, as the Trainer moves to the first GPU that it sees. Nothing here has used a GPU yet.
        own = share(devices, processes, current_process()._identity[0])
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent is killed; otherwise its jobs would run beside those of the next start."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
