"""The order of the method, on plain tensors: floor, reward, OpenRLHF's penalties, advantage."""

from statistics import mean, stdev

import pytest
import torch

from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.registry import advantages, register_advantage, register_reward, rewards
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


# ── Functions that read similarity or labels ──

QUALITY, LABELS = [1.0, 1.0, 0.5, 0.0], [0, 0, 1, 2]
SIMILARITY = [[1.0, 0.8, 0.1, 0.2], [0.8, 1.0, 0.3, 0.0], [0.1, 0.3, 1.0, 0.4], [0.2, 0.0, 0.4, 1.0]]
OF_SIMILARITY = ["marginal_relevance", "nearest_neighbour", "reasoning_novelty", "redundancy"]


def with_similarity(labels=LABELS, similarity=SIMILARITY, quality=QUALITY, quality_only=False, weight=None):
    batch = groups([quality], [[0.0] * len(quality)], [quality_only])
    batch.labels = torch.tensor([labels])
    batch.similarities = Similarities(torch.tensor([similarity]), threshold=0.5, clustering="union_find")
    batch.weight = None if weight is None else torch.tensor([weight])
    return batch


def called(name, batch):
    inputs = {"quality": batch.quality, "similarity": batch.similarities.values, "labels": batch.labels}
    return rewards.call(name, {**inputs, "diversity": batch.diversity})


def test_they_see_similarity_labels_and_the_floored_diversity_as_they_are():
    seen = {}

    @register_reward("sees")
    def sees(quality, diversity, similarity, labels):
        seen.setdefault("reward", (quality, diversity, similarity, labels))
        return quality

    @register_advantage("sees")
    def sees_too(labels, reward, similarity):
        seen["advantage"] = (reward, similarity, labels)
        return reward

    config = DarlingConfig(reward="sees", advantage="sees", weight=0.5, diversity_floor=0.25)
    shape(with_similarity(), config, lambda reward: reward + 1)
    quality, diversity, similarity, labels = (each.tolist() for each in seen["reward"])
    assert (quality, diversity, labels) == ([QUALITY], [[0.25] * 4], [LABELS]), "the weight comes after"
    assert similarity == [[pytest.approx(row) for row in SIMILARITY]]
    reward, similarity, labels = (each.tolist() for each in seen["advantage"])
    assert (reward, labels) == ([[2.0, 2.0, 1.5, 1.0]], [LABELS]), "with the penalty"
    assert similarity == [[pytest.approx(row) for row in SIMILARITY]]


def test_similarities_end_at_0_and_1_with_1_on_the_diagonal():
    seen = []
    register_reward("sees")(lambda quality, similarity: seen.append(similarity.tolist()) or quality)
    odd = [[1.5, -0.2], [-0.2, 1.5]]
    shape(with_similarity([0, 1], odd, [1.0, 1.0]), DarlingConfig(reward="sees"), unpenalized)
    assert seen[0] == [[[1.0, 0.0], [0.0, 1.0]]]


@pytest.mark.parametrize("name", OF_SIMILARITY)
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 1.5])
def test_the_weight_leads_from_the_quality_to_the_reward(name, weight):
    batch = with_similarity()
    full = called(name, batch)
    expected = (1 - weight) * batch.quality + weight * full
    for given in (DarlingConfig(reward=name, weight=weight), DarlingConfig(reward=name)):
        shaped = shape(with_similarity(weight=None if given.weight == weight else weight), given, unpenalized)
        assert shaped.reward.tolist() == [pytest.approx(expected[0].tolist())]
        assert shaped.weight.tolist() == [weight]


def test_the_weight_leads_from_the_centered_reward_to_the_advantage():
    flags = {"reward": "quality", "advantage": "inverse_class_size"}
    centered = [0.375, 0.375, -0.125, -0.625]
    full = [0.1875, 0.1875, -0.125, -0.625]
    for weight in (0.0, 0.5, 1.0):
        shaped = shape(with_similarity(), DarlingConfig(weight=weight, **flags), unpenalized)
        expected = [(1 - weight) * a + weight * b for a, b in zip(centered, full, strict=True)]
        assert shaped.advantage.tolist() == [pytest.approx(expected)]
        assert shaped.diversity_part is None


