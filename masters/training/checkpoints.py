"""Checkpoints of a training run: training resumes from a complete one; incomplete ones are removed."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from masters.runtime import distributed

COMPLETE = "complete"  # in a checkpoint once all its files are on disk


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint, and remove those that a kill left incomplete."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in found:
        if not (path / COMPLETE).is_file():
            shutil.rmtree(path)
    whole = [path for path in found if path.is_dir()]
    return str(whole[-1]) if whole else None


class Completer(TrainerCallback):
    """Marks a checkpoint as complete; must be the last callback that writes into it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        distributed.wait()  # until every rank has written its part
        if distributed.rank() == 0:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
