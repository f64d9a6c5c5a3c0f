"""A key-value cache that holds each prompt once for all its responses, and its attention for one token.

The n responses to a question share the prompt's keys and values; each response stores only its own tokens.
The scores s = q K / sqrt(size) are computed over the prompt, for all n queries in one product, and over the
response's own tokens. One softmax runs over both, so the result equals that of a cache with n copies, for 1/n
of the prompt's memory and memory reads (shared prefixes: Hydragen, arXiv 2402.05099).

Plain matrix products are also faster on a CPU, where the fused kernel is slow for a single query.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

BLOCK = 32  # positions that a response's cache grows by; small products use a slow kernel
NAME = "masters_shared_prompt"


class _Layer(DynamicLayer):
    """One layer: keys and values of prompts, ``(questions, heads, positions, size)``, and of responses.

    Those of responses, ``(rows, heads, positions, size)``, include unused positions for later tokens, because
    a contiguous tensor is read twice as fast as a slice.
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
        """Append one token's keys and values, ``(rows, heads, 1, size)``; return those of the responses."""
        if self.length == self.keys.shape[2]:
            # Zeros, because unused positions must be finite.
            self.keys, self.values = (
                nn.functional.pad(states, (0, 0, 0, BLOCK)) for states in (self.keys, self.values)
            )
        self.keys[:, :, self.length] = key_states[:, :, 0]
        self.values[:, :, self.length] = value_states[:, :, 0]
        self.length += 1
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return the number of used positions, including the prompt's."""
        return int(self.prompt_keys.shape[2]) + self.length


class SharedPrompt(Cache):
    """The cache of a batch of questions with n responses each; for its arguments see :func:`held_once`."""

    def __init__(self, prompts: DynamicCache, seen: Tensor, n: int) -> None:
        self._layers = [_Layer(layer, n) for layer in prompts.layers if isinstance(layer, DynamicLayer)]
        super().__init__(layers=list(self._layers))
        keys = self._layers[0].prompt_keys
        self._padding = torch.zeros(len(seen), 1, 1, seen.shape[1], dtype=keys.dtype, device=keys.device)
        self._padding.masked_fill_(seen[:, None, None] == 0, torch.finfo(keys.dtype).min)
        self._n = n
        self._slots = torch.arange(len(seen) * n, device=keys.device)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows ``indices``, ascending, and drop prompts without responses."""
        slots = self._slots[indices]
        questions, place = (slots // self._n).unique(return_inverse=True)
        self._slots = place * self._n + slots % self._n
        for layer in self._layers:  # which may be on several devices
            rows, kept = indices.to(layer.keys.device), questions.to(layer.keys.device)
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
            if len(questions) < len(self._padding):
                layer.prompt_keys = layer.prompt_keys[kept]
                layer.prompt_values = layer.prompt_values[kept]
        self._padding = self._padding[questions]

    def attend(self, number: int, query: Tensor, scaling: float) -> Tensor:
        """Attend from one token per row, already in the cache, to its prompt and response.

        Args:
            number: index of the layer.
            query: ``(rows, heads, 1, size)``; several query heads may share a key head.

        Returns:
            ``(rows, 1, heads, size)``.
        """
        layer = self._layers[number]
        rows, heads, _, size = query.shape
        query = query.reshape(rows, layer.keys.shape[1], -1, size) * scaling
        padding = self._padding.to(query.device)
        of_prompt = self._apart(self._together(query) @ layer.prompt_keys.mT + padding)
        of_own = (query @ layer.keys.mT)[..., : layer.length]
        weights = torch.cat((of_prompt, of_own), -1).softmax(-1, dtype=torch.float32).to(query.dtype)
        at_prompt, at_own = weights.split([of_prompt.shape[-1], layer.length], -1)
        at_own = nn.functional.pad(at_own, (0, layer.keys.shape[2] - layer.length))
        read = self._apart(self._together(at_prompt) @ layer.prompt_values) + at_own @ layer.values
        return read.reshape(rows, 1, heads, -1)

    def _together(self, of_rows: Tensor) -> Tensor:
        """Reshape ``(rows, heads, groups, any)`` to ``(questions, heads, n * groups, any)``, 0 if dropped."""
        rows, heads, groups, last = of_rows.shape
        if rows < len(self._padding) * self._n:
            whole = of_rows.new_zeros(len(self._padding) * self._n, heads, groups, last)
            of_rows = whole.index_copy_(0, self._slots.to(of_rows.device), of_rows)
        return of_rows.view(-1, self._n, heads, groups, last).transpose(1, 2).flatten(2, 3)

    def _apart(self, of_questions: Tensor) -> Tensor:
        """Reshape back to ``(rows, heads, groups, any)``."""
        of_rows = of_questions.unflatten(2, (self._n, -1)).transpose(1, 2).flatten(0, 1)
        return of_rows if len(of_rows) == len(self._slots) else of_rows[self._slots.to(of_rows.device)]


@contextmanager
def held_once(model: PreTrainedModel, prompts: DynamicCache, seen: Tensor, n: int) -> Iterator[Cache]:
    """Return the cache to generate n responses per prompt, and switch the model's attention to it.

    A model with custom attention or a sliding window gets a cache with n copies of each prompt.

    Args:
        model: its attention is restored on exit.
        prompts: filled by one forward pass over the prompts; its tensors are reused.
        seen: ``(questions, positions)``, 1 at prompt tokens, 0 at padding.
        n: responses per question, in consecutive rows.
    """
    plain = all(type(layer) is DynamicLayer for layer in prompts.layers)
    if not plain or model.config.get_text_config()._attn_implementation != "sdpa":
        prompts.batch_repeat_interleave(n)
        yield prompts
        return
    cache = SharedPrompt(prompts, seen, n)
    token = _read.set(cache)
    try:
        model.set_attn_implementation({"text_config": NAME})
        yield cache
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})
        _read.reset(token)


_read: ContextVar[SharedPrompt] = ContextVar("_read")


def _attend(
    module: nn.Module, query: Tensor, *_: Tensor | None, scaling: float | None = None, **__: object
) -> tuple[Tensor, None]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _read.get().attend(int(module.layer_idx), query, scaling), None  # type: ignore[arg-type]


AttentionInterface.register(NAME, _attend)
