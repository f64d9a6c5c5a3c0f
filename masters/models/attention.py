"""Attention over packed rows: who sees whom, as a matrix for SDPA or as blocks for FlexAttention.

In a row of :mod:`masters.models.packing` a token at place q sees one at place k where ``k <= q`` and k lies
in the prompt or in q's own response. The rule comes in two forms:

* SDPA takes a matrix of bools and computes every pair of places, also those that it forbids.
* FlexAttention (arXiv 2412.05496) takes the rule itself and a list of the blocks of 128 x 128 places in which
  it allows a pair. Other blocks are skipped, so n responses cost n times one instead of the square.

FlexAttention has its backward pass on GPUs only, and not every text model supports it. Where it cannot be
used (:mod:`masters.models.compatibility` finds out) SDPA gives the same numbers. Vision towers keep their own
attention. Generation has its own, too (:mod:`masters.responses.engines.shared_prompt`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

FLEX = "flex_attention"

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def rule(segment: Tensor) -> Rule:
    """Return whether a token sees another, as a function of row, head and the places of the two.

    Args:
        segment: ``(rows, length)``, 0 in the prompt, j in the j-th response, -1 in padding, which sees the
            prompt and itself: a softmax over no token would be NaN.

    Returns:
        A function of four int64 tensors that broadcast to a bool tensor; the head has no effect.
    """

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_key = segment[row, key]
        return (key <= query) & ((of_key == 0) | (of_key == segment[row, query]))

    return sees


def matrix(segment: Tensor) -> Tensor:
    """Return the rule at every pair of places, ``(rows, 1, length, length)`` bool, queries before keys."""
    rows, length = segment.shape
    row = torch.arange(rows, device=segment.device)[:, None, None]
    place = torch.arange(length, device=segment.device)
    return rule(segment)(row, row, place[:, None], place)[:, None]


def blocks(segment: Tensor) -> BlockMask:
    """Return the rule and the blocks in which it allows a pair."""
    rows, length = segment.shape
    # Compiled it never holds the matrix; on a CPU it does.
    make = create_block_mask if segment.device.type == "cpu" else torch.compile(create_block_mask)
    made: BlockMask = make(rule(segment), B=rows, H=None, Q_LEN=length, KV_LEN=length, device=segment.device)
    return made


def is_flex(model: PreTrainedModel) -> bool:
    """Return whether the text model uses FlexAttention now."""
    return bool(model.config.get_text_config()._attn_implementation == FLEX)


@contextmanager
def attending(models: Sequence[PreTrainedModel], implementation: str) -> Iterator[None]:
    """Set the attention of text models, and restore each model's own on exit.

    Args:
        models: changed in place.
        implementation: a name of ``transformers``, such as :data:`FLEX`.

    Raises:
        ValueError: a model does not support it.
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
    """Return whether FlexAttention can train a model: device and code support it, and its attention has no
    dropout, which FlexAttention lacks."""
    text = model.config.get_text_config()
    if not has_backward(model.device) or getattr(text, "attention_dropout", None):
        return False
    try:
        with attending([model], FLEX):
            return is_flex(model)
    except ValueError:
        return False


def has_backward(device: torch.device) -> bool:
    """Return whether a device computes the gradients of FlexAttention."""
    return device.type == "cuda"
