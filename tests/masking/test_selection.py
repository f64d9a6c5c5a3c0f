from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from masters.masking import selection
from masters.masking.selection import RowCut, blocks, magnitude_keys, smallest

INTEGERS = [torch.int16, torch.int32, torch.int64]


def pieces(keys: Tensor, size: int) -> Iterator[Tensor]:
    return iter(keys.split(size))


def some_keys(kind: str, dtype: torch.dtype, n: int) -> Tensor:
    rng = np.random.default_rng(0)
    top = torch.iinfo(dtype).max
    values = {
        "spread": rng.integers(0, top, n, endpoint=True),
        "few": rng.choice([0, 1, top - 1, top], n),
        "equal": np.full(n, top // 3),
        # Wide types agree in the leading digit, so the next ones decide.
        "near": top // 2 + rng.integers(0, 50, n),
    }[kind]
    return torch.from_numpy(values).to(dtype)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("kind", ["spread", "few", "equal", "near"])
@pytest.mark.parametrize("size", [7, 1000])
def test_a_cut_takes_what_a_stable_sort_puts_first(kind: str, dtype: torch.dtype, size: int) -> None:
    keys = some_keys(kind, dtype, 150)
    order = np.argsort(keys.numpy(), kind="stable")
    for count in (1, 2, 37, 149, 150):
        expected = np.zeros(150, dtype=bool)
        expected[order[:count]] = True
        cut = smallest(partial(pieces, keys, size), count)
        assert torch.cat([cut.taken(block) for block in pieces(keys, size)]).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("kind", ["spread", "few", "equal"])
def test_row_cuts_take_what_a_stable_sort_of_each_row_puts_first(kind: str, dtype: torch.dtype) -> None:
    rows = some_keys(kind, dtype, 150).view(10, 15)
    for count in (0, 1, 7, 15):
        expected = np.zeros((10, 15), dtype=bool)
        np.put_along_axis(expected, np.argsort(rows.numpy(), axis=1, kind="stable")[:, :count], True, axis=1)
        taken = RowCut(count, 15).taken(rows.flatten())
        assert taken.view(10, 15).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_keys_are_ordered_as_magnitudes_are(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.randn(200), torch.tensor([0.0, -0.0, 1e-40, -1e-7, 400.0])]).to(dtype)
    keys, magnitudes = magnitude_keys(values).long(), values.double().abs()
    assert keys.min() == 0
    assert torch.equal(keys[:, None] < keys, magnitudes[:, None] < magnitudes)


def test_blocks_cover_everything_in_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "BLOCK", 10)
    assert list(blocks(torch.empty(24), 4)) == [(0, 8), (8, 16), (16, 24)]
    assert list(blocks(torch.empty(25))) == [(0, 10), (10, 20), (20, 25)]
    assert list(blocks(torch.empty(30), 15)) == [(0, 15), (15, 30)]  # a row longer than a block
    assert list(blocks(torch.empty(0), 4)) == [(0, 0)]
