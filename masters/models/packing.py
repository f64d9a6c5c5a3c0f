"""One question and its responses in one row, so that image and prompt are computed once for all of them.

A row is [prompt, response 1, ..., response n]. Each response attends to the prompt and to itself (SDPA takes
the mask as a matrix, and computes the pairs that it forbids too), and its
positions start where the prompt ends, so its logits equal those of a row of its own (Eq. 4 and 5 need the
distributions of several responses to the same question).

Where images have three coordinates (Qwen-VL), the model computes the positions of the prompt, and a response
starts behind the largest coordinate of its prompt, on all three axes alike.

A model that cannot read such rows (:mod:`masters.models.compatibility` finds out) gets one row per response,
a causal mask and the positions that it computes itself: slower, with the same numbers.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from masters.data.questions import concatenate
from masters.models.loading import image_positions, token_types
from masters.objective.logits import Logits, Projection, dense
from masters.runtime.distributed import in_pieces


@dataclass
class PackedBatch:
    """Questions with their responses, padded and ready for a forward pass.

    Attributes:
        input_ids: ``(rows, length)``, prompts and responses except the last token of each response.
        segment: ``(rows, length)``, 0 in the prompt, j in the j-th response to it, -1 in padding.
        positions: ``(rows, length)``, counted from the start of the prompt.
        predictors: ``(questions, responses, tokens)``, the place, among those of all rows in order, whose
            logits predict this token.
        tokens: ``(questions, responses, tokens)``, the responses with their end tokens.
        mask: ``(questions, responses, tokens)`` bool, True where there is a token.
        images: the processed images, in the order of the rows.
        together: whether a row holds all responses to a question; otherwise it holds one.
    """

    input_ids: Tensor
    segment: Tensor
    positions: Tensor
    predictors: Tensor
    tokens: Tensor
    mask: Tensor
    images: dict[str, Tensor]
    together: bool

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Return the batch on another device, without the masks computed so far."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: Any = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        images = {name: tensor.to(device) for name, tensor in self.images.items()}
        return replace(self, **moved, images=images)

    @cached_property
    def matrix(self) -> Tensor:
        """``(rows, 1, length, length)`` bool, True where a token (third axis) sees another (fourth).

        A token at place q sees one at place k where ``k <= q`` and k lies in the prompt or in q's own
        response. Padding sees the prompt and itself: a softmax over no token would be NaN.
        """
        segment = self.segment
        causal = torch.ones(segment.shape[1:] * 2, dtype=torch.bool, device=segment.device).tril()
        own, other = segment[:, :, None], segment[:, None]
        return (causal & ((other == 0) | (other == own)))[:, None]

    @property
    def attention_mask(self) -> Tensor:
        """The matrix; with one row per response ``(rows, length)``, True at tokens."""
        return self.matrix if self.together else self.segment >= 0


def pack(
    prompts: Sequence[np.ndarray],
    responses: Sequence[Sequence[np.ndarray]],
    images: Sequence[Mapping[str, Tensor]],
    together: bool = True,
) -> PackedBatch:
    """Pack questions with their responses.

    Args:
        prompts: token ids of each prompt.
        responses: for each question, the token ids of its responses; the same number for every question.
        images: processed images of each question.
        together: all responses to a question in one row; otherwise one row per response.

    Raises:
        ValueError: no questions, numbers of responses that differ, or an empty response.
    """
    if any(len(response) == 0 for group in responses for response in group):
        raise ValueError("an empty response cannot be packed; it needs at least its end token")
    counts = {len(group) for group in responses}
    if len(counts) != 1 or not len(prompts) == len(responses) == len(images):
        raise ValueError(
            "every question needs its images and the same number of responses, got "
            f"{len(prompts)} prompts, {len(images)} sets of images and groups of {sorted(counts)} responses"
        )
    (n,) = counts
    in_rows = [range(n)] if together else [range(j, j + 1) for j in range(n)]
    layout = [(question, members) for question in range(len(prompts)) for members in in_rows]
    longest = max(len(response) for group in responses for response in group)
    length = max(len(prompts[q]) + sum(len(responses[q][j]) - 1 for j in members) for q, members in layout)
    input_ids = np.zeros((len(layout), length), dtype=np.int64)
    positions = np.zeros((len(layout), length), dtype=np.int64)
    segment = np.full((len(layout), length), -1, dtype=np.int64)
    predictors = np.zeros((len(prompts), n, longest), dtype=np.int64)
    tokens = np.zeros((len(prompts), n, longest), dtype=np.int64)
    mask = np.zeros((len(prompts), n, longest), dtype=bool)
    for row, (q, members) in enumerate(layout):
        end = size = len(prompts[q])
        input_ids[row, :size] = prompts[q]
        positions[row, :size] = np.arange(size)
        segment[row, :size] = 0
        for j in members:
            response = responses[q][j]
            inner = len(response) - 1
            input_ids[row, end : end + inner] = response[:-1]
            positions[row, end : end + inner] = np.arange(size, size + inner)
            segment[row, end : end + inner] = j + 1
            predictors[q, j, 0] = row * length + size - 1
            predictors[q, j, 1 : inner + 1] = row * length + np.arange(end, end + inner)
            tokens[q, j, : inner + 1] = response
            mask[q, j, : inner + 1] = True
            end += inner
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        segment=torch.from_numpy(segment),
        positions=torch.from_numpy(positions),
        predictors=torch.from_numpy(predictors),
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy(mask),
        images=concatenate([images[q] for q, _ in layout]),
        together=together,
    )


def response_hidden(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Return the last hidden states that predict the tokens of the responses.

    Returns:
        ``(questions, responses, tokens, width)``; meaningless where ``batch.mask`` is False.
    """
    hidden: Tensor = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        **_positions(model, batch),
        **batch.images,
    ).last_hidden_state
    # A model that is spread over several GPUs ends on another than it began on.
    return hidden.flatten(0, 1)[batch.predictors.to(hidden.device)]


