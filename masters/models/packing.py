"""One question and its responses as one sequence: the image and the prompt are computed once for all of them.

A row is [prompt, response 1, ..., response n]. Each response attends to the prompt and to itself, and its
positions start where the prompt ends, so its logits equal those of a row of its own (Eq. 4 and 5 need
the distributions of several responses to the same question). A single response is the special case n = 1.

Where images have three coordinates (Qwen-VL), the model itself says where the prompt stands, and a response
starts behind the largest coordinate of its prompt, on all three axes alike.

Questions of uneven lengths leave much of a batch to padding; with ``share_rows`` the short ones share a row,
as long as it gets no longer than that of the longest question. Longer rows would not pay where attention is
computed for every pair of places, also for those that the mask forbids (:mod:`masters.models.attention`).

A model that cannot read such rows (:mod:`masters.models.compatibility` finds out) gets a row a response, a
causal mask and the positions that it makes itself: slower, the same numbers.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from masters.data.questions import concatenate
from masters.models import attention
from masters.models.loading import image_positions
from masters.objective.logits import Logits, Projection, dense
from masters.runtime.distributed import in_pieces


@dataclass
class PackedBatch:
    """Questions with their responses, padded and ready for a forward pass.

    Attributes:
        input_ids: ``(rows, length)``, prompts and responses but the last token of each response.
        segment: ``(rows, length)``, 0 in a prompt, j in the j-th response to it, -1 where there is padding.
        positions: ``(rows, length)``, counted from the start of the prompt.
        prompt_end: ``(rows, length)``, the place in its row of the last token of a token's own prompt; its
            own place where there is padding.
        predictors: ``(questions, responses, tokens)``, among all places of all rows in order the one whose
            logits predict this token.
        tokens: ``(questions, responses, tokens)``, the responses, end token included.
        mask: ``(questions, responses, tokens)`` bool, True where there is a token.
        images: what the processor made of the pictures, in the order in which the rows show them.
        together: whether a row holds all responses to a question; otherwise it holds one.
    """

    input_ids: Tensor
    segment: Tensor
    positions: Tensor
    prompt_end: Tensor
    predictors: Tensor
    tokens: Tensor
    mask: Tensor
    images: dict[str, Tensor]
    together: bool

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on another device, its masks not yet made."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: Any = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        images = {name: tensor.to(device) for name, tensor in self.images.items()}
        return replace(self, **moved, images=images)

    @cached_property
    def matrix(self) -> Tensor:
        """``(rows, 1, length, length)`` bool, True where a token sees another."""
        return attention.matrix(self.segment, self.prompt_end)

    @cached_property
    def blocks(self) -> BlockMask:
        """The same for FlexAttention."""
        return attention.blocks(self.segment, self.prompt_end)

    def mask_for(self, model: PreTrainedModel) -> Tensor | BlockMask:
        """What tells a model's attention who sees whom, made once; with one row a response the model knows,
        and ``(rows, length)``, True where there is a token, is enough."""
        if not self.together:
            return self.segment >= 0
        return self.blocks if attention.is_flex(model) else self.matrix


def pack(
    prompts: Sequence[np.ndarray],
    responses: Sequence[Sequence[np.ndarray]],
    images: Sequence[Mapping[str, Tensor]],
    pad_token: int = 0,
    together: bool = True,
    share_rows: bool = False,
) -> PackedBatch:
    """Pack questions with their responses.

    Args:
        prompts: token ids of each prompt.
        responses: for each question, the token ids of its responses; the same number for every question.
        images: for each question, its processed pictures.
        pad_token: id that fills the rest of a row; what it is never matters.
        together: all responses to a question in one row; otherwise a response a row.
        share_rows: several questions in one row where they fit.

    Raises:
        ValueError: no questions, numbers of responses that differ, or an empty response.
    """
    if any(len(response) == 0 for group in responses for response in group):
        raise ValueError("an empty response cannot be packed; it needs at least its end token")
    counts = {len(group) for group in responses}
    if len(counts) != 1 or not len(prompts) == len(responses) == len(images):
        raise ValueError(
            "every question needs its pictures and the same number of responses, got "
            f"{len(prompts)} prompts, {len(images)} sets of pictures and groups of {sorted(counts)} responses"
        )
    (n,) = counts
    questions = range(len(prompts))
    if not together:
        layout = [[(q, range(j, j + 1))] for q in questions for j in range(n)]
    elif share_rows:
        sizes = [_size(prompts[q], responses[q]) for q in questions]
        layout = [[(q, range(n)) for q in row] for row in _first_fit(sizes)]
    else:
        layout = [[(q, range(n))] for q in questions]
    longest = max(len(response) for group in responses for response in group)
    length = max(sum(_size(prompts[q], [responses[q][j] for j in of_q]) for q, of_q in row) for row in layout)
    input_ids = np.full((len(layout), length), pad_token, dtype=np.int64)
    positions = np.zeros((len(layout), length), dtype=np.int64)
    prompt_end = np.tile(np.arange(length), (len(layout), 1))
    segment = np.full((len(layout), length), -1, dtype=np.int64)
    predictors = np.zeros((len(prompts), n, longest), dtype=np.int64)
    tokens = np.zeros((len(prompts), n, longest), dtype=np.int64)
    mask = np.zeros((len(prompts), n, longest), dtype=bool)
    for number, row in enumerate(layout):
        end = 0
        for q, of_q in row:
            start, size = end, len(prompts[q])
            end += size
            input_ids[number, start:end] = prompts[q]
            positions[number, start:end] = np.arange(size)
            segment[number, start:end] = 0
            last = end - 1
            for j in of_q:
                response = responses[q][j]
                inner = len(response) - 1
                input_ids[number, end : end + inner] = response[:-1]
                positions[number, end : end + inner] = np.arange(size, size + inner)
                segment[number, end : end + inner] = j + 1
                predictors[q, j, 0] = number * length + last
                predictors[q, j, 1 : inner + 1] = number * length + np.arange(end, end + inner)
                tokens[q, j, : inner + 1] = response
                mask[q, j, : inner + 1] = True
                end += inner
            prompt_end[number, start:end] = last
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        segment=torch.from_numpy(segment),
        positions=torch.from_numpy(positions),
        prompt_end=torch.from_numpy(prompt_end),
        predictors=torch.from_numpy(predictors),
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy(mask),
        images=concatenate([images[q] for row in layout for q, _ in row]),
        together=together,
    )


def _size(prompt: np.ndarray, responses: Sequence[np.ndarray]) -> int:
    return len(prompt) + sum(len(response) - 1 for response in responses)


def _first_fit(sizes: Sequence[int]) -> list[list[int]]:
    """Rows of questions: the longest first, each into the first row that has room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for question in sorted(range(len(sizes)), key=lambda question: -sizes[question]):
        number = next((number for number, left in enumerate(room) if sizes[question] <= left), len(rows))
        if number == len(rows):
            rows.append([])
            room.append(max(sizes))
        rows[number].append(question)
        room[number] -= sizes[question]
    return rows


