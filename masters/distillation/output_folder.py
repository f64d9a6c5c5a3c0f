"""What a run may continue: the lock of its output folder, its cache there, and what it began with."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from masters.distillation.preparation import Prepared
from masters.distillation.run_file import RunFile
from masters.runtime import distributed
from masters.runtime.files import write_atomic


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of an output folder; ranks of one run share it."""
    lock = FileLock(output / ".lock")
    if distributed.rank() == 0:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another process is using {output}: wait for it, or choose another output_dir"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def cache_in(output: Path) -> Iterator[None]:
    """Cache below an output folder, unless the user chose another place; worker processes inherit it."""
    if "MASTERS_CACHE" in os.environ:
        yield
        return
    os.environ["MASTERS_CACHE"] = str(output / "responses")
    try:
        yield
    finally:
        del os.environ["MASTERS_CACHE"]


def check_data(prepared: Prepared) -> None:
    """Refuse to continue a run on other data, models or scorer than it began with."""
    output, lab = prepared.run.output, prepared.lab
    weights = {name: lab.source(name).weights() for name in prepared.spec.models}
    now = prepared.own.hashes | {"reward": prepared.judge.name} | weights
    path = output / "data.json"
    try:
        before = dict(json.loads(path.read_text())) if path.is_file() else now
    except (TypeError, ValueError):
        raise _unreadable(path, output) from None
    # Names that were added since the run began have nothing to compare with.
    if different := [name for name in before if before[name] != now.get(name)]:
        raise ValueError(
            f"{output} holds a run on other data or models ({', '.join(different)} changed since): "
            f"{_elsewhere(output)}"
        )
    write_atomic(path, json.dumps(now, indent=1) + "\n")


def check_folder(output: Path) -> None:
    """Refuse a folder that holds files of something else, which a run would take for its own."""
    there = [name for name in ("model", "checkpoints", "adapter", "config.yaml") if (output / name).exists()]
    if there and not (output / "data.json").is_file():
        raise ValueError(f"{output} holds {', '.join(there)} of something else: choose another output_dir")


def _elsewhere(output: Path) -> str:
    """Return how to start over without losing the responses."""
    cache = os.environ["MASTERS_CACHE"]
    return (
        f"choose another output_dir, or delete that folder to start over; with MASTERS_CACHE={cache} another "
        "output_dir reads the responses that are there"
    )


# Settings that change nothing in the result, or only its last digits.
HOW = re.compile(
    r"file|processes|output_dir|responses\.(batch|server|served_as|concurrency|vllm)\b.*"
    r"|reward\.llm\.(server|timeout|concurrency)"
    r"|teachers\.\d+\.device_map|training\.args\.dataloader_\w+"
    r"|training\.(gradient_checkpointing|accumulate|responses_at_once|save_steps|report_to|push_to_hub)"
)
# Settings that nothing reads before training.
OF_TRAINING = re.compile(r"(training|loss|mask|teacher_cache)\b.*|method|responses\.(teacher|student)")


def check_settings(run: RunFile) -> None:
    """Refuse to continue a run with other settings than those it began with.

    Those of the training may change until its first checkpoint.
    """
    path = run.output / "config.yaml"
    if not path.is_file():
        return
    try:  # parameters that were added since the run began have their defaults
        stored = RunFile.checked(yaml.safe_load(path.read_text(encoding="utf-8")) | {"file": run.file}, path)
    except (TypeError, ValueError, yaml.YAMLError):
        raise _unreadable(path, run.output) from None
    before, now = (dict(_leaves(one.model_dump())) for one in (stored, run))
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    different = [name for name in changed if not HOW.fullmatch(name)]
    if not different:
        return
    names = ", ".join(different)
    said = f"{run.output} holds a run with other settings ({names} differ from its config.yaml)"
    if (run.output / "model").is_dir() or not all(map(OF_TRAINING.fullmatch, different)):
        raise ValueError(f"{said}: {_elsewhere(run.output)}")
    if (run.output / "checkpoints").is_dir():
        raise ValueError(f"{said}: delete {run.output / 'checkpoints'} to train with them from the start")


def _leaves(values: Any, head: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the parameters of all sections, with dots; of a list of sections with their numbers."""
    for name, value in values.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            value = dict(enumerate(value, start=1))
        if isinstance(value, dict):
            yield from _leaves(value, f"{head}{name}.")
        else:
            yield f"{head}{name}", value


def _unreadable(path: Path, output: Path) -> ValueError:
    return ValueError(
        f"{path} is damaged, or of another version of masters: choose another output_dir, or delete {output} "
        "to start over"
    )
