"""What a ratio could reach: the plain way's operations over the fast way's.

At this ratio both ways compute as many floating-point operations per second. Counted are matrix products,
convolutions and attention, forward and backward; attention over a dense mask counts the pairs that it
forbids, because they are computed. A way that also saves memory traffic or Python can exceed the limit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch has no formula for the CPU's


def limit(fast: Callable[[], object], plain: Callable[[], object]) -> float:
    """Return the operations of the plain way over those of the fast way."""
    return _operations(plain) / _operations(fast)


def _operations(way: Callable[[], object]) -> int:
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            _ATTENTION: _forward,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
        },
    )
    with counter:
        way()
    return counter.get_total_flops()


def _forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))
