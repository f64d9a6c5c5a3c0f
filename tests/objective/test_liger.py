"""The chunked divergence against that of liger-kernel, which has its own chunks and gradients."""

import pytest
import torch

from masters.objective import logits as logits_module
from masters.objective.logits import Projection
from masters.objective.loss import masters_loss
from masters.objective.options import LossOptions
from masters.objective.token_terms import in_chunks

LIGER = pytest.importorskip(
    "liger_kernel.chunked_loss.jsd_loss",
    reason="liger-kernel is not a pinned package: make test-extras",
)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("shape", "width", "vocabulary"), [((2, 3, 7), 8, 37), ((1, 4, 50), 24, 301)])
def test_value_and_gradients_are_those_of_liger(
    shape: tuple[int, int, int],
    width: int,
    vocabulary: int,
    with_bias: bool,
    padded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logits_module, "CHUNK", 5 * vocabulary)
    torch.manual_seed(0)
    hidden = torch.randn(*shape, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
    bias = torch.randn(vocabulary, requires_grad=True) if with_bias else None
    of_teacher, teacher = torch.randn(*shape, 2 * width), torch.randn(vocabulary, 2 * width) / width**0.5
    teacher_bias = torch.randn(vocabulary) if with_bias else None
    tokens = torch.randint(vocabulary, shape)
    mask = torch.arange(shape[2]) < torch.randint(1, shape[2] + 1, (*shape[:2], 1)) if padded else tokens >= 0
    student = Projection(hidden, weight, bias, vocabulary)
    assert in_chunks(student)
    wanted = [x for x in (hidden, weight, bias) if x is not None]

    scores = Projection(of_teacher, teacher, teacher_bias, vocabulary)
    # Liger's mean is over all tokens at once.
    ours = masters_loss(
        student, scores, tokens, mask, options=LossOptions(rewards=(), averaging="token")
    ).total
    found = torch.autograd.grad(ours, wanted)

    liger = LIGER.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False, chunk_size=16
    )
    labels = tokens.masked_fill(~mask, -100)
    theirs = liger(
        *(hidden.flatten(0, 2), weight, of_teacher.flatten(0, 2), teacher, labels.flatten()),
        student_bias=bias,
        teacher_bias=teacher_bias,
    )
    expected = torch.autograd.grad(theirs, wanted)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert float(ours.detach()) > 0.05
    for gradient, other in zip(found, expected, strict=True):
        assert float(other.abs().max()) > 1e-4
        torch.testing.assert_close(gradient, other, atol=1e-7, rtol=1e-5)
