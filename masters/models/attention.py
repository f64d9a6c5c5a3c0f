"""Which attention reads packed rows, and the mask in the form that it takes.

The rule: in a row of :mod:`masters.models.packing` a token at place q sees one at place k where ``k <= q``,
both belong to the same question, and k lies in the prompt or in q's own response. It comes in two forms:

* SDPA takes a matrix, one bool a pair of places, and computes every pair, also those that it forbids.
* FlexAttention (arXiv 2412.05496) takes the rule itself, and a list of the blocks of 128 x 128 places in
  which it allows a pair. Other blocks are skipped: n responses cost n times one, not the square of it.

FlexAttention has its backward pass on GPUs only, and not every text model is written for it; where it will
not do (:mod:`masters.models.compatibility` finds out) it is SDPA, with the same numbers. Vision towers keep
their own attention. Generation has an attention of its own (:mod:`masters.responses.engines.shared_prompt`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

FLEX = "flex_attention"

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def rule(segment: Tensor, prompt_end: Tensor) -> Rule:
    """Whether a token sees another, as a function of row, head, and the places of the two.

    Args:
        segment: ``(rows, length)``, 0 in a prompt, j in the j-th response to it, -1 where there is padding.
        prompt_end: ``(rows, length)``, the place of the last token of a token's own prompt, which tells the
            questions of a row apart; where there is padding its own place, so that it sees itself: a softmax
            over no token would be NaN.

    Returns:
        A function of four int64 tensors that broadcast, the head without effect, to bool.
    """

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_query, of_key = segment[row, query], segment[row, key]
        same_question = prompt_end[row, query] == prompt_end[row, key]
        return (key <= query) & same_question & ((of_key == 0) | (of_key == of_query))

    return sees


def matrix(segment: Tensor, prompt_end: Tensor) -> Tensor:
    """The rule at every pair of places.

    Args:
        segment: see :func:`rule`.
        prompt_end: see :func:`rule`.

    Returns:
        ``(rows, 1, length, length)`` bool, queries before keys.
    """
    rows, length = segment.shape
    row = torch.arange(rows, device=segment.device)[:, None, None]
    place = torch.arange(length, device=segment.device)
    return rule(segment, prompt_end)(row, row, place[:, None], place)[:, None]


def blocks(segment: Tensor, prompt_end: Tensor) -> BlockMask:
    """The rule and the blocks in which it allows a pair.

    Args:
        segment: see :func:`rule`.
        prompt_end: see :func:`rule`.
    """
    rows, length = segment.shape
    # Compiled, it never holds the matrix; where there is nothing to compile for, it does.
    make = create_block_mask if segment.device.type == "cpu" else torch.compile(create_block_mask)
    made: BlockMask = make(
        rule(segment, prompt_end), B=rows, H=None, Q_LEN=length, KV_LEN=length, device=segment.device
    )
    return made


def is_flex(model: PreTrainedModel) -> bool:
    """Whether the text model attends by FlexAttention now."""
    return bool(model.config.get_text_config()._attn_implementation == FLEX)


@contextmanager
def attending(models: Sequence[PreTrainedModel], implementation: str) -> Iterator[None]:
    """Another attention in the text models; in the end each has its own again.

    Args:
        models: changed in place.
        implementation: as ``transformers`` names it, such as :data:`FLEX`.

    Raises:
        ValueError: a model is not written for it.
    """
    own = [model.config.get_text_config()._attn_implementation for model in models]
    try:
        for model in models:
            model.set_attn_implementation({"text_config": implementation})
        yield
    finally:
        for model, before in zip(models, own, strict=True):
            model.set_attn_implementation({"text_config": before})


def may_flex(model: PreTrainedModel) -> bool:
    """Whether FlexAttention can train a model: its device has the backward pass, its code leaves the choice,
    and there is no dropout in its attention, which FlexAttention lacks."""
    text = model.config.get_text_config()
    if not has_backward(model.device) or getattr(text, "attention_dropout", None):
        return False
    try:
        with attending([model], FLEX):
            return is_flex(model)
    except ValueError:
        return False


def has_backward(device: torch.device) -> bool:
    """Whether a device computes the gradients of FlexAttention."""
    return device.type == "cuda"
