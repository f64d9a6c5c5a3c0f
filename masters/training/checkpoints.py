"""Checkpoints of a training run: one that was written to its end is gone on from, a half is removed."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from masters.runtime import distributed

COMPLETE = "complete"  # stands in a checkpoint once all its files are on disk


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; halves that a kill left behind are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in found:
        if not (path / COMPLETE).is_file():
            shutil.rmtree(path)
    whole = [path for path in found if path.is_dir()]
    return str(whole[-1]) if whole else None


class Completer(TrainerCallback):
    """Marks a checkpoint as complete once it is on disk; comes after all that write into one."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        distributed.wait()  # every rank has written its part
        if distributed.rank() == 0:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