def hidden_in_parts(model: PreTrainedModel, parts: Sequence[PackedBatch]) -> Tensor:
    """Return the hidden states of groups that are too large for one forward pass, some responses at a time.

    Only these states are kept of a part; the backward pass recomputes each part. As no response sees another,
    states and gradients are those of the whole groups.

    Args:
        parts: the same questions, each with some of its responses.

    Returns:
        ``(questions, responses, tokens, width)``, the responses of all parts in order.
    """
    states = [checkpoint(response_hidden, model, part, use_reentrant=False) for part in parts]
    longest = max(part.shape[2] for part in states)
    return torch.cat([functional.pad(part, (0, 0, 0, longest - part.shape[2])) for part in states], dim=1)


def _positions(model: PreTrainedModel, batch: PackedBatch) -> dict[str, Tensor]:
    """Return the positions of the tokens; with one row per response the model computes its own."""
    in_prompt = batch.segment == 0
    if not batch.together:
        return token_types(model, batch.input_ids, in_prompt)
    found = image_positions(model, batch.input_ids, in_prompt, batch.images)
    if found is None:
        return {"position_ids": batch.positions}
    # The last token of a prompt has its largest coordinate: text follows all before it, and an image ends in
    # its lower right corner.
    end = in_prompt.sum(1, keepdim=True) - 1
    last = found.gather(2, end.expand(len(found), -1, 1)).amax(0)
    return {"position_ids": torch.where(in_prompt, found, last + batch.positions - end)}


def response_projection(model: PreTrainedModel, batch: PackedBatch, vocabulary: int | None = None) -> Logits:
    """Return the logits that predict the tokens of the responses, not yet computed if the head is linear.

    Args:
        vocabulary: entries to keep: the tokens of the tokenizer. Output heads are often padded, to different
            sizes within one family, with rows that have no token; None keeps them.

    Returns:
        ``(questions, responses, tokens, vocabulary)`` in a form of :mod:`masters.objective.logits`: a tensor
        if the head is no plain linear layer or is sharded; meaningless where ``batch.mask`` is False.
    """
    return project(model, response_hidden(model, batch), vocabulary)


def project(model: PreTrainedModel, hidden: Tensor, vocabulary: int | None = None) -> Logits:
    """Apply the output head to hidden states ``(..., width)``; see :func:`response_projection`."""
    head: Any = model.get_output_embeddings()
    factor, cap = head_output(model)
    if type(head) is not nn.Linear or in_pieces(head.weight) or cap is not None:
        made: Tensor = head(hidden)[..., :vocabulary]
        made = made if factor == 1 else factor * made
        return made if cap is None else cap * torch.tanh(made / cap)
    rows = len(head.weight)
    hidden, bias = hidden.to(head.weight.device), cast(Tensor | None, head.bias)
    if factor != 1:
        hidden, bias = factor * hidden, None if bias is None else factor * bias
    return Projection(hidden, head.weight, bias, rows if vocabulary is None else min(vocabulary, rows))


class HeadOutput(NamedTuple):
    """What a model's own forward pass does to the output z of its head: ``cap * tanh(factor * z / cap)``."""

    factor: float = 1.0
    cap: float | None = None


def head_output(model: Any) -> HeadOutput:
    """Return what a model does to the output of its head: nothing in most families.

    Gemma caps it, Granite divides it, HyperCLOVAX multiplies it. The same names in a configuration mean
    different things, or nothing, in different families, so the source of the class decides.
    """
    kind: Any = type(model)
    times, over, capped = _in_source(kind)
    text: Any = model.config.get_text_config()
    factor = getattr(text, times) if times else 1.0
    return HeadOutput(
        factor / getattr(text, over) if over else factor,
        getattr(text, "final_logit_softcapping", None) if capped else None,
    )


@lru_cache
def _in_source(kind: Any) -> tuple[str, str, bool]:
    """Return the names of the setting that a class multiplies and divides logits by, and if it caps them."""
    try:
        source = inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return "", "", False
    times = re.search(r"\* *(?:self\.)?(?:\w+\.)*(logits_scaling|logit_scale|output_multiplier)\b", source)
    over = re.search(r"/ *(?:self\.)?(?:\w+\.)*(logits_scaling)\b", source)
    capped = "final_logit_softcapping" in source and "tanh" in source
    return times[1] if times else "", over[1] if over else "", capped


def response_logits(model: PreTrainedModel, batch: PackedBatch, vocabulary: int | None = None) -> Tensor:
    """Return the same logits as one tensor, ``(questions, responses, tokens, vocabulary)``."""
    return dense(response_projection(model, batch, vocabulary))
