"""The bases of partition models: what the model is asked, and what is checked of its answers."""

import random
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_partition_models import FirstLetter, Listed, Scripted, decisions, error

from darling_plugin.errors import DarlingError
from darling_plugin.partition import (
    EmbeddingModel,
    Group,
    Pair,
    PairwiseModel,
    PartitionModel,
    SimilarityModel,
    measure,
)
from darling_plugin.partition.clustering import cluster

# --- groups


def test_a_group_needs_responses_that_are_str():
    with pytest.raises(DarlingError, match="no responses; the prompt starts 'Say hi'"):
        Group("Say hi", [])
    with pytest.raises(DarlingError, match="int at position 1"):
        Group("p", ["a", 3])
    with pytest.raises(DarlingError, match="NoneType at position 0"):
        Group("p", [None, "a"])
    with pytest.raises(DarlingError, match="one str"):
        Group("p", "abc")


def test_what_has_no_utf8_form_is_replaced_before_anything_sees_it():
    given = ["a \ud800", "a \udfff", "\U0001f600 \ufffe", "b"]
    group = Group("p \udc00", given)
    assert group == Group("p \ufffd", ["a \ufffd", "a \ufffd", "\U0001f600 \ufffe", "b"])
    assert given[0] == "a \ud800", "what was handed over stays as it was"
    model = FirstLetter()
    assert measure(model, [group])[0].labels.tolist() == [0, 0, 1, 2]
    assert all(text.encode() for pairs in model.calls for pair in pairs for text in pair)


# --- the two rules before the model is asked


texts = st.lists(st.sampled_from(["", "  ", "\n", "apple", " apple ", "avocado", "banana", "cherry"]), min_size=1)


def oracle_equivalent(responses):
    def same(first, second):
        first, second = first.strip(), second.strip()
        if first == second:
            return True
        return bool(first and second) and first[0] == second[0]

    return [[same(first, second) for second in responses] for first in responses]


@given(st.lists(texts.map(lambda responses: Group("p", responses[:16])), max_size=3))
def test_judgements_match_the_rules(groups):
    judged = decisions(FirstLetter(), groups)
    assert [each.dtype for each in judged] == [torch.bool] * len(groups)
    assert [each.tolist() for each in judged] == [oracle_equivalent(group.responses) for group in groups]


def test_all_groups_are_scored_together_without_what_the_rules_decide():
    model = FirstLetter()
    groups = [
        Group("one", ["apple", "", "banana", "apple\n"]),
        Group("two", ["kiwi"]),
        Group("three", ["plum", "plum", " plum"]),
        Group("four", ["date", "fig", "dill"]),
    ]
    labels = model.partition(groups)
    first_round = [Pair("one", "apple", "banana"), Pair("four", "date", "fig"), Pair("four", "fig", "dill")]
    assert model.calls == [first_round, [Pair("four", "date", "dill")]]
    expected = [[0, 1, 2, 0], [0], [0, 0, 0], [0, 1, 0]]
    assert [each.tolist() for each in labels] == expected

    model = FirstLetter(clustering="average")
    assert [each.tolist() for each in model.partition(groups)] == expected
    assert model.calls == [
        [
            Pair("one", "apple", "banana"),
            Pair("four", "date", "fig"),
            Pair("four", "date", "dill"),
            Pair("four", "fig", "dill"),
        ]
    ]


def test_the_model_is_not_asked_where_the_rules_decide_everything():
    model = FirstLetter()
    assert [each.tolist() for each in model.partition([Group("p", ["", " "]), Group("q", ["x", "x", ""])])] == [
        [0, 0],
        [0, 0, 1],
    ]
    assert model.partition([]) == []
    assert model.calls == []


# --- pairs


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.randoms())
def test_every_score_lands_at_its_pair(sizes, random):
    score = {}
    groups = [Group(str(k), [f"{k}-{i}" for i in range(n)]) for k, n in enumerate(sizes)]

    class Random(PairwiseModel):
        threshold = 0.5

        def similarity(self, pairs):
            for pair in pairs:
                score[pair] = random.randrange(8) / 8
            return [score[pair] for pair in pairs]

    judged = decisions(Random(), groups)
    for group, equivalent in zip(groups, judged, strict=True):
        for i, j in combinations(range(len(group.responses)), 2):
            expected = score[Pair(group.prompt, group.responses[i], group.responses[j])] > 0.5
            assert equivalent[i, j] == equivalent[j, i] == expected
        assert equivalent.diagonal().all()


