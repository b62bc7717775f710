"""The order of the method, on plain tensors: floor, reward, OpenRLHF's penalties, advantage."""

import pytest
import torch

from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.registry import register_advantage, register_reward
from darling_plugin.shaping import Groups, Similarities, shape


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


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(1.0, [0.1, 0.5, 1.0]), (0.0, [1.0] * 3), (0.5, [0.5, 0.75, 1.0]), (1.5, [0.1, 0.25, 1.0])],
)
def test_the_weight_of_diversity_comes_before_the_floor(weight, expected):
    shaped = shape(groups([[1.0] * 3], [[0.0, 0.5, 1.0]]), DarlingConfig(weight=weight), unpenalized)
    assert shaped.reward.tolist() == [pytest.approx(expected)]


def test_the_part_of_diversity_in_the_reward():
    shaped = shape(groups([[1.0, 0.5]], [[0.4, 0.8]]), DarlingConfig(), unpenalized)
    assert shaped.diversity_part.tolist() == [pytest.approx([1.0 * (0.4 - 0.6), 0.5 * (0.8 - 0.6)])]
    for config in (DarlingConfig(reward="quality"), DarlingConfig(weight=0.0)):
        assert shape(groups([[1.0, 0.5]], [[0.4, 0.8]]), config, unpenalized).diversity_part.tolist() == [[0.0, 0.0]]


# Responses 0 and 1, 1 and 2 are equivalent, 3 to nothing.
CHAIN = [[1.0, 0.9, 0.1, 0.2], [0.9, 1.0, 0.9, 0.0], [0.1, 0.9, 1.0, 0.3], [0.2, 0.0, 0.3, 1.0]]


def gated(quality, quality_only=False, *, clustering="union_find", **flags):
    batch = groups([quality], [[0.0] * 4], [quality_only])
    batch.similarities = Similarities(torch.tensor([CHAIN]), threshold=0.5, clustering=clustering)
    batch.gate_is_due = True
    return shape(batch, DarlingConfig(quality_gate="above:0", **flags), unpenalized)


def test_a_gate_that_is_due_leaves_responses_out_before_classes_are_made():
    shaped = gated([1.0, 0.0, 1.0, 0.5])
    assert shaped.groups.labels.tolist() == [[0, -1, 1, 2]], "without the link between them 0 and 2 are two classes"
    assert shaped.groups.diversity.tolist() == [[1.0, 0.0, 1.0, 1.0]]
    assert shaped.reward.tolist() == [pytest.approx([1.0, 0.0, 1.0, 0.5])]
    together = gated([1.0, 0.5, 1.0, 0.5])
    assert together.groups.labels.tolist() == [[0, 0, 0, 1]]
    assert together.groups.diversity.tolist() == [pytest.approx([1 / 3] * 3 + [1.0])]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"diversity": "pairs"}, [0.5, 0.5, 0.0, 1.0]),
        ({"diversity": "expected"}, [(0.1 + 0.8) / 2, (0.1 + 1.0) / 2, 0.0, (0.8 + 1.0) / 2]),
        ({"clustering": "average"}, [0.5, 0.5, 0.0, 1.0]),
    ],
)
def test_a_gate_that_is_due_with_every_way_to_diversity(flags, expected):
    shaped = gated([1.0, 1.0, 0.0, 1.0], **flags)
    assert shaped.groups.diversity.tolist() == [pytest.approx(expected)]


def test_a_gate_that_is_due_and_lets_one_or_nobody_through_or_meets_an_unpartitioned_group():
    assert gated([0.0, 0.0, 0.0, 1.0]).groups.diversity.tolist() == [[0.0, 0.0, 0.0, 1.0]]
    nobody = gated([0.0] * 4)
    assert (nobody.groups.labels.tolist(), nobody.reward.tolist()) == ([[-1] * 4], [[0.0] * 4])
    unpartitioned = gated([0.5, 0.0, 1.0, 1.0], quality_only=True)
    assert unpartitioned.reward.tolist() == [[0.5, 0.0, 1.0, 1.0]]
    assert unpartitioned.groups.labels.tolist() == [[-1] * 4]
