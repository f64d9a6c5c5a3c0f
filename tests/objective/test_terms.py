"""The chunked loss against the loss on logits in memory: values, gradients, and memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from masters.objective import logits as logits_module
from masters.objective.logits import Projection, beside, chunks, dense, tempered
from masters.objective.loss import cross_entropy, masters_loss
from masters.objective.options import LossOptions
from masters.objective.token_terms import Given, in_chunks, token_terms
from masters.objective.topk import Packed, encode

Q, R, T, WIDTH, V = 3, 4, 5, 8, 37
PADDED = V + 6  # rows of the output head
VARIANTS: list[dict[str, Any]] = [
    {},
    {"rewards": ()},
    {"rewards": ("accuracy",)},
    {"rewards": ("accuracy",), "beta": 0.0},
    {"rewards": ("accuracy",), "flat": "skip", "advantages": "positive", "averaging": "token"},
    {"rewards": ("distillation",), "normalize": False},
    {"policy_ratio": "clipped", "distillation_on": "sum"},
    {"rewards": ("accuracy",), "policy_ratio": "clipped", "policy_weight": 0.3},
    *(
        {"divergence": kind, "mix": 0.1}
        for kind in ("forward_kl", "reverse_kl", "skewed_kl", "total_variation")
    ),
    {"rewards": (), "divergence": "generalised_jsd", "mix": 0.9},
    {"teacher_temperature": 2.5},
    {"rewards": (), "teacher_temperature": 0.4},
]


@pytest.fixture(params=[V - 1, 3 * V, 7 * V + 5], ids=["row by row", "three rows", "uneven"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_module, "CHUNK", request.param)


class Case:
    """A student and a teacher of different widths, with padded heads."""

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.hidden = normal(Q, R, T, WIDTH).requires_grad_()
        self.weight = normal(PADDED, WIDTH).requires_grad_()
        self.bias = normal(PADDED).requires_grad_()
        self.teacher = Projection(normal(Q, R, T, 2 * WIDTH), normal(V + 2, 2 * WIDTH) / 2, None, V)
        self.reference = Projection(normal(Q, R, T, WIDTH), normal(PADDED, WIDTH), None, V)
        lengths = torch.randint(1, T + 1, (Q, R), generator=generator)
        lengths[0, 3] = 0
        self.mask = torch.arange(T) < lengths.unsqueeze(-1)
        self.tokens = torch.randint(V, (Q, R, T), generator=generator)
        self.accuracy = (torch.rand(Q, R, generator=generator) > 0.5).float()
        self.behavior = -3 + 0.3 * normal(Q, R, T)

    @property
    def student(self) -> Projection:
        return Projection(self.hidden, self.weight, self.bias, V)

    def gradients(self, student: Any, teacher: Any, reference: Any, **options: Any) -> tuple[Tensor, ...]:
        loss = masters_loss(
            student,
            teacher,
            self.tokens,
            self.mask,
            accuracy=self.accuracy,
            reference_logits=reference,
            behavior_logprobs=self.behavior,
            options=LossOptions(**options),
        )
        parts = torch.tensor([value for _, value in sorted(loss.metrics.items())])
        # Scaled, as in gradient accumulation and mixed precision.
        found = torch.autograd.grad(loss.total * 0.5, [self.hidden, self.weight, self.bias])
        return loss.total.detach(), parts, *found


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_chunks_give_the_loss_and_the_gradients_of_whole_logits(options: dict[str, Any]) -> None:
    case = Case()
    whole = (dense(case.student), dense(case.teacher), dense(case.reference))
    expected = case.gradients(*whole, **options)
    assert in_chunks(case.student.map(lambda x: x.flatten(0, -2)))
    found = case.gradients(case.student, case.teacher, case.reference, **options)
    assert expected[3].abs().max() > 1e-4 and (expected[3][V:] == 0).all()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("options", [{}, {"rewards": ()}], ids=str)
def test_chunks_of_float32_stay_within_1e_5(options: dict[str, Any]) -> None:
    exact, single = Case(), Case(torch.float32)
    expected = exact.gradients(exact.student, exact.teacher, exact.reference, **options)
    found = single.gradients(single.student, single.teacher, single.reference, **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.usefixtures("small_chunks")
def test_cross_entropy_in_chunks_is_that_of_torch() -> None:
    case = Case()
    lengths = case.mask.sum(-1)
    logprobs = dense(case.student).log_softmax(-1).gather(-1, case.tokens.unsqueeze(-1)).squeeze(-1)
    mean = -(logprobs * case.mask).sum(-1) / lengths.clamp(min=1)
    expected = torch.autograd.grad(mean.sum() / (lengths > 0).sum(), [case.hidden, case.weight, case.bias])
    found = torch.autograd.grad(
        cross_entropy(case.student, case.tokens, case.mask), [case.hidden, case.weight, case.bias]
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("small_chunks")
def test_a_packed_teacher_is_unpacked_chunk_by_chunk() -> None:
    case = Case()
    flat = dense(case.teacher).reshape(-1, V).log_softmax(-1)
    rows = torch.from_numpy(encode(flat, 5))
    packed = Packed(rows.view(Q, R, T, -1), V, 5)
    whole = beside(packed, dense(case.student)).double()
    expected = case.gradients(dense(case.student), whole, dense(case.reference))
    found = case.gradients(case.student, packed, case.reference)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
    with pytest.raises(ValueError, match="temperature 2 needs whole distributions, and only the 5 largest"):
        case.gradients(case.student, packed, case.reference, teacher_temperature=2.0)


@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_a_tempered_head_gives_the_logits_divided_by_the_temperature(temperature: float) -> None:
    head = Case().student
    expected = (dense(head).log_softmax(-1) / temperature).softmax(-1)
    torch.testing.assert_close(dense(tempered(head, temperature)).softmax(-1), expected)


def test_temperature_one_leaves_logits_of_every_form_as_they_are() -> None:
    head = Case().student
    packed = Packed(torch.from_numpy(encode(dense(head).flatten(0, -2).log_softmax(-1).detach(), 5)), V, 5)
    for source in (head, dense(head), packed):
        assert tempered(source, 1.0) is source


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("options", [{}, {"rewards": ()}, {"teacher_temperature": 2.0}], ids=str)
def test_no_tensor_holds_the_logits_of_all_tokens(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case()
    largest, heads = 0, (WIDTH, 2 * WIDTH)  # the last axis of a transposed head is the vocabulary too

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else (made,):
                if isinstance(tensor, Tensor) and tensor.shape[-1:] == (V,) and tensor.shape[0] not in heads:
                    largest = max(largest, tensor.numel())
            return made

    with Watch():
        case.gradients(case.student, case.teacher, case.reference, **options)
    assert 0 < largest <= max(V, logits_module.CHUNK) < int(case.mask.sum()) * V


def test_a_batch_that_fits_into_one_chunk_is_computed_at_once() -> None:
    case = Case()
    assert not in_chunks(case.student.map(lambda x: x.flatten(0, -2)))
    expected = case.gradients(dense(case.student), dense(case.teacher), dense(case.reference))
    for ours, theirs in zip(
        case.gradients(case.student, case.teacher, case.reference), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.usefixtures("small_chunks")
def test_without_gradients_the_loss_is_the_same() -> None:
    case = Case()
    arguments = (case.teacher, case.tokens, case.mask)
    with torch.no_grad():
        loss = masters_loss(case.student, *arguments, options=LossOptions(rewards=()))
        whole = masters_loss(dense(case.student), *arguments, options=LossOptions(rewards=()))
    assert not loss.total.requires_grad
    torch.testing.assert_close(loss.total, whole.total)


@pytest.mark.usefixtures("small_chunks")
def test_hidden_states_get_their_gradient_below_a_frozen_head() -> None:
    case = Case()
    for options in ({}, {"rewards": ()}):
        expected = case.gradients(dense(case.student), dense(case.teacher), dense(case.reference), **options)[
            2
        ]
        frozen = Projection(case.hidden, case.weight.detach(), case.bias.detach(), V)
        loss = masters_loss(
            frozen,
            case.teacher,
            case.tokens,
            case.mask,
            accuracy=case.accuracy,
            reference_logits=case.reference,
            options=LossOptions(**options),
        )
        torch.testing.assert_close(torch.autograd.grad(loss.total * 0.5, case.hidden)[0], expected)


@pytest.mark.usefixtures("small_chunks")
def test_autocast_computes_the_logits_as_the_head_would() -> None:
    case = Case(torch.float32)
    rows = case.student.map(lambda x: x.flatten(0, -2))
    head = nn.Linear(WIDTH, PADDED)
    head.weight, head.bias = nn.Parameter(case.weight.detach()), nn.Parameter(case.bias.detach())
    tokens = case.tokens.flatten()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(rows.hidden)[:, :V].float()
        terms = token_terms(rows, Given(tokens))
    expected = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(terms.logprobs, expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(terms.logprobs.sum(), [case.hidden, case.weight])
    wanted = torch.autograd.grad(expected.sum(), [case.hidden, head.weight])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_chunks_cover_every_row_once() -> None:
    for rows, vocabulary in ((1, 5), (1000, 151_936), (7, 1 << 25)):
        parts = list(chunks(rows, vocabulary))
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
        assert all(
            (part.stop - part.start) * vocabulary <= max(logits_module.CHUNK, vocabulary) for part in parts
        )