LETTERS = "abcdefghijkl"


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 100)), min_size=1, max_size=4), st.randoms())
@pytest.mark.parametrize("one_first", [False, True])
@pytest.mark.parametrize("clustering", ["union_find", "greedy"])
def test_scoring_in_rounds_gives_what_all_pairs_give(clustering, one_first, sizes, random):
    equivalent = {a + b for a, b in combinations(LETTERS, 2) if random.random() * 100 < sizes[0][1]}
    groups = [Group(str(k), list(LETTERS[:n])) for k, (n, _) in enumerate(sizes)]
    model = Listed(equivalent, clustering=clustering)
    model.one_first = one_first
    labels = model.partition(groups)
    assert len(model.asked) <= sum(n * (n - 1) // 2 for n, _ in sizes)
    oracle = [cluster(each.float(), 0.5, clustering) for each in decisions(Listed(equivalent), groups)]
    assert [each.tolist() for each in labels] == [each.tolist() for each in oracle]


def test_responses_that_are_all_equivalent_cost_n_minus_1_pairs():
    group = Group("p", list(LETTERS))
    model = Listed({a + b for a, b in combinations(LETTERS, 2)})
    assert model.partition([group])[0].tolist() == [0] * 12
    assert len(model.asked) == 11
    nothing = Listed(set())
    assert nothing.partition([group])[0].tolist() == list(range(12))
    assert sorted(nothing.asked) == sorted(a + b for a, b in combinations(LETTERS, 2)), "each pair once"


def test_rounds_go_on_while_they_spare_more_than_they_cost():
    """Classes of four and four: alone, what is left after a round is scored at once; in a burst, round by round."""
    equivalent = {a + b for letters in ("abcd", "efgh") for a, b in permutations(letters, 2)}
    groups = [Group(str(k), random.Random(k).sample("abcdefgh", 8)) for k in range(20)]
    alone, together, sparing = (Listed(equivalent) for _ in range(3))
    sparing.round_cost = 0
    expected = [cluster(each.float(), 0.5) for each in decisions(alone, groups)]
    alone.asked, alone.calls = [], 0
    for model, batches in ((alone, [[group] for group in groups]), (together, [groups])):
        labels = [each for batch in batches for each in model.partition(batch)]
        assert all(torch.equal(*pair) for pair in zip(labels, expected, strict=True))
    assert alone.calls <= 3 * len(groups)
    assert together.calls > 3
    assert 7 * 20 < len(together.asked) < 0.9 * len(alone.asked)
    for group in groups:
        sparing.partition([group])
    assert len(sparing.asked) == 22 * 20, "16 pairs of two classes, and 3 in each"


@pytest.mark.parametrize("threshold", [0.25, 0.32, 0.5])
def test_a_similarity_equal_to_the_threshold_is_not_above_it(threshold):
    groups = [Group("p", ["a", "b"])]
    assert Scripted([threshold], threshold=threshold).partition(groups)[0].tolist() == [0, 1]
    assert Scripted([threshold + 1e-3], threshold=threshold).partition(groups)[0].tolist() == [0, 0]


@pytest.mark.parametrize("result", [[0.9, 0.1, 0.2], np.array([0.9, 0.1, 0.2]), torch.tensor([0.9, 0.1, 0.2]).half()])
def test_scores_may_be_a_list_an_array_or_a_tensor(result):
    expected = [[True, True, False], [True, True, False], [False, False, True]]
    assert decisions(Scripted(result), [Group("p", ["a", "b", "c"])])[0].tolist() == expected
    # Rounds: two pairs, then none is left to ask for.
    two = result[:2]
    assert Scripted(two).partition([Group("p", ["a", "b"]), Group("q", ["a", "b"])])[0].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [float("nan"), 1.002, -0.002, float("inf")])
def test_a_score_outside_its_range_names_the_pair(bad):
    with pytest.raises(DarlingError) as caught:
        decisions(Scripted([0.5, bad, 0.5]), [Group("Name a fruit.", ["apple", "fig", "pear"])])
    assert "Scripted.similarity" in error(caught)
    assert "'apple' and 'pear'; the prompt starts 'Name a fruit.'" in error(caught)
    assert "1 of 3 outside" in error(caught)


def test_rounding_just_outside_the_range_is_tolerated():
    judged = Scripted([1.0005, -0.0005, 0.5]).similarities([Group("p", ["a", "b", "c"])])[0]
    assert judged.tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 0.5], [0.0, 0.5, 1.0]]


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ([0.5, 0.5], r"shape \(2,\) for 3 pairs"),
        (torch.zeros(3, 1), r"shape \(3, 1\) for 3 pairs"),
        (None, "NoneType"),
        ("abc", "str"),
    ],
)
def test_scores_of_another_shape_or_type_are_refused(result, found):
    with pytest.raises(DarlingError, match=f"Scripted.similarity(.|\n)*{found}"):
        decisions(Scripted(result), [Group("p", ["a", "b", "c"])])
    with pytest.raises(DarlingError, match="Scripted.similarity"):
        Scripted(result).partition([Group(prompt, ["a", "b"]) for prompt in "pqr"])


