"""The overlaps of the head's features, against Python's sets."""

import random

import numpy as np
import pytest

from darling_plugin.partition.models.head.sets import Sets, numbered, runs

DRAW = random.Random(0)
TEXTS = [[DRAW.randrange(30) for _ in range(length)] for length in (0, 1, 5, 12, 40, 40)]
WEIGHTS = np.array([DRAW.random() for _ in range(30)], np.float32)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_overlaps_are_those_of_pythons_sets(weights):
    found = Sets([np.array(text, np.int64) for text in TEXTS], weights)

    def weigh(members):
        return sum(1.0 if weights is None else float(weights[member]) for member in members)

    for i, first in enumerate(map(set, TEXTS)):
        assert found.totals[i] == pytest.approx(weigh(first))
        for j, second in enumerate(map(set, TEXTS)):
            both, either = weigh(first & second), weigh(first | second)
            assert found.shared[i, j] == pytest.approx(both)
            assert found.lacking[i, j] == pytest.approx(weigh(first - second), abs=1e-5)
            assert found.jaccard[i, j] == pytest.approx(both / either if either else 0.0, abs=1e-5)
            sizes = weigh(first), weigh(second)
            assert found.of_larger[i, j] == pytest.approx(both / max(sizes) if max(sizes) else 0.0, abs=1e-5)
            assert found.of_smaller[i, j] == pytest.approx(both / min(sizes) if min(sizes) else 0.0, abs=1e-5)


def test_what_two_texts_have_on_end_has_a_number_of_its_own():
    found = runs(np.array([1, 2, 1, 2, 3]), 2, 10)
    assert found[0] == found[2] and len(set(found.tolist())) == 3
    assert runs(np.array([7]), 2, 10).tolist() == [] and runs(np.array([], np.int64), 3, 10).tolist() == []


def test_equal_members_have_equal_numbers():
    first, second, empty = numbered([["a", "b", "a"], ["b", "c"], []])
    assert first.tolist() == [0, 1, 0] and second.tolist() == [1, 2] and empty.dtype == np.int64
