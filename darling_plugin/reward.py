"""Quality and diversity -> reward, and what else of a group a reward may name: similarity, labels.

A reward is a function of float32 tensors (P, n) that returns another; similarity is (P, n, n), labels (P, n) int64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.registry import nearest, register_reward, rewards

if TYPE_CHECKING:
    import torch


def center(values: torch.Tensor) -> torch.Tensor:
    """Each value minus its group's mean, (P, n) -> (P, n); exactly 0 in a group of equal values."""
    # The float32 mean of equal values can be one rounding step off; over a standard deviation as small, that noise
    # would come out as values near 1.
    all_equal = (values == values[..., :1]).all(-1, keepdim=True)
    return (values - values.mean(-1, keepdim=True)).masked_fill(all_equal, 0.0)


def standardize(values: torch.Tensor) -> torch.Tensor:
    """(value - group mean) / (sample standard deviation + 1e-9), (P, n) -> (P, n); 0 in a group of equal values.

    OpenRLHF's group_norm divides the same way; a group of one gets 0 here instead of NaN.
    """
    degrees_of_freedom = min(1, values.shape[-1] - 1)
    return center(values) / (values.std(-1, correction=degrees_of_freedom, keepdim=True) + 1e-9)


@register_reward("multiply")
def multiply(quality: torch.Tensor, diversity: torch.Tensor) -> torch.Tensor:
    """r_darling = r * Div (arXiv 2509.02534, section 3): good and unlike the others.

    (P, n), (P, n) -> (P, n), in [0, r] for r >= 0. A negative quality would be rewarded for *little* diversity. A
    group that is one class gets r * diversity_floor: in the order of quality, or 0 throughout without a floor.
    """
    return quality * diversity


@register_reward("additive")
def additive(quality: torch.Tensor, diversity: torch.Tensor) -> torch.Tensor:
    """z(r) + z(Div), each standardized within its group (ablation of arXiv 2509.02534; negative qualities are fine).

    (P, n), (P, n) -> (P, n), unbounded, mean 0 in each group. The paper does not say which standard deviation: this is
    the sample's (n-1). A term whose group is equal throughout (one class, one quality) counts 0.
    """
    total = standardize(quality) + standardize(diversity)
    # Where the two cancel, float32 leaves some 1e-7, which an advantage that divides by the std would blow up.
    return total.masked_fill(total.abs() < 1e-6, 0.0)


@register_reward("quality")
def quality_only(quality: torch.Tensor, diversity: torch.Tensor) -> torch.Tensor:
    """r alone: the baseline without diversity, and the reward to use with the advantage "diversity_weighted".

    (P, n), (P, n) -> (P, n), the range of r.
    """
    return quality


def _raw(quality: torch.Tensor) -> torch.Tensor:
    """r as it is, negative or not: what the official code does."""
    return quality


def _sigmoid(quality: torch.Tensor) -> torch.Tensor:
    """1 / (1 + exp(-r)), in [0, 1]: for raw reward-model scores; flattens far from 0."""
    return quality.sigmoid()


def _group_min(quality: torch.Tensor) -> torch.Tensor:
    """r - min over the group, in [0, inf): zeroes the group's worst response, and every one where all are equal."""
    return quality - quality.amin(-1, keepdim=True)


QUALITY_TRANSFORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "raw": _raw,
    "sigmoid": _sigmoid,
    "group_min": _group_min,
}


FOR_POSITIVE_QUALITY = ("multiply", "redundancy")


def transform_quality(quality: torch.Tensor, transform: str | None, *, reward: str) -> torch.Tensor:
    """The quality that the registered `reward` gets, (P, n) -> (P, n).

    Args:
        transform: a key of QUALITY_TRANSFORMS. None applies none, and refuses what would punish diversity: a negative
            quality under a reward that multiplies it or divides it.
    """
    if transform is None:
        _refuse_negative_quality(quality, reward)
        return quality
    if transform not in QUALITY_TRANSFORMS:
        known = list(QUALITY_TRANSFORMS)
        raise DarlingError(
            f"a known {spelled('quality_transform')}",
            f"{transform!r}",
            f"{nearest(transform, known)}known: {', '.join(known)}",
        )
    return QUALITY_TRANSFORMS[transform](quality)


def compute_reward(
    quality: torch.Tensor,
    diversity: torch.Tensor,
    *,
    reward: str,
    similarity: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """The registered `reward` of quality and diversity, both (P, n) float32; a new tensor, checked to be alike.

    Args:
        similarity, labels: (P, n, n) and (P, n), for a reward that takes them.

    Raises DarlingError for an unknown name, another shape, or values that are not finite.
    """
    import torch

    inputs = {"quality": quality, "diversity": diversity, "similarity": similarity, "labels": labels}
    values = rewards.call(reward, inputs)
    if not isinstance(values, torch.Tensor) or values.shape != quality.shape:
        found = f"shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
        raise DarlingError(f"a tensor {tuple(quality.shape)} from the reward {reward!r}", found, "correct that reward")
    values = values.to(torch.float32, copy=True)
    if not values.isfinite().all():
        raise DarlingError(
            f"finite values from the reward {reward!r}",
            f"{int((~values.isfinite()).sum())} of {values.numel()} are NaN or infinite; of the qualities it got, "
            f"{int((~quality.isfinite()).sum())}; of the diversities, {int((~diversity.isfinite()).sum())}",
            "correct whichever of the three is the first to be not finite",
        )
    return values


def _refuse_negative_quality(quality: torch.Tensor, reward: str) -> None:
    negative = int((quality < 0).sum())
    if reward in FOR_POSITIVE_QUALITY and negative:
        raise DarlingError(
            f"qualities of at least 0, for {reward} scales them by diversity: of negative ones it punishes diversity",
            f"{negative} of {quality.numel()} qualities are negative, the least {quality.min().item():.4g}",
            f"choose {spelled('quality_transform')} {{{','.join(QUALITY_TRANSFORMS)}}}: raw scales them all the same, "
            f"as the official code does; or a {spelled('reward')} other than {' and '.join(FOR_POSITIVE_QUALITY)}",
        )
