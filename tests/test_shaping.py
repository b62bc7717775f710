"""The order of the method, on plain tensors: floor, reward, OpenRLHF's penalties, advantage."""

import pytest
import torch

from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.registry import register_advantage, register_reward
from darling_plugin.shaping import Groups, shape


def groups(quality, diversity, quality_only=None):
    quality, diversity = torch.tensor(quality), torch.tensor(diversity)
    return Groups(
        quality=quality,
        labels=torch.zeros(quality.shape, dtype=torch.long),
        diversity=diversity,
        quality_only=torch.zeros(len(quality), dtype=torch.bool)
        if quality_only is None
        else torch.tensor(quality_only),
    )


def unpenalized(reward):
    return reward


def test_reward_and_advantage_by_hand():
    shaped = shape(
        groups([[1.0, 1.0, 0.5, 0.0]], [[0.0, 0.05, 0.6, 1.0]]), DarlingConfig(advantage="centered"), unpenalized
    )
    assert shaped.counted_diversity.tolist() == [pytest.approx([0.1, 0.1, 0.6, 1.0])]
    assert shaped.reward.tolist() == shaped.unpenalized_reward.tolist() == [pytest.approx([0.1, 0.1, 0.3, 0.0])]
    assert shaped.advantage.tolist() == [pytest.approx([-0.025, -0.025, 0.175, -0.125])]


def test_penalties_come_between_reward_and_advantage():
    seen = []

    def penalize(reward):
        seen.append(reward.tolist())
        return reward - torch.tensor([[0.0, 0.5]])

    shaped = shape(groups([[1.0, 1.0]], [[1.0, 1.0]]), DarlingConfig(advantage="centered"), penalize)
    assert seen == [[[1.0, 1.0]]], "once, with the reward"
    assert shaped.unpenalized_reward.tolist() == [[1.0, 1.0]]
    assert shaped.reward.tolist() == [[1.0, 0.5]]
    assert shaped.advantage.tolist() == [[0.25, -0.25]]


def test_reward_and_advantage_see_the_same_floored_diversity():
    seen = {}
    register_reward("sees")(lambda quality, diversity: seen.setdefault("reward", diversity) * quality)
    register_advantage("sees")(lambda reward, diversity: seen.setdefault("advantage", diversity) * reward)
    config = DarlingConfig(reward="sees", advantage="sees", diversity_floor=0.2)
    shape(groups([[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.7], [0.0, 0.0]], [False, True]), config, unpenalized)
    assert seen["reward"].tolist() == seen["advantage"].tolist() == [pytest.approx([0.2, 0.7]), [1.0, 1.0]]


def test_what_could_not_be_partitioned_is_rewarded_by_its_quality():
    shaped = shape(groups([[0.3, 0.6], [0.3, 0.6]], [[0.0, 0.0]] * 2, [True, False]), DarlingConfig(), unpenalized)
    assert shaped.reward.tolist() == [pytest.approx([0.3, 0.6]), pytest.approx([0.03, 0.06])]
    assert shaped.groups.diversity.tolist() == [[0.0, 0.0]] * 2, "what was measured stays as it is"


def test_without_an_advantage_of_its_own_none_is_made():
    assert shape(groups([[1.0, 0.0]], [[1.0, 1.0]]), DarlingConfig(advantage=None), unpenalized).advantage is None


def test_the_transform_comes_first():
    config = DarlingConfig(quality_transform="group_min")
    assert shape(groups([[-2.0, -1.0]], [[0.5, 0.5]]), config, unpenalized).reward.tolist() == [[0.0, 0.5]]


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(DarlingError, match=r"quality \(2, 3\), diversity \(2, 4\)"):
        shape(groups([[1.0] * 3] * 2, [[1.0] * 4] * 2), DarlingConfig(), unpenalized)
    with pytest.raises(DarlingError, match=r"quality \(3,\), diversity \(3,\)"):
        shape(groups([1.0] * 3, [1.0] * 3), DarlingConfig(), unpenalized)
