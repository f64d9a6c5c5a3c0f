"""Provenance of notebooks: time, duration, commit, data, package versions and machine.

The book's page on reproducibility reads the file, which is kept beside the executed notebooks.
"""

import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from masters.runtime.files import ROOT, write_atomic
from masters.runtime.keys import hash_of
from masters_book.results.intact import read_json


def record_provenance(
    path: Path,
    notebook: str,
    parameters: dict[str, Any],
    start: float,
    minutes: float,
    data: dict[str, str],
) -> None:
    """Write the provenance of one notebook into ``provenance.json``; keep the entries of other notebooks.

    ``minutes`` is the duration of the last run, which may use cached results; ``minutes_longest`` is that of
    the longest run with the same parameters, the actual cost.

    Args:
        start: seconds since the epoch.
        data: content hash per question set.
    """
    entries: dict[str, Any] = read_json(path) if path.is_file() else {}
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
    """Return the commit, the package versions and the machine."""
    return {
        **_commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "transformers", "datasets", "numpy")},
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def commit_and_date() -> tuple[str, str]:
    """Return the commit and its date, such as ``2026-01-31``; ``unknown`` outside a git clone."""
    return _git("rev-parse", "HEAD") or "unknown", _git("log", "-1", "--format=%cs") or "unknown"


def _commit() -> dict[str, Any]:
    """Return the commit and whether files other than results differ from it; None outside a git clone."""
    # The study and the benchmarks change tracked results while they run.
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)data/results")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
