"""Both computations of each benchmark give the same numbers."""

import torch
from torch import Tensor

from benchmarks.limits import limit
from benchmarks.training import Head, Step, autograd_jsd
from masters.models.packing import response_projection
from masters.objective.divergence import jsd
from masters.objective.loss import masters_loss
from masters.objective.options import LossOptions

torch.set_num_threads(1)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def small() -> Step:
    return Step(prompt=24, responses=3, length=5, questions=2, width=32, words=50)


def test_packed_groups_and_rows_have_the_same_gradients() -> None:
    step = small()
    step.backward()()
    packed = gradients(step.student)
    step.backward(together=False)()
    rows = gradients(step.student)
    assert packed.keys() == rows.keys() and len(packed) > 20
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, rows[name], rtol=1e-4, atol=1e-4)


def test_trl_computes_our_divergence_on_the_same_batch() -> None:
    step = small()
    step.trl()()
    theirs = gradients(step.student)
    arguments = (response_projection(step.teacher, step.batch), step.batch.tokens, step.batch.mask)
    loss = masters_loss(
        response_projection(step.student, step.batch), *arguments, options=LossOptions(rewards=())
    )
    loss.total.backward()
    ours = gradients(step.student)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5)


def test_a_cached_teacher_gives_nearly_the_same_gradients() -> None:
    step = small()
    step.masters()()
    live = gradients(step.student)
    step.masters(top_k=40)()
    cached = gradients(step.student)
    for name in live:
        torch.testing.assert_close(cached[name], live[name], rtol=0.1, atol=0.02)


def test_both_heads_compute_the_same_divergence() -> None:
    head = Head(width=8, vocabulary=300, tokens=64)
    head.chunked()
    ours = head.student_weight.grad
    head.student_weight.grad = None
    head.whole()
    assert ours is not None and head.student_weight.grad is not None
    torch.testing.assert_close(ours, head.student_weight.grad, rtol=1e-4, atol=1e-6)
    teacher, student = torch.randn(2, 16, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(jsd(teacher, student), autograd_jsd(teacher, student))


def test_the_limit_counts_products_and_attention_forward_and_backward() -> None:
    left, right = torch.randn(8, 16, requires_grad=True), torch.randn(16, 4)

    def product(times: int) -> None:
        for _ in range(times):
            (left @ right).sum().backward()

    assert limit(lambda: product(1), lambda: product(3)) == 3

    def attention(length: int) -> None:
        query = torch.randn(1, 2, length, 8, requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()

    assert limit(lambda: attention(16), lambda: attention(32)) == 4, "pairs of tokens"
