"""The released partition classifiers with their thresholds, lengths and input as their authors use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import Pair
from darling_plugin.partition.models.cross_encoder import CrossEncoder
from darling_plugin.partition.options import OneOf
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import torch

    from darling_plugin.partition.engine.inputs import ModelInput

SHORT_ANSWER = 5  # words
WITHOUT_END = 2**31  # tokens: longest_pair makes it what the model takes


class Released(CrossEncoder):
    """A released classifier by its Hub name; `name:<path>` where a copy of it lies, with its tokenizer.

    Where both responses have at most five words the classifier is not asked: they are equivalent if they share at
    least half as many distinct words as the longer one has words, case aside.

    Args:
        input: "trained": token ids, each response cut after so many tokens, as the classifier was trained. "official":
            one text with the special tokens spelled out, white space collapsed, each response cut after so many words,
            as the official client sends it in RL (WrittenOutPairs); a pair may then be as long as the model takes.
        max_response_length: tokens of each response, or words where the input is official; default: its authors'.
    """

    option_limits: ClassVar = {"input": OneOf(("trained", "official"))}
    path: str
    tokenizer_path: str
    max_length: int
    max_response_length: int  # tokens, in training
    official_words: int | None = None  # in RL; None: the authors send no text

    def __init__(
        self,
        path: str | None = None,
        *,
        threshold: float | None = None,
        clustering: str | None = None,
        input: str = "trained",
        max_response_length: int | None = None,
        both_orders: bool = False,
        tokenizer: str | None = None,
        dtype: str | None = None,
        compile_after: float | None = None,
        token_budget: int | None = None,
    ) -> None:
        self._input = input
        if input == "official" and self.official_words is None:
            raise DarlingError(
                f"input=trained for {type(self).__name__}", "input=official: its authors send token ids", "drop it"
            )
        super().__init__(
            path or self.path,
            threshold=threshold,
            clustering=clustering,
            max_length=self.max_length if input == "trained" else WITHOUT_END,
            max_response_length=max_response_length,
            both_orders=both_orders,
            tokenizer=tokenizer or (None if path else self.tokenizer_path),
            dtype=dtype,
            compile_after=compile_after,
            token_budget=token_budget,
        )

    def _make_pair_tokens(
        self, max_response_length: int | None, special_tokens: tuple[str, str, str] | None
    ) -> Callable[[Sequence[Pair]], list[ModelInput]]:
        from darling_plugin.partition.engine.pair_tokens import WrittenOutPairs

        if self._input == "trained":
            return super()._make_pair_tokens(max_response_length or self.max_response_length, special_tokens)
        return WrittenOutPairs(
            self.tokenizer, self.max_length, max_response_length or self.official_words, special_tokens
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
    """arXiv 2509.02534's classifier for open-ended tasks, ModernBERT-base: of each response it reads 1022 tokens.

    The official RL runs send it up to 1022 words of each.
    """

    path = tokenizer_path = "dogtooth/similarity-classifier-f168-hf"
    threshold, max_length, max_response_length = 0.32, 2048, 1022
    official_words = 1022


@register_partition_model("darling-qwen3-math")
class DarlingQwen3Math(Released):
    """arXiv 2509.02534's classifier for solutions in mathematics, Qwen3-Embedding-4B with a classification head.

    Of each response it reads 2046 tokens; the official RL runs send it up to 2046 words of each. Qwen's tokenizer has
    neither CLS nor SEP; the authors take these two.
    """

    path, tokenizer_path = "dogtooth/qwen3-4b-emb-finetuned-step-70-hf", "Qwen/Qwen3-Embedding-4B"
    threshold, max_length, max_response_length = 0.5, 4096, 2046
    official_words = 2046
    special_tokens = ("<|im_start|>", "<|im_end|>", "<|im_end|>")


@register_partition_model("noveltybench-deberta")
class NoveltyBenchDeberta(Released):
    """NoveltyBench's classifier, DeBERTa-v3-large: of each response it reads 128 tokens. Used there with greedy."""

    path, tokenizer_path = "yimingzhang/deberta-v3-large-generation-similarity", "microsoft/deberta-v3-large"
    threshold, max_length, max_response_length = 0.102, 512, 128
