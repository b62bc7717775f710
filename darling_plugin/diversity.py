"""A partition, or similarities -> each response's diversity: how far it stands apart (arXiv 2509.02534, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DIVERSITIES = ("classes", "pairs", "expected")


def compute_diversity(
    kind: str, labels: torch.LongTensor, similarity: torch.FloatTensor | None = None, threshold: float | None = None
) -> torch.FloatTensor:
    """The diversity of one group by a kind of DIVERSITIES: of its labels (n,), or of its similarity (n, n)."""
    if kind == "classes":
        return class_diversity(labels)
    return pair_diversity(similarity > threshold) if kind == "pairs" else expected_diversity(similarity)


def class_diversity(labels: torch.LongTensor) -> torch.FloatTensor:
    """Share of a group's other responses that fall in another class.

    arXiv 2509.02534, section 3, with classes that are transitively closed::

        Div(y_i) = 1/(m-1) * sum_{j != i} d(y_i, y_j) = (m - |class of i|) / (m-1)

    where m counts the group's responses that take part in the partition.

    Args:
        labels: (..., n) class index of each response; -1 marks a response left out of the partition.

    Returns:
        (..., n) float32 in [0, 1]: 0 when the whole group is one class, 1 for a response alone in its class. One that
        is left out gets 0 and counts for nobody. The only one taking part (m = 1) gets 1: nothing else says the same,
        and quality times diversity leaves its quality as it is.
    """
    takes_part = labels >= 0
    class_size = (labels.unsqueeze(-1) == labels.unsqueeze(-2)).sum(-1)  # (..., n)
    m = takes_part.sum(-1, keepdim=True)  # (..., 1)
    diversity = (m - class_size).float() / (m - 1).clamp(min=1).float()
    return diversity.masked_fill(m == 1, 1.0).masked_fill(~takes_part, 0.0)


def pair_diversity(equivalent: torch.BoolTensor) -> torch.FloatTensor:
    """Share of a group's other responses that are not equivalent to this one, without transitive closure.

    arXiv 2509.02534, section 3, first equation: Div(y_i) = 1/(n-1) * sum_{j != i} d(y_i, y_j), with d(y_i, y_j) = 1
    where equivalent[i, j] is false. It differs from :func:`class_diversity` when a ~ b and b ~ c but not a ~ c.

    Args:
        equivalent: (n, n) one group's judgements; the diagonal is not read.

    Returns:
        (n,) float32 in [0, 1]; a group of one gets 1, as in :func:`class_diversity`.
    """
    n = equivalent.shape[-1]
    if n == 1:
        return equivalent.new_ones(1).float()
    different = (~equivalent).fill_diagonal_(False)
    return different.sum(-1).float() / (n - 1)


def expected_diversity(similarity: torch.FloatTensor) -> torch.FloatTensor:
    """What :func:`pair_diversity` is expected to be, when each entry is the probability that two are equivalent.

    The expectation of the first equation of arXiv 2509.02534, section 3, and where the similarities are an overlap of
    n-grams its lexical ablation::

        Div(y_i) = 1/(n-1) * sum_{j != i} (1 - P(y_i and y_j are equivalent))

    Of all estimates that can be made from the probabilities it has the least squared error, if they are calibrated;
    unsure ones make it flat. With probabilities 0 and 1 it is :func:`pair_diversity`.

    Args:
        similarity: (n, n) one group's, symmetric; cut off at 0 and 1. The diagonal is not read.

    Returns:
        (n,) float32 in [0, 1]; a group of one gets 1, as in :func:`class_diversity`.
    """
    n = similarity.shape[-1]
    if n == 1:
        return similarity.new_ones(1).float()
    different = (1 - similarity.float().clamp(0, 1)).fill_diagonal_(0.0)
    return different.sum(-1) / (n - 1)
