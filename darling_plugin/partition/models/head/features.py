"""What the linear-cost head sees of two responses: numbers from their chunks' vectors, their tokens and their words.

Every feature is the same for (first, second) and (second, first), so that the head's answer is too. All pairs of a
group are computed at once, from texts that were encoded once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from darling_plugin.partition.models.head.order import exchanged, initials, opposed, replaced
from darling_plugin.partition.models.head.words import (
    FILLERS,
    NEGATIONS,
    SYMBOLS,
    WORD,
    is_number,
    values_of,
    words_of,
)

if TYPE_CHECKING:
    from darling_plugin.partition.models.embedding import Embedding

CHUNK_TOKENS = 48  # about 35 words: sentence encoders blur what is longer

# A pair's kind, which has weights of its own, by the words of its shorter and of its longer response: short answers,
# sentences, in which an answer stands among words that do not matter, and long responses, all others. The first two
# know no longer ones, among whose words those of a short text are found by chance.
SHORT_ANSWER, BESIDE_SHORT = 8, 24
SENTENCE, BESIDE_SENTENCE = 24, 32

# What each kind of pair has weights for.
LONG = (
    "match_low",
    "match_low_apart",
    "pooled_apart",
    "opening",
    "drift",
    "tokens",
    "tokens_apart",
    "rare_tokens",
    "token_pairs",
    "capitals",
    "capitals_shared",
    "capital_words",
    "headings",
    "length",
    "length_ratio",
    "lines",
)
SHORT = (
    "match_low",
    "match_high",
    "pooled_apart",
    "same_form",
    "words",
    "words_apart",
    "contained",
    "contained_apart",
    "each_adds",
    "numbers_agree",
    "numbers_differ",
    "symbols_differ",
    "negated",
    "rare_tokens",
    "replaced",
    "exchanged",
    "opposed",
    "initials",
)
SENTENCES = (
    "match_low",
    "pooled_apart",
    "token_pairs",
    "rare_tokens",
    "rare_shared",
    "rare_added",
    "same_form",
    "numbers_agree",
    "numbers_differ",
    "only_negated",
    "replaced",
    "exchanged",
    "opposed",
)
FEATURES = tuple(dict.fromkeys((*LONG, *SHORT, *SENTENCES)))
KINDS = {"long responses": LONG, "sentences": SENTENCES, "short answers": SHORT}

CAPITAL = re.compile(r"\b[A-Z]\w+")
# What structured answers stress: bold text, headings, the beginning of a list item up to a colon or full stop.
HEADING = re.compile(r"\*\*([^*\n]+)\*\*|^#+ (.+)$|^\s*(?:\d+[.)]|[-*•])\s+([^:.\n]{2,60})[:.]", re.MULTILINE)
RARE = 3.9  # least idf of a rare token: at most 2 % of the responses have it
COMMON = 2.0  # idf of a token that 14 % of the responses have


@dataclass(frozen=True)
class Encoded:
    """One text: token ids (t,) without special ones, its chunks' vectors (C, d) of length 1, and their tokens."""

    text: str
    ids: np.ndarray
    chunks: torch.FloatTensor
    sizes: torch.FloatTensor  # (C,)

    @cached_property
    def vector(self) -> torch.FloatTensor:
        """(d,), of length 1: the chunks' mean by their tokens."""
        return _unit(self.sizes @ self.chunks)

    @cached_property
    def words(self) -> list[str]:
        return words_of(self.text)

    @cached_property
    def values(self) -> list[str]:
        return values_of(self.text)


