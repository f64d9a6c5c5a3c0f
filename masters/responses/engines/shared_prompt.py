"""A prompt held once for all its responses: the cache, and the attention of one token at a time.

The idea: the n responses to a question see the same prompt. Its keys and values are kept once, not once a
response, and the n queries of a question meet them in one product; only what a response wrote itself is its
own. With scores s = q K / sqrt(size) over the prompt and over the own tokens, the softmax runs over both
together, so the result is that of a cache with n copies, for 1/n of the memory and of the reading of a
prompt, which with its image is most of it (shared prefixes: Hydragen, arXiv 2402.05099).

Plain products are also the faster way on a CPU, where the fused kernel is slow for a single query.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from masters.models.attention import attending

BLOCK = 32  # places that the part of a response grows by; small products have a slow kernel
NAME = "masters_shared_prompt"


class _Layer(DynamicLayer):
    """One layer: a prompt's keys and values ``(questions, heads, places, size)``, and each response's.

    Those of responses, ``(rows, heads, places, size)``, have free places for tokens to come, and are handed
    out with them: memory with gaps is read at half the speed.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, prompt: DynamicLayer, n: int) -> None:
        super().__init__()
        assert prompt.keys is not None and prompt.values is not None
        self.lazy_initialization(prompt.keys, prompt.values)
        self.prompt_keys, self.prompt_values = prompt.keys, prompt.values
        rows, heads, _, size = self.prompt_keys.shape
        self.keys = self.prompt_keys.new_zeros(rows * n, heads, BLOCK, size)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values ``(rows, heads, 1, size)`` of one token; returns what responses wrote."""
        if self.length == self.keys.shape[2]:
            # Zeros, because what is not taken yet must be finite.
            self.keys, self.values = (
                nn.functional.pad(states, (0, 0, 0, BLOCK)) for states in (self.keys, self.values)
            )
        self.keys[:, :, self.length] = key_states[:, :, 0]
        self.values[:, :, self.length] = value_states[:, :, 0]
        self.length += 1
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """How many places are taken, the prompt's among them."""
        return int(self.prompt_keys.shape[2]) + self.length


class SharedPrompt(Cache):
    """The cache of a batch of questions that each have n responses, row after row.

    Args:
        prompts: filled by one forward pass over the prompts; its tensors are taken over.
        seen: ``(questions, places)``, 1 at tokens of a prompt, 0 at its padding.
        n: responses of each question.
    """

    def __init__(self, prompts: DynamicCache, seen: Tensor, n: int) -> None:
        self._layers = [_Layer(layer, n) for layer in prompts.layers if isinstance(layer, DynamicLayer)]
        super().__init__(layers=list(self._layers))
        keys = self._layers[0].prompt_keys
        self._padding = torch.zeros(len(seen), 1, 1, seen.shape[1], dtype=keys.dtype, device=keys.device)
        self._padding.masked_fill_(seen[:, None, None] == 0, torch.finfo(keys.dtype).min)
        self._n = n
        self._slots = torch.arange(len(seen) * n, device=keys.device)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Forget the responses that are not among some, and prompts without responses.

        Args:
            indices: of the responses that stay, ascending, as they are counted now.
        """
        slots = self._slots[indices]
        questions, place = (slots // self._n).unique(return_inverse=True)
        self._slots = place * self._n + slots % self._n
        for layer in self._layers:
            layer.keys, layer.values = layer.keys[indices], layer.values[indices]
            if len(questions) < len(self._padding):
                layer.prompt_keys, layer.prompt_values = (
                    layer.prompt_keys[questions],
                    layer.prompt_values[questions],
                )
        self._padding = self._padding[questions]

    def attend(self, number: int, query: Tensor, scaling: float) -> Tensor:
        """Attention of one token a row, which the cache has already, to its prompt and to its response.

        Args:
            number: of the layer.
            query: ``(rows, heads, 1, size)``; several of these heads may share a head of the keys.
            scaling: factor of the scores.

        Returns:
            ``(rows, 1, heads, size)``.
        """
        layer = self._layers[number]
        rows, heads, _, size = query.shape
        query = query.reshape(rows, layer.keys.shape[1], -1, size) * scaling
        of_prompt = self._apart(self._together(query) @ layer.prompt_keys.mT + self._padding)
        of_own = (query @ layer.keys.mT)[..., : layer.length]
        weights = torch.cat((of_prompt, of_own), -1).softmax(-1, dtype=torch.float32).to(query.dtype)
        at_prompt, at_own = weights.split([of_prompt.shape[-1], layer.length], -1)
        at_own = nn.functional.pad(at_own, (0, layer.keys.shape[2] - layer.length))
        read = self._apart(self._together(at_prompt) @ layer.prompt_values) + at_own @ layer.values
        return read.reshape(rows, 1, heads, -1)

    def _together(self, of_rows: Tensor) -> Tensor:
        """``(rows, heads, groups, any)`` to ``(questions, heads, n * groups, any)``, 0 where a row left."""
        rows, heads, groups, last = of_rows.shape
        if rows < len(self._padding) * self._n:
            whole = of_rows.new_zeros(len(self._padding) * self._n, heads, groups, last)
            of_rows = whole.index_copy_(0, self._slots, of_rows)
        return of_rows.view(-1, self._n, heads, groups, last).transpose(1, 2).flatten(2, 3)

    def _apart(self, of_questions: Tensor) -> Tensor:
        """Back to ``(rows, heads, groups, any)``."""
        of_rows = of_questions.unflatten(2, (self._n, -1)).transpose(1, 2).flatten(0, 1)
        return of_rows if len(of_rows) == len(self._slots) else of_rows[self._slots]


@contextmanager
def held_once(model: PreTrainedModel, prompts: DynamicCache, seen: Tensor, n: int) -> Iterator[Cache]:
    """The cache for writing n responses to each prompt, one new token a row, and a model that reads it.

    A model with an attention of its own, or with a window that forgets, gets n copies of the prompts.

    Args:
        model: attends in its own way again afterwards.
        prompts: filled by one forward pass over the prompts; its tensors are taken over.
        seen: ``(questions, places)``, 1 at tokens of a prompt, 0 at its padding.
        n: responses of each question, row after row.
    """
    plain = all(type(layer) is DynamicLayer for layer in prompts.layers)
    if not plain or model.config.get_text_config()._attn_implementation != "sdpa":
        prompts.batch_repeat_interleave(n)
        yield prompts
        return
    cache = SharedPrompt(prompts, seen, n)
    token = _read.set(cache)
    try:
        with attending([model], NAME):
            yield cache
    finally:
        _read.reset(token)


_read: ContextVar[SharedPrompt] = ContextVar("_read")


def _attend(
    module: nn.Module, query: Tensor, *_: Tensor | None, scaling: float | None = None, **__: object
) -> tuple[Tensor, None]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _read.get().attend(int(module.layer_idx), query, scaling), None  # type: ignore[arg-type]


AttentionInterface.register(NAME, _attend)
