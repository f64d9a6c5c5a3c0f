"""Which weights of a teacher a mask may take, as data: judged by what, and in which part of the model.

The idea: Eq. 2 removes the first ``floor(r * n)`` weights in an order, among those of some layers. A choice
names the order (:mod:`masters.masking.criteria`) and the layers. It goes along with the folder and the ratio
of a model (:class:`masters.responses.source.Source`), so that who generates, who scores and the teacher that
runs beside the student remove the same weights. Without a mask all choices are one.

Choices where the paper is silent:
    * Which modules are masked: every linear layer, as in :mod:`masters.masking.teacher_mask`. An arm may take
      the ``language`` model with an output head of its own, or the ``vision`` encoder alone. A projector
      between the two belongs to neither, except in models that have it inside their encoder (Qwen-VL).
    * Masks that look at data are the paper's future work. ``activation`` is Wanda, arXiv 2306.11695: norms of
      the inputs over some prompts and pictures of the training pool, at equal distances in it, taken from the
      whole teacher once, and weights compared within a row. ``random`` removes any, the same in every run.
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
    """A criterion and the part of the model that is masked; without arguments, the paper's.

    Attributes:
        criterion: by what a weight is judged.
        part: whose linear layers are masked.
        norms: the file that :func:`calibrated` made for the model; ``activation`` needs it.
    """

    criterion: Name = "magnitude"
    part: Part = "all"
    norms: Path | None = None

    def mask(self, model: PreTrainedModel) -> TeacherMask:
        """A mask of this choice for a model, not yet applied.

        Raises:
            ValueError: the norms are missing or of another model, or the model does not tell its parts.
        """
        return TeacherMask(model, layers_of(model, self.part), criterion=self._order())

    def at(self, ratio: float) -> "MaskChoice":
        """The choice that counts at a mask ratio: at 0 nothing is removed, whatever was chosen."""
        return self if ratio else PAPERS

    def key(self) -> dict[str, str]:
        """What differs from the paper's choice, for the keys of what masked models made."""
        norms = None if self.norms is None else self.norms.stem
        values = {"criterion": self.criterion, "part": self.part, "norms": norms}
        return {name: value for name, value in values.items() if value and value != getattr(PAPERS, name)}

    def title(self, model: str) -> str:
        """The name of a model, and how it is masked where that is not the paper's way."""
        return f"{model} ({self})" if self.key() else model

    def __str__(self) -> str:
        return ", ".join(value for name, value in self.key().items() if name != "norms")

    def _order(self) -> Criterion:
        if self.criterion == "random":
            return Random()
        if self.criterion == "magnitude":
            return Magnitude()
        if self.norms is None:
            raise ValueError(
                "masking by activation needs the norms of the model's inputs: take the source from a lab "
                "(Lab.source), or give what masters.masking.choice.calibrated made"
            )
        return Activation(load_file(self.norms))


PAPERS = MaskChoice()


def layers_of(model: PreTrainedModel, part: Part) -> str | None:
    """A regular expression of the names of a part's modules; None for all.

    Raises:
        ValueError: the model does not tell this part, as ``get_encoder`` and ``get_decoder`` do.
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
            f"{type(model).__name__} does not tell its {part} part; mask all of it, or a part by a regular "
            "expression (masters.masking.teacher_mask.TeacherMask)"
        )
    return rf"^({'|'.join(map(re.escape, names))})(\.|$)"
