import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from masters.objective import divergence
from masters.objective.divergence import Kind, jsd

KINDS: tuple[Kind, ...] = get_args(Kind)
MIXES = {"generalised_jsd": (0.1, 0.5, 0.9), "skewed_kl": (0.0, 0.1, 0.5)}
CASES = [(kind, mix) for kind in KINDS for mix in MIXES.get(kind, (0.5,))]

Divergence = Callable[[Tensor, Tensor], Tensor]


def logits(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def of_kind(kind: Kind, mix: float = 0.5) -> Divergence:
    def function(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        return divergence.divergence(teacher_logits, student_logits, kind, mix=mix)

    function.__name__ = f"{kind}-{mix}"
    return function


ALL = [of_kind(kind, mix) for kind, mix in CASES]


def naive(kind: Kind, mix: float, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    log_p, log_q = (x.double().log_softmax(-1) for x in (teacher_logits, student_logits))
    p, q = log_p.exp(), log_q.exp()
    m = mix * p + (1 - mix) * q
    to_m = [(x * (x / m).log()).sum(-1) for x in (p, q)]
    values: dict[Kind, Tensor] = {
        "jsd": (to_m[0] + to_m[1]) / 2,
        "forward_kl": (p * (log_p - log_q)).sum(-1),
        "reverse_kl": (q * (log_q - log_p)).sum(-1),
        "generalised_jsd": mix * to_m[0] + (1 - mix) * to_m[1],
        "skewed_kl": to_m[0],
        "total_variation": (p - q).abs().sum(-1) / 2,
    }
    return values[kind]


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_jsd_against_scipy(seed: int, scale: float) -> None:
    teacher, student = logits(4, 5, 37, seed=seed, scale=scale), logits(4, 5, 37, seed=seed + 9, scale=scale)
    p, q = softmax(teacher.double().numpy(), -1), softmax(student.double().numpy(), -1)
    value = jsd(teacher, student)
    assert value.shape == (4, 5) and value.dtype == torch.float32
    np.testing.assert_allclose(value, jensenshannon(p, q, axis=-1) ** 2, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_kls_against_scipy(seed: int) -> None:
    teacher, student = logits(4, 5, 37, seed=seed), logits(4, 5, 37, seed=seed + 9)
    p, q = softmax(teacher.double().numpy(), -1), softmax(student.double().numpy(), -1)
    for kind, expected in (("forward_kl", entropy(p, q, axis=-1)), ("reverse_kl", entropy(q, p, axis=-1))):
        np.testing.assert_allclose(of_kind(kind)(teacher, student), expected, rtol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("mix", [0.1, 0.5, 0.9])
def test_generalised_jsd_and_its_gradient_against_trl(mix: float) -> None:
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    teacher, student = logits(6, 7, 50, seed=1), logits(6, 7, 50, seed=2).requires_grad_()
    theirs = trainer.generalized_jsd_loss(student, teacher, beta=mix, reduction="sum")
    ours = of_kind("generalised_jsd", mix)(teacher, student).sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(x, student)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    if mix == 0.5:
        torch.testing.assert_close(jsd(teacher, student).sum(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
@pytest.mark.parametrize(("kind", "mix"), CASES)
def test_every_kind_against_float64_autograd(kind: Kind, mix: float, scale: float) -> None:
    teacher = logits(9, 33, seed=3, scale=scale)
    student, wide = (
        logits(9, 33, seed=4, scale=scale).to(d).requires_grad_() for d in (torch.float32, torch.float64)
    )
    upstream = logits(9, seed=5)
    ours = divergence.divergence(teacher, student, kind, mix=mix)
    theirs = naive(kind, mix, teacher, wide)
    (our_gradient,) = torch.autograd.grad(ours, student, upstream)
    (their_gradient,) = torch.autograd.grad(theirs, wide, upstream.double())
    for mine, reference in ((ours, theirs), (our_gradient, their_gradient)):
        rounding = 5e-7 * max(1.0, reference.abs().max().item())
        torch.testing.assert_close(mine.double(), reference, rtol=2e-4, atol=rounding)


def test_the_kinds_meet_at_their_limits() -> None:
    teacher, student = (logits(20, 30, seed=seed, dtype=torch.float64) for seed in (1, 2))

    def value(kind: Kind, mix: float = 0.5) -> Tensor:
        return divergence.divergence(teacher, student, kind, mix=mix)

    torch.testing.assert_close(value("generalised_jsd"), value("jsd"))
    torch.testing.assert_close(value("skewed_kl", 0.0), value("forward_kl"))
    near = 1e-8
    torch.testing.assert_close(value("generalised_jsd", near) / near, value("forward_kl"), rtol=5e-3, atol=0)
    torch.testing.assert_close(
        value("generalised_jsd", 1 - near) / near, value("reverse_kl"), rtol=5e-3, atol=0
    )
    assert (value("total_variation") <= 1).all()
    assert (value("total_variation") ** 2 <= value("forward_kl") / 2).all()  # Pinsker
    for kind, mix in CASES:
        assert divergence.divergence(teacher, teacher, kind, mix=mix).abs().max() < 1e-6


def test_an_unknown_kind_or_mix_is_refused() -> None:
    for kind, mix, said in (
        ("cosine", 0.5, "choose from jsd, forward_kl"),
        ("generalised_jsd", 0.0, "between 0 and 1"),
        ("generalised_jsd", 1.0, "between 0 and 1"),
        ("skewed_kl", 1.0, "from 0 to below 1"),
        ("skewed_kl", float("nan"), "from 0 to below 1"),
    ):
        with pytest.raises(ValueError, match=said):
            divergence.divergence(logits(2, 3), logits(2, 3), kind, mix=mix)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", ALL)
def test_gradcheck_in_float64(function: Divergence) -> None:
    first, second = (logits(3, 2, 6, seed=seed, dtype=torch.float64) for seed in (6, 7))
    assert torch.autograd.gradcheck(lambda student: function(first, student), (second.requires_grad_(),))


def test_log_probabilities_have_the_gradient_of_logits() -> None:
    teacher = logits(5, 20, seed=1)
    student = logits(5, 20, seed=2).requires_grad_()
    (direct,) = torch.autograd.grad(jsd(teacher, student).sum(), student)
    (through,) = torch.autograd.grad(jsd(teacher.log_softmax(-1), student.log_softmax(-1)).sum(), student)
    torch.testing.assert_close(through, direct, rtol=1e-4, atol=1e-7)


def test_only_the_student_gets_a_gradient() -> None:
    teacher, student = logits(4, 8, seed=1).requires_grad_(), logits(4, 8, seed=2).requires_grad_()
    sum(function(teacher, student).sum() for function in ALL).backward()
    assert teacher.grad is None and student.grad is not None
    with torch.no_grad():
        assert not jsd(teacher, student).requires_grad


def test_limits_of_jsd() -> None:
    first, second = logits(50, 30, seed=1), logits(50, 30, seed=2)
    assert torch.equal(jsd(first, first), torch.zeros(50))
    torch.testing.assert_close(
        jsd(first, first + 7.5), torch.zeros(50), rtol=0, atol=1e-6
    )  # logits shift freely
    torch.testing.assert_close(jsd(first, second), jsd(second, first))
    assert (jsd(first, second) >= 0).all() and (jsd(first, second) <= math.log(2) + 1e-6).all()
    apart = torch.tensor([1e4, 0.0, -1e4]), torch.tensor([-1e4, 0.0, 1e4])
    assert jsd(*apart).item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("function", ALL)
def test_rounding_never_makes_a_divergence_negative(function: Divergence) -> None:
    first = logits(2000, 300, seed=1)
    second = first + logits(2000, 300, seed=2, scale=1e-6)
    assert (function(first, second) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", ALL)
def test_huge_logits_stay_finite(function: Divergence, dtype: torch.dtype) -> None:
    sign = logits(20, 12, seed=3).sign()
    first = (sign * 1e4).to(dtype).requires_grad_()
    second = (sign.roll(1, -1) * 1e4).to(dtype).requires_grad_()
    value = function(first, second)
    assert value.dtype == torch.float32 and value.isfinite().all() and (value >= 0).all()
    value.sum().backward()
    assert second.grad is not None and second.grad.isfinite().all() and second.grad.dtype == dtype


def test_forbidden_tokens_do_not_count() -> None:
    first, second = logits(6, 9, seed=1), logits(6, 9, seed=2)
    column = torch.full((6, 3), -math.inf)
    wide = [torch.cat([x, column], -1).requires_grad_() for x in (first, second)]
    for function in (jsd, of_kind("reverse_kl")):
        value = function(*wide)
        torch.testing.assert_close(value, function(first, second))
        (gradient,) = torch.autograd.grad(value.sum(), wide[1])
        assert gradient.isfinite().all() and not gradient[:, 9:].any()
    forbidding = torch.cat([second[:, :8], column[:, :1]], -1)
    assert of_kind("reverse_kl")(forbidding, first).isinf().all()


@pytest.mark.parametrize("function", ALL)
def test_blocks_do_not_change_the_result(function: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for block in (1, 64, 1 << 20):
        monkeypatch.setattr(divergence, "_CPU_BLOCK", block)
        student = logits(3, 11, 17, seed=2).transpose(0, 1).requires_grad_()
        value = function(logits(11, 3, 17, seed=1), student)
        results.append((value, *torch.autograd.grad(value.square().sum(), student)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("function", ALL)
def test_shapes_must_agree(function: Divergence) -> None:
    with pytest.raises(ValueError, match=r"\(2, 9\).*\(2, 8\).*vocabulary"):
        function(logits(2, 9), logits(2, 8))
    with pytest.raises(ValueError, match="shapes"):
        function(logits(1, 8), logits(2, 8))


@pytest.mark.parametrize("function", ALL)
def test_no_tokens_give_no_values(function: Divergence) -> None:
    student = torch.empty(0, 5, requires_grad=True)
    value = function(torch.empty(0, 5), student)
    assert value.shape == (0,)
    value.sum().backward()
    single = logits(5, seed=1).requires_grad_()
    value = function(logits(5), single)
    assert value.shape == ()
    value.backward()
    assert single.grad is not None and single.grad.shape == (5,)
