"""Which model writes responses, or scores them: the one type that names a model, its files and its mask."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from masters.masking.choice import PAPERS, MaskChoice


@dataclass(frozen=True)
class Source:
    """A saved model, masked at a ratio, as the source of responses or of log-probabilities.

    Attributes:
        name: the rung's name in the ladder.
        folder: where the model is saved.
        ratio: share of the weights that are removed; 0 is the whole model.
        choice: which weights are removed; the paper's at ratio 0.
    """

    name: str
    folder: Path
    ratio: float = 0.0
    choice: MaskChoice = PAPERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", self.choice.at(self.ratio))

    @property
    def title(self) -> str:
        """The name, with how it is masked where that is not the paper's way."""
        return self.choice.title(self.name)

    def weights(self) -> str:
        """16 hexadecimal digits of the SHA-256 over the model's safetensors files."""
        return _files_hash(tuple(sorted(str(path) for path in self.folder.glob("*.safetensors"))))


@lru_cache(maxsize=64)
def _files_hash(paths: tuple[str, ...]) -> str:
    if not paths:
        raise ValueError("a model folder without *.safetensors; save the model with save_pretrained")
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
