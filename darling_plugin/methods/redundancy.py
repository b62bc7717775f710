"""DRA-GRPO (arXiv 2505.09655): submodular mutual information in its graph-cut form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.registry import register_reward

if TYPE_CHECKING:
    import torch


@register_reward("redundancy")
def redundancy(quality: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """r_i / (1 + sum_{j != i} s_ij): what is said n times over earns a share of it.

    (P, n), (P, n, n) -> (P, n), in [r / n, r] for r >= 0. A negative quality would be rewarded for redundancy. A group
    of equal responses gets r / n, one of responses that have nothing in common r.

    Departs from the paper: similarities below 0, which a cosine may be, count as 0. The official code divides by the
    sum over all j, the response itself among them, which is the same.
    """
    return quality / similarity.sum(-1)  # the diagonal is the 1
