import itertools
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from masters.objective.loss import METRICS, Loss, cross_entropy, masters_loss
from masters.objective.options import Kind, LossOptions

Q, R, T, V = 3, 4, 5, 7
PAPER: dict[str, Any] = {}
ALONE = LossOptions(rewards=())


class Case:
    """Random inputs for masters_loss, padded with short and missing responses."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64, padding: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype) * 2

        self.student = normal(Q, R, T, V).requires_grad_()
        self.teacher, self.reference = normal(Q, R, T, V), normal(Q, R, T, V)
        self.tokens = torch.randint(V, (Q, R, T), generator=generator)
        lengths = torch.randint(1, T + 1, (Q, R), generator=generator)
        lengths[0, 3] = 0
        self.mask = (
            torch.arange(T) < lengths.unsqueeze(-1) if padding else torch.ones(Q, R, T, dtype=torch.bool)
        )
        self.accuracy = (torch.rand(Q, R, generator=generator) > 0.5).to(dtype)
        self.accuracy[1] = 1  # a question with correct responses only
        self.accuracy[2, :2] = torch.tensor([0, 1])
        chosen = self.student.detach().log_softmax(-1).gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)
        self.behavior = chosen + normal(Q, R, T) * 0.2

    def loss(self, **options: Any) -> Loss:
        given = {
            "accuracy": self.accuracy,
            "reference_logits": self.reference,
            "behavior_logprobs": self.behavior,
        }
        given |= {name: options.pop(name) for name in given if name in options}
        arguments = self.student, self.teacher, self.tokens, self.mask
        return masters_loss(*arguments, **given, options=LossOptions(**options))


def softmax(x: Any) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


def by_hand(
    case: Case,
    rewards: tuple[str, ...] = ("accuracy", "distillation"),
    normalize: bool = True,
    beta: float = 0.1,
    policy_weight: float = 1.0,
    policy_ratio: str = "one",
    clip: float = 0.2,
    advantages: str = "all",
    flat: str = "keep",
    distillation_on: str = "mean",
    averaging: str = "response",
    divergence: str = "jsd",
    mix: float = 0.5,
    teacher_temperature: float = 1.0,
) -> tuple[float, dict[str, float], Tensor]:
    """Eq. 7 to 11 in loops over numbers in float64; a response is a list of terms per token."""
    student, teacher = case.student.detach().double().numpy(), case.teacher.double().numpy()
    reference, behavior = case.reference.double().numpy(), case.behavior.double().numpy()
    rows: list[tuple[int, int, list[dict[str, float]]]] = []
    for j, k in itertools.product(range(Q), range(R)):
        terms = []
        for t in range(T):
            if not case.mask[j, k, t]:
                continue
            p = softmax(np.log(softmax(teacher[j, k, t])) / teacher_temperature)
            q, r = softmax(student[j, k, t]), softmax(reference[j, k, t])
            m = mix * p + (1 - mix) * q
            distances = {
                "jsd": (kl(p, m) + kl(q, m)) / 2,
                "forward_kl": kl(p, q),
                "reverse_kl": kl(q, p),
                "generalised_jsd": mix * kl(p, m) + (1 - mix) * kl(q, m),
                "skewed_kl": kl(p, m),
                "total_variation": np.abs(p - q).sum() / 2,
            }
            logprob = math.log(q[case.tokens[j, k, t]])
            rho = 1.0 if policy_ratio == "one" else math.exp(logprob - behavior[j, k, t])
            terms.append({"distance": distances[divergence], "kl": kl(q, r), "rho": rho})
        if terms:
            rows.append((j, k, terms))

    reward, easy, advantage = {}, {}, {}
    flat_groups = 0
    for j in range(Q):
        group = [(k, terms) for jj, k, terms in rows if jj == j]
        d = {
            k: sum(x["distance"] for x in terms) / (len(terms) if distillation_on == "mean" else 1)
            for k, terms in group
        }
        high, low = max(d.values()), min(d.values())
        for k, _ in group:
            easy[j, k] = ((high - d[k]) / (high - low) if high > low else 0.5) if normalize else -d[k]
            reward[j, k] = ("distillation" in rewards) * easy[j, k]
            reward[j, k] += ("accuracy" in rewards) * float(case.accuracy[j, k])
        values = [reward[j, k] for k, _ in group]
        mean, sd = np.mean(values), np.std(values)
        same = len({float(case.accuracy[j, k]) for k, _ in group}) == 1
        none = sd < 1e-9 or (flat == "skip" and same)
        flat_groups += none
        for k, _ in group:
            a = 0.0 if none else (reward[j, k] - mean) / sd
            advantage[j, k] = max(a, 0.0) if advantages == "positive" else a

    def policy(rho: float, a: float) -> float:
        return min(rho * a, min(max(rho, 1 - clip), 1 + clip) * a)

    tokens = sum(len(terms) for _, _, terms in rows)
    sums = dict.fromkeys(("divergence", "kl", "policy"), 0.0)
    for j, k, terms in rows:
        for x in terms:
            weight = 1 / (len(rows) * len(terms)) if averaging == "response" else 1 / tokens
            sums["divergence"] += weight * x["distance"]
            sums["kl"] += weight * x["kl"]
            sums["policy"] -= weight * policy(x["rho"], advantage[j, k])
    parts = {
        **sums,
        "flat_groups": flat_groups / Q,
        "reward_accuracy": float(np.mean([float(case.accuracy[j, k]) for j, k, _ in rows])),
        "reward_distillation": float(np.mean(list(easy.values()))),
        "tokens": tokens / len(rows),
    }
    total = (
        sums["divergence"] + policy_weight * sums["policy"] + beta * sums["kl"]
        if rewards
        else sums["divergence"]
    )
    advantages_of = [[advantage.get((j, k), 0.0) for k in range(R)] for j in range(Q)]
    return total, parts, torch.tensor(advantages_of, dtype=torch.float64)


VARIANTS: list[dict[str, Any]] = [
    PAPER,
    {"rewards": ("accuracy",)},
    {"rewards": ("distillation",)},
    {"normalize": False},
    {"normalize": False, "rewards": ("distillation",)},
    {"policy_ratio": "clipped"},
    {"policy_ratio": "clipped", "clip": 0.05, "advantages": "positive"},
    {"advantages": "positive"},
    {"flat": "skip"},
    {"flat": "skip", "rewards": ("distillation",)},
    {"flat": "skip", "rewards": ("accuracy",), "policy_ratio": "clipped"},
    {"distillation_on": "sum"},
    {"averaging": "token"},
    {"averaging": "token", "policy_ratio": "clipped", "distillation_on": "sum"},
    {"policy_weight": 0.3, "beta": 2.0, "policy_ratio": "clipped"},
    {"beta": 0.0},
    {"teacher_temperature": 3.0},
    {"teacher_temperature": 0.5, "rewards": ("distillation",), "normalize": False},
    *(
        {"divergence": kind, "mix": 0.3, "teacher_temperature": 2.5}
        for kind in get_args(Kind)
        if kind != "jsd"
    ),
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_values_against_loops_in_float64(options: dict[str, Any], seed: int) -> None:
    case = Case(seed)
    total, parts, _ = by_hand(case, **options)
    loss = case.loss(**options)
    assert loss.total.item() == pytest.approx(total, rel=1e-6, abs=1e-7)
    missing = {"reward_distillation"} - {
        f"reward_{name}" for name in options.get("rewards", ("distillation",))
    }
    assert {name for name, value in loss.metrics.items() if math.isnan(value)} == missing
    for name in set(parts) - missing:
        assert loss.metrics[name] == pytest.approx(parts[name], rel=1e-5, abs=1e-6), name
    assert set(loss.metrics) == set(METRICS) > set(parts)


@pytest.mark.parametrize("options", VARIANTS)
def test_float32_agrees_with_float64(options: dict[str, Any]) -> None:
    results = []
    for dtype in (torch.float64, torch.float32):
        case = Case(1)
        for name in ("student", "teacher", "reference", "behavior", "accuracy"):
            value = getattr(case, name).detach().to(dtype)
            setattr(case, name, value.requires_grad_() if name == "student" else value)
        loss = case.loss(**options)
        results.append((loss.total, *torch.autograd.grad(loss.total, case.student)))
    for exact, single in zip(*results, strict=True):
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)


def test_ratio_one_has_zero_value_but_the_policy_gradient() -> None:
    case = Case(2)
    loss = case.loss(beta=0.0)
    assert abs(loss.metrics["policy"]) < 1e-7
    (gradient,) = torch.autograd.grad(loss.total, case.student)
    (of_jsd,) = torch.autograd.grad(case.loss(rewards=()).total, case.student)

    advantage = by_hand(case)[2]
    lengths = case.mask.sum(-1)
    weight = (1 / lengths.clamp(min=1) / (lengths > 0).sum() * advantage).unsqueeze(-1) * case.mask
    logprob = case.student.log_softmax(-1).gather(-1, case.tokens.unsqueeze(-1)).squeeze(-1)
    (expected,) = torch.autograd.grad(-(weight * logprob).sum(), case.student)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient - of_jsd, expected, rtol=1e-5, atol=1e-6)


def test_clipping_stops_the_gradient_beyond_the_interval_only() -> None:
    case = Case(0, padding=False)
    chosen = case.student.detach().log_softmax(-1).gather(-1, case.tokens.unsqueeze(-1)).squeeze(-1)
    options: dict[str, Any] = {"rewards": ("accuracy",), "beta": 0.0, "policy_ratio": "clipped"}
    case.accuracy[0] = torch.tensor([1.0, 1.0, 0.0, 0.0])
    (of_jsd,) = torch.autograd.grad(case.loss(rewards=()).total, case.student)
    for shift, moves in (
        (0.3, [False, False, True, True]),
        (-0.3, [True, True, False, False]),
        (0.1, [True] * 4),
    ):
        loss = case.loss(behavior_logprobs=chosen - shift, **options)  # rho = exp(shift)
        (gradient,) = torch.autograd.grad(loss.total, case.student)
        assert ((gradient - of_jsd)[0].abs().amax((1, 2)) > 1e-6).tolist() == moves


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_that_of_float64_autograd(seed: int) -> None:
    case = Case(seed)
    advantage = by_hand(case)[2]
    (gradient,) = torch.autograd.grad(case.loss(policy_ratio="clipped").total, case.student)

    log_q, log_p = case.student.log_softmax(-1), case.teacher.log_softmax(-1)
    q, p, m = log_q.exp(), log_p.exp(), (log_q.exp() + log_p.exp()) / 2
    jsd = ((p * (log_p - m.log())).sum(-1) + (q * (log_q - m.log())).sum(-1)) / 2
    kl = (q * (log_q - case.reference.log_softmax(-1))).sum(-1)
    rho = (log_q.gather(-1, case.tokens.unsqueeze(-1)).squeeze(-1) - case.behavior).exp()
    a = advantage.unsqueeze(-1)
    terms = jsd + 0.1 * kl - torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a)
    lengths = case.mask.sum(-1)
    per_response = (terms * case.mask).sum(-1) / lengths.clamp(min=1)
    (expected,) = torch.autograd.grad(per_response.sum() / (lengths > 0).sum(), case.student)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options", [PAPER, {"rewards": ()}, {"averaging": "token", "policy_ratio": "clipped"}]
)
def test_padding_never_counts(options: dict[str, Any]) -> None:
    case, spoiled = Case(0), Case(0)
    outside = ~case.mask
    with torch.no_grad():
        for values in (spoiled.student, spoiled.teacher, spoiled.reference, spoiled.behavior):
            values[outside] = math.nan
    spoiled.tokens[outside] = -100
    spoiled.accuracy[0, 3] = math.nan  # the missing response
    results = [case.loss(**options), spoiled.loss(**options)]
    assert torch.equal(results[0].total, results[1].total)
    np.testing.assert_equal(results[0].metrics, results[1].metrics)
    gradients = [
        torch.autograd.grad(r.total, c.student)[0] for r, c in zip(results, (case, spoiled), strict=True)
    ]
    assert torch.equal(*gradients) and not gradients[0][outside].any()


def test_a_mask_of_zeros_and_ones_and_longer_padding_change_nothing() -> None:
    case = Case(0)
    expected = case.loss()
    case.mask = case.mask.double()
    assert torch.equal(case.loss().total, expected.total)
    for name in ("student", "teacher", "reference"):
        setattr(case, name, torch.nn.functional.pad(getattr(case, name), (0, 0, 0, 3)))
    for name in ("tokens", "mask", "behavior"):
        setattr(case, name, torch.nn.functional.pad(getattr(case, name), (0, 3)))
    torch.testing.assert_close(case.loss().total, expected.total)
    np.testing.assert_equal(case.loss().metrics, expected.metrics)


def test_a_question_without_responses_is_flat() -> None:
    case = Case(0)
    case.mask[1] = False
    loss = case.loss(policy_ratio="clipped", rewards=("distillation",))
    assert loss.total.isfinite()
    assert loss.metrics["flat_groups"] == pytest.approx(1 / 3)


def test_gradient_reaches_the_student_only() -> None:
    case = Case(0)
    for name in ("teacher", "reference", "behavior", "accuracy"):
        getattr(case, name).requires_grad_()
    case.loss(policy_ratio="clipped").total.backward()
    assert case.student.grad is not None and case.student.grad.isfinite().all()
    for name in ("teacher", "reference", "behavior", "accuracy"):
        assert getattr(case, name).grad is None


def test_without_rewards_only_the_divergence_is_left() -> None:
    case = Case(0)
    loss = case.loss(rewards=(), accuracy=None, reference_logits=None, behavior_logprobs=None)
    assert loss.total.item() == pytest.approx(loss.metrics["divergence"])
    assert {name for name, value in loss.metrics.items() if not math.isnan(value)} == {"divergence", "tokens"}
    reported = case.loss(rewards=())  # the KL to a reference is reported where there is one
    assert torch.equal(reported.total, loss.total)
    assert reported.metrics["kl"] == pytest.approx(by_hand(case)[1]["kl"], rel=1e-5)


def test_a_student_equal_to_teacher_and_reference_has_nothing_to_learn() -> None:
    case = Case(0)
    case.teacher = case.reference = case.student.detach().clone()
    loss = case.loss(rewards=("distillation",))  # all responses are equally easy: every group is flat
    assert loss.total.item() == pytest.approx(0, abs=1e-9)
    assert loss.metrics["flat_groups"] == 1.0
    loss.total.backward()
    assert case.student.grad is not None and case.student.grad.abs().max() < 1e-9


def test_a_missing_response_does_not_give_a_group_spread() -> None:
    case = Case(0)
    case.accuracy[0] = torch.tensor([1, 1, 1, 0])  # the last response of the first question is missing
    case.accuracy[2] = torch.tensor([0, 1, 0, 1])
    assert case.loss(flat="skip").metrics["flat_groups"] == pytest.approx(2 / 3)


def test_skipped_groups_keep_divergence_and_kl() -> None:
    case = Case(0, padding=False)
    case.accuracy[:] = 1.0
    loss = case.loss(flat="skip")
    assert loss.metrics["flat_groups"] == 1.0 and loss.metrics["policy"] == 0.0
    assert loss.total.item() == pytest.approx(loss.metrics["divergence"] + 0.1 * loss.metrics["kl"], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_huge_logits_stay_finite(dtype: torch.dtype) -> None:
    case = Case(0)
    case.student = (case.student.detach().sign() * 1e4).to(dtype).requires_grad_()
    case.teacher = (case.teacher.sign() * 1e4).to(dtype)
    loss = case.loss()
    assert loss.total.isfinite()
    loss.total.backward()
    assert (
        case.student.grad is not None
        and case.student.grad.dtype == dtype
        and case.student.grad.isfinite().all()
    )


def test_small_steps_down_the_gradient_lower_the_loss_and_follow_the_rewards() -> None:
    case = Case(0, padding=False)
    case.accuracy[:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    options: dict[str, Any] = {"rewards": ("accuracy",), "beta": 0.0, "policy_weight": 100.0}

    def of_right() -> float:
        chosen = case.student.log_softmax(-1).gather(-1, case.tokens.unsqueeze(-1)).squeeze(-1)
        return (chosen[:, 0].mean() - chosen[:, 1:].mean()).item()

    before = of_right()
    (gradient,) = torch.autograd.grad(case.loss(**options).total, case.student)
    case.student = (case.student - 0.1 * gradient).detach().requires_grad_()
    assert of_right() > before + 0.1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"accuracy": None}, "accuracy"),
        ({"accuracy": None, "rewards": ("distillation",), "flat": "skip"}, "accuracy"),
        ({"reference_logits": None}, "reference_logits"),
        ({"behavior_logprobs": None, "policy_ratio": "clipped"}, "behavior_logprobs"),
        ({"accuracy": torch.ones(Q, R + 1)}, "accuracy"),
        ({"behavior_logprobs": torch.ones(Q, R)}, "behavior_logprobs"),
        ({"reference_logits": torch.ones(Q, R, T, V + 1)}, "reference_logits"),
    ],
)
def test_bad_arguments_are_named_in_one_line(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word) as error:
        Case(0).loss(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("policy_ratio", "two"),
        ("rewards", ("speed",)),
        ("advantages", "negative"),
        ("flat", "drop"),
        ("distillation_on", "max"),
        ("averaging", "question"),
        ("beta", -0.1),
        ("beta", math.nan),
        ("policy_weight", 0.0),
        ("divergence", "cosine"),
        ("speed", 1.0),
    ],
)
def test_bad_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        LossOptions(**{option: value})


def test_bad_shapes_are_named() -> None:
    case = Case(0)
    with pytest.raises(ValueError, match="teacher_logits"):
        masters_loss(
            case.student, case.teacher[..., :-1], case.tokens, case.mask, options=LossOptions(rewards=())
        )
    with pytest.raises(ValueError, match="tokens"):
        masters_loss(
            case.student, case.teacher, case.tokens[..., :-1], case.mask, options=LossOptions(rewards=())
        )
    with pytest.raises(ValueError, match="mask is False"):
        masters_loss(
            case.student,
            case.teacher,
            case.tokens,
            torch.zeros_like(case.mask),
            options=LossOptions(rewards=()),
        )


def test_cross_entropy_against_torch() -> None:
    case = Case(0)
    labels = case.tokens.masked_fill(~case.mask, -100)
    losses = torch.nn.functional.cross_entropy(
        case.student.reshape(-1, V), labels.reshape(-1), ignore_index=-100, reduction="none"
    ).view(Q, R, T)
    present = case.mask.any(-1)
    expected = (losses.sum(-1)[present] / case.mask.sum(-1)[present]).mean()
    ours = cross_entropy(case.student, labels, case.mask)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)
    gradients = [torch.autograd.grad(x, case.student, retain_graph=True)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)
    by_token = cross_entropy(case.student, labels, case.mask, "token")
    torch.testing.assert_close(by_token, losses.sum() / case.mask.sum(), rtol=1e-6, atol=1e-7)


def test_the_policy_follows_the_tempered_teacher_too() -> None:
    """Loss and gradient are those of a teacher whose log-probabilities were tempered beforehand."""
    case, other = Case(1), Case(1)
    other.teacher = (other.teacher.log_softmax(-1) / 2.5).log_softmax(-1)
    ours, theirs = case.loss(teacher_temperature=2.5), other.loss()
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-6)
    assert ours.metrics["reward_distillation"] != pytest.approx(case.loss().metrics["reward_distillation"])
    gradients = [torch.autograd.grad(x.total, c.student)[0] for x, c in ((ours, case), (theirs, other))]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        Case().loss(teacher_temperature=temperature)
