"""The trained models of a study, kept beside its tables.

Training rounds otherwise on another machine, and the same training makes other models there. With those of a
replicate at hand, any machine goes on with its runs, or makes one of them again, within minutes.
"""

import shutil
from functools import partial
from pathlib import Path

from masters.experiments.lab import VERSION, Lab
from masters.runtime.files import hash_of, write_folder
from masters.settings import Profile


def with_kept(profile: Profile, folder: Path) -> Profile:
    """A profile whose ladder has the kept models, where they are those that it would train.

    Args:
        profile: with its replicate.
        folder: of the kept models of a study.
    """
    ladder = {}
    for name, spec in profile.ladder.items():
        kept = _kept(profile, name, folder)
        ladder[name] = spec.model_copy(update={"path": str(kept)}) if kept.is_dir() else spec
    return profile.model_copy(update={"ladder": ladder})


def keep(lab: Lab, folder: Path) -> None:
    """Keep the models of a lab that were trained for it, in place of those of their names and replicate.

    Raises:
        OSError: the disk is full; nothing half is left behind.
    """
    for name, spec in lab.profile.ladder.items():
        kept = _kept(lab.profile, name, folder)
        if spec.path or kept.is_dir():
            continue
        for outdated in kept.parent.glob(f"{name}-*"):
            shutil.rmtree(outdated)
        write_folder(kept, partial(shutil.copytree, lab.folder(name), dirs_exist_ok=True))


def _kept(profile: Profile, name: str, folder: Path) -> Path:
    """By what determines it, so that a changed plan trains anew."""
    of_training = profile.model_dump(mode="json", include={"tasks", "train_questions", "wrong_labels"})
    what = [VERSION, of_training, profile.ladder[name].model_dump(mode="json", exclude_defaults=True)]  # type: ignore[index]
    return folder / str(profile.replicate) / f"{name}-{hash_of([*what, profile.replicate])}"
