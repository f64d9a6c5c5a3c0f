"""The engine on ``transformers``: batched generation that computes each prompt once for all its responses.

One forward pass computes the prompts of a batch. All responses share its keys and values
(:mod:`masters.responses.engines.shared_prompt`) and are decoded together, one token per step. Finished
responses leave the batch once they make up a quarter of it. A model that this does not fit generates by its
own ``generate`` (:mod:`masters.responses.engines.native`); which way fits is tried on two questions.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from masters.data.questions import Questions
from masters.models.loading import prompt_positions, token_types
from masters.models.packing import project
from masters.models.source import Source
from masters.objective.logits import dense
from masters.responses.engines import Response, Writer
from masters.responses.engines.batch import Request, prepare
from masters.responses.engines.native import generate_natively, log_probabilities
from masters.responses.engines.shared_prompt import held_once
from masters.runtime.errors import typed_line
from masters.runtime.memory import free_bytes, is_full, release
from masters.settings import Sampling

ROWS = 1024  # responses per batch, at most
USED = 0.6  # of the free memory
LOGITS = 8  # copies of a row of logits, in float32, at once
TRIED = Sampling(top_p=1.0, top_k=0, repetition_penalty=1.0, max_new_tokens=4)
# Largest difference of a log-probability, in nats, that the rounding of a type explains.
TOLERANCE = {torch.float64: 1e-2, torch.float32: 1e-2}
LOW_PRECISION = 0.5

_misfits: dict[str, str] = {}


class TransformersEngine:
    """The model in this process, on the GPU if there is one.

    Args:
        batch: responses per batch; None fits it to the free memory. It does not change responses.
    """

    name = "transformers"
    determinism = (
        "a response depends on its seed, question and index only, not on batch or order; in 16 bits, "
        "rounding may differ between batches, which can change a token"
    )

    def __init__(self, batch: int | None = None) -> None:
        self.batch = batch

    @contextmanager
    def writer(
        self, source: Source, processor: Any, questions: Questions, sampling: Sampling, seed: int | None
    ) -> Iterator[Writer]:
        """Load the model and mask it in memory, see :class:`masters.responses.engines.Engine`."""
        model = source.load()

        def write(wanted: Sequence[int], indices: Sequence[int]) -> Iterator[list[Response]]:
            return generate(model, processor, questions, wanted, indices, sampling, seed, self.batch)

        yield write


def generate(
    model: PreTrainedModel,
    processor: Any,
    questions: Questions,
    wanted: Sequence[int],
    responses: Sequence[int],
    sampling: Sampling,
    seed: int | None,
    batch: int | None = None,
) -> Iterator[list[Response]]:
    """Generate responses, one batch of questions at a time.

    Args:
        model: a model in evaluation mode.
        wanted: indices of the questions.
        responses: indices of each question's responses.
        sampling: greedy decoding uses ``max_new_tokens`` only.
        seed: None decodes greedily.
        batch: responses per batch; None fits it to the free memory. It is halved when memory is full.

    Yields:
        All responses of a batch of questions, ordered by question and index.

    Raises:
        ValueError: one response does not fit the memory, or the model cannot generate.
    """
    order = sorted(wanted, key=lambda index: len(questions.prompt(index)))
    if not order:
        return
    asked = Request(model, processor, questions, sampling, seed)
    reason = misfit(asked, order)
    longest = len(questions.prompt(order[-1]))
    prompt = longest if reason else longest / len(responses)
    rows = batch or fitting_rows(model, prompt, sampling.max_new_tokens)
    while order:
        count = max(1, rows // len(responses))
        groups = [responses[start : start + rows] for start in range(0, len(responses), rows)]
        made = _made(asked, order[:count], groups, reason)
        if made is not None:
            order = order[count:]
            yield made
            continue
        if rows == 1:
            raise ValueError(
                f"question {questions.table['id'].iloc[order[0]]}: the memory is too small for one response "
                f"of {sampling.max_new_tokens} tokens; lower max_new_tokens, or use smaller images"
            )
        rows = max(1, min(rows, len(order[:count]) * len(responses)) // 2)
        release()


def _made(
    asked: Request, wanted: Sequence[int], groups: Sequence[Sequence[int]], reason: str
) -> list[Response] | None:
    """Return the responses of a batch, one group of response indices at a time; None if memory is full."""
    way = generate_natively if reason else _generate_shared
    try:
        return [response for group in groups for response in way(asked, wanted, group)]
    except (RuntimeError, MemoryError, ValueError, TypeError, AttributeError, LookupError) as error:
        if is_full(error):
            return None
        if not reason:
            raise
        raise ValueError(
            f"{type(asked.model).__name__} cannot generate: {reason}, and by its own generate "
            f"{typed_line(error)}; generate with engine vllm or openai"
        ) from error


def fitting_rows(model: PreTrainedModel, prompt: float, limit: int) -> int:
    """Return how many responses the free memory holds at once, from 1 to ``ROWS``; see :func:`row_bytes`."""
    return max(1, min(ROWS, int(USED * free_bytes(model.device) / row_bytes(model, prompt, limit))))


def row_bytes(model: PreTrainedModel, prompt: float, limit: int) -> float:
    """Return the bytes that a response takes beside the weights: keys and values, activations and logits.

    Args:
        model: may be on the meta device.
        prompt: tokens of the prompt per response.
        limit: tokens of a response.

    Raises:
        AttributeError: the configuration names its sizes otherwise.
    """
    text: Any = model.config.get_text_config()
    width, heads = text.hidden_size, text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    size = groups * (getattr(text, "head_dim", None) or width // heads)
    inner = getattr(text, "intermediate_size", None) or 4 * width
    weight = model.get_output_embeddings().weight
    cache = 2 * text.num_hidden_layers * size * (prompt + limit) * weight.element_size()
    activations = prompt * (8 * width + 3 * inner) * weight.element_size()
    logits = LOGITS * 4 * weight.shape[0]
    return cache + activations + logits


def misfit(asked: Request, order: Sequence[int]) -> str:
    """Return why a model cannot share prompts, or "" if it can; tried once per class and number of devices.

    The shortest and the longest prompt get two short responses each. Their log-probabilities have to be those
    of the model's own ``generate``.

    Warns:
        UserWarning: once per class of models that cannot.
    """
    name = type(asked.model).__name__
    devices = {parameter.device for parameter in asked.model.parameters()}
    key = f"{name} {type(asked.model.config.get_text_config()).__name__} {len(devices)}"
    if key not in _misfits:
        tried = replace(asked, sampling=TRIED, seed=0)
        reason = _misfits[key] = _difference(tried, sorted({order[0], order[-1]}, key=order.index))
        if reason:
            line = f"{name} generates by its own way, with a prompt per response: {reason}"
            warnings.warn(line, stacklevel=3)
    return _misfits[key]


def _difference(asked: Request, wanted: Sequence[int]) -> str:
    try:
        made = _generate_shared(asked, wanted, range(2))
    except Exception as error:  # whatever a model of another family makes of such a cache
        return "" if is_full(error) else typed_line(error)
    try:
        own = log_probabilities(asked, wanted, range(2), [response.tokens for response in made])
    except Exception:  # the model has no other way
        return ""
    ours = torch.tensor([one for response in made for one in response.logprobs or []])
    most = TOLERANCE.get(asked.model.dtype, LOW_PRECISION)
    largest = float((ours - own).abs().max())
    if largest <= most or not own.isfinite().all():
        return ""
    return f"its log-probabilities differ by {largest:.2g} nats and {asked.model.dtype} explains {most:g}"


@torch.inference_mode()
def _generate_shared(asked: Request, wanted: Sequence[int], responses: Sequence[int]) -> list[Response]:
    model, n, limit = asked.model, len(responses), asked.sampling.max_new_tokens
    batch = prepare(asked, wanted, responses)
    input_ids, attention, images = batch.input_ids, batch.attention, batch.images
    longest, device = input_ids.shape[1], model.device
    prompt_cache = DynamicCache(config=model.config.get_text_config())
    positions, position = prompt_positions(model, input_ids, attention, images)
    hidden = model.model(
        input_ids=input_ids,
        attention_mask=attention,
        position_ids=positions,
        past_key_values=prompt_cache,
        **token_types(model, input_ids),
        **images,
    ).last_hidden_state[:, -1]
    # A model that is spread over several GPUs ends on another than it began on.
    logits = dense(project(model, hidden)).float().to(device).repeat_interleave(n, 0)
    rows = len(input_ids) * n
    position = position.repeat_interleave(n, 0)
    history = torch.zeros(rows, longest + limit, dtype=torch.long, device=device)
    history[:, :longest] = input_ids.repeat_interleave(n, 0)
    seen = nn.functional.pad(attention.repeat_interleave(n, 0), (0, limit), value=1)
    tokens = torch.zeros(rows, limit, dtype=torch.long, device=device)
    logprobs = torch.zeros(rows, limit, device=device)
    lengths = torch.full((rows,), limit, dtype=torch.long, device=device)
    alive = torch.arange(rows, device=device)
    going = torch.ones(rows, dtype=torch.bool, device=device)
    with held_once(model, prompt_cache, attention, n) as cache:
        for step in range(limit):
            token, scores = batch.sampler(history[:, : longest + step], logits, alive, step)
            tokens[alive, step], logprobs[alive, step] = token, scores
            ended = torch.isin(token, batch.ends)
            lengths[alive[going & ended]] = step + 1
            going = going & ~ended
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
            logits = dense(project(model, hidden)).float().to(device)
    return batch.finished(asked.processor, tokens, logprobs, lengths)