def encode(encoder: Embedding, texts: Sequence[str]) -> dict[str, Encoded]:
    """Each distinct text, tokenised once and each of its chunks encoded once, all in one call of the encoder."""
    texts = sorted(set(texts))  # so that an encoder's batches, and their rounding, do not depend on the order
    if not texts:
        return {}
    ids = encoder.token_ids(texts)
    chunks = [np.array_split(each, max(1, -(-len(each) // CHUNK_TOKENS))) for each in ids]
    counts = [len(own) for own in chunks]
    vectors = _unit(encoder.embed_ids([chunk for own in chunks for chunk in own])).split(counts)
    sizes = [torch.tensor([float(max(len(chunk), 1)) for chunk in own]) for own in chunks]
    return {text: Encoded(text, *parts) for text, *parts in zip(texts, ids, vectors, sizes, strict=True)}


def probability(weights: dict[str, torch.Tensor], prompt: Encoded, responses: Sequence[Encoded]) -> torch.FloatTensor:
    """(n, n), P(equivalent) of each two: sigmoid(w . x + b), w and b by kinds.

    Symmetric, and the same in whatever order the responses come, to the last bit on any CPU: they are put in order by
    their texts, and of each two the entry above the diagonal counts for both.
    """
    in_order = sorted(range(len(responses)), key=lambda k: responses[k].text)
    ordered = [responses[k] for k in in_order]
    features = pair_features(prompt, ordered, weights["idf"])
    of_each_kind = features @ weights["weight"].T + weights["bias"]
    computed = of_each_kind.gather(-1, kinds(ordered)[..., None]).squeeze(-1).sigmoid()
    mirrored = computed.triu() + computed.triu(1).T
    place = torch.tensor(in_order).argsort()
    return mirrored[place][:, place]


def pair_features(prompt: Encoded, responses: Sequence[Encoded], idf: torch.FloatTensor) -> torch.FloatTensor:
    """(n, n, len(FEATURES)), symmetric in its first two dimensions; the diagonal compares a response with itself.

    Args:
        idf: (V,) weight of each token id of the encoder.
    """
    n = len(responses)
    values: dict[str, torch.Tensor] = {}
    for suffix, chunks in (
        ("", [each.chunks for each in responses]),
        ("_apart", [_apart(each.chunks, prompt.vector) for each in responses]),
    ):
        match, drift = _best_matches(chunks, [each.sizes for each in responses])
        values["match_low" + suffix] = torch.minimum(match, match.T)
        if suffix:
            pooled = _unit(torch.stack([each.sizes @ own for each, own in zip(responses, chunks, strict=True)]))
            values["pooled_apart"] = pooled @ pooled.T
        else:
            values["match_high"] = torch.maximum(match, match.T)
            values["drift"] = (drift + drift.T) / 2
            first = torch.stack([own[0] for own in chunks])
            values["opening"] = first @ first.T

    seen = set(prompt.ids.tolist())
    weight = idf.tolist().__getitem__
    tokens = [each.ids.tolist() for each in responses]
    apart = [[token for token in own if token not in seen] for own in tokens]
    values["tokens"] = _overlap(tokens, weight).jaccard
    values["tokens_apart"] = _overlap(apart, weight).of_larger
    values["rare_tokens"] = _overlap([[token for token in own if weight(token) > RARE] for own in apart]).jaccard
    values["token_pairs"] = _overlap([list(pairwise(own)) for own in tokens]).jaccard
    capitals = _overlap([CAPITAL.findall(each.text) for each in responses])
    values["capitals"] = capitals.jaccard
    values["capitals_shared"] = capitals.shared.log1p()
    values["capital_words"] = _mean_of_logs(capitals.totals)
    headings = [" ".join(map(" ".join, HEADING.findall(each.text))).casefold() for each in responses]
    values["headings"] = _overlap([WORD.findall(own) for own in headings]).jaccard

    length = torch.tensor([float(len(each.words)) for each in responses])
    lines = torch.tensor([float(sum(1 for line in each.text.split("\n") if line.strip())) for each in responses])
    values["length"] = _mean_of_logs(length)
    values["length_ratio"] = (length.log1p()[:, None] - length.log1p()).abs()
    values["lines"] = _mean_of_logs(lines)

    for name in FEATURES:
        if name not in values:
            values[name] = torch.zeros(n, n)
    kind = kinds(responses)
    if kind.any():
        _of_few_words(prompt, responses, values)
    members = [set(own) for own in apart]
    for i, j in (kind == list(KINDS).index("sentences")).triu().nonzero().tolist():
        rarest = [
            max(map(weight, some), default=0.0)
            for some in (members[i] & members[j], members[i] - members[j], members[j] - members[i])
        ]
        values["rare_shared"][i, j] = values["rare_shared"][j, i] = rarest[0]
        values["rare_added"][i, j] = values["rare_added"][j, i] = min(rarest[1:])
    values["only_negated"] = values["negated"] * (values["rare_added"] < COMMON)
    return torch.stack([values[name].float() for name in FEATURES], dim=-1)


def kinds(responses: Sequence[Encoded]) -> torch.LongTensor:
    """(n, n): which of KINDS each two are, by their lengths in words."""
    length = torch.tensor([len(each.words) for each in responses])
    shorter, longer = torch.minimum(length[:, None], length), torch.maximum(length[:, None], length)
    short = (shorter <= SHORT_ANSWER) & (longer <= BESIDE_SHORT)
    sentences = (shorter <= SENTENCE) & (longer <= BESIDE_SENTENCE)  # of the lengths of short answers too
    return short.long() + sentences.long()


def _of_few_words(prompt: Encoded, responses: Sequence[Encoded], values: dict[str, torch.Tensor]) -> None:
    """Fills in the features that short answers and sentences alone have.

    Two agree if they do as they are written, or by what their quantities are worth: "1 km" and "1000 m".
    """
    texts = [each.text.strip() for each in responses]
    written = _agreement(prompt.words, [each.words for each in responses], texts)
    worth = written
    if any(each.values != each.words for each in (prompt, *responses)):
        worth = _agreement(prompt.values, [each.values for each in responses], texts)
    for name, own in written.items():
        values[name] = (torch.minimum if name in DISAGREE else torch.maximum)(own, worth[name])
    # A prompt's < and > may be those of its chat template's marks.
    asked = set(prompt.words) - {"<", ">"}
    symbols = _overlap([[w for w in each.words if w in SYMBOLS and w not in asked] for each in responses])
    added = symbols.totals[:, None] - symbols.shared
    values["symbols_differ"] = torch.minimum(added, added.T) > 0
    negated = torch.tensor([any(w in NEGATIONS for w in each.words) for each in responses])
    values["negated"] = negated[:, None] != negated


DISAGREE = {"each_adds", "numbers_differ", "replaced", "exchanged", "opposed"}


def _agreement(asked: Sequence[str], responses: Sequence[list[str]], texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """(n, n) each, of the words of responses to a prompt with the words asked; a text of no words is its own form."""
    found: dict[str, torch.Tensor] = {}
    # Where all words are fillers the last is the answer: "The answer is A".
    content = [[w for w in words if w not in FILLERS] or words[-1:] for words in responses]
    # Where an answer repeats nothing but the prompt ("Tea or coffee?" "Tea"), those words are the answer.
    apart = [[w for w in own if w not in asked] or own for own in content]
    for suffix, words in (("", content), ("_apart", apart)):
        shared = _overlap(words)
        found["words" + suffix] = shared.jaccard
        found["contained" + suffix] = shared.of_smaller
    own = shared.totals[:, None] - shared.shared  # of the last, apart from the prompt: i's words that j lacks
    found["each_adds"] = torch.minimum(own, own.T).log1p()
    # "2x + 2" has another 2 than "2x + 1".
    numbers = _overlap([_counted(w for w in own if is_number(w)) for own in content])
    both = (numbers.totals[:, None] > 0) & (numbers.totals > 0)
    added = numbers.totals[:, None] - numbers.shared
    found["numbers_agree"] = both & (numbers.jaccard == 1)
    found["numbers_differ"] = torch.minimum(added, added.T) > 0
    forms = [" ".join(own) or text for own, text in zip(content, texts, strict=True)]
    form = torch.tensor([forms.index(each) for each in forms])
    found["same_form"] = form[:, None] == form
    n = len(responses)
    for name in ("replaced", "exchanged", "opposed", "initials"):
        found[name] = torch.zeros(n, n)
    whole = [initials(own) if len(own) > 1 or " " in own[0] else "" for own in (each or [""] for each in content)]
    for (i, first), (j, second) in combinations(enumerate(responses), 2):
        if len(first) > BESIDE_SENTENCE or len(second) > BESIDE_SENTENCE:
            continue
        pair = {
            "replaced": replaced(first, second, FILLERS),
            "exchanged": exchanged(first, second),
            "opposed": opposed(first, second),
            "initials": content[i] == [whole[j]] or content[j] == [whole[i]],
        }
        for name, value in pair.items():
            found[name][i, j] = found[name][j, i] = float(value)
    return {name: value.float() for name, value in found.items()}


def _counted(words: Iterable[str]) -> list[tuple[str, int]]:
    """Each word with how often it came before."""
    before: Counter[str] = Counter()
    found = []
    for word in words:
        found.append((word, before[word]))
        before[word] += 1
    return found


def _best_matches(chunks: list[torch.Tensor], sizes: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, n) each: the mean over i's chunks of the best cosine in j, and how far from its place that is found."""
    n, counts = len(chunks), torch.tensor([len(own) for own in chunks])
    padded = torch.nn.utils.rnn.pad_sequence(chunks, batch_first=True)  # (n, C, d)
    missing = torch.arange(padded.shape[1]) >= counts[:, None]
    last = (counts - 1).clamp(min=1)
    match, drift = torch.empty(n, n), torch.empty(n, n)
    for i, own in enumerate(chunks):
        cosines = (own @ padded.flatten(0, 1).T).view(len(own), n, -1).masked_fill(missing, -torch.inf)
        best, there = cosines.max(-1)
        weights = sizes[i] / sizes[i].sum()
        match[i] = weights @ best
        drift[i] = weights @ (there / last - (torch.arange(len(own)) / last[i])[:, None]).abs()
    return match, drift


@dataclass(frozen=True)
class _Overlap:
    """Of n sets with weighted members: the weight (n, n) that two share, and the weight (n,) of each."""

    shared: torch.Tensor
    totals: torch.Tensor

    @cached_property
    def jaccard(self) -> torch.Tensor:
        return self.shared / (self.totals[:, None] + self.totals - self.shared).clamp(min=1e-6)

    @cached_property
    def of_larger(self) -> torch.Tensor:
        return self.shared / torch.maximum(self.totals[:, None], self.totals).clamp(min=1e-6)

    @cached_property
    def of_smaller(self) -> torch.Tensor:
        return self.shared / torch.minimum(self.totals[:, None], self.totals).clamp(min=1e-6)


def _overlap(sets: Sequence[Sequence[Hashable]], weight: Callable[[Hashable], float] | None = None) -> _Overlap:
    column = {member: k for k, member in enumerate(dict.fromkeys(member for own in sets for member in own))}
    there = torch.zeros(len(sets), len(column))
    for i, own in enumerate(sets):
        there[i, [column[member] for member in own]] = 1.0
    weights = torch.tensor([1.0 if weight is None else weight(member) for member in column])
    shared = (there * weights) @ there.T
    return _Overlap(shared, shared.diagonal())


def _mean_of_logs(counts: torch.Tensor) -> torch.Tensor:
    return (counts.log1p()[:, None] + counts.log1p()) / 2


def _apart(vectors: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The vectors without what they have of that direction: two responses are alike in being about the prompt."""
    return _unit(vectors - (vectors @ direction)[..., None] * direction)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6)
