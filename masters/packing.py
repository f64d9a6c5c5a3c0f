"""One question and its responses as one sequence: the image and the prompt are computed once for all of them.

A row is [prompt, response 1, ..., response n]. Each response attends to the prompt and to itself, and its
positions start where the prompt ends, so its logits equal those of a row of its own (Eq. 4 and 5 need
the distributions of several responses to the same question). A single response is the special case n = 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass
class PackedBatch:
    """Questions with their responses, padded and ready for a forward pass.

    Attributes:
        input_ids: ``(questions, length)``, the prompts and all responses but their last tokens.
        attention: ``(questions, 1, length, length)`` bool, True where a token may look.
        positions: ``(questions, length)``.
        predictors: ``(questions, responses, tokens)``, the place in the row whose logits predict this token.
        tokens: ``(questions, responses, tokens)``, the responses, end token included.
        mask: ``(questions, responses, tokens)`` bool, True where there is a token.
        images: what the processor made of the pictures.
    """

    input_ids: Tensor
    attention: Tensor
    positions: Tensor
    predictors: Tensor
    tokens: Tensor
    mask: Tensor
    images: dict[str, Tensor]

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on another device."""
        moved = {name: tensor.to(device) for name, tensor in vars(self).items() if isinstance(tensor, Tensor)}
        return PackedBatch(**moved, images={name: tensor.to(device) for name, tensor in self.images.items()})


def pack(
    prompts: Sequence[np.ndarray],
    responses: Sequence[Sequence[np.ndarray]],
    images: dict[str, Tensor],
    pad_token: int = 0,
) -> PackedBatch:
    """Pack questions with their responses, a question a row.

    Args:
        prompts: token ids of each prompt.
        responses: for each question, the token ids of its responses; the same number for every question.
        images: processed pictures of the questions.
        pad_token: id that fills the rest of a row; what it is never matters.

    Raises:
        ValueError: no questions, numbers of responses that differ, or an empty response.
    """
    counts = {len(group) for group in responses}
    if len(counts) != 1 or len(prompts) != len(responses):
        raise ValueError(f"every question needs the same number of responses, got {sorted(counts)}")
    if any(len(response) == 0 for group in responses for response in group):
        raise ValueError("an empty response cannot be packed; it needs at least its end token")
    (n,) = counts
    longest = max(len(response) for group in responses for response in group)
    length = max(
        len(prompt) + sum(len(r) - 1 for r in group) for prompt, group in zip(prompts, responses, strict=True)
    )
    rows = len(prompts)
    input_ids = np.full((rows, length), pad_token, dtype=np.int64)
    positions = np.zeros((rows, length), dtype=np.int64)
    segment = np.full((rows, length), -1, dtype=np.int64)  # 0 prompt, j > 0 response j, -1 padding
    predictors = np.zeros((rows, n, longest), dtype=np.int64)
    tokens = np.zeros((rows, n, longest), dtype=np.int64)
    mask = np.zeros((rows, n, longest), dtype=bool)
    for row, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        size = len(prompt)
        input_ids[row, :size] = prompt
        positions[row, :size] = np.arange(size)
        segment[row, :size] = 0
        end = size
        for j, response in enumerate(group):
            inner = len(response) - 1
            input_ids[row, end : end + inner] = response[:-1]
            positions[row, end : end + inner] = np.arange(size, size + inner)
            segment[row, end : end + inner] = j + 1
            predictors[row, j, 0] = size - 1
            predictors[row, j, 1 : inner + 1] = np.arange(end, end + inner)
            tokens[row, j, : inner + 1] = response
            mask[row, j, : inner + 1] = True
            end += inner
    key, query = segment[:, None, :], segment[:, :, None]
    # Padding looks at the prompt: a row of the attention matrix without a single True would give NaN.
    attention = np.tril(np.ones((length, length), dtype=bool)) & ((key == 0) | ((key == query) & (key > 0)))
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        attention=torch.from_numpy(attention[:, None]),
        positions=torch.from_numpy(positions),
        predictors=torch.from_numpy(predictors),
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy(mask),
        images=images,
    )


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
        attention_mask=batch.attention,
        position_ids=batch.positions,
        use_cache=False,
        **batch.images,
    ).last_hidden_state
    questions, responses, tokens = batch.tokens.shape
    places = batch.predictors.view(questions, responses * tokens, 1).expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, places).view(questions, responses, tokens, -1)


def response_logits(model: PreTrainedModel, batch: PackedBatch, vocabulary: int | None = None) -> Tensor:
    """Logits that predict the tokens of the responses, and no others.

    Args:
        model: any of the models of this family.
        batch: packed questions with their responses.
        vocabulary: entries to keep: the tokens that the tokenizer has. Output heads are often padded with
            rows that no token has, to different sizes within one family; None keeps them.

    Returns:
        ``(questions, responses, tokens, vocabulary)``; meaningless where ``batch.mask`` is False.
    """
    logits: Tensor = model.get_output_embeddings()(response_hidden(model, batch))
    return logits[..., :vocabulary]
