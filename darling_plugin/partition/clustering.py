"""Pairwise judgements -> classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.errors import DarlingError
from darling_plugin.registry import nearest

if TYPE_CHECKING:
    import torch

CLUSTERINGS = ("union_find", "greedy", "pairwise")


def check_clustering(method: str) -> str:
    """`method` itself; raises DarlingError when it is not one of CLUSTERINGS."""
    if method not in CLUSTERINGS:
        raise DarlingError(
            "a known --darling.clustering",
            f"{method!r}",
            f"{nearest(str(method), list(CLUSTERINGS))}known: {', '.join(CLUSTERINGS)}",
        )
    return method


def cluster(equivalent: torch.BoolTensor, method: str = "union_find") -> torch.LongTensor:
    """Classes of one group, numbered 0, 1, 2, ... by first appearance.

    - "union_find": connected components, as the official code trains (a ~ b and b ~ c puts a with c).
    - "greedy": each response joins the first class whose *first* member it is equivalent to, as NoveltyBench
      evaluates; depends on the order of the responses, and gives at least as many classes as union_find.
    - "pairwise": no transitive closure in the diversity (see diversity.pair_diversity); classes, which are still
      wanted for counting them, are those of union_find.

    Args:
        equivalent: (n, n), symmetric, true on the diagonal.

    Returns:
        (n,) int64.
    """
    import torch

    check_clustering(method)
    labels = _greedy(equivalent.tolist()) if method == "greedy" else _connected_components(equivalent)
    number: dict[int, int] = {}
    return torch.tensor([number.setdefault(label, len(number)) for label in labels])


def _greedy(equivalent: list[list[bool]]) -> list[int]:
    labels: list[int] = []  # a class is named by the index of its first member
    for i, row in enumerate(equivalent):
        labels.append(next((first for first in range(i) if labels[first] == first and row[first]), i))
    return labels


def _connected_components(equivalent: torch.BoolTensor) -> list[int]:
    from scipy.sparse.csgraph import connected_components

    return connected_components(equivalent.numpy(), directed=False)[1].tolist()
