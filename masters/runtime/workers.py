"""Independent jobs side by side in processes of one thread each, a GPU each where there are any.

A job is a function of a lab and its further arguments. It leaves its result on disk, so any of them can be
cut at any moment: the next start goes on from there.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, current_process, get_context, parent_process
from threading import Thread
from typing import Any

import torch

from masters.runtime import distributed
from masters.runtime.progress import report

Job = tuple[Callable[..., Any], tuple[Any, ...]]  # a function of a lab, and its further arguments


def run(lab: Callable[[Any], Any], profile: Any, jobs: Sequence[Job], processes: int, what: str) -> None:
    """Do all jobs; the first failure, or Ctrl-C, ends the others at once.

    Args:
        lab: makes a lab of a profile, once in each process.
        profile: of the lab.
        jobs: in the order in which they are begun.
        processes: side by side.
        what: the jobs, in the plural, for progress.

    Raises:
        Exception: what a job raised.
    """
    if not jobs:
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with ProcessPoolExecutor(min(processes, len(jobs)), get_context("spawn"), _begin) as pool:
        waiting = [pool.submit(_do, lab, profile, job, arguments) for job, arguments in jobs]
        try:
            report(what, 0, len(waiting))  # the first may take minutes
            for number, done in enumerate(as_completed(waiting), start=1):
                done.result()
                report(what, number, len(waiting))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in active_children():
                child.terminate()
            raise


_labs: dict[str, Any] = {}


def _begin() -> None:
    for name in distributed.LAUNCH:  # a worker of a rank works for itself
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    if torch.cuda.is_available():  # workers are numbered from 1
        torch.cuda.set_device(current_process()._identity[0] % torch.cuda.device_count())
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed tells nobody, and its jobs would go on beside those of the next start."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(lab: Callable[[Any], Any], profile: Any, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    key = profile.model_dump_json()
    if key not in _labs:
        _labs[key] = lab(profile)
    job(_labs[key], *arguments)
