"""Similarities -> classes; and which pairs have to be judged at all."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.registry import nearest

if TYPE_CHECKING:
    import torch

CLUSTERINGS = ("union_find", "greedy", "average")
DEFAULT_CLUSTERING = "union_find"


def check_clustering(method: str) -> str:
    """`method` itself; raises DarlingError when it is not one of CLUSTERINGS."""
    if method == "pairwise":
        raise DarlingError(
            f"a {spelled('clustering')} that makes classes: {', '.join(CLUSTERINGS)}",
            "'pairwise', which never did",
            f"pass {spelled('diversity')} pairs: the same diversity under another name",
        )
    if method not in CLUSTERINGS:
        raise DarlingError(
            f"a known {spelled('clustering')}",
            f"{method!r}",
            f"{nearest(str(method), list(CLUSTERINGS))}known: {', '.join(CLUSTERINGS)}",
        )
    return method


def cluster(similarity: torch.Tensor, threshold: float, method: str = DEFAULT_CLUSTERING) -> torch.LongTensor:
    """Classes of one group, numbered 0, 1, 2, ... by first appearance. Two are equivalent above the threshold.

    - "union_find": connected components, as the official code trains (a ~ b and b ~ c puts a with c).
    - "greedy": each response joins the first class whose *first* member it is equivalent to, as NoveltyBench
      evaluates; depends on the order of the responses, and gives at least as many classes as union_find.
    - "average": average linkage. The two classes whose members are most alike in the mean become one, as long as that
      mean is above the threshold; one unsure pair does not join two classes, as it does under union_find.

    Args:
        similarity: (n, n), symmetric; the diagonal is not read.

    Returns:
        (n,) int64; a group of one is one class.
    """
    import torch

    check_clustering(method)
    if len(similarity) == 1:
        return torch.zeros(1, dtype=torch.long)
    if method == "average":
        return torch.tensor(numbered(_average_linkage(similarity, threshold)))
    equivalent = (similarity > threshold).fill_diagonal_(True)
    labels = _greedy(equivalent.tolist()) if method == "greedy" else _connected_components(equivalent)
    return torch.tensor(numbered(labels))


def numbered(labels: Sequence[int]) -> list[int]:
    """The same classes, numbered 0, 1, 2, ... by first appearance."""
    number: dict[int, int] = {}
    return [number.setdefault(label, len(number)) for label in labels]


class Round(NamedTuple):
    """Pairs (i, j), i < j, to be judged next: `now`, or now and later at once, in that order.

    now: none of these can be made needless by the answers to the others.
    later: all other pairs that are still open; most of them will be asked for in the next rounds.
    worth: how many of `later` the answers to `now` can be expected to make needless.
    """

    now: list[tuple[int, int]]
    later: list[tuple[int, int]]
    worth: float


# A dialogue about one group: yields a Round, takes as many judgements, and returns the labels, numbered by first
# appearance: those that cluster() would give to all n(n-1)/2 judgements.
Rounds = Generator[Round, Sequence[bool], list[int]]


def rounds(n: int, method: str, *, one_first: bool = False) -> Rounds:
    """Asks only for the judgements that can still change the classes.

    - "union_find": a pair whose two sides are in one class already is never asked for. The pairs of `now` form no
      cycle among the classes, so none of them can make another one needless. A class of s responses whose members are
      all equivalent costs s - 1 judgements instead of s(s-1)/2. Pairs of different classes are all needed: any one of
      them could join the two.
    - "greedy": a response is compared with the first members of the classes before it, until one is equivalent.

    Args:
        n: number of responses.
        one_first: prefer rounds whose pairs have one and the same i, for models that then read response i only once.
            Where nothing is equivalent they take n - 1 rounds; without it union_find takes about n / 2.
    """
    if method == "average":
        raise ValueError("average linkage needs every pair at once")
    check_clustering(method)
    return _greedy_rounds(n) if method == "greedy" else _union_find_rounds(n, one_first)


def _union_find_rounds(n: int, one_first: bool) -> Rounds:
    from scipy.cluster.hierarchy import DisjointSet

    classes, answers, in_vain = DisjointSet(range(n)), [], 0
    left = list(combinations(range(n), 2))
    if not one_first:
        left.sort(key=lambda pair: pair[1] - pair[0])  # a round then links neighbours, next neighbours, and so on
    while left:
        member = [classes[k] for k in range(n)]
        forest = DisjointSet(member)
        now = [(i, j) for i, j in left if forest.merge(member[i], member[j])]
        taken = set(now)
        later = [pair for pair in left if pair not in taken]
        # Neighbours of the last round's classes differ by their making; after two such rounds most others will, too.
        worth = _worth(n, classes.n_subsets, answers, len(later)) if in_vain < 2 else 0.0
        found = yield Round(now, later, worth)
        for (i, j), equivalent in zip([*now, *later][: len(found)], found, strict=True):
            if equivalent:
                classes.merge(i, j)
        answers += found
        in_vain = 0 if any(found) else in_vain + 1
        left = [(i, j) for i, j in later if not classes.connected(i, j)] if len(found) == len(now) else []
    return numbered([classes[k] for k in range(n)])


def _worth(n: int, classes: int, answers: Sequence[bool], later: int) -> float:
    """Round.worth, as if the classes were all of one size and `now` linked them in a row.

    The two ends of d links are joined where each is equivalent: with p^d, p being the share of the answers so far.
    Before the first answer it is infinite: that round tells.
    """
    if not answers:
        return float("inf")
    share, size = sum(answers) / len(answers), n / classes
    joined = sum((classes - links) * share**links for links in range(1, classes))
    return min(size**2 * joined - share * (classes - 1), later)


def _greedy_rounds(n: int) -> Rounds:
    labels = [-1] * n
    for first in range(n):
        if labels[first] >= 0:
            continue
        labels[first] = first
        asked = [(first, k) for k in range(first + 1, n) if labels[k] < 0]
        if asked:
            for (_, k), equivalent in zip(asked, (yield Round(asked, [], 0.0)), strict=True):
                if equivalent:
                    labels[k] = first
    return numbered(labels)


def _greedy(equivalent: list[list[bool]]) -> list[int]:
    labels: list[int] = []  # a class is named by the index of its first member
    for i, row in enumerate(equivalent):
        labels.append(next((first for first in range(i) if labels[first] == first and row[first]), i))
    return labels


def _connected_components(equivalent: torch.BoolTensor) -> list[int]:
    from scipy.sparse.csgraph import connected_components

    return connected_components(equivalent.numpy(), directed=False)[1].tolist()


def _average_linkage(similarity: torch.Tensor, threshold: float) -> list[int]:
    import numpy as np
    from scipy.cluster.hierarchy import fcluster, linkage

    above_diagonal = similarity.double().numpy()[np.triu_indices(len(similarity), 1)]
    threshold = float(np.float32(threshold))  # as torch compares it with the similarities
    top = max(above_diagonal.max(), threshold)  # SciPy takes distances of 0 and more
    # Classes are joined up to and including the distance given, and the threshold itself is not above it.
    distance = np.nextafter(top - threshold, -np.inf)
    return fcluster(linkage(top - above_diagonal, "average"), distance, "distance").tolist()
