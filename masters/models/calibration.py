"""The input norms that masking by activation (Wanda, arXiv 2306.11695) needs, measured once per model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from masters.data.questions import Questions
from masters.masking.criteria import input_norms
from masters.models.loading import load
from masters.runtime.files import cache_dir, write_folder_once
from masters.runtime.keys import key_of

CALIBRATION = 128  # questions at least, if the pool has them; papers on pruning use as many sequences


def calibrated(folder: Path, weights: str, questions: Questions, pool: Sequence[int]) -> Path:
    """Return the file with :func:`masters.masking.criteria.input_norms` of an unmasked model.

    Args:
        weights: hash of the weights, from :meth:`masters.models.source.Source.weights`.
        questions: encoded for the model.
        pool: indices of the questions to choose from, evenly spaced.

    Raises:
        ValueError: the file is damaged.
    """
    some = pool[:: max(1, len(pool) // CALIBRATION)]
    contents = questions.table["content"].iloc[list(some)].tolist()
    key = key_of("norms", weights=weights, contents=contents)

    def save(target: Path) -> None:
        model, _ = load(folder)
        norms = input_norms(model, _prompts(questions, some, model.device))
        save_file({name: values.cpu() for name, values in norms.items()}, target / f"{key}.safetensors")

    write_folder_once(cache_dir() / "norms" / key, save)
    return cache_dir() / "norms" / key / f"{key}.safetensors"


def _prompts(questions: Questions, some: Sequence[int], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield one prompt at a time, since padding would count as an input."""
    for index in some:
        images = questions.image_features([index])
        inputs = {"input_ids": torch.tensor(questions.prompt(index), dtype=torch.long)[None], **images}
        yield {name: tensor.to(device) for name, tensor in inputs.items()}
