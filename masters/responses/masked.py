"""Save a masked teacher as a folder, for programs that read models from disk only."""

from pathlib import Path

from masters.masking.choice import PAPERS, MaskChoice
from masters.models.loading import load
from masters.runtime.files import write_folder


def save_masked(model: Path, ratio: float, folder: Path, choice: MaskChoice = PAPERS) -> None:
    """Save a masked copy of a model that any program that reads hub models can load.

    Args:
        model: folder of the model.
        ratio: mask ratio; 0 saves an unmasked copy.
        folder: must not exist.
        choice: which weights are masked.

    Raises:
        ValueError: the ratio is out of range, or the folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; give the name of a folder that does not")
    loaded, processor = load(model)
    choice.mask(loaded).apply(ratio)

    def save(target: Path) -> None:
        loaded.save_pretrained(target)
        processor.save_pretrained(target)

    write_folder(folder, save)
