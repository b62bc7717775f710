"""Uniqueness-aware RL, "Rewarding the Rare" (arXiv 2601.08763, equations 1, 3, 4 and 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.registry import register_advantage
from darling_plugin.reward import center

if TYPE_CHECKING:
    import torch


@register_advantage("inverse_class_size")
def inverse_class_size(reward: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A_i = (r_i - mean_j r_j) / f_i, with f_i the size of the class of i; for --darling.reward quality.

    (P, n), (P, n) -> (P, n), between the centered reward and the n-th part of it; does not sum to 0 over a group. A
    group with equal rewards gets 0, one that is one class the centered rewards / n. What is rare counts more whether
    it is good or bad.

    Departs from the paper: no division by the group's standard deviation, as under `centered`; its exponent alpha in
    [0, 1] of the class size, which it does not report, is 1.
    """
    class_size = (labels.unsqueeze(-1) == labels.unsqueeze(-2)).sum(-1)
    return center(reward) / class_size
