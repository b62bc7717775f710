"""The method in one room: gate, diversity, reward, OpenRLHF's penalties, advantage, in this order.

Plain tensors in, plain tensors out. `openrlhf/hooks.py` gathers what goes in and hands on what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from darling_plugin.advantage import compute_advantage
from darling_plugin.config import DarlingConfig
from darling_plugin.diversity import compute_diversity
from darling_plugin.errors import DarlingError
from darling_plugin.partition.clustering import cluster
from darling_plugin.quality_gate import read_quality_gate
from darling_plugin.registry import FunctionRegistry, advantages, rewards
from darling_plugin.reward import center, compute_reward, transform_quality

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
        weight: (P,) float32, how strongly diversity counts in each; None: the flag's weight in all.
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
    weight: torch.Tensor | None = None


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
    """What the method made of `groups`; all tensors but the first are (P, n) float32.

    Attributes:
        weight: (P,) float32, of the diversity in each group.
        counted_diversity: the diversity that reward and advantage saw: floored, 1 in a group that is `quality_only`.
        diversity_floor: the floor that was applied.
        unpenalized_reward: before OpenRLHF's length penalties.
        diversity_part: that minus what it would be if all of a group had their mean diversity; None where that cannot
            be said.
        reward: after them: what is trained on.
        advantage: of each response; None where OpenRLHF's estimator makes it.
    """

    groups: Groups
    weight: torch.Tensor
    counted_diversity: torch.Tensor
    diversity_floor: float
    unpenalized_reward: torch.Tensor
    diversity_part: torch.Tensor | None
    reward: torch.Tensor
    advantage: torch.Tensor | None


def shape(groups: Groups, config: DarlingConfig, penalize: Callable[[torch.Tensor], torch.Tensor]) -> Shaped:
    """Reward and advantage of every response (arXiv 2509.02534, section 3).

    Diversity counts as max(1 - W + W * Div, floor). W is 1 in the paper; 0 leaves the quality alone, and above 1 a
    response's diversity makes more of a difference, down to the floor. A reward or advantage that takes similarity or
    labels enters in the same proportion: (1 - W) times what it is without diversity, which is the quality or the
    centered reward, plus W times what the function gives; its diversity has the floor alone.

    The floor (0.1 in the official code) is in no equation of the paper: it keeps a response's quality visible when all
    of its group say the same.

    What the gate left out has diversity 0; of a reward of similarity or labels it gets what it would in a group that
    says the same throughout, the quality where nobody passes; of an advantage of these the centered reward, and any
    other sees it with diversity 1. A group that could not be partitioned is trained on its quality alone.

    Args:
        config: its quality_gate, diversity, weight, diversity_floor, quality_transform, reward and advantage are used.
        penalize: reward (P, n) -> reward (P, n): what OpenRLHF's length penalties make of it; called once.

    Raises DarlingError for shapes that differ, and for what reward, transform or advantage refuse.
    """
    import torch

    if groups.quality.ndim != 2 or groups.quality.shape != groups.diversity.shape:
        raise DarlingError(
            "quality and diversity of one shape (P, n)",
            f"quality {tuple(groups.quality.shape)}, diversity {tuple(groups.diversity.shape)}",
            "pass one row a group, one column a response",
        )
    if groups.gate_is_due:
        groups = _gated(groups, config)
    weight = torch.full((len(groups.quality),), config.weight) if groups.weight is None else groups.weight
    seen = _seen(groups, weight, config.diversity_floor)
    quality = transform_quality(groups.quality, config.quality_transform, reward=config.reward)

    of_quality = partial(compute_reward, quality, reward=config.reward)
    unpenalized_reward = seen.enters(rewards, config.reward, of_quality, without=quality)
    diversity_part = None
    if _has_level(config):
        try:
            level = seen.level().enters(rewards, config.reward, of_quality, without=quality)
            diversity_part = unpenalized_reward - level
        except Exception:  # a reward of the user's that divides by the spread of the diversity, say: only a metric
            pass
    reward = penalize(unpenalized_reward)
    advantage = None
    if config.advantage is not None:  # the launcher sets it under dr_grpo alone
        of_reward = partial(compute_advantage, reward, advantage=config.advantage)
        advantage = seen.enters(advantages, config.advantage, of_reward, without=center(reward))
    return Shaped(
        *(groups, weight, seen.counted_diversity, config.diversity_floor),
        *(unpenalized_reward, diversity_part, reward, advantage),
    )


@dataclass
class _Seen:
    """What reward and advantage get to see of the groups.

    Attributes:
        weight: (P, 1); 0 in a group that could not be partitioned.
        diversity, counted_diversity: (P, n), floored; the second weighted before.
        labels, similarity: as darling_plugin/methods describes them; no similarity where none was sent.
        left_out: (P, n) bool, by the gate.
    """

    weight: torch.Tensor
    diversity: torch.Tensor
    counted_diversity: torch.Tensor
    labels: torch.Tensor
    similarity: torch.Tensor | None
    left_out: torch.Tensor

    def enters(
        self, registry: FunctionRegistry, name: str, compute: Callable[..., torch.Tensor], *, without: torch.Tensor
    ) -> torch.Tensor:
        """What the function `name` makes of it.

        Args:
            compute: that function, checked, of diversity, similarity and labels.
            without: (P, n), the same without any diversity.
        """
        if not (registry.reads(name, "similarity") or registry.reads(name, "labels")):
            if registry is advantages:  # what is left out is spared nothing: diversity 1 is the whole of its reward
                return compute(self.counted_diversity.masked_fill(self.left_out, 1.0))
            return compute(self.counted_diversity)
        value = compute(self.diversity, similarity=self.similarity, labels=self.labels)
        if self.left_out.any() and registry is not advantages:
            similarity = None if self.similarity is None else self.similarity.new_ones(self.similarity.shape)
            all_alike = compute(self.diversity, similarity=similarity, labels=self.labels.new_zeros(self.labels.shape))
            value = all_alike.where(self.left_out, value)
        # An advantage that shrinks with the class would spare what is left out, which is the worst, its punishment;
        # and where nobody passes, a reward that takes the responses in turn would prefer the first.
        plain = self.left_out if registry is advantages else self.left_out.all(-1, keepdim=True)
        return (1 - self.weight) * without + self.weight * without.where(plain, value)

    def level(self) -> _Seen:
        """The same groups, in each of which all have their mean diversity, and all pairs their mean similarity."""
        import torch

        def levelled(values: torch.Tensor) -> torch.Tensor:
            return values.mean(-1, keepdim=True).expand_as(values).clone()

        similarity = self.similarity
        if similarity is not None:
            pairs = ~(self.left_out.unsqueeze(-1) | self.left_out.unsqueeze(-2))
            pairs &= ~torch.eye(similarity.shape[-1], dtype=torch.bool)
            mean = (similarity * pairs).sum((-1, -2)) / pairs.sum((-1, -2)).clamp(min=1)
            similarity = mean[:, None, None].where(pairs, similarity)
        return replace(
            self,
            diversity=levelled(self.diversity),
            counted_diversity=levelled(self.counted_diversity),
            similarity=similarity,
        )


def _seen(groups: Groups, weight: torch.Tensor, diversity_floor: float) -> _Seen:
    import torch

    n = groups.quality.shape[1]
    quality_only = groups.quality_only[:, None]
    left_out = (groups.labels < 0) & ~quality_only
    # Diversity 1 is neutral: what cannot be partitioned is rewarded, and weighted, by its quality alone. There all are
    # as different as can be, for functions of labels or similarity must give numbers, too, which then weigh nothing.
    diversity = groups.diversity.masked_fill(quality_only, 1.0)
    similarity = None
    if groups.similarities is not None:
        itself = torch.eye(n, dtype=torch.bool)
        away = quality_only | left_out
        similarity = groups.similarities.values.clamp(0, 1)
        similarity = similarity.masked_fill(away.unsqueeze(-1) | away.unsqueeze(-2), 0.0).masked_fill(itself, 1.0)
    weight = weight[:, None]
    return _Seen(
        weight=weight.masked_fill(quality_only, 0.0),
        diversity=diversity.clamp(min=diversity_floor),
        counted_diversity=(1 - weight + weight * diversity).clamp(min=diversity_floor),
        labels=torch.arange(n).where(quality_only, groups.labels),
        similarity=similarity,
        left_out=left_out,
    )


def _has_level(config: DarlingConfig) -> bool:
    """Whether it can be said what the reward would be if all of a group had one diversity.

    Not where diversity enters later, with the advantage, nor for a reward that sees the classes alone.
    """
    later = config.advantage is not None and (
        config.advantage == "diversity_weighted"
        or any(advantages.reads(config.advantage, each) for each in ("similarity", "labels"))
    )
    of_labels = rewards.reads(config.reward, "labels") and not rewards.reads(config.reward, "similarity")
    return not (later or of_labels)


def _gated(groups: Groups, config: DarlingConfig) -> Groups:
    """The groups with what the quality gate leaves out: label -1, diversity 0, and no class or mean has it.

    The similarities were made before: `default` and heads, which look for a group's short answers at the beginning of
    padded ones, have found them in what is left out now, too.
    """
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
