"""Which weights of a teacher are masked, as data: the criterion, and the part of the model.

Eq. 2 removes the first ``floor(r * n)`` weights of an order, in some layers. A choice names the order
(:mod:`masters.masking.criteria`) and the layers. It is part of a model's
:class:`~masters.models.source.Source`, so that generation, scoring and a teacher in memory use the same
mask. At ratio 0 all choices are equal.

Choices where the paper is silent:
    * Which modules are masked: every linear layer (:mod:`masters.masking.teacher_mask`). An arm may mask only
      the ``language`` model with its own output head, or only the ``vision`` encoder. A projector between the
      two belongs to neither, except where it is a module of the encoder (Qwen-VL).
    * Masks that use data are the paper's future work. ``activation`` is Wanda, arXiv 2306.11695: norms of the
      inputs over evenly spaced prompts and images of the training pool, measured once on the whole teacher,
      and weights compared within a row. ``random`` removes random weights, the same in every run.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file
from transformers import PreTrainedModel

from masters.masking.criteria import Activation, Criterion, Magnitude, Random
from masters.masking.teacher_mask import TeacherMask

Name = Literal["magnitude", "random", "activation"]
Part = Literal["all", "language", "vision"]


@dataclass(frozen=True)
class MaskChoice:
    """A criterion and the part of the model that is masked; the default is the paper's choice.

    Attributes:
        norms: file of :func:`masters.models.calibration.calibrated` for the model, for ``activation``.
    """

    criterion: Name = "magnitude"
    part: Part = "all"
    norms: Path | None = None

    def mask(self, model: PreTrainedModel) -> TeacherMask:
        """Return a mask of a model, not yet applied.

        Raises:
            ValueError: the norms are missing or of another model, or the model does not expose the part.
        """
        return TeacherMask(model, layers_of(model, self.part), criterion=self._criterion())

    def at(self, ratio: float) -> "MaskChoice":
        """Return the choice that counts at a mask ratio: at 0 the paper's."""
        return self if ratio else PAPERS

    def key(self) -> dict[str, str]:
        """Return what differs from the paper's choice, for cache keys."""
        norms = None if self.norms is None else self.norms.stem
        values = {"criterion": self.criterion, "part": self.part, "norms": norms}
        return {name: value for name, value in values.items() if value and value != getattr(PAPERS, name)}

    def title(self, model: str) -> str:
        """Return the name of a model, followed by the choice where it is not the paper's."""
        return f"{model} ({self})" if self.key() else model

    def __str__(self) -> str:
        return ", ".join(value for name, value in self.key().items() if name != "norms")

    def _criterion(self) -> Criterion:
        if self.criterion == "random":
            return Random()
        if self.criterion == "magnitude":
            return Magnitude()
        if self.norms is None:
            raise ValueError(
                "masking by activation needs the norms of the model's inputs: take the source from "
                "Lab.source, or pass the file that masters.models.calibration.calibrated returns"
            )
        return Activation(load_file(self.norms))


PAPERS = MaskChoice()


def layers_of(model: PreTrainedModel, part: Part) -> str | None:
    """Return a regular expression for the names of a part's modules; None for all.

    Raises:
        ValueError: the model does not expose the part through ``get_encoder`` or ``get_decoder``.
    """
    if part == "all":
        return None
    if part == "vision":
        wanted = [model.get_encoder(modality="image")]
    else:
        wanted = [model.get_decoder(), model.get_output_embeddings()]
    names = [name for name, module in model.named_modules() if any(module is one for one in wanted)]
    if not names or "" in names:
        raise ValueError(
            f"{type(model).__name__} does not expose its {part} part: mask all of it, or select layers with "
            "the argument include of masters.masking.teacher_mask.TeacherMask"
        )
    return rf"^({'|'.join(map(re.escape, names))})(\.|$)"
