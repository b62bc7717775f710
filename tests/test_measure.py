"""measure: labels and diversity of each group, and the check of the labels."""

import numpy as np
import pytest
import torch
from small_partition_models import FirstLetter, Labels, Listed, Scripted, error

from darling_plugin.errors import DarlingError
from darling_plugin.partition import (
    Group,
    measure,
)

# --- measure


def test_measure_gives_labels_and_diversity_in_order():
    groups = [Group("p", ["apple", "avocado", "banana"]), Group("q", ["kiwi"])]
    first, second = measure(FirstLetter(), groups)
    assert (first.labels.tolist(), first.diversity.tolist(), first.equivalent) == ([0, 0, 1], [0.5, 0.5, 1.0], None)
    assert (second.labels.tolist(), second.diversity.tolist()) == ([0], [1.0])


def test_measure_pairwise_keeps_the_judgements_and_closes_nothing():
    groups = [Group("p", ["a", "b", "c"])]
    (result,) = measure(Scripted([0.9, 0.1, 0.9], clustering="pairwise"), groups)
    assert result.equivalent.tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    assert result.diversity.tolist() == [0.5, 0.0, 0.5]
    assert result.labels.tolist() == [0, 0, 0]
    (closed,) = measure(Listed(["ab", "bc"]), groups)
    assert closed.diversity.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "result", [[[3, 3, 1]], [np.array([3, 3, 1])], [torch.tensor([3, 3, 1]).byte()], torch.tensor([[3, 3, 1]])]
)
def test_measure_takes_lists_arrays_and_tensors(result):
    (measured,) = measure(Labels(result), [Group("p", ["a", "b", "c"])])
    assert measured.labels.dtype == torch.int64
    assert measured.labels.tolist() == [0, 0, 1], "numbered by first appearance, without gaps"
    assert measured.diversity.tolist() == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (None, "NoneType"),
        ([], "0 for 1 groups"),
        ([[0, 0, 0], [0, 0, 0]], "2 for 1 groups"),
        ([[0, 0]], r"shape \(2,\)"),
        ([[[0], [0], [0]]], r"shape \(3, 1\)"),
        ([[0.0, 1.0, 1.0]], "float32"),
        ([[True, False, True]], "bool"),
        ([[0, -1, 1]], "the label -1"),
        ([["a", "b", "c"]], "list"),
        ([None], "NoneType"),
    ],
)
def test_measure_names_the_class_and_the_group_of_bad_labels(result, found):
    with pytest.raises(DarlingError, match=found) as caught:
        measure(Labels(result), [Group("Name a fruit.", ["a", "b", "c"])])
    assert "Labels.partition" in error(caught)
    if isinstance(result, list) and len(result) == 1:
        assert "the prompt that starts 'Name a fruit.'" in error(caught)


def test_measure_of_nothing_does_not_ask():
    assert measure(Labels(None), []) == []
