"""Packed distributions against whole ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from masters.objective.divergence import divergence, jsd
from masters.objective.options import Kind
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


KINDS: tuple[Kind, ...] = (
    "jsd",
    "forward_kl",
    "reverse_kl",
    "generalised_jsd",
    "skewed_kl",
    "total_variation",
)


def of_events(p: torch.Tensor, q: torch.Tensor, kind: Kind, mix: float) -> torch.Tensor:
    """The formulas of :func:`masters.objective.divergence.divergence` for ``(tokens, events)``."""

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum(-1)

    m = mix * p + (1 - mix) * q
    return {
        "jsd": (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "generalised_jsd": mix * kl(p, m) + (1 - mix) * kl(q, m),
        "skewed_kl": kl(p, m),
        "total_variation": (p - q).abs().sum(-1) / 2,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_and_its_gradient_are_those_of_k_plus_one_events(kind: Kind) -> None:
    teacher, mix = random(16, 60), 0.3
    student = random(16, 61, 2.0)[:, :60].clone().requires_grad_()
    packed = Packed(torch.from_numpy(encode(teacher, 7)), 60, 7)
    kept = packed.logits(student)  # in float16
    ids = teacher.topk(7).indices
    p, q = (logits.softmax(-1).gather(-1, ids) for logits in (kept, student))
    p, q = (torch.cat([events, 1 - events.sum(-1, keepdim=True)], -1) for events in (p, q))
    expected = of_events(p.detach(), q, kind, mix)
    found = divergence(kept, student, kind, mix=mix)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    weights = torch.arange(1.0, 17.0)
    slopes = [torch.autograd.grad(weights @ value, student)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)
    assert (found <= divergence(teacher, student, kind, mix=mix) + 5e-3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_between_equal_models(kind: Kind) -> None:
    """A long tail, as that of a large vocabulary: 6 % of the mass is beyond 64 entries."""
    whole = (-1.6 * torch.arange(1.0, 150_001).log()).log_softmax(-1)[None]
    packed = Packed(torch.from_numpy(encode(whole, 64)), 150_000, 64)
    assert float(divergence(packed.logits(whole), whole, kind, mix=0.3)) < 1e-3
    assert float(divergence(packed.logits(), whole, "reverse_kl")) > 0.1  # spread evenly


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