@pytest.mark.parametrize("name", [*OF_SIMILARITY, "inverse_class_size", "leave_one_out"])
def test_a_group_that_could_not_be_partitioned_is_trained_on_its_quality(name):
    flags = (
        {"reward": "quality", "advantage": name} if name in advantages else {"reward": name, "advantage": "centered"}
    )
    batch = with_similarity([-1] * 4, [[0.0] * 4] * 4, quality_only=True)
    shaped = shape(batch, DarlingConfig(**flags), unpenalized)
    assert shaped.reward.tolist() == [QUALITY]
    assert shaped.advantage.tolist() == [[0.375, 0.375, -0.125, -0.625]]


def test_a_reward_of_yours_need_not_know_of_groups_that_could_not_be_partitioned():
    register_reward("mine")(lambda quality, labels: quality / (labels >= 0).sum(-1, keepdim=True))
    batch = with_similarity([-1] * 4, quality_only=True)
    assert shape(batch, DarlingConfig(reward="mine"), unpenalized).reward.tolist() == [QUALITY]


def test_a_reward_that_works_in_place_leaves_similarity_and_labels_alone():
    @register_reward("mine")
    def in_place(quality, similarity, labels):
        similarity.zero_(), labels.zero_()
        return quality

    batch = with_similarity()
    shape(batch, DarlingConfig(reward="mine", advantage="inverse_class_size"), unpenalized)
    assert batch.labels.tolist() == [LABELS]
    seen = []
    register_advantage("mine")(lambda reward, similarity, labels: seen.extend((similarity, labels)) or reward)
    shape(batch, DarlingConfig(reward="mine", advantage="mine"), unpenalized)
    assert seen[0].tolist() == [[pytest.approx(row) for row in SIMILARITY]] and seen[1].tolist() == [LABELS]


@pytest.mark.parametrize("name", ["nearest_neighbour", "reasoning_novelty", "redundancy"])
@pytest.mark.parametrize("due", [False, True])
def test_a_response_left_out_counts_for_nobody_and_gets_what_all_alike_would(name, due):
    batch = with_similarity([-1, 0, 1, -1])
    batch.gate_is_due = due
    quality = [0.25, 1.0, 0.5, 0.0]
    batch.quality = torch.tensor([quality])
    config = DarlingConfig(reward=name, quality_gate="top:0.5", diversity="pairs")
    found = shape(batch, config, unpenalized).reward[0].tolist()
    two = with_similarity([0, 1], [row[1:3] for row in SIMILARITY[1:3]], quality[1:3])
    alike = with_similarity([0] * 4, [[1.0] * 4] * 4, quality)
    assert found[1:3] == pytest.approx(called(name, two)[0].tolist())
    everybody = called(name, alike)[0].tolist()
    assert [found[0], found[3]] == pytest.approx([everybody[0], everybody[3]])


@pytest.mark.parametrize(
    ("advantage", "passed"),
    [("inverse_class_size", [0.375 / 2, 0.375 / 2, -0.125]), ("diversity_weighted", [0.375 / 2, 0.375 / 2, -0.125])],
)
def test_a_response_left_out_is_not_spared_its_punishment(advantage, passed):
    batch = with_similarity([0, 0, 1, -1])
    batch.diversity = torch.tensor([[0.5, 0.5, 1.0, 0.0]])
    shaped = shape(batch, DarlingConfig(reward="quality", advantage=advantage), unpenalized)
    assert shaped.advantage.tolist() == [pytest.approx([*passed, -0.625])]


