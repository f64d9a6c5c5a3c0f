"""Generation by a model's own ``generate``, for a family that the shared prompt does not fit.

Recurrent states (Qwen3.5, LFM2-VL), inputs beside tokens and images (Gemma 3) and scaled logits are the
model's own business there. A logits processor chooses every token, so sampling, seeds and log-probabilities
are the same as in :mod:`masters.responses.engines.local`; each response computes its own prompt.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from masters.models.loading import token_types
from masters.responses.engines import Response
from masters.responses.engines.batch import Request, features, prepare

Choose = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


class _Chooser(LogitsProcessor):
    """Choose the next tokens and leave ``generate`` no other; keep them with their log-probabilities."""

    def __init__(self, choose: Choose, rows: int, limit: int, device: torch.device) -> None:
        self.choose, self.step, self.rows = choose, 0, torch.arange(rows, device=device)
        self.tokens = torch.zeros(rows, limit, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, limit, device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return ``scores``, ``(rows, vocabulary)``: 0 at the chosen tokens, minus infinity elsewhere."""
        at = self.step
        token, self.logprobs[:, at] = self.choose(input_ids, scores.float(), self.rows, at)
        self.tokens[:, at] = token
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)  # type: ignore[return-value]


@torch.inference_mode()
def generate_natively(
    asked: Request, wanted: Sequence[int], responses: Sequence[int], choose: Choose | None = None
) -> list[Response]:
    """Generate all responses of a batch of questions.

    Args:
        asked: the model and how it answers.
        wanted: indices of the questions.
        responses: indices of each question's responses.
        choose: replaces the sampler.
    """
    model, n = asked.model, len(responses)
    batch = prepare(asked, wanted, responses)
    input_ids, attention = (part.repeat_interleave(n, 0) for part in (batch.input_ids, batch.attention))
    images = features(asked, [index for index in wanted for _ in responses])
    limit = asked.sampling.max_new_tokens
    chooser = _Chooser(choose or batch.sampler, len(input_ids), limit, model.device)
    ends = batch.ends.tolist()
    config = GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=ends, pad_token_id=ends[0])
    own, model.generation_config = model.generation_config, config  # it would fill gaps, such as a penalty
    try:
        model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=attention,
            **images,
            **token_types(model, input_ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([chooser]),
        )
    finally:
        model.generation_config = own
    ended = torch.isin(chooser.tokens[:, : chooser.step], batch.ends)
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, limit)
    return batch.finished(asked.processor, chooser.tokens, chooser.logprobs, lengths)


def log_probabilities(
    asked: Request, wanted: Sequence[int], responses: Sequence[int], tokens: Sequence[Sequence[int]]
) -> Tensor:
    """Return the log-probabilities of given responses by the model's own way, ``(all tokens,)``, in nats.

    Args:
        tokens: of each response, in the order of ``wanted``, then of ``responses``.
    """
    longest = max(map(len, tokens))
    given = torch.zeros(len(tokens), longest, dtype=torch.long, device=asked.model.device)
    for row, ids in zip(given, tokens, strict=True):
        row[: len(ids)] = torch.tensor(ids)

    def repeat(_: Tensor, logits: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        token = given[rows, min(step, longest - 1)]
        return token, logits.log_softmax(-1).gather(1, token[:, None])[:, 0]

    made = generate_natively(asked, wanted, responses, repeat)
    pairs = zip(made, tokens, strict=True)
    return torch.tensor([one for response, ids in pairs for one in (response.logprobs or [])[: len(ids)]])
