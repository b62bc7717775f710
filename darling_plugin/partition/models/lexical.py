"""Partition by shared words: no model, no GPU, for smoke tests and as the baseline that a learned one must beat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import Pair, PairwiseModel
from darling_plugin.registry import register_partition_model


@register_partition_model("lexical")
class Lexical(PairwiseModel):
    """Jaccard overlap of the two responses' word n-grams, G = unigrams and bigrams pooled, as sets::

        similarity(a, b) = |G(a) & G(b)| / |G(a) | G(b)|

    `lexical:4` takes 4-grams alone, and any other number likewise; a response of fewer words than that is one n-gram
    by itself. Words are runs of letters, digits and underscores, case-folded; punctuation is dropped. Two different
    responses without a word (only symbols, say) have similarity 0.

    The default threshold is for unigrams and bigrams. Long n-grams are rarely shared: on NoveltyBench's 1000 pairs
    with human labels, 4-grams above 0.5 call 1 % of the pairs equivalent, above 0.03 40 %; the humans called 33 % so.

    Its weakness: it sees wording, not meaning. A paraphrase counts as different, and a policy learns to use that: with
    4-gram diversity in place of the classifier, arXiv 2509.02534 saw maths answers gain text after the answer and
    other languages. With --darling.diversity expected a response's diversity is 1 minus its mean overlap with the
    others, the number from 0 to 1 of that ablation; with classes the overlap decides, at a threshold, whether two
    responses are equivalent. Languages written without spaces come out as a few very long words.
    """

    threshold = 0.5
    is_overlap = True
    local = True

    def __init__(
        self, size: str | None = None, *, threshold: float | None = None, clustering: str | None = None
    ) -> None:
        super().__init__(threshold=threshold, clustering=clustering)
        if size is not None and not re.fullmatch("[1-9][0-9]*", size):
            raise DarlingError(
                "an argument to fit Lexical: a number of words from 1, as in lexical:4",
                f"lexical:{size}",
                "give a number, or leave the colon and what follows out",
            )
        self.size = None if size is None else int(size)

    @classmethod
    def check_arguments(cls, *arguments: Any, **options: Any) -> None:
        cls(*arguments, **options)  # costs nothing, and refuses an argument that is no number

    def similarity(self, pairs: Sequence[Pair]) -> list[float]:
        ngrams = cache(lambda text: _ngrams(text, self.size))  # for this call only: a response is in n-1 pairs
        return [_jaccard(ngrams(pair.first), ngrams(pair.second)) for pair in pairs]


def _ngrams(text: str, size: int | None) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    if size is None:
        return frozenset([*((word,) for word in words), *pairwise(words)])
    length = min(size, len(words))
    return frozenset(tuple(words[k : k + length]) for k in range(len(words) - length + 1)) if words else frozenset()


def _jaccard(first: frozenset, second: frozenset) -> float:
    union = len(first | second)
    return len(first & second) / union if union else 0.0