def response_hidden(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Last hidden states that predict the tokens of the responses, and no others.

    Args:
        model: any of the models of this family.
        batch: packed questions with their responses.

    Returns:
        ``(questions, responses, tokens, width)``; meaningless where ``batch.mask`` is False.
    """
    hidden: Tensor = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask_for(model),
        use_cache=False,
        **_positions(model, batch),
        **batch.images,
    ).last_hidden_state
    return hidden.flatten(0, 1)[batch.predictors]


def hidden_in_parts(model: PreTrainedModel, parts: Sequence[PackedBatch]) -> Tensor:
    """Hidden states of groups that are too large to be read at once: some responses of each after the others.

    Nothing but these states is kept of a part; the backward pass reads each part once more. As no response
    sees another, the states and the gradients are those of the whole groups.

    Args:
        model: any of the models of this family.
        parts: the same questions, each with some of its responses.

    Returns:
        ``(questions, responses, tokens, width)``, the responses of all parts in order.
    """
    states = [checkpoint(response_hidden, model, part, use_reentrant=False) for part in parts]
    longest = max(part.shape[2] for part in states)
    return torch.cat([functional.pad(part, (0, 0, 0, longest - part.shape[2])) for part in states], dim=1)


def _positions(model: PreTrainedModel, batch: PackedBatch) -> dict[str, Tensor]:
    """What tells a model where the tokens stand; with one row a response it is left to the model."""
    if not batch.together:
        if "mm_token_type_ids" not in inspect.signature(model.model.forward).parameters:
            return {}
        return {"mm_token_type_ids": (batch.input_ids == model.config.image_token_id).int()}
    in_prompt = batch.segment == 0
    found = image_positions(model, batch.input_ids, in_prompt, batch.images)
    if found is None:
        return {"position_ids": batch.positions}
    # The last token of a prompt holds its largest coordinate: text comes after all that is before it, and an
    # image ends in its lower right corner.
    last = found.gather(2, batch.prompt_end.expand_as(found)).amax(0)
    behind = batch.positions - batch.positions.gather(1, batch.prompt_end)
    return {"position_ids": torch.where(in_prompt, found, last + behind)}


def response_projection(model: PreTrainedModel, batch: PackedBatch, vocabulary: int | None = None) -> Logits:
    """The logits that predict the tokens of the responses, not yet made; see :mod:`masters.objective.logits`.

    Args:
        model: any of the models of this family.
        batch: packed questions with their responses.
        vocabulary: entries to keep: the tokens that the tokenizer has. Output heads are often padded with
            rows that no token has, to different sizes within one family; None keeps them.

    Returns:
        ``(questions, responses, tokens, vocabulary)``, as a tensor where the head is not a plain linear
        layer or is spread over processes; meaningless where ``batch.mask`` is False.
    """
    return project(model, response_hidden(model, batch), vocabulary)


def project(model: PreTrainedModel, hidden: Tensor, vocabulary: int | None = None) -> Logits:
    """What the output head makes of hidden states ``(..., width)``; see :func:`response_projection`."""
    head: Any = model.get_output_embeddings()
    if type(head) is not nn.Linear or in_pieces(head.weight):
        made: Tensor = head(hidden)
        return made[..., :vocabulary]
    rows = len(head.weight)
    return Projection(hidden, head.weight, head.bias, rows if vocabulary is None else min(vocabulary, rows))


def response_logits(model: PreTrainedModel, batch: PackedBatch, vocabulary: int | None = None) -> Tensor:
    """The same logits as one tensor, ``(questions, responses, tokens, vocabulary)``."""
    return dense(response_projection(model, batch, vocabulary))
