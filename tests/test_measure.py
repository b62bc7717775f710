"""measure: labels and diversity of each group, and the check of the labels."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_partition_models import FirstLetter, Labels, Listed, Scripted, error

from darling_plugin.errors import DarlingError
from darling_plugin.partition import (
    Between,
    Group,
    PairwiseModel,
    SimilarityModel,
    check_diversity,
    measure,
    measure_each,
)
from darling_plugin.registry import partition_models

# --- measure


def test_measure_gives_labels_and_diversity_in_order():
    groups = [Group("p", ["apple", "avocado", "banana"]), Group("q", ["kiwi"])]
    first, second = measure(FirstLetter(), groups)
    assert (first.labels.tolist(), first.diversity.tolist(), first.similarity) == ([0, 0, 1], [0.5, 0.5, 1.0], None)
    assert (second.labels.tolist(), second.diversity.tolist()) == ([0], [1.0])


SIMILARITY = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.9], [0.1, 0.9, 1.0]])


@pytest.mark.parametrize(
    ("kind", "expected"), [("classes", [0.0] * 3), ("pairs", [0.5, 0.0, 0.5]), ("expected", [0.5, 0.1, 0.5])]
)
def test_each_kind_of_diversity_of_a_chain(kind, expected):
    """a ~ b and b ~ c, but not a ~ c: one class."""
    (result,) = measure(Scripted([0.9, 0.1, 0.9]), [Group("p", ["a", "b", "c"])], kind, with_similarity=True)
    assert result.diversity.tolist() == pytest.approx(expected)
    assert result.labels.tolist() == [0, 0, 0]
    assert torch.allclose(result.similarity, SIMILARITY)


def test_similarities_come_where_they_are_needed_alone():
    groups = [Group("p", ["a", "b", "c"])]
    assert measure(Listed(["ab", "bc"]), groups)[0].similarity is None
    for kind, clustering in (("pairs", "union_find"), ("expected", "greedy"), ("classes", "average")):
        (result,) = measure(Scripted([0.9, 0.1, 0.9], clustering=clustering), groups, kind)
        assert torch.allclose(result.similarity, SIMILARITY)


def test_identical_responses_are_certainly_equivalent_and_empty_ones_certainly_different():
    group = Group("p", ["a", "", "a ", "b", " "])
    (result,) = measure(Scripted([0.3]), [group], "expected")
    # Each is compared with four others: an a is 0 from the other a, 1 from the empty ones, 0.7 from b.
    assert result.diversity.tolist() == pytest.approx([2.7 / 4, 3 / 4, 2.7 / 4, 3.4 / 4, 3 / 4])
    assert (measure(Scripted([]), [Group("p", ["a"])], "expected")[0].diversity).tolist() == [1.0]

    class Unlimited(Scripted):
        option_limits: ClassVar = {"threshold": Between()}

    for threshold in (-0.5, 1.5):  # the rules hold at any threshold
        (result,) = measure(Unlimited([0.3], threshold=threshold), [group], "pairs")
        assert result.labels.tolist()[0] == result.labels.tolist()[2] != result.labels.tolist()[1]
        assert result.labels.tolist()[1] == result.labels.tolist()[4]


@given(st.integers(2, 9), st.randoms())
def test_each_kind_of_diversity_against_loops(n, random):
    texts = [random.choice(["", *"abcdefghi"]) + " " * random.randrange(2) for _ in range(n)]
    scores = {}

    class Known(PairwiseModel):
        threshold = 0.5

        def similarity(self, pairs):
            return [scores.setdefault(frozenset(pair[1:]), random.randrange(101) / 100) for pair in pairs]

    def p(first, second):
        first, second = first.strip(), second.strip()
        return 1.0 if first == second else scores[frozenset((first, second))] if first and second else 0.0

    measured = {kind: measure(Known(), [Group("p", texts)], kind)[0] for kind in ("expected", "pairs")}
    for i in range(n):
        others = [p(texts[i], texts[j]) for j in range(n) if j != i]
        assert measured["expected"].diversity[i] == pytest.approx(sum(1 - x for x in others) / (n - 1), abs=1e-5)
        assert measured["pairs"].diversity[i] == pytest.approx(sum(x <= 0.5 for x in others) / (n - 1), abs=1e-5)


def test_similarities_have_six_decimals_before_anything_is_made_of_them():
    """So that a log with six decimals holds what was decided by: 0.5000004 is 0.5, which is not above 0.5."""
    group = Group("p", ["a", "b"])
    for score, label in ((0.5000004, 1), (0.5000006, 0)):
        (logged,) = measure(Scripted([score]), [group], "pairs")
        assert logged.similarity[0, 1].item() == pytest.approx(round(score, 6), abs=4e-8)  # half a float32 step
        assert logged.labels.tolist() == [0, label]
        assert measure(Scripted([score]), [group])[0].labels.tolist() == [0, label], "scored in rounds"


class OneMatrix(SimilarityModel):
    threshold = 0.5

    def similarities(self, groups):
        return [torch.tensor([[1.0, 0.1234567], [0.1234567, 1.0]]) for _ in groups]


def test_so_have_those_of_a_model_that_gives_matrices():
    (result,) = measure(OneMatrix(), [Group("p", ["a", "b"])], "expected")
    assert f"{result.similarity[0, 1].item():.7f}" == "0.1234570"


def test_a_model_without_similarities_has_classes_alone(caplog):
    with pytest.raises(DarlingError, match="(?s)partition model with similarities, for diversity expected.*Labels"):
        measure(Labels([[0, 0]]), [Group("p", ["a", "b"])], "expected")
    (result,) = measure(Labels([[0, 1, 0]]), [Group("p", ["a", "b", "c"])], with_similarity=True)
    assert result.similarity.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_expected_diversity_of_similarities_that_are_no_probabilities_is_warned_of(caplog):
    for spec in ("lexical", "default", "cross-encoder", "served"):
        check_diversity(partition_models.get(spec), "expected")
    check_diversity(partition_models.get("embedding"), "pairs")
    assert not caplog.records
    check_diversity(partition_models.get("embedding"), "expected")
    assert "Embedding" in caplog.records[0].message


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


# --- measure_each


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_that_broke_the_accelerator_is_raised_and_no_group_is_asked_for_again(count):
    class Broken(Labels):
        calls = 0

        def partition(self, groups):
            self.calls += 1
            raise self.result

    groups = [Group("p", ["a", "b"])] * count
    broken = Broken(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(torch.AcceleratorError):
        measure_each(broken, groups)
    assert broken.calls == 1
    short = Broken(torch.AcceleratorError("CUDA error: out of memory"))
    assert measure_each(short, groups) == [short.result] * count
