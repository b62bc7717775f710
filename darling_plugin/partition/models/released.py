"""The released partition classifiers with their thresholds, lengths and input as their authors use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from darling_plugin.partition.base import Pair
from darling_plugin.partition.models.cross_encoder import CrossEncoder
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import torch

SHORT_ANSWER = 5  # words


class Released(CrossEncoder):
    """A released classifier by its Hub name; `name:<path>` where a copy of it lies, with its tokenizer.

    Where both responses have at most five words the classifier is not asked: they are equivalent if they share at
    least half as many distinct words as the longer one has words, case aside.
    """

    path: str
    tokenizer_path: str
    max_length: int
    max_response_length: int

    def __init__(
        self,
        path: str | None = None,
        *,
        threshold: float | None = None,
        clustering: str | None = None,
        both_orders: bool = False,
        tokenizer: str | None = None,
        dtype: str | None = None,
        compile_after: float | None = None,
    ) -> None:
        super().__init__(
            path or self.path,
            threshold=threshold,
            clustering=clustering,
            max_length=self.max_length,
            max_response_length=self.max_response_length,
            both_orders=both_orders,
            tokenizer=tokenizer or (None if path else self.tokenizer_path),
            dtype=dtype,
            compile_after=compile_after,
        )

    def similarity(self, pairs: Sequence[Pair]) -> torch.FloatTensor:
        import torch

        scores = torch.tensor([short_answers_agree(pair) for pair in pairs])
        asked = scores.isnan()
        if asked.any():
            scores[asked] = super().similarity([pair for pair, ask in zip(pairs, asked.tolist(), strict=True) if ask])
        return scores


def short_answers_agree(pair: Pair) -> float:
    """1.0 or 0.0 where both responses are short answers, else NaN."""
    first, second = pair.first.lower().split(), pair.second.lower().split()
    longer = max(len(first), len(second))
    if longer > SHORT_ANSWER:
        return float("nan")
    return float(2 * len(set(first) & set(second)) >= longer)


@register_partition_model("darling-modernbert")
class DarlingModernBert(Released):
    """arXiv 2509.02534's classifier for open-ended tasks, ModernBERT-base: of each response it reads 1022 tokens."""

    path = tokenizer_path = "dogtooth/similarity-classifier-f168-hf"
    threshold, max_length, max_response_length = 0.32, 2048, 1022


@register_partition_model("darling-qwen3-math")
class DarlingQwen3Math(Released):
    """arXiv 2509.02534's classifier for solutions in mathematics, Qwen3-Embedding-4B with a classification head.

    Of each response it reads 2046 tokens. Qwen's tokenizer has neither CLS nor SEP; the authors take these two.
    """

    path, tokenizer_path = "dogtooth/qwen3-4b-emb-finetuned-step-70-hf", "Qwen/Qwen3-Embedding-4B"
    threshold, max_length, max_response_length = 0.5, 4096, 2046
    special_tokens = ("<|im_start|>", "<|im_end|>", "<|im_end|>")


@register_partition_model("noveltybench-deberta")
class NoveltyBenchDeberta(Released):
    """NoveltyBench's classifier, DeBERTa-v3-large: of each response it reads 128 tokens. Used there with greedy."""

    path, tokenizer_path = "yimingzhang/deberta-v3-large-generation-similarity", "microsoft/deberta-v3-large"
    threshold, max_length, max_response_length = 0.102, 512, 128
