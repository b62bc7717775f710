"""What an advantage sees of a diversity: how its differences within a group compare with the true ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


FLAT = 1e-6  # a difference that is rounding alone: a mean of n equal values need not be that value


@dataclass(frozen=True)
class WithinGroup:
    """Given against true diversity of the same responses, as deviations from their group's mean, pooled.

    With g and t these deviations, of all responses of all groups::

        push  = sum(g t) / sum(t^2)        # how much of a true difference arrives: the regression of g on t
        noise = std(g - push t) / (|push| std(t))  # what else arrives, for a unit of push
        error = sqrt(mean((g - t)^2))      # that of no signal at all is error_of_none

    Attributes:
        groups: all groups; flat: those in which all given values are equal, and the advantage sees nothing.
        correlation: pooled, of g and t; 0 where all g are 0.
        correlation_of_groups: mean of each group's own, over those with more than one true value; a flat one counts 0.
        push, noise, error, error_of_none: as above. NaN where no group has more than one true value (noise infinite
            without any push).
    """

    groups: int
    flat: int
    correlation: float
    correlation_of_groups: float
    push: float
    noise: float
    error: float
    error_of_none: float


def within_group(given: Sequence[torch.Tensor], true: Sequence[torch.Tensor]) -> WithinGroup:
    """The figures of P groups; given and true have a tensor (n,) for each, n may differ. ValueError for none."""
    import torch

    if not given:
        raise ValueError("within_group needs at least one group")
    all_g, all_t, of_groups, flat = [], [], [], 0
    for one, other in zip(given, true, strict=True):
        one, other = one.double(), other.double()
        g, t = one - one.mean(), other - other.mean()
        is_flat = bool(one.max() - one.min() < FLAT)
        if is_flat:
            g = torch.zeros_like(g)
        flat += is_flat
        all_g.append(g)
        all_t.append(t)
        if not (other == other[0]).all():
            of_groups.append(0.0 if is_flat else float((g @ t) / (g.norm() * t.norm())))
    g, t = torch.cat(all_g), torch.cat(all_t)
    variance = float(t @ t)
    push = float(g @ t) / variance if variance else math.nan
    strength = float(g.norm() * t.norm())
    signal = abs(push) * math.sqrt(variance)
    noise = float((g - push * t).norm()) / signal if signal else math.inf
    return WithinGroup(
        groups=len(all_g),
        flat=flat,
        correlation=float(g @ t) / strength if strength else 0.0,
        correlation_of_groups=sum(of_groups) / len(of_groups) if of_groups else math.nan,
        push=push,
        noise=noise,
        error=float((g - t).square().mean().sqrt()),
        error_of_none=float(t.square().mean().sqrt()),
    )
