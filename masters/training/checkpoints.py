"""Checkpoints of a training run: training resumes from a whole one; incomplete and damaged ones go."""

import shutil
import warnings
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from masters.runtime import checksums, distributed

COMPLETE = "complete"  # in a checkpoint once all its files are on disk: their checksums


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint; remove those that a kill left incomplete, and damaged ones."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in found:
        if damaged := checksums.damaged(path, COMPLETE):
            warnings.warn(f"{path}: {', '.join(damaged)} damaged; steps are repeated", stacklevel=2)
        if damaged or not (path / COMPLETE).is_file():
            shutil.rmtree(path)
    whole = [path for path in found if path.is_dir()]
    return str(whole[-1]) if whole else None


class Completer(TrainerCallback):
    """Marks a checkpoint as complete; must be the last callback that writes into it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        distributed.wait()  # until every rank has written its part
        if distributed.rank() == 0:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            checksums.write_list(folder, COMPLETE, "**/*")
        distributed.wait()  # reading a large checkpoint takes longer than a collective of the next step may
