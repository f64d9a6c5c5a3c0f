"""Check, before the first step, that the models of a run can read its questions.

A packed row needs a model that takes a mask per row and has no other path from one response to the next, such
as a sliding window or a recurrent state. This is measured, not looked up in a list of names: the logits of
two responses in one packed row must equal those of the model's own forward pass on each response alone, up to
the rounding of the weights' type. Otherwise the run continues with one row per response.

How many image tokens an image needs is measured too, once for each kind of image. With too few or too many in
its prompt, a question would get its image shifted, or the image of another question.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from masters.data.questions import Questions
from masters.models.loading import token_types
from masters.models.packing import pack, response_logits
from masters.runtime.errors import typed_line

MEASURED = 64  # kinds of images
# Largest difference of a token's logits, relative to their norm; a wrong mask or position gives more.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_warned: set[str] = set()


@dataclass(frozen=True)
class Compatibility:
    """What all models of a run can read.

    Attributes:
        together: whether they read all responses to a question in one row.
        image_token: its id.
        image_tokens: per question, how many of them its prompt needs, -1 where it was not measured; None if
            the models do not tell.
        positions: tokens that the model with the shortest context can read.
    """

    together: bool
    image_token: int
    image_tokens: np.ndarray | None
    positions: float

    def check(
        self, questions: Questions, index: int, prompt: np.ndarray, responses: Sequence[np.ndarray]
    ) -> None:
        """Check that a prompt fits; nothing is ever truncated.

        Raises:
            ValueError: the number of image tokens does not match the image, or the prompt is too long with
                its responses; the message names the question.
        """
        found = int((prompt == self.image_token).sum())
        if self.image_tokens is not None and self.image_tokens[index] not in (found, -1):
            raise ValueError(
                f"question {_name(questions, index)!r}: its prompt has {found} image tokens and the models "
                f"make {self.image_tokens[index]} of its image; encode it with the processor of the models"
            )
        longest = max(map(len, responses))
        if len(prompt) + longest - 1 > self.positions:
            raise ValueError(
                f"question {_name(questions, index)!r}: a prompt of {len(prompt)} tokens and a response of "
                f"{longest} do not fit the {self.positions:g} positions of the models; leave it out or make "
                "its image smaller"
            )


def measure(models: Sequence[PreTrainedModel], questions: Questions) -> Compatibility:
    """Measure what models can read that read the same batches, on the first question and an image per kind.

    Raises:
        ValueError: the models make different numbers of image tokens of the same image.
    """
    known = None
    for model in models:
        counts = image_tokens(model, questions)
        if known is not None and counts is not None and (counts != known).any():
            first = int((counts != known).argmax())
            raise ValueError(
                f"question {_name(questions, first)!r}: one model of the run makes {known[first]} "
                f"image tokens of its image and another {counts[first]}; choose models of one family"
            )
        known = counts if known is None else known
    return Compatibility(
        together=all([reads_packed(model, questions) for model in models]),
        image_token=models[0].config.image_token_id,
        image_tokens=known,
        positions=min(context(model) for model in models),
    )


@torch.no_grad()
def image_tokens(model: PreTrainedModel, questions: Questions) -> np.ndarray | None:
    """Return how many image tokens a model makes of each question's image; None if it does not tell.

    The vision tower runs once for each kind of image (:meth:`masters.data.questions.Questions.kinds`), but
    for no more than the first :data:`MEASURED`: pictures of any size can have thousands. Others have -1.
    """
    inner: Any = model.model
    if not hasattr(inner, "get_image_features"):
        return None
    kind, examples = questions.kinds()
    counts = np.full(len(examples), -1, dtype=np.int64)
    for place, index in enumerate(examples[:MEASURED]):
        images = {name: tensor.to(model.device) for name, tensor in questions.image_features([index]).items()}
        if not images:
            counts[place] = 0
            continue
        features = inner.get_image_features(**images).pooler_output
        counts[place] = sum(part.numel() // part.shape[-1] for part in features)
    return counts[kind]


def reads_packed(model: PreTrainedModel, questions: Questions) -> bool:
    """Return whether the logits of a packed row are those of the model's own forward pass.

    Tried on the first question, with two pieces of its own text as responses. Where they are not, the same is
    tried with one row per response.

    Warns:
        UserWarning: once per class of models and layout that differs.
    """
    reason = _hindrance(model) or _difference(model, questions, together=True)
    _warn(model, "several responses in one row", reason, "each response gets its own row, which is slower")
    if reason:
        alone = _difference(model, questions, together=False)
        _warn(model, "padded rows", alone, "its distributions may be wrong in batches of several lengths")
    return not reason


def _warn(model: PreTrainedModel, what: str, reason: str, instead: str) -> None:
    line = f"{type(model).__name__} cannot read {what}"
    if reason and line not in _warned:
        _warned.add(line)
        warnings.warn(f"{line}: {reason}; {instead}", stacklevel=3)


def _hindrance(model: PreTrainedModel) -> str:
    """Return why a model cannot read packed rows, without trying; empty if it may."""
    text = model.config.get_text_config()
    attention = text._attn_implementation
    if attention != "sdpa":
        return f"its attention is {attention!r} and only 'sdpa' takes the mask (attn_implementation)"
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    if window and "sliding_attention" in kinds:
        return f"its attention has a window of {window} tokens"
    return ""


@torch.no_grad()
def _difference(
    model: PreTrainedModel,
    questions: Questions,
    together: bool,
) -> str:
    """Return how the logits of a packed batch differ from the model's own; empty if they do not."""
    prompt, images = questions.prompt(0), questions.image_features([0])
    words = prompt[prompt != model.config.image_token_id]
    responses = [words[-4:], words[:6]]
    batch = pack([prompt], [responses], [images], together=together).to(model.device)
    training = model.training
    model.eval()
    try:
        expected = torch.cat([_own_logits(model, prompt, response, images) for response in responses])
        try:
            found = response_logits(model, batch)[batch.mask].float()
        except Exception as error:  # a model of another family may fail on such a mask in any way
            return typed_line(error)
    finally:
        model.train(training)
    if not expected.isfinite().all():
        return ""  # a broken model, not a wrong packing; its loss will say so
    largest = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
    tolerance = TOLERANCE.get(model.dtype, max(TOLERANCE.values()))
    if not largest <= tolerance:  # also if it is NaN
        return f"its logits differ by {largest:.2g} of their norm, and {model.dtype} explains {tolerance:g}"
    return ""


def _own_logits(
    model: PreTrainedModel, prompt: np.ndarray, response: np.ndarray, images: dict[str, Tensor]
) -> Tensor:
    """Return the logits of the model's own forward pass for one response: one row, no mask, no padding."""
    row = torch.from_numpy(np.concatenate([prompt, response[:-1]]).astype(np.int64))[None].to(model.device)
    in_prompt = torch.arange(row.shape[1], device=row.device)[None] < len(prompt)
    kinds = token_types(model, row, in_prompt)
    pixels = {name: tensor.to(model.device) for name, tensor in images.items()}
    found: Tensor = model(input_ids=row, use_cache=False, **kinds, **pixels).logits
    return found[0, len(prompt) - 1 :].float()


def context(model: PreTrainedModel) -> float:
    """Return how many tokens a model can read; infinity if its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


def _name(questions: Questions, index: int) -> str:
    return str(questions.table["id"].iloc[index])
