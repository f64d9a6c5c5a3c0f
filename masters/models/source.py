"""The source of responses or of teacher log-probabilities: a model, its files and its mask."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from masters.masking.choice import PAPERS, MaskChoice


@dataclass(frozen=True)
class Source:
    """A saved model, masked at a ratio.

    Attributes:
        name: name of its rung in the ladder.
        folder: saved model.
        ratio: mask ratio, the fraction of weights set to zero.
        choice: which weights are masked; the paper's choice at ratio 0.
    """

    name: str
    folder: Path
    ratio: float = 0.0
    choice: MaskChoice = PAPERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", self.choice.at(self.ratio))

    @property
    def title(self) -> str:
        """Return the name, followed by the mask choice if it is not the paper's."""
        return self.choice.title(self.name)

    def weights(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 over the model's safetensors files."""
        return _files_hash(tuple(sorted(str(path) for path in self.folder.glob("*.safetensors"))))


@lru_cache(maxsize=64)
def _files_hash(paths: tuple[str, ...]) -> str:
    if not paths:
        raise ValueError("the model folder has no *.safetensors; save the model with save_pretrained")
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
