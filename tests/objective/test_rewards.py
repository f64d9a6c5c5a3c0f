import math
import statistics

import pytest
import torch
from scipy.stats import zscore
from sklearn.preprocessing import minmax_scale
from torch import Tensor

from masters.objective.rewards import distillation_reward, group_advantages


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_distillation_reward_against_scikit_learn(seed: int) -> None:
    divergence = random(7, 8, seed=seed) * math.log(2)
    expected = minmax_scale(-divergence.numpy(), axis=1)
    reward = distillation_reward(divergence)
    torch.testing.assert_close(reward, torch.from_numpy(expected))
    assert ((reward == 1).sum(1) == 1).all() and ((reward == 0).sum(1) == 1).all()
    assert torch.equal(reward.argmax(1), divergence.argmin(1))


def test_the_unnormalised_reward_is_the_negative_divergence() -> None:
    divergence = random(3, 4)
    assert torch.equal(distillation_reward(divergence, normalize=False), -divergence)


@pytest.mark.parametrize("seed", range(5))
def test_advantages_against_scipy(seed: int) -> None:
    rewards = random(7, 8, seed=seed) + (random(7, 8, seed=seed + 9) > 0.5)
    values, flat = group_advantages(rewards)
    torch.testing.assert_close(values, torch.from_numpy(zscore(rewards.numpy(), axis=1)))
    assert not flat.any()


def test_advantages_ignore_shift_and_scale() -> None:
    rewards = random(5, 8).float()
    torch.testing.assert_close(group_advantages(rewards).values, group_advantages(3 * rewards - 2).values)


@pytest.mark.parametrize("level", [0.0, 1.0, 0.1, -0.3, 1e3])
def test_groups_without_spread_are_flat(level: float) -> None:
    noise = 1 + 1e-7 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for rewards in (torch.full((4, 8), level), level * noise):
        values, flat = group_advantages(rewards)
        assert flat.all() and not values.any()
        assert torch.equal(distillation_reward(rewards), torch.full((4, 8), 0.5))


def test_a_small_real_spread_is_kept() -> None:
    rewards = torch.tensor([[0.1, 0.1 + 1e-4, 0.1, 0.1 - 1e-4]])
    values, flat = group_advantages(rewards)
    assert not flat.any()
    torch.testing.assert_close(
        values, math.sqrt(2) * torch.tensor([[0.0, 1.0, 0.0, -1.0]]), rtol=0, atol=1e-3
    )


def test_flat_groups_do_not_change_the_others() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    values, flat = group_advantages(rewards)
    assert flat.tolist() == [True, False]
    sd = statistics.pstdev([1, 0, 0])
    torch.testing.assert_close(values, torch.tensor([[0, 0, 0], [2 / 3 / sd, -1 / 3 / sd, -1 / 3 / sd]]))


def test_missing_responses_do_not_count() -> None:
    full = random(4, 5)
    valid = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    padded = full.masked_fill(~valid, math.nan)
    for function in (distillation_reward, lambda x, valid=None: group_advantages(x, valid=valid).values):
        result = function(padded, valid=valid)
        assert not result[~valid].any()
        for row in range(2):
            torch.testing.assert_close(result[row, valid[row]], function(full[row, valid[row]][None])[0])
    assert group_advantages(padded, valid=valid).flat.tolist() == [False, False, True, True]
    assert distillation_reward(padded, valid=valid)[2, 2] == 0.5
    assert not distillation_reward(padded, normalize=False, valid=valid)[~valid].any()


def test_rewards_of_any_type_and_without_gradient() -> None:
    right = torch.tensor([[True, False, True, True]])
    values, _ = group_advantages(right)
    torch.testing.assert_close(values, group_advantages(right.double()).values.float())
    assert not distillation_reward(torch.rand(2, 3, requires_grad=True)).requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    values = random(2, 3)
    values[1, 1] = bad
    for function in (distillation_reward, group_advantages):
        with pytest.raises(ValueError, match="not finite"):
            function(values)


def test_wrong_shapes_are_refused() -> None:
    for function in (distillation_reward, group_advantages):
        with pytest.raises(ValueError, match=r"\(questions, responses\)"):
            function(random(6))
        with pytest.raises(ValueError, match="valid"):
            function(random(2, 3), valid=torch.ones(2, 2))
