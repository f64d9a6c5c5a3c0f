"""Trained models of a study, kept beside its tables on this machine; git ignores them.

Training is not bit-reproducible across machines. With the models of a replicate at hand, any machine can
continue its runs, or repeat one of them, within minutes.
"""

import shutil
from functools import partial
from pathlib import Path

from masters.experiments.lab import Lab
from masters.runtime.checksums import check
from masters.runtime.files import write_folder
from masters.runtime.keys import key_of
from masters.settings import Profile


def with_kept(profile: Profile, folder: Path) -> Profile:
    """Return a profile whose ladder loads the kept models in ``folder`` that it would otherwise train.

    Raises:
        ValueError: a kept model is damaged.
    """
    ladder = {}
    for name, spec in profile.ladder.items():
        kept = _kept(profile, name, folder)
        there = (kept / "config.json").is_file()
        if there:
            check(kept, "delete the folder to train the model again")
        ladder[name] = spec.model_copy(update={"path": str(kept)}) if there else spec
    return profile.model_copy(update={"ladder": ladder})


def keep(lab: Lab, folder: Path) -> None:
    """Copy the models that a lab trained into ``folder``, replacing older ones of the same replicate.

    Raises:
        OSError: the disk is full; no partial folder stays.
    """
    for name, spec in lab.profile.ladder.items():
        kept = _kept(lab.profile, name, folder)
        if spec.path or (kept / "config.json").is_file():
            continue
        for outdated in set(kept.parent.glob(f"{name}-*")) - {kept}:
            shutil.rmtree(outdated)
        write_folder(kept, partial(shutil.copytree, lab.folder(name), dirs_exist_ok=True))


def _kept(profile: Profile, name: str, folder: Path) -> Path:
    """Return the folder of a kept model, named by a hash of all that determines its training."""
    spec = profile.ladder[name]
    key = key_of(
        "rung",
        profile=profile.model_dump(mode="json", include={"tasks", "train_questions", "wrong_labels"}),
        spec=spec.model_dump(mode="json", exclude_defaults=True),
        replicate=profile.replicate,
        registers=profile.registers,
    )
    return folder / str(profile.replicate) / f"{name}-{key}"
