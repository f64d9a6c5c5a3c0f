"""The engine on ``transformers``: batched generation that computes each prompt once for all its responses.

One forward pass computes the prompts of a batch. All responses share its keys and values
(:mod:`masters.responses.engines.shared_prompt`) and are decoded together, one token per step. Finished
responses leave the batch once they make up a quarter of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from masters.data.questions import Questions
from masters.models.loading import banned_tokens, load, prompt_positions
from masters.models.source import Source
from masters.responses.engines import Response, Writer
from masters.responses.engines.shared_prompt import held_once
from masters.responses.sampling import draw, processors, uniforms
from masters.settings import Sampling

ROWS = 1024  # responses per batch


class TransformersEngine:
    """The model in this process, on the GPU if there is one."""

    name = "transformers"
    promise = "a response depends on its seed, question and index only, not on batch or order"

    @contextmanager
    def writer(
        self, source: Source, processor: Any, questions: Questions, sampling: Sampling, seed: int | None
    ) -> Iterator[Writer]:
        """Load the model and mask it in memory, see :class:`masters.responses.engines.Engine`."""
        model, _ = load(source.folder)
        if source.ratio:
            source.choice.mask(model).apply(source.ratio)

        def write(wanted: Sequence[int], indices: Sequence[int]) -> Iterator[list[Response]]:
            return generate(model, processor, questions, wanted, indices, sampling, seed)

        yield write


def generate(
    model: PreTrainedModel,
    processor: Any,
    questions: Questions,
    wanted: Sequence[int],
    responses: Sequence[int],
    sampling: Sampling,
    seed: int | None,
) -> Iterator[list[Response]]:
    """Generate responses, one batch of questions at a time.

    Args:
        model: in evaluation mode.
        wanted: indices of the questions.
        responses: indices of each question's responses.
        sampling: greedy decoding uses ``max_new_tokens`` only.
        seed: None decodes greedily.

    Yields:
        All responses of a batch of questions, ordered by question and index.
    """
    order = sorted(wanted, key=lambda index: len(questions.prompt(index)))
    batch = max(1, ROWS // len(responses))
    for start in range(0, len(order), batch):
        yield _generate_batch(
            model, processor, questions, order[start : start + batch], responses, sampling, seed
        )


@torch.inference_mode()
def _generate_batch(
    model: PreTrainedModel,
    processor: Any,
    questions: Questions,
    wanted: Sequence[int],
    responses: Sequence[int],
    sampling: Sampling,
    seed: int | None,
) -> list[Response]:
    n, limit, device = len(responses), sampling.max_new_tokens, model.device
    end = processor.tokenizer.eos_token_id
    prompts = [torch.from_numpy(questions.prompt(index).astype(np.int64)) for index in wanted]
    left = partial(pad_sequence, batch_first=True, padding_side="left")  # all responses start in one column
    input_ids = left(prompts).to(device)
    attention = left([torch.ones_like(prompt) for prompt in prompts]).to(device)
    longest = input_ids.shape[1]
    images = {name: tensor.to(device) for name, tensor in questions.image_features(wanted).items()}
    banned = banned_tokens(processor, model.get_output_embeddings().weight.shape[0])
    warp = processors(sampling, banned)
    identity = [(name, j) for name in questions.table["id"].iloc[list(wanted)] for j in responses]
    if seed is not None:
        noise = torch.from_numpy(uniforms(seed, identity, limit)).to(device)

    prompt_cache = DynamicCache(config=model.config.get_text_config())
    positions, position = prompt_positions(model, input_ids, attention, images)
    hidden = model.model(
        input_ids=input_ids,
        attention_mask=attention,
        position_ids=positions,
        past_key_values=prompt_cache,
        **images,
    ).last_hidden_state[:, -1]
    logits = model.get_output_embeddings()(hidden).float().repeat_interleave(n, 0)
    rows = len(prompts) * n
    position = position.repeat_interleave(n, 0)
    history = torch.zeros(rows, longest + limit, dtype=torch.long, device=device)
    history[:, :longest] = input_ids.repeat_interleave(n, 0)
    seen = nn.functional.pad(attention.repeat_interleave(n, 0), (0, limit), value=1)
    tokens = torch.full((rows, limit), end, dtype=torch.long, device=device)
    logprobs = torch.zeros(rows, limit, device=device)
    support = torch.zeros(rows, limit, device=device)
    lengths = torch.full((rows,), limit, dtype=torch.long, device=device)
    alive = torch.arange(rows, device=device)
    going = torch.ones(rows, dtype=torch.bool, device=device)
    with held_once(model, prompt_cache, attention, n) as cache:
        for step in range(limit):
            whole = logits.log_softmax(-1)
            if seed is None:
                logits[:, banned] = -torch.inf
                allowed = logits.log_softmax(-1)
                token = logits.argmax(-1)
            else:
                for process in warp:
                    logits = process(history[:, : longest + step], logits)
                allowed = logits.log_softmax(-1)
                token = draw(allowed, noise[alive, step])
            tokens[alive, step] = token
            logprobs[alive, step] = whole.gather(1, token[:, None])[:, 0]
            support[alive, step] = allowed.gather(1, token[:, None])[:, 0]
            lengths[alive[going & (token == end)]] = step + 1
            going = going & (token != end)
            if step + 1 == limit or not going.any():
                break
            # Dropping rows copies the cache, so finished rows stay until they are a quarter of the batch.
            if 4 * int(going.sum()) <= 3 * len(going):
                keep = going.nonzero()[:, 0]
                going = going[keep]
                alive, token, position = alive[keep], token[keep], position[keep]
                history, seen = history[keep], seen[keep]
                cache.batch_select_indices(keep)
            history[:, longest + step] = token
            hidden = model.model(
                input_ids=token[:, None],
                attention_mask=seen[:, : longest + step + 1],
                position_ids=position[:, None].expand(*positions.shape[:-2], -1, 1),
                past_key_values=cache,
            ).last_hidden_state[:, -1]
            position = position + 1
            logits = model.get_output_embeddings()(hidden).float()

    columns = [
        [row[:length] for row, length in zip(values.tolist(), lengths.tolist(), strict=True)]
        for values in (tokens, logprobs, support)
    ]
    texts = processor.tokenizer.batch_decode(columns[0], skip_special_tokens=True)
    return [
        Response(name, j, ids, text.strip(), scores, supports, "stop" if ids[-1] == end else "length")
        for (name, j), text, ids, scores, supports in zip(identity, texts, *columns, strict=True)
    ]
