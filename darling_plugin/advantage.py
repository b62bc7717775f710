"""Reward -> advantage. An advantage is a function of reward (P, n) and diversity (P, n), both float32.

It may name similarity (P, n, n) and labels (P, n), too, as a reward may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.errors import DarlingError
from darling_plugin.registry import advantages, register_advantage
from darling_plugin.reward import center, standardize

if TYPE_CHECKING:
    import torch


@register_advantage("centered")
def centered(reward: torch.Tensor, diversity: torch.Tensor) -> torch.Tensor:
    """A_i = r_i - mean_j r_j (arXiv 2509.02534, section 3): no division by the standard deviation.

    (P, n), (P, n) -> (P, n), unbounded, sums to 0 over a group. A group with equal rewards gets 0, so a group that is
    one class gets 0 too where its qualities are equal. The diversity is not used: the reward holds it.
    """
    return center(reward)


@register_advantage("centered_std")
def centered_std(reward: torch.Tensor, diversity: torch.Tensor) -> torch.Tensor:
    """A_i = (r_i - mean_j r_j) / (std_j r_j + 1e-9), as GRPO: the ablation "with std" of arXiv 2509.02534.

    (P, n), (P, n) -> (P, n), within +-(n-1)/sqrt(n), sums to 0 over a group. The standard deviation is the sample's,
    as in OpenRLHF's group_norm. A group with equal rewards gets 0; a group that is one class is blown up like any
    other: small differences in quality weigh as much as large ones. The diversity is not used: the reward holds it.
    """
    return standardize(reward)


@register_advantage("diversity_weighted")
def diversity_weighted(reward: torch.Tensor, diversity: torch.Tensor) -> torch.Tensor:
    """A_i = Div_i * (r_i - mean_j r_j): the sign is the quality's, the size grows with diversity. Not in the paper.

    Meant for --darling.reward quality: unlike r * Div it needs no qualities of at least 0. `diversity` is the floored
    one.

    (P, n), (P, n) -> (P, n), unbounded; does not sum to 0 over a group. A group with equal rewards gets 0; a group
    that is one class gets diversity_floor times its centered rewards.
    """
    return diversity * center(reward)


def compute_advantage(
    reward: torch.Tensor,
    diversity: torch.Tensor,
    *,
    advantage: str,
    similarity: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """The registered `advantage` of reward and diversity, both (P, n) float32; the result is checked to be alike.

    Args:
        similarity, labels: (P, n, n) and (P, n), for an advantage that takes them.

    Raises DarlingError for an unknown name, another shape, or values that are not finite.
    """
    import torch

    inputs = {"reward": reward, "diversity": diversity, "similarity": similarity, "labels": labels}
    values = advantages.call(advantage, inputs)
    if not isinstance(values, torch.Tensor) or values.shape != reward.shape or not values.isfinite().all():
        found = f"{tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
        raise DarlingError(
            f"a finite tensor {tuple(reward.shape)} from the advantage {advantage!r}",
            f"{found}, or values that are NaN or infinite",
            "correct that advantage",
        )
    return values.to(torch.float32, copy=True)
