"""Whether questions fit the models of a run, found out before the first step and not after a night.

A packed row needs a model that takes a mask of its own for every row and has no other way from one response
to the next (a window over the row, a recurrent state). That is asked of the model, not of a list of names:
one question with two responses is read packed and a row a response, and the logits have to be the same up to
the rounding of the weights' type. Where they are not, the run goes on with one row a response. On a GPU the
packed row is tried with FlexAttention first (:mod:`masters.models.attention`).

How many image tokens a picture needs is asked of the model too, once for each kind of picture, since a prompt
with too few or too many would see its picture shifted or the picture of another question.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from masters.data.questions import Questions
from masters.models.attention import FLEX, attending, may_flex
from masters.models.packing import PackedBatch, pack, response_logits

# Largest difference of the logits of a token, as a share of their norm; a wrong mask or position gives more.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_warned: set[str] = set()


@dataclass(frozen=True)
class Fit:
    """What the models of a run can read.

    Attributes:
        together: whether all of them read the responses to a question in one row.
        image_token: its id.
        image_tokens: for each question, how many of them its prompt needs; None where the models do not say.
        positions: tokens that the shortest of the models can read.
        flex: whether all of them read such rows with FlexAttention.
    """

    together: bool
    image_token: int
    image_tokens: np.ndarray | None
    positions: float
    flex: bool

    def check(
        self, questions: Questions, index: int, prompt: np.ndarray, responses: Sequence[np.ndarray]
    ) -> None:
        """Refuse a prompt that does not fit; nothing is ever cut off.

        Raises:
            ValueError: it has another number of image tokens than its picture has features, or is too long
                with its responses; the message names the question.
        """
        found = int((prompt == self.image_token).sum())
        if self.image_tokens is not None and found != self.image_tokens[index]:
            raise ValueError(
                f"question {_name(questions, index)!r}: its prompt has {found} image tokens and the models "
                f"make {self.image_tokens[index]} of its picture; encode it with the processor of the models"
            )
        longest = max(map(len, responses))
        if len(prompt) + longest - 1 > self.positions:
            raise ValueError(
                f"question {_name(questions, index)!r}: a prompt of {len(prompt)} tokens and a response of "
                f"{longest} do not fit the {self.positions:g} positions of the models; leave it out or make "
                "its picture smaller"
            )


def fit(models: Sequence[PreTrainedModel], questions: Questions) -> Fit:
    """What models can read, tried on the first question.

    Args:
        models: which all will read the same batches.
        questions: of the run.

    Raises:
        ValueError: the models make different numbers of image tokens of the same picture.
    """
    known = None
    for model in models:
        counts = image_tokens(model, questions)
        if known is not None and counts is not None and (counts != known).any():
            first = int((counts != known).argmax())
            raise ValueError(
                f"question {_name(questions, first)!r}: one model of the run makes {known[first]} "
                f"image tokens of its picture and another {counts[first]}; choose models of one family"
            )
        known = counts if known is None else known
    flex = all([reads_packed_with_flex(model, questions) for model in models])
    return Fit(
        together=flex or all([reads_packed(model, questions) for model in models]),
        image_token=models[0].config.image_token_id,
        image_tokens=known,
        positions=min(_positions(model) for model in models),
        flex=flex,
    )


@torch.no_grad()
def image_tokens(model: PreTrainedModel, questions: Questions) -> np.ndarray | None:
    """For each question, how many image tokens a model makes of its picture; None where it does not say.

    The vision tower runs once for each kind of picture (:meth:`masters.data.questions.Questions.kinds`).
    """
    inner: Any = model.model
    if not hasattr(inner, "get_image_features"):
        return None
    kind, examples = questions.kinds()
    counts = []
    for index in examples:
        images = {name: tensor.to(model.device) for name, tensor in questions.image_features([index]).items()}
        if not images:
            counts.append(0)
            continue
        features = inner.get_image_features(**images).pooler_output
        counts.append(sum(part.numel() // part.shape[-1] for part in features))
    return np.array(counts, dtype=np.int64)[kind]


def reads_packed(model: PreTrainedModel, questions: Questions) -> bool:
    """Whether a model gives the responses to a question in one row the logits of a row each.

    Tried on the first question, with two pieces of its own wording for responses.

    Args:
        model: in whatever mode; it is read in evaluation mode.
        questions: at least one.

    Warns:
        UserWarning: once for each class of models that does not.
    """
    reason = _hindrance(model) or _difference(model, questions, flex=False)
    instead = "each response gets a row of its own, which is slower"
    _warn(model, "several responses in one row", reason, instead)
    return not reason


def reads_packed_with_flex(model: PreTrainedModel, questions: Questions) -> bool:
    """The same of FlexAttention, against rows alone with the model's own attention.

    Args:
        model: in whatever mode; it is read in evaluation mode.
        questions: at least one.

    Warns:
        UserWarning: once for each class of models that could have it and does not.
    """
    if _hindrance(model) or not may_flex(model):
        return False
    reason = _difference(model, questions, flex=True)
    _warn(model, "packed rows with FlexAttention", reason, "SDPA reads them")
    return not reason


def _warn(model: PreTrainedModel, what: str, reason: str, instead: str) -> None:
    line = f"{type(model).__name__} cannot read {what}"
    if reason and line not in _warned:
        _warned.add(line)
        warnings.warn(f"{line}: {reason}; {instead}", stacklevel=3)


def _hindrance(model: PreTrainedModel) -> str:
    text = model.config.get_text_config()
    attention = text._attn_implementation
    if attention not in ("sdpa", FLEX):
        return (
            f"its attention is {attention!r} and only 'sdpa' or {FLEX!r} take the mask (attn_implementation)"
        )
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    if window and "sliding_attention" in kinds:
        return f"it looks back {window} tokens only"
    return ""


@torch.no_grad()
def _difference(model: PreTrainedModel, questions: Questions, flex: bool) -> str:
    prompt = questions.prompt(0)
    words = prompt[prompt != model.config.image_token_id]
    given = [prompt], [[words[-4:], words[:6]]], [questions.image_features([0])]
    packed, rows = (pack(*given, together=together).to(model.device) for together in (True, False))
    training = model.training
    model.eval()
    try:
        expected = response_logits(model, rows)[rows.mask].float()
        try:
            found = (_with_flex if flex else response_logits)(model, packed)[packed.mask].float()
        except Exception as error:  # whatever a model of some other family makes of such a mask
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    finally:
        model.train(training)
    if not expected.isfinite().all():
        return ""  # a broken model is no matter of packing; its loss will say so
    largest = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
    tolerance = TOLERANCE.get(model.dtype, max(TOLERANCE.values()))
    if not largest <= tolerance:  # nor where it is not a number
        return f"its logits differ by {largest:.2g} of their norm, and {model.dtype} explains {tolerance:g}"
    return ""


@torch.enable_grad()
def _with_flex(model: PreTrainedModel, packed: PackedBatch) -> torch.Tensor:
    """Logits by FlexAttention. Its backward pass is another kernel, so that is tried too, in the last layer
    alone: what all layers keep for it may not fit before training begins to save memory."""
    decoder: Any = model.get_decoder()
    layer, trained = decoder.layers[-1], [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    layer.requires_grad_()
    try:
        with attending([model], FLEX):
            logits = response_logits(model, packed)
            torch.autograd.grad(logits.sum(), [p for p in layer.parameters() if p.ndim == 1])
    finally:
        layer.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_()
    return logits.detach()


def _positions(model: PreTrainedModel) -> float:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


def _name(questions: Questions, index: int) -> str:
    return str(questions.table["id"].iloc[index])
