"""Rewards and quality transforms, against oracles in plain Python and by hand."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darling_plugin.errors import DarlingError
from darling_plugin.registry import register_reward
from darling_plugin.reward import QUALITY_TRANSFORMS, compute_reward, transform_quality


@st.composite
def batches(draw, least=-40):
    """Quality and diversity, (P, n) each: few distinct values, so that ties and equal groups are common."""
    groups, n = draw(st.integers(1, 4)), draw(st.integers(1, 16))
    quality = st.integers(least, 40).map(lambda quarter: quarter / 4)
    most = max(n - 1, 1)  # the only one of its group has 0 or 1
    diversity = st.integers(0, most).map(lambda others: others / most)

    def rows(values):
        return draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=groups, max_size=groups))

    return rows(quality), rows(diversity)


def z_scores(values):
    if len(set(values)) == 1:
        return [0.0] * len(values)
    mean, std = statistics.mean(values), statistics.stdev(values)
    return [(value - mean) / std for value in values]


ORACLES = {
    "multiply": lambda quality, diversity: [q * d for q, d in zip(quality, diversity, strict=True)],
    "additive": lambda quality, diversity: [
        q + d for q, d in zip(z_scores(quality), z_scores(diversity), strict=True)
    ],
    "quality": lambda quality, diversity: quality,
}
TRANSFORM_ORACLES = {
    None: lambda quality: quality,
    "raw": lambda quality: quality,
    "sigmoid": lambda quality: [1 / (1 + math.exp(-q)) for q in quality],
    "group_min": lambda quality: [q - min(quality) for q in quality],
}


def float32(rows):
    return torch.tensor(rows).float()


def shape(quality, diversity, *, reward="mine", quality_transform=None):
    """The reward of the transformed quality: two of the steps of `shaping.shape`."""
    return compute_reward(transform_quality(quality, quality_transform, reward=reward), diversity, reward=reward)


def check(quality, diversity, reward, transform):
    shaped = shape(float32(quality), float32(diversity), reward=reward, quality_transform=transform)
    assert shaped.dtype == torch.float32
    for got, q, d in zip(shaped.tolist(), quality, diversity, strict=True):
        expected = ORACLES[reward](TRANSFORM_ORACLES[transform](q), d)
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("reward", ORACLES)
@pytest.mark.parametrize("transform", QUALITY_TRANSFORMS)
@given(batch=batches())
def test_rewards_match_the_oracle(reward, transform, batch):
    check(*batch, reward, transform)


@pytest.mark.parametrize("reward", ORACLES)
@given(batch=batches(least=0))
def test_without_a_transform_the_quality_is_used_as_it_is(reward, batch):
    check(*batch, reward, None)


@pytest.mark.parametrize("reward", ["additive", "quality"])
@given(batch=batches())
def test_rewards_that_do_not_multiply_take_negative_qualities(reward, batch):
    check(*batch, reward, None)


def test_multiply_by_hand():
    quality, diversity = torch.tensor([[1.0, 1.0, 0.5, 0.0]]), torch.tensor([[0.1, 0.2, 0.6, 1.0]])
    shaped = shape(quality, diversity, reward="multiply")
    assert shaped.tolist() == [pytest.approx([0.1, 0.2, 0.3, 0.0])]


def test_a_negative_quality_times_diversity_is_refused():
    quality, diversity = torch.tensor([[1.0, -2.5], [0.0, -0.25]]), torch.ones(2, 2)
    with pytest.raises(DarlingError) as caught:
        shape(quality, diversity, reward="multiply")
    message = str(caught.value)
    assert "2 of 4 qualities are negative, the least -2.5" in message
    assert "quality_transform {raw,sigmoid,group_min}" in message


def test_raw_is_the_way_to_insist_on_negative_qualities():
    quality, diversity = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 0.5]])
    shaped = shape(quality, diversity, reward="multiply", quality_transform="raw")
    assert shaped.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("value", [0.1, 1000.1, -3.3, 7e6 + 0.5])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 11, 13])
def test_equal_qualities_count_nothing_in_additive(value, n):
    # A float32 mean of equal values need not be that value: the standard deviation must not blow the rounding up.
    quality, diversity = torch.full((1, n), value), torch.full((1, n), 0.3)
    shaped = shape(quality, diversity, reward="additive")
    assert shaped.tolist() == [[0.0] * n]


def test_group_min_looks_at_one_group_at_a_time():
    quality = torch.tensor([[-5.0, -4.0], [10.0, 12.0]])
    assert QUALITY_TRANSFORMS["group_min"](quality).tolist() == [[0.0, 1.0], [0.0, 2.0]]


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (lambda quality: quality[:, :1], r"shape \(2, 1\)"),
        (lambda quality: quality.sum(), r"shape \(\)"),
        (lambda quality: quality.tolist(), "list"),
        (lambda quality: None, "NoneType"),
    ],
)
def test_a_reward_of_another_shape_is_named(result, found):
    register_reward("mine")(lambda quality, diversity: result(quality))
    with pytest.raises(DarlingError, match=r"\(2, 3\) from the reward 'mine'(.|\n)*" + found):
        shape(torch.ones(2, 3), torch.ones(2, 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_named(bad):
    register_reward("mine")(lambda quality, diversity: torch.tensor([[1.0, bad]]))
    with pytest.raises(DarlingError, match=r"finite values from the reward 'mine'(.|\n)*1 of 2"):
        shape(torch.ones(1, 2), torch.ones(1, 2))


def test_a_quality_that_is_not_finite_is_counted():
    with pytest.raises(DarlingError, match="1 of 3 are NaN or infinite; of the qualities it got, 1;"):
        shape(torch.tensor([[1.0, math.nan, 2.0]]), torch.ones(1, 3), reward="multiply")


def test_an_integer_reward_becomes_float32():
    register_reward("mine")(lambda quality, diversity: (quality > 0).long())
    shaped = shape(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2))
    assert shaped.dtype == torch.float32
    assert shaped.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("transform", [None, "raw"])
def test_changing_the_reward_in_place_leaves_the_quality_alone(transform):
    quality = torch.tensor([[1.0, 2.0]])
    shape(quality, torch.ones(1, 2), reward="quality", quality_transform=transform).zero_()
    assert quality.tolist() == [[1.0, 2.0]]


def test_a_reward_that_works_in_place_leaves_what_is_logged_alone():
    @register_reward("mine")
    def in_place(quality, diversity):
        quality *= diversity
        diversity.zero_()
        return quality

    quality, diversity = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]])
    assert compute_reward(quality, diversity, reward="mine").tolist() == [[0.5, 0.5]]
    assert (quality.tolist(), diversity.tolist()) == ([[1.0, 2.0]], [[0.5, 0.25]])
    level = diversity.mean(-1, keepdim=True).expand_as(diversity)  # as shaping hands it over
    assert compute_reward(quality, level, reward="mine").tolist() == [[0.375, 0.75]]


def test_an_unknown_transform_or_reward_lists_the_known():
    with pytest.raises(DarlingError, match=r"did you mean 'sigmoid'.*raw, sigmoid, group_min"):
        shape(torch.ones(1, 2), torch.ones(1, 2), reward="multiply", quality_transform="sigmod")
    with pytest.raises(DarlingError, match="did you mean 'additive'"):
        shape(torch.ones(1, 2), torch.ones(1, 2), reward="aditive")


@pytest.mark.parametrize(("n", "k"), [(4, 2), (6, 3), (8, 2), (16, 5)])
def test_additive_terms_that_cancel_leave_nothing_to_standardize(n, k):
    # k right answers, all the same; the rest wrong, each in its own way: z(r) = -z(Div), but for rounding.
    quality = torch.tensor([[1.0] * k + [0.0] * (n - k)])
    diversity = torch.tensor([[(n - k) / (n - 1)] * k + [1.0] * (n - k)])
    reward = shape(quality, diversity, reward="additive")
    assert reward.tolist() == [[0.0] * n]
