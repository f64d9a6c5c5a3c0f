"""A masked teacher as a folder, for programs that read models from disk only."""

from pathlib import Path

from masters.masking.choice import PAPERS, MaskChoice
from masters.models.loading import load
from masters.runtime.files import write_folder


def save_masked(model: Path, ratio: float, folder: Path, choice: MaskChoice = PAPERS) -> None:
    """Save a model, masked, so that any program that reads hub models can load it.

    Args:
        model: the folder of the model.
        ratio: share of the weights that are removed; 0 saves a copy.
        folder: must not exist.
        choice: of what is removed.

    Raises:
        ValueError: the ratio is not one, or the folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; give the name of a folder that does not")
    loaded, processor = load(model)
    choice.mask(loaded).apply(ratio)

    def save(target: Path) -> None:
        loaded.save_pretrained(target)
        processor.save_pretrained(target)

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_folder(folder, save)
