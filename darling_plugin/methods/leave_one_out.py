"""SetPO (arXiv 2602.01062, equations 3 and 4): what the group's diversity loses without a response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.registry import register_advantage
from darling_plugin.reward import center

if TYPE_CHECKING:
    import torch


@register_advantage("leave_one_out")
def leave_one_out(reward: torch.Tensor, similarity: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A_i = (r_i - mean_j r_j) + s_i, with s_i = D(all) - D(all but i); for --darling.reward quality.

    D of a set is the mean of -log(1 + m_j) over its members, m_j the mean similarity of j to the other members, which
    is taken anew without i. --darling.weight is the paper's lambda: 0.05 for Qwen2.5-Math under GRPO, 0.1 to 0.5 in
    its other runs.

    (P, n), (P, n, n), (P, n) -> (P, n), s in [-log 2, log 2]; does not sum to 0 over a group. s is 0 in a group that
    is alike throughout, in one of responses that have nothing in common, and in one of fewer than three, which the
    paper does not define. It is added to right and wrong responses alike.

    Departs from the paper: no division of r by the group's standard deviation, as under `centered`, so that one lambda
    weighs more here, some two times and more for rewards of 0 and 1; the similarity is the partition model's, where
    the paper's is the cosine of two embeddings, cut off at 0.
    """
    import torch

    takes_part = labels >= 0
    itself = torch.eye(labels.shape[-1], dtype=torch.bool)
    pairs = takes_part.unsqueeze(-1) & takes_part.unsqueeze(-2) & ~itself  # two that both take part
    others = similarity.double().masked_fill(~pairs, 0.0)
    size = takes_part.sum(-1, keepdim=True).double()
    total = others.sum(-1)  # of j, over the other members
    all_of_it = _diversity(total / (size - 1).clamp(min=1), takes_part)
    without = _diversity((total.unsqueeze(-2) - others) / (size - 2).clamp(min=1).unsqueeze(-1), pairs)
    gain = (all_of_it.unsqueeze(-1) - without).masked_fill(size < 3, 0.0)
    return center(reward) + gain.to(reward.dtype)


def _diversity(mass: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """D of sets whose members, along the last dimension, have these mean similarities to each other."""
    return -(mass.log1p() * members).sum(-1) / members.sum(-1).clamp(min=1)
