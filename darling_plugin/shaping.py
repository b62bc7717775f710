"""The method in one room: quality and diversity -> reward -> OpenRLHF's penalties -> advantage, in this order.

Plain tensors in, plain tensors out. `openrlhf/hooks.py` gathers what goes in and hands on what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darling_plugin.advantage import compute_advantage
from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.reward import compute_reward, transform_quality

if TYPE_CHECKING:
    import torch


@dataclass
class Groups:
    """What is known of P groups of n responses before they have a reward.

    Attributes:
        quality: (P, n) float32, as the reward function or reward model gave it.
        labels: (P, n) int64 class of each response; -1 where it was left out of the partition.
        diversity: (P, n) float32 in [0, 1].
        quality_only: (P,) bool, the groups that could not be partitioned and are trained on their quality alone.
    """

    quality: torch.Tensor
    labels: torch.Tensor
    diversity: torch.Tensor
    quality_only: torch.Tensor


@dataclass
class Shaped:
    """What the method made of `groups`; all tensors are (P, n) float32.

    Attributes:
        counted_diversity: the diversity that reward and advantage saw: floored, 1 in a group that is `quality_only`.
        diversity_floor: the floor that was applied.
        unpenalized_reward: before OpenRLHF's length penalties.
        reward: after them: what is trained on.
        advantage: of each response; None where OpenRLHF's estimator makes it.
    """

    groups: Groups
    counted_diversity: torch.Tensor
    diversity_floor: float
    unpenalized_reward: torch.Tensor
    reward: torch.Tensor
    advantage: torch.Tensor | None


def shape(groups: Groups, config: DarlingConfig, penalize: Callable[[torch.Tensor], torch.Tensor]) -> Shaped:
    """Reward and advantage of every response (arXiv 2509.02534, section 3).

    The floor (0.1 in the official code) is in no equation of the paper: it keeps a response's quality visible when all
    of its group say the same.

    Args:
        config: its reward, quality_transform, diversity_floor and advantage are used.
        penalize: reward (P, n) -> reward (P, n): what OpenRLHF's length penalties make of it; called once.

    Raises DarlingError for shapes that differ, and for what reward, transform or advantage refuse.
    """
    if groups.quality.ndim != 2 or groups.quality.shape != groups.diversity.shape:
        raise DarlingError(
            "quality and diversity of one shape (P, n)",
            f"quality {tuple(groups.quality.shape)}, diversity {tuple(groups.diversity.shape)}",
            "pass one row a group, one column a response",
        )
    # Diversity 1 is neutral: what cannot be partitioned is rewarded, and weighted, by its quality alone.
    diversity = groups.diversity.masked_fill(groups.quality_only[:, None], 1.0)
    diversity = diversity.clamp(min=config.diversity_floor)
    quality = transform_quality(groups.quality, config.quality_transform, reward=config.reward)
    unpenalized_reward = compute_reward(quality, diversity, reward=config.reward)
    reward = penalize(unpenalized_reward)
    advantage = None
    if config.advantage is not None:  # the launcher sets it under dr_grpo alone
        advantage = compute_advantage(reward, diversity, advantage=config.advantage)
    return Shaped(groups, diversity, config.diversity_floor, unpenalized_reward, reward, advantage)