# --- similarity matrices


class Matrix(SimilarityModel):
    threshold = 0.0

    def __init__(self, result):
        super().__init__()
        self.result = result

    def similarities(self, groups):
        return self.result


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ([], "0 for 1 groups"),
        ([torch.zeros(2, 3)], r"shape \(2, 3\) for the prompt that starts 'p'"),
        ([torch.zeros(3)], r"shape \(3,\)"),
        ([torch.tensor([[1, 0, 0], [0, 1, float("nan")], [0, 0, 1]])], "nan for the pair 'b' and 'c'"),
    ],
)
def test_a_bad_similarity_matrix_is_refused(result, found):
    with pytest.raises(DarlingError, match=f"Matrix(.|\n)*{found}"):
        Matrix(result).partition([Group("p", ["a", "b", "c"])])


def test_rounding_between_the_two_halves_of_a_matrix_does_not_matter():
    # Entry [i, j] with i < j decides.
    groups = [Group("p", ["a", "b"])]
    assert decisions(Matrix([torch.tensor([[1.0, 1e-5], [-1e-5, 1.0]])]), groups)[0].tolist() == [[True] * 2] * 2
    assert torch.equal(decisions(Matrix([torch.tensor([[1.0, -1e-5], [1e-5, 1.0]])]), groups)[0], torch.eye(2).bool())


# --- thresholds and clustering


def test_a_threshold_must_be_set_and_finite():
    class NoThreshold(PairwiseModel):
        def similarity(self, pairs):
            return [0.0] * len(pairs)

    with pytest.raises(DarlingError, match="threshold of NoThreshold"):
        NoThreshold()
    assert NoThreshold(threshold=0.3).threshold == 0.3
    for bad in (float("nan"), "0.5", True):
        with pytest.raises(DarlingError, match="finite number"):
            FirstLetter(threshold=bad)
    for bad in (-1, 50):
        with pytest.raises(DarlingError, match="a number from 0 to 1 as threshold of the partition model FirstLetter"):
            FirstLetter(threshold=bad)
    assert FirstLetter(threshold=0).threshold == 0
    assert FirstLetter.threshold == 0.5


def test_a_class_may_have_a_clustering_of_its_own():
    class Own(PairwiseModel):
        threshold, clustering = 0.5, "greedy"

        def similarity(self, pairs):
            return [1.0 for _ in pairs]

    assert (Own().clustering, Own(clustering="average").clustering) == ("greedy", "average")


def test_clustering_is_checked_and_used():
    groups = [Group("p", ["a", "b", "c", "d"])]
    chain = ["ab", "bc", "cd"]
    assert Listed(chain).partition(groups)[0].tolist() == [0, 0, 0, 0]
    assert Listed(chain, clustering="greedy").partition(groups)[0].tolist() == [0, 0, 1, 1]
    with pytest.raises(DarlingError, match="known clustering"):
        Listed(chain, clustering="kmeans")


# --- user code that works in place


def in_place(texts):
    """Turns what it was given around and drops the last, as careless code may."""
    given = list(texts)
    texts.reverse()
    texts.pop()
    return given


class InPlace(PartitionModel):
    def partition(self, groups):
        for group in groups:
            group.responses.sort()
        return [torch.arange(len(group.responses)) for group in groups]


class InPlaceSimilarities(SimilarityModel):
    threshold = 0.5

    def similarities(self, groups):
        return [
            torch.tensor([[float(a[0] == b[0]) for b in texts] for a in texts]) for texts in map(responses, groups)
        ]


def responses(group):
    return in_place(group.responses)


class InPlacePairs(PairwiseModel):
    threshold = 0.5

    def similarity(self, pairs):
        return [float(pair.first[0] == pair.second[0]) for pair in in_place(pairs)]


class InPlaceTexts(EmbeddingModel):
    threshold = 0.5

    def embed(self, texts):
        return [[float(text[0] == "a"), float(text[0] == "b"), 0.1] for text in in_place(texts)]


@pytest.mark.parametrize("model", [InPlaceSimilarities, InPlacePairs, InPlaceTexts])
@pytest.mark.parametrize("clustering", ["union_find", "average"])
def test_a_model_may_change_what_it_is_given(model, clustering):
    group = Group("p", ["b1", "a1", "b2", "", "a2", "b1"])
    (result,) = measure(model(clustering=clustering), [group])
    assert result.labels.tolist() == [0, 1, 0, 2, 1, 0]
    assert group.responses == ["b1", "a1", "b2", "", "a2", "b1"]


def test_a_partition_model_may_sort_its_groups_and_the_log_has_them_as_they_were():
    groups = [Group("p", ["b", "a"])]
    measure(InPlace(), groups)
    assert groups[0].responses == ["b", "a"]
