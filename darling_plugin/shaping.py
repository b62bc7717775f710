"""The method in one room: gate, diversity, reward, OpenRLHF's penalties, advantage, in this order.

Plain tensors in, plain tensors out. `openrlhf/hooks.py` gathers what goes in and hands on what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from darling_plugin.advantage import compute_advantage
from darling_plugin.config import DarlingConfig
from darling_plugin.diversity import compute_diversity
from darling_plugin.errors import DarlingError
from darling_plugin.partition.clustering import cluster
from darling_plugin.quality_gate import read_quality_gate
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
        similarities: of the P groups, where they were sent along; what made labels and diversity of them.
        text_missing: (P, n) bool, the responses that lack the text that is compared; None where all of it is.
        cut_share: (P,), see Measurement.cut_share; None of a partition model that reads everything.
        length: (P, n) float32 tokens of each response, where they are known.
        signs: by name, (P, n) what is seen in the texts (`evaluation/monitor.py`), NaN where there is nothing to say.
        gate_is_due: whether the quality gate has still to be applied: the quality is a reward model's, and was not
            known when the responses were partitioned. Needs the similarities.
    """

    quality: torch.Tensor
    labels: torch.Tensor
    diversity: torch.Tensor
    quality_only: torch.Tensor
    similarities: Similarities | None = None
    text_missing: torch.Tensor | None = None
    cut_share: torch.Tensor | None = None
    length: torch.Tensor | None = None
    signs: dict[str, torch.Tensor] | None = None
    gate_is_due: bool = False


@dataclass
class Similarities:
    """What P groups' labels and diversity were made of.

    Attributes:
        values: (P, n, n) float32.
        threshold: above which two responses are equivalent.
        clustering: one of CLUSTERINGS.
    """

    values: torch.Tensor
    threshold: float
    clustering: str


@dataclass
class Shaped:
    """What the method made of `groups`; all tensors are (P, n) float32.

    Attributes:
        counted_diversity: the diversity that reward and advantage saw: floored, 1 in a group that is `quality_only`.
        diversity_floor: the floor that was applied.
        unpenalized_reward: before OpenRLHF's length penalties.
        diversity_part: that minus what it would be if all of a group had their mean diversity; None where that cannot
            be said.
        reward: after them: what is trained on.
        advantage: of each response; None where OpenRLHF's estimator makes it.
    """

    groups: Groups
    counted_diversity: torch.Tensor
    diversity_floor: float
    unpenalized_reward: torch.Tensor
    diversity_part: torch.Tensor | None
    reward: torch.Tensor
    advantage: torch.Tensor | None


def shape(groups: Groups, config: DarlingConfig, penalize: Callable[[torch.Tensor], torch.Tensor]) -> Shaped:
    """Reward and advantage of every response (arXiv 2509.02534, section 3).

    Diversity counts as max(1 - W + W * Div, floor). W is 1 in the paper; 0 leaves the quality alone, and above 1 a
    response's diversity makes more of a difference, down to the floor.

    The floor (0.1 in the official code) is in no equation of the paper: it keeps a response's quality visible when all
    of its group say the same.

    Args:
        config: its quality_gate, diversity, weight, diversity_floor, quality_transform, reward and advantage are used.
        penalize: reward (P, n) -> reward (P, n): what OpenRLHF's length penalties make of it; called once.

    Raises DarlingError for shapes that differ, and for what reward, transform or advantage refuse.
    """
    if groups.quality.ndim != 2 or groups.quality.shape != groups.diversity.shape:
        raise DarlingError(
            "quality and diversity of one shape (P, n)",
            f"quality {tuple(groups.quality.shape)}, diversity {tuple(groups.diversity.shape)}",
            "pass one row a group, one column a response",
        )
    if groups.gate_is_due:
        groups = _gated(groups, config)
    # Diversity 1 is neutral: what cannot be partitioned is rewarded, and weighted, by its quality alone.
    diversity = groups.diversity.masked_fill(groups.quality_only[:, None], 1.0)
    diversity = (1 - config.weight + config.weight * diversity).clamp(min=config.diversity_floor)
    quality = transform_quality(groups.quality, config.quality_transform, reward=config.reward)
    unpenalized_reward = compute_reward(quality, diversity, reward=config.reward)
    diversity_part = _diversity_part(quality, diversity, unpenalized_reward, config)
    reward = penalize(unpenalized_reward)
    advantage = None
    if config.advantage is not None:  # the launcher sets it under dr_grpo alone
        advantage = compute_advantage(reward, diversity, advantage=config.advantage)
    return Shaped(groups, diversity, config.diversity_floor, unpenalized_reward, diversity_part, reward, advantage)


def _diversity_part(
    quality: torch.Tensor, diversity: torch.Tensor, reward: torch.Tensor, config: DarlingConfig
) -> torch.Tensor | None:
    if config.advantage == "diversity_weighted":  # there diversity enters later
        return None
    level = diversity.mean(-1, keepdim=True).expand_as(diversity).clone()
    try:
        return reward - compute_reward(quality, level, reward=config.reward)
    except DarlingError:  # a reward of the user's that divides by the spread of the diversity, say: only a metric
        return None


def _gated(groups: Groups, config: DarlingConfig) -> Groups:
    """The groups with what the quality gate leaves out: label -1, diversity 0, and no other of the group sees it."""
    import torch

    passes = read_quality_gate(config.quality_gate)(groups.quality)
    labels, diversity = torch.full_like(groups.labels, -1), torch.zeros_like(groups.diversity)
    made_of = groups.similarities
    for group in (~groups.quality_only).nonzero().flatten().tolist():
        places = passes[group].nonzero().flatten()
        if len(places):
            similarity = made_of.values[group][places][:, places]
            found = cluster(similarity, made_of.threshold, made_of.clustering)
            labels[group, places] = found.to(labels.dtype)
            diversity[group, places] = compute_diversity(config.diversity, found, similarity, made_of.threshold)
    return replace(groups, labels=labels, diversity=diversity, gate_is_due=False)
