"""MoDA (arXiv 2609.14896, equations 3 and 6), its reward without its roles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.registry import register_reward

if TYPE_CHECKING:
    import torch


@register_reward("nearest_neighbour")
def nearest_neighbour(quality: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """r_i + min_{j != i} (1 - s_ij): how far it is to the nearest of the other responses.

    (P, n), (P, n, n) -> (P, n), in [r, r + 1]. A group of equal responses gets r, one of responses that have nothing
    in common, or of one, r + 1. --darling.weight is the paper's lambda_d / lambda_q, --darling.quality_gate
    reference:ALPHA its gate.

    Departs from the paper: (1 - s) in place of (1 - cosine) / 2, both from 0 to 1. Its gate and its tanh of the
    quality take minimum, mean and maximum of the initial policy; the gate here takes the group's, and the tanh, the
    penalties for length, language and format, and its role prompts are left out.
    """
    import torch

    others = similarity - torch.eye(similarity.shape[-1])
    return quality + (1 - others.amax(-1))
