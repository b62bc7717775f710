"""Mean pairwise cosine of a prompt's responses, as Infinity-Chat reports it: higher is more alike."""

from __future__ import annotations

from collections.abc import Sequence

ENCODER = "all-MiniLM-L6-v2"


class Cosines:
    """By ENCODER, which comes with the package and reads 256 tokens, or another sentence encoder."""

    def __init__(self, path: str | None = None) -> None:
        from darling_plugin.partition.models.embedding import Embedding

        self._encoder = Embedding(path)

    def __call__(self, responses: Sequence[str]) -> dict[str, float]:
        """{"cosine": mean over all pairs i < j}; nothing of a single response."""
        n = len(responses)
        if n < 2:
            return {}
        vectors = self._encoder.embed(responses).double()
        vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        total = (vectors @ vectors.T).sum() - vectors.square().sum()
        return {"cosine": float(total) / (n * (n - 1))}
