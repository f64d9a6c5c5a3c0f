"""Norms of a teacher's inputs, which masking by activation (Wanda, arXiv 2306.11695) needs; measured once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import save

from masters.data.questions import Questions
from masters.masking.criteria import input_norms
from masters.models.loading import load
from masters.runtime.files import cache_dir, write_atomic
from masters.runtime.keys import key_of

CALIBRATION = 128  # questions at least, of a pool that has them; the papers on pruning take as many sequences


def calibrated(folder: Path, weights: str, questions: Questions, pool: Sequence[int]) -> Path:
    """The file with the norms of a whole model's inputs (:func:`masters.masking.criteria.input_norms`), made
    once.

    Args:
        folder: of the model.
        weights: their hash, as :meth:`masters.responses.source.Source.weights` gives it.
        questions: encoded for the model.
        pool: indices of the questions among which those of the calibration are.
    """
    some = pool[:: max(1, len(pool) // CALIBRATION)]
    contents = questions.table["content"].iloc[list(some)].tolist()
    path = cache_dir() / "norms" / f"{key_of('norms', weights=weights, contents=contents)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            model, _ = load(folder)
            norms = input_norms(model, _prompts(questions, some, model.device))
            write_atomic(path, save({name: values.cpu() for name, values in norms.items()}))
    return path


def _prompts(questions: Questions, some: Sequence[int], device: torch.device) -> Iterator[dict[str, Any]]:
    """Prompts alone, one after the other and from all tasks, since a padded place would count as an input."""
    for index in some:
        images = questions.image_features([index])
        inputs = {"input_ids": torch.tensor(questions.prompt(index), dtype=torch.long)[None], **images}
        yield {name: tensor.to(device) for name, tensor in inputs.items()}
