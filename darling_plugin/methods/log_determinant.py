"""DQO (arXiv 2509.04784, third version): the volume that a group's responses span, by what each adds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.registry import register_reward

if TYPE_CHECKING:
    import torch


@register_reward("log_determinant")
def log_determinant(quality: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """r_i + log(det(L + I) / det(L_{-i} + I)), with L the similarities and L_{-i} those without response i.

    (P, n), (P, n, n) -> (P, n), in [r, r + log(1 + n)]. In a group of equal responses each adds log((n + 1) / n), of
    responses that have nothing in common log 2. --darling.weight is the paper's alpha.

    Departs from the paper: L is the partition model's similarities, not the inner products of embeddings. These need
    be no kernel, so negative eigenvalues count as 0.
    """
    import torch

    eigenvalues, vectors = torch.linalg.eigh(similarity.double())
    # det(A) / det(A without row and column i) = 1 / (A^-1)_ii, here of A = L + I.
    of_inverse = (vectors.square() / (1 + eigenvalues.clamp(min=0)).unsqueeze(-2)).sum(-1)
    return (quality - of_inverse.log()).to(quality.dtype)
