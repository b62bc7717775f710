"""Similarities to classes, against oracles; and that no pair is judged which cannot matter."""

from itertools import combinations
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darling_plugin.diversity import class_diversity
from darling_plugin.errors import DarlingError
from darling_plugin.partition.clustering import CLUSTERINGS, cluster, rounds


@st.composite
def equivalences(draw):
    """Symmetric (n, n), true on the diagonal, from nearly empty to nearly full."""
    n = draw(st.integers(2, 16))
    share = draw(st.integers(0, 10))
    draws = draw(st.lists(st.integers(1, 10), min_size=n * n, max_size=n * n))
    matrix = [[True] * n for _ in range(n)]
    for i in range(n):
        for j in range(i):
            matrix[i][j] = matrix[j][i] = draws[i * n + j] <= share
    return matrix


def oracle_union_find(matrix):
    """Start with one class a response; merge two classes that hold an equivalent pair until none are left."""
    classes = [{i} for i in range(len(matrix))]
    merged = True
    while merged:
        merged = False
        for a in classes:
            for b in classes:
                if a is not b and any(matrix[i][j] for i in a for j in b):
                    a |= b
                    classes.remove(b)
                    merged = True
                    break
            if merged:
                break
    return labels_of(classes, len(matrix))


def oracle_greedy(matrix):
    classes = []
    for i in range(len(matrix)):
        for members in classes:
            if matrix[i][members[0]]:
                members.append(i)
                break
        else:
            classes.append([i])
    return labels_of(classes, len(matrix))


def labels_of(classes, n):
    ordered = sorted(classes, key=min)
    return [next(k for k, members in enumerate(ordered) if i in members) for i in range(n)]


def oracle_average(matrix):
    """Merge the two classes with the largest mean similarity, as long as that is above one half."""
    classes = [{i} for i in range(len(matrix))]

    def alike(two):
        return fmean(float(matrix[i][j]) for i in two[0] for j in two[1])

    while len(classes) > 1:
        a, b = max(combinations(classes, 2), key=alike)
        if alike((a, b)) <= 0.5 + 1e-9:
            break
        classes = [each for each in classes if each is not a and each is not b] + [a | b]
    return labels_of(classes, len(matrix))


ORACLES = {"union_find": oracle_union_find, "greedy": oracle_greedy}


@pytest.mark.parametrize("method", ORACLES)
@given(matrix=equivalences())
def test_classes_match_the_oracle(method, matrix):
    labels = cluster(torch.tensor(matrix).float(), 0.5, method)
    assert labels.dtype == torch.int64
    assert labels.tolist() == ORACLES[method](matrix)


@pytest.mark.parametrize("seed", range(40))
def test_average_linkage_matches_the_oracle(seed):
    # Random similarities: where two pairs of classes are equally alike, either may be joined first.
    values = torch.rand(2 + seed % 9, 2 + seed % 9, generator=torch.Generator().manual_seed(seed))
    similarity = (values + values.T) / 2
    assert cluster(similarity, 0.5, "average").tolist() == oracle_average(similarity.tolist())


def test_one_unsure_pair_joins_no_two_classes_under_average_linkage():
    similarity = torch.tensor([[1, 0.9, 0.1, 0.1], [0.9, 1, 0.6, 0.1], [0.1, 0.6, 1, 0.9], [0.1, 0.1, 0.9, 1]])
    assert cluster(similarity, 0.5, "union_find").tolist() == [0, 0, 0, 0]
    assert cluster(similarity, 0.5, "average").tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("method", CLUSTERINGS)
@pytest.mark.parametrize("threshold", [-0.3, 0.0, 0.25, 0.518, 0.84, 1.0])
def test_a_pair_at_the_threshold_is_two_classes_and_one_above_it_is_one(method, threshold):
    for similarity, expected in ((threshold, [0, 1]), (threshold + 1e-5, [0, 0])):
        assert cluster(torch.tensor([[1.0, similarity], [similarity, 1.0]]), threshold, method).tolist() == expected


@given(equivalences(), st.randoms())
def test_union_find_diversity_follows_a_permutation(matrix, random):
    order = list(range(len(matrix)))
    random.shuffle(order)
    equivalent = torch.tensor(matrix).float()
    permuted = class_diversity(cluster(equivalent[order][:, order], 0.5))
    assert torch.equal(permuted, class_diversity(cluster(equivalent, 0.5))[order])