@pytest.mark.parametrize("labels", [[0, 0, 1, -1], [-1] * 4])
def test_an_advantage_that_divides_divides_those_that_a_gate_left_out_too(labels):
    batch = with_similarity(labels, quality=(quality := [1.0, 0.75, 0.5, 0.25]))
    diversity = [each if label >= 0 else 0.0 for each, label in zip([0.5, 0.5, 1.0, 0.0], labels, strict=True)]
    batch.diversity = torch.tensor([diversity])
    shaped = shape(batch, DarlingConfig(advantage="centered_std", diversity_floor=0.1), unpenalized)
    reward = [each * max(its, 0.1) for each, its in zip(quality, diversity, strict=True)]
    expected = [(each - mean(reward)) / stdev(reward) for each in reward]
    assert shaped.reward.tolist() == [pytest.approx(reward)]
    assert shaped.advantage.tolist() == [pytest.approx(expected, abs=1e-5)]


@pytest.mark.parametrize("reward", ["marginal_relevance", "redundancy", "nearest_neighbour", "reasoning_novelty"])
def test_where_nobody_passes_the_quality_is_all_there_is(reward):
    batch = with_similarity([-1] * 4)
    shaped = shape(batch, DarlingConfig(reward=reward), unpenalized)
    assert shaped.reward.tolist() == [pytest.approx(QUALITY)]


def test_a_reward_of_yours_that_fails_on_level_diversity_costs_the_metric_alone():
    def spread(quality, diversity):
        assert (diversity.amax(-1) > diversity.amin(-1)).all()
        return quality * diversity

    register_reward("mine")(spread)
    shaped = shape(groups([[1.0, 0.5]], [[1.0, 0.5]]), DarlingConfig(reward="mine"), unpenalized)
    assert shaped.reward.tolist() == [[1.0, 0.25]] and shaped.diversity_part is None


def test_a_response_left_out_has_its_centered_reward_alone_and_no_part_in_the_diversity_of_the_others():
    flags = {"reward": "quality", "advantage": "leave_one_out"}
    found = shape(with_similarity([0, 0, 1, -1]), DarlingConfig(**flags), unpenalized).advantage[0].tolist()
    assert found[3] == pytest.approx(-0.625)
    three = with_similarity([0, 0, 1], [row[:3] for row in SIMILARITY[:3]], QUALITY[:3])
    alone = shape(three, DarlingConfig(**flags), unpenalized).advantage[0].tolist()
    means = sum(QUALITY[:3]) / 3 - sum(QUALITY) / 4
    assert found[:3] == pytest.approx([value + means for value in alone])


def test_a_reward_of_similarities_that_nobody_sent_is_refused():
    with pytest.raises(DarlingError, match="similarity, for the reward 'redundancy'"):
        shape(groups([[1.0, 0.5]], [[1.0, 1.0]]), DarlingConfig(reward="redundancy"), unpenalized)
    register_reward("classes")(lambda quality, labels: quality * (labels + 1))
    shaped = shape(groups([[1.0, 0.5]], [[1.0, 1.0]]), DarlingConfig(reward="classes"), unpenalized)
    assert shaped.reward.tolist() == [[1.0, 0.5]], "labels are always there"
    assert shaped.diversity_part is None, "what one level of classes would be nobody can say"


def test_the_part_of_the_similarities_in_the_reward():
    # r / (1 + sum of s): 1 / 2.1 and so on, against 1 / (1 + 3 * 0.3), the mean of the six pairs being 0.3
    shaped = shape(with_similarity(), DarlingConfig(reward="redundancy"), unpenalized)
    expected = [q / total - q / 1.9 for q, total in zip(QUALITY, [2.1, 2.1, 1.8, 1.6], strict=True)]
    assert shaped.diversity_part.tolist() == [pytest.approx(expected, abs=1e-6)]
    of_three = shape(with_similarity([0, 0, 1, -1]), DarlingConfig(reward="redundancy"), unpenalized)
    assert of_three.diversity_part[0, 0] == pytest.approx(1 / 1.9 - 1 / 1.8), "of those that take part: 0.4 a pair"
    assert of_three.diversity_part[0, 3] == 0
