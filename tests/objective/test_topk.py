"""Packed distributions against whole ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from masters.objective.divergence import jsd
from masters.objective.topk import Packed, bytes_per_token, encode, storage_bytes
from masters.responses.teacher_logprobs import TopK


def random(tokens: int, vocabulary: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocabulary)
    return (scale * torch.randn(tokens, vocabulary, generator=generator)).log_softmax(-1)


def unpacked(packed: np.ndarray, vocabulary: int, k: int) -> torch.Tensor:
    return Packed(torch.from_numpy(packed), vocabulary, k).logits()


@pytest.mark.parametrize(("vocabulary", "k"), [(2, 1), (7, 3), (256, 64), (257, 64), (151_936, 64)])
def test_the_largest_entries_are_restored(vocabulary: int, k: int) -> None:
    whole = random(5, vocabulary)
    packed = encode(whole, k)
    assert packed.dtype == np.uint8 and packed.shape == (5, bytes_per_token(vocabulary, k))
    back = unpacked(packed, vocabulary, k)
    top, ids = whole.topk(k)
    assert torch.allclose(back.gather(-1, ids), top, atol=5e-3)
    assert torch.allclose(back.exp().sum(-1), torch.ones(5), atol=1e-2)
    distance = 0.5 * (back.exp() - whole.exp()).abs().sum(-1)
    assert (distance <= 1 - top.exp().sum(-1) + 5e-3).all()
    rest = torch.ones_like(back, dtype=torch.bool).scatter(-1, ids, False)
    assert all(len(row[keep].unique()) == 1 for row, keep in zip(back, rest, strict=True))


def test_64_entries_of_a_large_vocabulary_take_274_bytes() -> None:
    assert bytes_per_token(151_936, 64) == 274
    assert storage_bytes(10, 151_936, 64) == 2740
    assert storage_bytes(10, 151_936, None) == 10 * 2 * 151_936


def test_a_certain_teacher_stays_finite() -> None:
    logits = torch.full((1, 50), -1e4)
    logits[0, 7] = 1e4
    back = unpacked(encode(logits.log_softmax(-1), 4), 50, 4)
    assert back[0, 7] == 0 and back[0].isfinite().all()


def test_the_divergence_approaches_the_true_one_as_k_grows() -> None:
    teacher, student = random(64, 500), random(64, 500, 1.0)
    true = jsd(teacher, student)
    errors = [
        float((jsd(unpacked(encode(teacher, k), 500, k), student) - true).abs().mean())
        for k in (1, 8, 64, 400)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 < errors[0]


@pytest.mark.parametrize("k", [0, -1, 10, 11])
def test_a_k_that_keeps_nothing_or_everything_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="give 1 to 9"):
        encode(random(2, 10), k)


def test_a_file_is_read_response_by_response(tmp_path: Path) -> None:
    whole = random(6, 30)
    np.save(tmp_path / "topk.npy", encode(whole, 5))
    np.save(tmp_path / "topk.offsets.npy", [0, 2, 2, 6])
    np.save(tmp_path / "topk.shape.npy", [30, 5])
    kept = TopK(tmp_path)
    assert len(kept) == 3 and [kept[i].shape for i in range(3)] == [(2, 30), (0, 30), (4, 30)]
    assert torch.equal(kept[2].logits(), unpacked(encode(whole[2:], 5), 30, 5))


def test_packed_tokens_can_be_selected_and_reshaped() -> None:
    packed = Packed(torch.from_numpy(encode(random(6, 300), 9)), 300, 9)
    folded = packed.map(lambda rows: rows.view(2, 3, -1))
    assert folded.shape == (2, 3, 300)
    assert torch.equal(folded.logits().view(6, 300), packed.logits())
    assert torch.equal(packed.map(lambda rows: rows[2:4]).logits(), packed.logits()[2:4])
