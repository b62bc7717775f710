"""MMR-GRPO (arXiv 2601.09085), as in its official code with the adaptive, sigmoid, trade-off that its recipes set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.registry import register_reward

if TYPE_CHECKING:
    import torch


@register_reward("marginal_relevance")
def marginal_relevance(quality: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """lambda r_i - (1 - lambda) max_{j chosen before i} s_ij, with lambda = sigmoid(std of the group's r).

    Greedy: the best response is chosen first and gets r_i itself, then each time the one with the highest value; of
    equals the first in the group. The standard deviation is the population's.

    (P, n), (P, n, n) -> (P, n), in [lambda min r - (1 - lambda), max r]; where all r are negative, from the lesser of
    that and max r up to lambda max r. In a group of equal responses all but the best get lambda r - (1 - lambda), in
    one of responses that have nothing in common lambda r.

    Departs from the official code: that chooses over all groups of a process together, this in each group, as its
    paper describes. Where all r are negative the best, which alone keeps its r whole, may end below others.
    """
    import torch

    value, similarity = quality.double(), similarity.double()  # ties are decided by what is computed
    trade_off = value.std(-1, correction=0, keepdim=True).sigmoid()
    rows = torch.arange(len(value))
    result, closest = torch.empty_like(value), torch.zeros_like(value)
    waiting = torch.ones_like(value, dtype=torch.bool)
    for turn in range(value.shape[-1]):
        score = trade_off * value - (1 - trade_off) * closest if turn else value
        chosen = score.masked_fill(~waiting, -torch.inf).argmax(-1)
        result[rows, chosen] = score[rows, chosen]
        waiting[rows, chosen] = False
        closest = closest.maximum(similarity[rows, chosen])
    return result.to(quality.dtype)
