"""How a notebook was made: when, in how long, from which commit and data, with what, on what machine.

One file beside the executed notebooks, read by the book's page on reproducibility.
"""

import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from masters.runtime.files import ROOT, hash_of, write_atomic


def record_provenance(
    path: Path,
    notebook: str,
    parameters: dict[str, Any],
    start: float,
    minutes: float,
    data: dict[str, str],
) -> None:
    """Write how one notebook was made into ``provenance.json``, one entry a notebook, in one step.

    ``minutes`` are those of the last run, which finds in the cache what an earlier one computed;
    ``minutes_longest`` are those of the longest run at the same parameters, which says what the work costs.

    Args:
        path: the file; entries of other notebooks stay.
        notebook: its name.
        parameters: what it ran with.
        start: seconds since the epoch.
        minutes: how long it ran.
        data: a content hash for each question set.
    """
    entries: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    parameters_hash = hash_of(parameters)
    previous = entries.get(notebook, {})
    longest = previous.get("minutes_longest", 0.0) if previous.get("parameters") == parameters_hash else 0.0
    entries[notebook] = {
        "started": datetime.datetime.fromtimestamp(start, datetime.UTC).isoformat(timespec="seconds"),
        "minutes": round(minutes, 2),
        "minutes_longest": round(max(minutes, longest), 2),
        "parameters": parameters_hash,
        **machine(),
        "data": data,
    }
    write_atomic(path, json.dumps(dict(sorted(entries.items())), indent=1) + "\n")


def machine() -> dict[str, Any]:
    """From which commit, with what and on what machine something is made."""
    return {
        **_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("torch", "transformers", "datasets", "numpy")},
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _commit() -> dict[str, Any]:
    """The commit and whether files other than results had changed since; None outside a git clone."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # The study and the bench change tracked results while they run, which is not a change of the code.
    status = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)data/results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
