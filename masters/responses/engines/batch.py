"""What both ways of generating in this process share: a batch of prompts, and its finished responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from masters.data.questions import Questions
from masters.models.loading import banned_tokens, stop_tokens
from masters.responses.engines import Response
from masters.responses.sampling import Sampler, uniforms
from masters.settings import Sampling


@dataclass(frozen=True)
class Request:
    """A model and how it answers; for the fields see :func:`masters.responses.engines.local.generate`."""

    model: PreTrainedModel
    processor: Any
    questions: Questions
    sampling: Sampling
    seed: int | None


@dataclass
class Batch:
    """Prompts with the same number of responses each.

    Attributes:
        identity: question id and response index of each row; a question's rows are consecutive.
        input_ids: ``(questions, tokens)``, padded on the left, so all responses start in one column.
        attention: ``(questions, tokens)``, 0 at padding.
        images: processed images of the questions.
        sampler: chooses the next tokens.
        ends: token ids that end a response.
    """

    identity: list[tuple[str, int]]
    input_ids: Tensor
    attention: Tensor
    images: dict[str, Tensor]
    sampler: Sampler
    ends: Tensor

    def finished(self, processor: Any, tokens: Tensor, logprobs: Tensor, lengths: Tensor) -> list[Response]:
        """Return the responses of these rows; ``(rows, tokens)`` each and ``(rows,)``."""
        columns = [
            [row[:length] for row, length in zip(values.tolist(), lengths.tolist(), strict=True)]
            for values in (tokens, logprobs)
        ]
        texts = processor.tokenizer.batch_decode(columns[0], skip_special_tokens=True)
        ends = set(self.ends.tolist())
        return [
            Response(name, j, ids, text.strip(), scores, "stop" if ids[-1] in ends else "length")
            for (name, j), text, ids, scores in zip(self.identity, texts, *columns, strict=True)
        ]


def features(asked: Request, wanted: Sequence[int]) -> dict[str, Tensor]:
    """Return the processed images of some questions, on the model's device and in its type."""
    device, kind = asked.model.device, asked.model.dtype
    images = asked.questions.image_features(wanted)
    return {
        name: image.to(device, kind if image.is_floating_point() else image.dtype)
        for name, image in images.items()
    }


def prepare(asked: Request, wanted: Sequence[int], responses: Sequence[int]) -> Batch:
    """Return the batch of some questions, ``wanted``, with the responses of these indices."""
    questions, model, device = asked.questions, asked.model, asked.model.device
    banned = banned_tokens(asked.processor, model.get_output_embeddings().weight.shape[0])
    prompts = [torch.from_numpy(questions.prompt(index).astype(np.int64)) for index in wanted]
    # The padding repeats a token of the prompt, so that the repetition penalty sees no other token.
    never = set(banned)
    shown = [next((token for token in prompt.tolist() if token not in never), 0) for prompt in prompts]
    left = partial(pad_sequence, batch_first=True, padding_side="left")
    attention = left([torch.ones_like(prompt) for prompt in prompts])
    input_ids = left(prompts).where(attention == 1, torch.tensor(shown)[:, None])
    identity = [(name, j) for name in questions.table["id"].iloc[list(wanted)] for j in responses]
    noise = None
    if asked.seed is not None:
        drawn = uniforms(asked.seed, identity, asked.sampling.max_new_tokens)
        noise = torch.from_numpy(drawn).to(device)
    return Batch(
        identity,
        input_ids.to(device),
        attention.to(device),
        features(asked, wanted),
        Sampler(asked.sampling, banned, noise),
        torch.tensor(stop_tokens(asked.processor, model.generation_config), device=device),
    )
