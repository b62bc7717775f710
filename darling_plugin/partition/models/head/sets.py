"""How much n sets share, each two of them at once: counted by sorting and compared by a matrix product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import cached_property

import numpy as np


class Sets:
    """n sets of whole numbers, of which each member may weigh something.

    Args:
        sets: one array a set, in any order; what is in it twice counts once.
        weights: what each member weighs, by its number; default: 1 each.

    Attributes:
        shared: (n, n) float32, the weight of what two sets share; totals: (n,) of each set by itself.
        lacking: (n, n), the weight of what is in the first of two and not in the second.
    """

    def __init__(self, sets: Sequence[np.ndarray], weights: np.ndarray | None = None) -> None:
        n = len(sets)
        sets = [np.unique(each) for each in sets]
        rows, flat = np.repeat(np.arange(n), [len(each) for each in sets]), np.concatenate(sets)
        order = np.argsort(flat, kind="stable")
        flat, rows = flat[order], rows[order]
        first = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]][: len(flat)])
        have = np.diff(np.r_[first, len(flat)])  # how many sets have each distinct member
        members = flat[first]
        weight = np.ones(len(members), np.float32) if weights is None else weights[members].astype(np.float32)
        column = np.repeat(np.arange(len(members)), have)
        self.totals = np.bincount(rows, weight[column], n).astype(np.float32)
        # Most members are of one set alone: they count in its total, and for no two.
        common = np.flatnonzero(have > 1)
        place = np.full(len(members), -1)
        place[common] = np.arange(len(common))
        there = np.zeros((n, len(common)), np.float32)
        at = place[column] >= 0
        there[rows[at], place[column[at]]] = 1.0
        self.shared = (there * weight[common]) @ there.T
        # Of the diagonal the members of one set alone are a part too.
        np.fill_diagonal(self.shared, self.totals)
        self.lacking = self.totals[:, None] - self.shared

    @cached_property
    def jaccard(self) -> np.ndarray:
        """(n, n) in [0, 1]: what two share, of what they have together; of two empty sets 0."""
        return self.shared / np.maximum(self.shared + self.lacking + self.lacking.T, 1e-6)

    @cached_property
    def of_larger(self) -> np.ndarray:
        return self.shared / np.maximum(np.maximum(self.totals[:, None], self.totals), 1e-6)

    @cached_property
    def of_smaller(self) -> np.ndarray:
        return self.shared / np.maximum(np.minimum(self.totals[:, None], self.totals), 1e-6)


def runs(ids: np.ndarray, length: int, vocabulary: int) -> np.ndarray:
    """(t - length + 1,) a whole number for each `length` ids on end, the same for the same ids."""
    found = np.zeros(max(len(ids) - length + 1, 0), np.int64)
    for k in range(length):
        found = found * vocabulary + ids[k : len(ids) - length + 1 + k]
    return found


def numbered(lists: Sequence[Sequence[Hashable]]) -> list[np.ndarray]:
    """Each list's members as whole numbers, equal ones the same."""
    numbers: dict[Hashable, int] = {}
    return [np.array([numbers.setdefault(each, len(numbers)) for each in own], np.int64) for own in lists]


def counted(words: Iterable[str]) -> list[tuple[str, int]]:
    """Each word with how often it came before: "2x + 2" has another 2 than "2x + 1"."""
    before: Counter[str] = Counter()
    found = []
    for word in words:
        found.append((word, before[word]))
        before[word] += 1
    return found
