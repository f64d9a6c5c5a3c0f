import math

import numpy as np
import pytest
import torch
from torch import Tensor

from masters.objective.diagnostics import advantage_figures, ratio_figures, reason_to_stop
from masters.objective.rewards import group_advantages

NAN = float("nan")


def floats(figures: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items()}


def test_advantages_of_groups_with_spread_have_mean_zero_and_unit_deviation() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 2, 3, 9]])
    valid = torch.ones(2, 4, dtype=torch.bool)
    figures = floats(advantage_figures(group_advantages(rewards, valid=valid).values, valid))
    assert figures["advantage_mean"] == pytest.approx(0, abs=1e-6)
    assert figures["advantage_std"] == pytest.approx(1, abs=1e-3)
    assert figures["advantage_positive"] == pytest.approx(2 / 8)


def test_a_missing_response_does_not_count() -> None:
    values = torch.tensor([[1.0, -1.0, 1e6]])
    figures = floats(advantage_figures(values, torch.tensor([[True, True, False]])))
    assert figures == {"advantage_mean": 0.0, "advantage_std": 1.0, "advantage_positive": 0.5}


def test_ratio_figures_agree_with_their_definitions() -> None:
    rng = np.random.default_rng(0)
    student, behavior = rng.normal(-2, 1, 500), rng.normal(-2, 1, 500)
    weights = np.exp(student - behavior)
    figures = floats(ratio_figures(torch.tensor(student), torch.tensor(behavior)))
    assert figures["log_ratio"] == pytest.approx(np.mean(student - behavior), rel=1e-5)
    expected = weights.sum() ** 2 / (weights**2).sum() / 500
    assert figures["effective_samples"] == pytest.approx(expected, rel=1e-4)


def test_effective_samples_at_their_limits() -> None:
    same = torch.full((8,), -3.0)
    assert floats(ratio_figures(same, same)) == {"log_ratio": 0.0, "effective_samples": pytest.approx(1)}
    far = same.clone()
    far[3] = 500  # exp overflows in float32
    assert float(ratio_figures(far, same)["effective_samples"]) == pytest.approx(1 / 8)


def test_ratio_figures_leave_no_gradient() -> None:
    student = torch.zeros(3, requires_grad=True)
    assert not any(value.requires_grad for value in ratio_figures(student, torch.zeros(3)).values())


@pytest.mark.parametrize(
    ("losses", "kl", "max_kl", "growth", "words"),
    [
        ([1.0, NAN], NAN, None, None, "the loss is nan"),
        ([1.0, math.inf], NAN, None, None, "the loss is inf"),
        ([1.0, 1.0], 0.6, 0.5, None, "KL to the student before training is 0.6 nats per token, above 0.5"),
        ([1.0, 1.0], 0.5, 0.5, None, None),
        ([1.0, 1.0], NAN, 0.5, None, None),
        ([1.0, 5.0], 9.0, None, None, None),
        ([1.0, 2.0, 5.0], NAN, None, 4.0, "the loss is 5, above 4 times the largest at the start, 1"),
        ([1.0, 2.0, 4.0], NAN, None, 4.0, None),
        ([-1.0, 2.0, 5.0], NAN, None, 4.0, "above 4 times the largest at the start, 1"),
        ([50.0], NAN, None, 4.0, None),
    ],
)
def test_when_a_run_has_diverged(
    losses: list[float], kl: float, max_kl: float | None, growth: float | None, words: str | None
) -> None:
    reason = reason_to_stop(losses, 10, kl, max_kl, growth)
    assert (reason is None) == (words is None)
    assert words is None or (reason is not None and words in reason and "\n" not in reason)


def test_the_start_of_a_run_is_its_first_tenth() -> None:
    assert reason_to_stop([1.0, 9.0, 20.0], 30, NAN, None, 4.0) is None, "these three rows are the start"
    assert reason_to_stop([1.0, 9.0, 2.0, 37.0], 30, NAN, None, 4.0) is not None