@pytest.mark.parametrize("method", CLUSTERINGS)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), random=st.randoms())
def test_all_methods_agree_where_equivalence_is_transitive(method, sizes, random):
    classes = [k for k, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(classes)
    truth = torch.tensor(classes)
    labels = cluster((truth[:, None] == truth[None, :]).float(), 0.5, method)
    assert torch.equal(labels[:, None] == labels[None, :], truth[:, None] == truth[None, :])
    first_appearances = list(dict.fromkeys(labels.tolist()))
    assert first_appearances == list(range(len(sizes)))


def test_a_chain_is_one_class_for_union_find_and_more_for_greedy():
    chain = torch.eye(4)
    for i in range(3):
        chain[i, i + 1] = chain[i + 1, i] = 1
    assert cluster(chain, 0.5, "union_find").tolist() == [0, 0, 0, 0]
    assert cluster(chain, 0.5, "greedy").tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_one_response_all_equal_all_different(method):
    assert cluster(torch.ones(1, 1), 0.5, method).tolist() == [0]
    assert cluster(torch.ones(5, 5), 0.5, method).tolist() == [0] * 5
    assert cluster(torch.eye(5), 0.5, method).tolist() == [0, 1, 2, 3, 4]


def test_an_unknown_method_lists_the_known():
    with pytest.raises(DarlingError, match=r"did you mean 'greedy'.*union_find, greedy, average"):
        cluster(torch.ones(1, 1), 0.5, "gredy")
    with pytest.raises(DarlingError, match="(?s)'pairwise'.*diversity pairs"):
        cluster(torch.ones(1, 1), 0.5, "pairwise")


def play(matrix, method, one_first, patience=None):
    """The labels of `rounds`, and every Round with what was judged of it: `now` alone, or by `patience` all."""
    dialogue, done, answers = rounds(len(matrix), method, one_first=one_first), [], None
    while True:
        try:
            due = dialogue.send(answers)
        except StopIteration as stop:
            return stop.value, done
        judged = due.now if patience is None or next(patience) else due.now + due.later
        done.append((due, judged))
        answers = [matrix[i][j] for i, j in judged]


@given(equivalences(), st.booleans(), st.randoms())
@pytest.mark.parametrize("method", ["union_find", "greedy"])
def test_rounds_ask_for_no_pair_twice_and_for_none_that_cannot_matter(method, matrix, one_first, random):
    patience = iter(lambda: random.random() < 0.7, None)
    labels, done = play(matrix, method, one_first, patience)
    assert labels == cluster(torch.tensor(matrix).float(), 0.5, method).tolist()
    flat = [pair for _, judged in done for pair in judged]
    assert len(set(flat)) == len(flat) and all(i < j for i, j in flat)
    if method == "union_find":
        known = [[i == j for j in range(len(matrix))] for i in range(len(matrix))]
        not_judged = set(combinations(range(len(matrix)), 2))
        for due, judged in done:
            found = oracle_union_find(known)
            assert set(due.now + due.later) == {(i, j) for i, j in not_judged if found[i] != found[j]}
            for number, (i, j) in enumerate(due.now):
                # Even if all others of its round turned out equivalent, this pair would still link two classes.
                hoped = [row[:] for row in known]
                for a, b in due.now[:number] + due.now[number + 1 :]:
                    hoped[a][b] = hoped[b][a] = True
                found = oracle_union_find(hoped)
                assert found[i] != found[j]
            for i, j in judged:
                known[i][j] = known[j][i] = matrix[i][j]
            not_judged -= set(judged)


@pytest.mark.parametrize(("one_first", "most"), [(True, 31), (False, 20)])
def test_the_number_of_rounds(one_first, most):
    distinct = [[i == j for j in range(32)] for i in range(32)]
    labels, done = play(distinct, "union_find", one_first)
    assert labels == list(range(32)) and len(done) == most
    if one_first:
        assert all(len({i for i, _ in judged}) == 1 for _, judged in done)
    assert len(play([[True] * 32] * 32, "union_find", one_first)[1]) == 1
    assert len(play(distinct, "union_find", one_first, iter([True, False]))[1]) == 2


def test_what_a_round_is_worth():
    """After a first round in which every other link of the row was equivalent, and in which none was."""
    pairs_of_two = [[i // 2 == j // 2 for j in range(8)] for i in range(8)]
    _, done = play(pairs_of_two, "union_find", False)
    assert [due.worth for due, _ in done[:1]] == [float("inf")]
    p = 4 / 7  # 4 of the 7 links; then 4 classes of 2
    assert done[1][0].worth == pytest.approx(4 * (3 * p + 2 * p**2 + p**3) - 3 * p)
    distinct = [[i == j for j in range(8)] for i in range(8)]
    assert [due.worth for due, _ in play(distinct, "union_find", False)[1][1:]] == [0.0] * 4
    assert all(due.worth <= len(due.later) for due, _ in done[1:])


def test_two_large_classes_are_not_compared_pair_by_pair():
    """Once they have been found, only pairs of the two are left, of which none is needless and none is yes."""
    halves = [[i % 2 == j % 2 for j in range(32)] for i in range(32)]
    _, done = play(halves, "union_find", False)
    found = next(k for k, (due, _) in enumerate(done) if len(due.now) == 1)
    assert len(done[found:]) > 100
    assert all(due.worth == 0 for due, _ in done[found + 2 :])
