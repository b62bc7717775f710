"""Partition by shared words: no model, no GPU, for smoke tests and as the baseline that a learned one must beat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from darling_plugin.partition.base import Pair, PairwiseModel
from darling_plugin.registry import register_partition_model


@register_partition_model("lexical")
class Lexical(PairwiseModel):
    """Jaccard overlap of the two responses' word n-grams, G = unigrams and bigrams pooled, as sets::

        similarity(a, b) = |G(a) & G(b)| / |G(a) | G(b)|

    Words are runs of letters, digits and underscores, case-folded; punctuation is dropped. Two different responses
    without a word (only symbols, say) have similarity 0.

    Its weakness: it sees wording, not meaning. A paraphrase counts as different, and a policy learns to use that: with
    4-gram diversity in place of the classifier, arXiv 2509.02534 saw maths answers gain text after the answer and
    other languages. Languages written without spaces come out as a few very long words.
    """

    threshold = 0.5

    def similarity(self, pairs: Sequence[Pair]) -> list[float]:
        ngrams = cache(_ngrams)  # for this call only: a response is in n-1 pairs
        return [_jaccard(ngrams(pair.first), ngrams(pair.second)) for pair in pairs]


def _ngrams(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return frozenset([*((word,) for word in words), *pairwise(words)])


def _jaccard(first: frozenset, second: frozenset) -> float:
    union = len(first | second)
    return len(first & second) / union if union else 0.0
