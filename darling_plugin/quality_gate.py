"""Who earns diversity: a quality gate leaves a group's poor responses out of the partition, with diversity 0.

A gate is a function of quality, (P, n) float32, and of a number where it takes one, to a (P, n) bool: who takes part.
Groups are judged apart, and a gate that lets none of a group through is a result: all of that group have diversity 0.
Independent runs of DARLING without a gate bought diversity with quality (MoDA, arXiv 2609.14896).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.registry import quality_gates, register_quality_gate

if TYPE_CHECKING:
    import torch

NONE = "none"
FROM_0_TO_1 = ("top", "reference")  # gates whose number is a share


@register_quality_gate("above")
def above(quality: torch.Tensor, value: float) -> torch.Tensor:
    """r_i > value: `above:0` lets through the correct ones of qualities 0 and 1, as DIVER does (arXiv 2509.26209)."""
    return quality > value


@register_quality_gate("top")
def top(quality: torch.Tensor, share: float) -> torch.Tensor:
    """The best ceil(share · n) of each group, at least one, and all that equal the last of these; share in [0, 1].

    Where all are equally good all take part.
    """
    kept = max(1, math.ceil(share * quality.shape[-1] - 1e-9))  # 0.7 · 10 is 7.000000000000001
    return quality >= quality.topk(kept, dim=-1).values[..., -1:]


@register_quality_gate("reference")
def reference(quality: torch.Tensor, alpha: float) -> torch.Tensor:
    """r_i >= min_j r_j + alpha · (max_j r_j - mean_j r_j): a threshold of each group's own; alpha in [0, 1].

    alpha 0 lets all through, and more is asked of a group whose best stands out. The best is never left out; where all
    are equally good all take part. A response at the threshold takes part whatever rounding makes of it: a millionth
    of max_j r_j - min_j r_j is let pass.
    """
    worst, best = quality.amin(-1, keepdim=True), quality.amax(-1, keepdim=True)
    needed = worst + alpha * (best - quality.mean(-1, keepdim=True)) - 1e-6 * (best - worst)
    return quality >= needed.clamp(max=best)  # nor may rounding leave the best out where all are equal


def read_quality_gate(spec: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The gate that `spec` names, "none", "name" or "name:number", as a function of quality alone.

    Raises DarlingError for an unknown name, and for a number that is missing, needless, not finite or out of range.
    """
    name, colon, text = spec.partition(":")
    if spec == NONE:
        return lambda quality: quality == quality
    gate = quality_gates.get(name)
    try:
        number = (float(text),) if colon else ()
        if not all(map(math.isfinite, number)):
            raise ValueError("it is not finite")
        if name in FROM_0_TO_1 and number and not 0 <= number[0] <= 1:
            raise ValueError("it is not between 0 and 1")
        inspect.signature(gate).bind(None, *number)
    except (TypeError, ValueError) as error:
        parameters = list(inspect.signature(gate).parameters)
        form = ":".join([name, *parameters[1:]])
        raise DarlingError(
            f"{spelled('quality_gate')} {form}" + ", a number" * (len(parameters) > 1),
            f"{spec!r}: {error}",
            "correct it",
        ) from error
    return partial(_checked, gate, number, spec)


def _checked(gate: Callable, number: tuple[float, ...], spec: str, quality: torch.Tensor) -> torch.Tensor:
    import torch

    passes = gate(quality.clone(), *number)  # it may work in place; the quality is logged
    if not isinstance(passes, torch.Tensor) or passes.dtype != torch.bool or passes.shape != quality.shape:
        found = f"{passes.dtype} {tuple(passes.shape)}" if isinstance(passes, torch.Tensor) else type(passes).__name__
        raise DarlingError(
            f"a bool tensor {tuple(quality.shape)} from the quality gate {spec!r}", found, "correct that gate"
        )
    return passes
