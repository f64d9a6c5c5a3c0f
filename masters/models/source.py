"""The source of responses or of teacher log-probabilities: a model, its files and its mask."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from masters.masking.choice import PAPERS, MaskChoice
from masters.models.loading import load
from masters.runtime.files import cache_dir, write_atomic
from masters.runtime.keys import hash_of


@dataclass(frozen=True)
class Source:
    """A saved model, masked at a ratio.

    Attributes:
        name: name of its rung in the ladder.
        folder: saved model.
        ratio: mask ratio, the fraction of weights set to zero.
        choice: which weights are masked; the paper's choice at ratio 0.
        dtype: type to load the weights in; None: as they are stored.
        device_map: how the weights are spread over devices, see :func:`masters.models.loading.load`.
    """

    name: str
    folder: Path
    ratio: float = 0.0
    choice: MaskChoice = PAPERS
    dtype: str | None = None
    device_map: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", self.choice.at(self.ratio))

    @property
    def title(self) -> str:
        """Return the name, followed by the mask choice if it is not the paper's."""
        return self.choice.title(self.name)

    def load(self) -> PreTrainedModel:
        """Return the model, masked. Errors are those of :func:`masters.models.loading.load`."""
        model, _ = load(self.folder, self.dtype, self.device_map)
        if self.ratio:
            self.choice.mask(model).apply(self.ratio)
        return model

    def weights(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 over the safetensors files, with the dtype if set.

        The hash is stored in the cache under the path, size and time of each file, because reading a large
        model takes minutes.

        Raises:
            ValueError: the folder has no ``*.safetensors``.
        """
        files = [(path, path.stat()) for path in sorted(self.folder.glob("*.safetensors"))]
        if not files:
            raise ValueError("the model folder has no *.safetensors; save the model with save_pretrained")
        about = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in files]
        stored = cache_dir() / "weights" / hash_of(about)
        if not stored.is_file():
            digest = hashlib.sha256()
            for path, _ in files:
                with open(path, "rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            stored.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(stored, digest.hexdigest()[:16])
        return "-".join(filter(None, (stored.read_text(), self.dtype)))
