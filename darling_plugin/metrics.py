"""Every metric the plugin logs, defined once. OpenRLHF shows them as `train/<key>` and `eval/<key>`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

QUALITY = "darling/quality"  # mean quality, as the reward function or reward model gave it
DIVERSITY = "darling/diversity"  # mean share of the other responses that lie in other classes, before the floor
CLASSES = "darling/classes_per_group"  # mean number of classes among a prompt's responses
ONE_CLASS = "darling/one_class_share"  # share of groups in which all responses say the same
FLOOR = "darling/floor_share"  # share of responses whose diversity is the floor's or less
REWARD = "darling/reward"  # mean reward that OpenRLHF trains on, after its length penalties
QUALITY_ONLY = "darling/quality_only_groups"  # groups trained on quality alone, by --darling.on_error quality_only
SCORING = "darling/scoring_seconds"  # time the partition actors spent on this step's groups, summed
WAIT = "darling/scoring_wait_seconds"  # from the end of the last group's generation to the end of the last scoring


def group_metrics(labels: torch.Tensor, diversity: torch.Tensor, quality: torch.Tensor) -> dict[str, float]:
    """What the responses alone say, for training and evaluation.

    Args:
        labels: (P, n) class of each response; -1 where it was left out of the partition.
        diversity: (P, n) in [0, 1].
        quality: (P, n).

    A response that was left out counts for quality only, and so does a group of such; without any other the diversity
    metrics are left out.
    """
    metrics = {QUALITY: quality.mean().item()}
    partitioned = (labels >= 0).any(dim=-1)
    if partitioned.any():
        classes = (labels.amax(dim=-1) + 1)[partitioned].float()
        metrics[DIVERSITY] = diversity[labels >= 0].mean().item()
        metrics[CLASSES] = classes.mean().item()
        metrics[ONE_CLASS] = (classes == 1).float().mean().item()
    return metrics


def step_metrics(
    labels: torch.Tensor,
    diversity: torch.Tensor,
    quality: torch.Tensor,
    reward: torch.Tensor,
    *,
    floor: float,
    quality_only: torch.Tensor,
    generated_at: torch.Tensor,
    scored_at: torch.Tensor,
    scoring_seconds: torch.Tensor,
) -> dict[str, float]:
    """All metrics of one training step.

    Args:
        labels, diversity, quality, reward: (P, n).
        floor: --darling.diversity_floor.
        quality_only: (P,) bool, the groups trained on quality alone.
        generated_at, scored_at: (P,) microseconds on the partition actors' clocks.
        scoring_seconds: (P,) each group's part of the batches it was scored in.
    """
    metrics = group_metrics(labels, diversity, quality)
    takes_part = labels >= 0
    if takes_part.any():
        metrics[FLOOR] = (diversity[takes_part] <= floor).float().mean().item()
    metrics[REWARD] = reward.mean().item()
    metrics[QUALITY_ONLY] = float(quality_only.sum().item())
    metrics[SCORING] = scoring_seconds.sum().item()
    metrics[WAIT] = max(0.0, (scored_at.max() - generated_at.max()).item() / 1e6)
    return metrics
