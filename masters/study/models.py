"""Trained models of a study, kept beside its tables.

Training is not bit-reproducible across machines. With the models of a replicate at hand, any machine can
continue its runs, or repeat one of them, within minutes.
"""

import shutil
from functools import partial
from pathlib import Path

from masters.experiments.lab import Lab
from masters.runtime.files import write_folder
from masters.runtime.keys import key_of
from masters.settings import Profile


def with_kept(profile: Profile, folder: Path) -> Profile:
    """Return a profile whose ladder loads the kept models in ``folder`` that it would otherwise train."""
    ladder = {}
    for name, spec in profile.ladder.items():
        kept = _kept(profile, name, folder)
        ladder[name] = spec.model_copy(update={"path": str(kept)}) if kept.is_dir() else spec
    return profile.model_copy(update={"ladder": ladder})


def keep(lab: Lab, folder: Path) -> None:
    """Copy the models that a lab trained into ``folder``, replacing older ones of the same replicate.

    Raises:
        OSError: the disk is full; no partial folder stays.
    """
    for name, spec in lab.profile.ladder.items():
        kept = _kept(lab.profile, name, folder)
        if spec.path or kept.is_dir():
            continue
        for outdated in kept.parent.glob(f"{name}-*"):
            shutil.rmtree(outdated)
        write_folder(kept, partial(shutil.copytree, lab.folder(name), dirs_exist_ok=True))


def _kept(profile: Profile, name: str, folder: Path) -> Path:
    """Return the folder of a kept model, named by a hash of all that determines its training."""
    spec = profile.ladder[name]  # type: ignore[index]
    key = key_of(
        "rung",
        profile=profile.model_dump(mode="json", include={"tasks", "train_questions", "wrong_labels"}),
        spec=spec.model_dump(mode="json", exclude_defaults=True),
        replicate=profile.replicate,
    )
    return folder / str(profile.replicate) / f"{name}-{key}"
