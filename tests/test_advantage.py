"""Advantages, against oracles in plain Python and by hand."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darling_plugin.advantage import compute_advantage
from darling_plugin.registry import advantages, register_advantage


def centered(rewards, diversities):
    return [reward - statistics.mean(rewards) for reward in rewards]


def centered_std(rewards, diversities):
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    return [value / (statistics.stdev(rewards) + 1e-9) for value in centered(rewards, diversities)]


def diversity_weighted(rewards, diversities):
    return [d * value for d, value in zip(diversities, centered(rewards, diversities), strict=True)]


ORACLES = {"centered": centered, "centered_std": centered_std, "diversity_weighted": diversity_weighted}


@st.composite
def batches(draw):
    groups, n = draw(st.integers(1, 4)), draw(st.integers(1, 16))
    reward = st.integers(-40, 40).map(lambda quarter: quarter / 4)
    diversity = st.integers(1, 10).map(lambda tenth: tenth / 10)

    def rows(values):
        return draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=groups, max_size=groups))

    return rows(reward), rows(diversity)


@pytest.mark.parametrize("name", ORACLES)
@given(batch=batches())
def test_advantages_match_the_oracle(name, batch):
    reward, diversity = batch
    result = advantages.get(name)(torch.tensor(reward), torch.tensor(diversity))
    assert result.dtype == torch.float32
    for got, r, d in zip(result.tolist(), reward, diversity, strict=True):
        assert got == pytest.approx(ORACLES[name](r, d), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -3.3, 7e6 + 0.5])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 11, 13])
def test_equal_rewards_get_exactly_nothing(name, value, n):
    result = advantages.get(name)(torch.full((2, n), value), torch.full((2, n), 0.3))
    assert result.tolist() == [[0.0] * n] * 2


@given(batch=batches())
def test_diversity_weighted_keeps_the_sign_of_the_quality(batch):
    reward, diversity = map(torch.tensor, batch)
    plain = advantages.get("centered")(reward, diversity)
    weighted = advantages.get("diversity_weighted")(reward, diversity)
    assert torch.equal(plain.sign(), weighted.sign())


def test_an_advantage_that_works_in_place_leaves_what_is_logged_alone():
    kept = []

    @register_advantage("mine")
    def in_place(reward, diversity):
        reward -= reward.mean(-1, keepdim=True)
        diversity.zero_()
        kept.append(reward)
        return reward

    reward, diversity = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.25]])
    advantage = compute_advantage(reward, diversity, advantage="mine")
    kept[0].zero_()
    assert advantage.tolist() == [[-1.0, 1.0]]
    assert (reward.tolist(), diversity.tolist()) == ([[1.0, 3.0]], [[0.5, 0.25]])


def test_by_hand():
    reward, diversity = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[0.5, 1.0, 0.1]])
    assert advantages.get("centered")(reward, diversity).tolist() == [pytest.approx([-2.0, -1.0, 3.0])]
    assert advantages.get("diversity_weighted")(reward, diversity).tolist() == [pytest.approx([-1.0, -1.0, 0.3])]
    root = 7**0.5  # sample standard deviation: sqrt((4 + 1 + 9) / 2)
    expected = [-2 / root, -1 / root, 3 / root]
    assert advantages.get("centered_std")(reward, diversity).tolist() == [pytest.approx(expected)]
