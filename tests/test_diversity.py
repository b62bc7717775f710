"""The diversities of classes, of pairs and in expectation, against counting."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darling_plugin.diversity import class_diversity, expected_diversity, pair_diversity


def oracle_class_diversity(labels):
    result = []
    for i, own in enumerate(labels):
        if own < 0:
            result.append(0.0)
            continue
        others = [label for j, label in enumerate(labels) if j != i and label >= 0]
        different = 0
        for label in others:
            if label != own:
                different += 1
        result.append(different / len(others) if others else 1.0)
    return result


def oracle_pair_diversity(equivalent):
    n = len(equivalent)
    result = []
    for i in range(n):
        different = 0
        for j in range(n):
            if j != i and not equivalent[i][j]:
                different += 1
        result.append(different / (n - 1))
    return result


labels_of_a_group = st.lists(st.integers(-1, 5), min_size=1, max_size=16)


@given(labels_of_a_group)
def test_class_diversity_matches_counting(labels):
    diversity = class_diversity(torch.tensor(labels))
    assert diversity.dtype == torch.float32
    assert diversity.tolist() == pytest.approx(oracle_class_diversity(labels), abs=1e-6)
    assert ((diversity >= 0) & (diversity <= 1)).all()


@given(
    st.integers(2, 16).flatmap(lambda n: st.lists(st.lists(st.integers(-1, 5), min_size=n, max_size=n), min_size=2))
)
def test_groups_of_a_batch_do_not_touch(batch):
    labels = torch.tensor(batch)
    rows = torch.stack([class_diversity(row) for row in labels])
    assert torch.equal(class_diversity(labels), rows)
    assert torch.equal(class_diversity(labels.unsqueeze(0)), rows.unsqueeze(0))


@given(labels_of_a_group, st.randoms())
def test_class_diversity_follows_a_permutation(labels, random):
    order = list(range(len(labels)))
    random.shuffle(order)
    labels = torch.tensor(labels)
    assert torch.equal(class_diversity(labels[order]), class_diversity(labels)[order])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0]),
        ([0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0]),
        ([0, 0, 0, 1], [1 / 3, 1 / 3, 1 / 3, 1.0]),
        ([7, 7, 3], [0.5, 0.5, 1.0]),
        ([0], [1.0]),
        ([-1, 4, -1], [0.0, 1.0, 0.0]),
        ([-1, 4, -1, 2], [0.0, 1.0, 0.0, 1.0]),
        ([-1, 4, -1, 4], [0.0, 0.0, 0.0, 0.0]),
        ([-1, -1], [0.0, 0.0]),
    ],
)
def test_class_diversity_by_hand(labels, expected):
    assert class_diversity(torch.tensor(labels)).tolist() == pytest.approx(expected)


def test_class_diversity_is_float32_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        assert class_diversity(torch.tensor([0, 1, 1])).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@given(
    st.integers(2, 16).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_pair_diversity_matches_counting(equivalent):
    matrix = torch.tensor(equivalent)
    before = matrix.clone()
    diversity = pair_diversity(matrix)
    assert diversity.dtype == torch.float32
    assert diversity.tolist() == pytest.approx(oracle_pair_diversity(equivalent), abs=1e-6)
    assert torch.equal(matrix, before)


def test_pair_diversity_has_no_transitive_closure():
    # 0 ~ 1 and 1 ~ 2, not 0 ~ 2: one class, but 0 and 2 differ.
    equivalent = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
    assert pair_diversity(equivalent).tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("diagonal", [True, False])
def test_pair_diversity_of_a_group_of_one(diagonal):
    assert pair_diversity(torch.tensor([[diagonal]])).tolist() == [1.0]


# --- expected diversity


@given(st.integers(1, 9), st.randoms())
def test_expected_diversity_matches_the_mean_over_all_outcomes(n, random):
    """The mean of pair_diversity over every way in which pairs can turn out, weighed by its probability."""
    p = torch.eye(n)
    for i in range(n):
        for j in range(i):
            p[i, j] = p[j, i] = random.randrange(101) / 100
    found = expected_diversity(p)
    assert found.dtype == torch.float32 and found.shape == (n,)
    for i in range(n):
        others = [p[i, j].item() for j in range(n) if j != i]
        mean = 0.0
        for outcome in product([True, False], repeat=len(others)):
            weight = math.prod(q if same else 1 - q for q, same in zip(others, outcome, strict=True))
            mean += weight * (outcome.count(False) / len(others) if others else 1.0)
        assert found[i].item() == pytest.approx(mean, abs=1e-5)


def test_expected_diversity_of_certain_probabilities_is_pair_diversity_and_cosines_are_cut_off():
    equivalent = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
    assert torch.equal(expected_diversity(equivalent.float()), pair_diversity(equivalent))
    cosines = torch.tensor([[1.0, -0.5, 1.2], [-0.5, 1.0, 0.5], [1.2, 0.5, 1.0]])
    assert expected_diversity(cosines).tolist() == [0.5, 0.75, 0.25]
