"""EVOL-RL (arXiv 2509.15194): novelty among the responses of equal correctness, as in its official code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.registry import register_reward

if TYPE_CHECKING:
    import torch

SPREAD = 1e-6  # novelties nearer to each other are equal: the similarities have six decimals


@register_reward("reasoning_novelty")
def reasoning_novelty(quality: torch.Tensor, similarity: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """0.5 + u_i / 2 for a correct response (quality above 0), -1 + u_i / 2 for a wrong one.

    u_i is the novelty 1 - (mean of s_ij over the others of equal correctness + max of s_ij over all others) / 2,
    stretched over these responses to reach from 0 to 1; 1/2 where it is equal throughout, 1 for the only one.

    (P, n), (P, n, n), (P, n) -> (P, n), in [-1, -0.5] and [0.5, 1]: any correct response is above any wrong one, and
    how large a quality is plays no part. A group of equal, correct responses gets 0.75.

    Departs from the paper: correct is what the reward says, not the majority's answer, and there is no -1 for an
    answer that cannot be read. Its novelty is of the reasoning, --darling.partition_text before:</think> for a model
    that thinks (of one that does not that compares nothing); its official code embeds what follows </think>, or all.
    """
    import torch

    itself = torch.eye(quality.shape[-1], dtype=torch.bool)
    correct = quality > 0
    alike = (correct.unsqueeze(-1) == correct.unsqueeze(-2)) & ((labels >= 0).unsqueeze(-2) | itself)
    others = similarity.double().masked_fill(itself, 0.0)
    mean = (others * alike).sum(-1) / (alike.sum(-1) - 1).clamp(min=1)
    novelty = 1 - (mean + others.amax(-1)) / 2
    of_alike = novelty.unsqueeze(-2).expand_as(others)
    lowest = of_alike.masked_fill(~alike, torch.inf).amin(-1)
    spread = of_alike.masked_fill(~alike, -torch.inf).amax(-1) - lowest
    share = torch.where(spread < SPREAD, 0.5, (novelty - lowest) / spread.clamp(min=SPREAD))
    share = share.masked_fill(alike.sum(-1) == 1, 1.0)
    return (torch.where(correct, 0.5, -1.0) + share / 2).to(quality.dtype)
