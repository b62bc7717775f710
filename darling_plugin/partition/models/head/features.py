"""What the linear-cost head sees of two responses: numbers from their chunks' vectors, their tokens and their words.

Every feature is the same for (first, second) and (second, first) but for rounding, which differs by CPU; so that the
head's answer is the same to the last bit, :func:`probability` takes one of the two orders. All pairs of a group are
computed at once, from texts that were encoded once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch

from darling_plugin.partition.models.head import order
from darling_plugin.partition.models.head.adapter import with_adapter, worth_reading
from darling_plugin.partition.models.head.sets import Sets, counted, numbered, runs
from darling_plugin.partition.models.head.words import (
    BESIDE_SENTENCE,
    BESIDE_SHORT,
    FILLERS,
    LONG_TEXT,
    NEGATIONS,
    SENTENCE,
    SHORT_ANSWER,
    SYMBOLS,
    WORD,
    is_number,
    values_of,
    words_of,
)

if TYPE_CHECKING:
    from darling_plugin.partition.models.embedding import Embedding

CHUNK_TOKENS = 48  # about 35 words: sentence encoders blur what is longer

BEGINNING = 128  # tokens of a response: what it answers with, and what NoveltyBench's classifier reads

# What each kind of pair has weights for.
LONG = (
    "match_low",
    "match_low_apart",
    "pooled_apart",
    "opening",
    "tokens",
    "tokens_apart",
    "rare_tokens",
    "token_pairs",
    "capitals",
    "capitals_shared",
    "capital_words",
    "headings",
    "size",
    "size_ratio",
    "lines",
    "tokens_begin",
    "tokens_apart_begin",
    "rare_tokens_begin",
    "token_pairs_begin",
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

# Both begin with what re can look for fast in a long text: no \b, and a line break in place of ^.
CAPITAL = re.compile(r"[A-Z](?<!\w[A-Z])\w+")
# What structured answers stress: bold text, headings, the beginning of a list item up to a colon or full stop.
HEADING = re.compile(r"\*\*([^*\n]+)\*\*|\n#+ (.+)|\n\s*(?:\d+[.)]|[-*•])\s+([^:.\n]{2,60})[:.]")
RARE = 3.9  # least idf of a rare token: at most 2 % of the responses have it
COMMON = 2.0  # idf of a token that 14 % of the responses have


@dataclass(frozen=True)
class Encoded:
    """One text: token ids (t,) without special ones, its chunks' vectors (C, d) of length 1, and their tokens."""

    text: str
    ids: np.ndarray
    chunks: torch.FloatTensor
    sizes: torch.FloatTensor  # (C,)
    whole: torch.FloatTensor | None = None  # (d,) of length 1, where an adapted encoder reads it: adapter.py

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

    @cached_property
    def length(self) -> int:
        """How many words, where they are few; of a long text how many its beginning has."""
        beginning = len(words_of(self.text[:LONG_TEXT])) if len(self.text) > LONG_TEXT else 0
        return beginning if beginning > BESIDE_SENTENCE else len(self.words)


def encode(encoder: Embedding, texts: Sequence[str]) -> dict[str, Encoded]:
    """Each distinct text, tokenised once and each of its chunks encoded once, all in one call of the encoder."""
    return ready_to_encode(encoder, texts)()()


def ready_to_encode(
    encoder: Embedding, texts: Sequence[str], adapted: Embedding | None = None, groups: Sequence[Sequence[str]] = ()
) -> Callable[[], Callable[[], dict[str, Encoded]]]:
    """Tokenises, and returns what has the encoders begin, which returns what waits for them: see :func:`encode`. The
    adapted encoder reads those of the texts that are responses of `groups` and worth it."""
    texts = sorted(set(texts))  # so that an encoder's batches, and their rounding, do not depend on the order
    if not texts:
        return lambda: dict
    ids = encoder.token_ids(texts)
    chunks = [np.array_split(each, max(1, -(-len(each) // CHUNK_TOKENS))) for each in ids]
    sizes = [torch.tensor([float(max(len(chunk), 1)) for chunk in own]) for own in chunks]
    read = worth_reading(groups, dict(zip(texts, ids, strict=True))) if adapted else ()
    short = [k for k, text in enumerate(texts) if text in read]

    def begin() -> Callable[[], dict[str, Encoded]]:
        vectors = encoder.embed_ids([chunk for own in chunks for chunk in own])
        of_short = adapted.embed_ids([ids[k] for k in short]) if short else None

        def encoded() -> dict[str, Encoded]:
            whole = dict(zip(short, _unit(of_short()), strict=True)) if short else {}
            parts = zip(texts, ids, _unit(vectors()).split([*map(len, chunks)]), sizes, strict=True)
            return {own[0]: Encoded(*own, whole.get(k)) for k, own in enumerate(parts)}

        return encoded

    return begin


def probability(weights: dict[str, torch.Tensor], prompt: Encoded, responses: Sequence[Encoded]) -> torch.FloatTensor:
    """(n, n), P(equivalent) of each two: sigmoid(w . x + b), w and b by kinds.

    Symmetric, and the same in whatever order the responses come, to the last bit on any CPU: they are put in order by
    their texts, and of each two the entry above the diagonal counts for both.
    """
    in_order = sorted(range(len(responses)), key=lambda k: responses[k].text)
    ordered = [responses[k] for k in in_order]
    of_each_kind = pair_features(prompt, ordered, weights["idf"]) @ weights["weight"].T + weights["bias"]
    kind = kinds(ordered)
    logits = of_each_kind.gather(-1, kind[..., None]).squeeze(-1)
    computed = with_adapter(logits, kind == 0, ordered).sigmoid()
    mirrored = computed.triu() + computed.triu(1).T
    place = torch.tensor(in_order).argsort()
    return mirrored[place][:, place]


def pair_features(prompt: Encoded, responses: Sequence[Encoded], idf: torch.FloatTensor) -> torch.FloatTensor:
    """(n, n, len(FEATURES)), symmetric in its first two dimensions up to rounding.

    The diagonal compares a response with itself.

    Args:
        idf: (V,) weight of each token id of the encoder.
    """
    n, weights = len(responses), idf.numpy().astype(np.float32)
    values = _of_vectors(prompt, responses) | _of_tokens(prompt, responses, weights) | _of_texts(responses)
    kind = kinds(responses).numpy()
    if kind.any():
        # Of the others no pair is of a kind that has these features.
        few = np.flatnonzero(kind.any(1))
        for name, own in _of_few_words(prompt, [responses[k] for k in few], weights).items():
            values[name] = np.zeros((n, n), np.float32)
            values[name][np.ix_(few, few)] = own
    found = np.zeros((n, n, len(FEATURES)), np.float32)
    for k, name in enumerate(FEATURES):
        if name in values:
            found[..., k] = values[name]
    return torch.from_numpy(found)


def kinds(responses: Sequence[Encoded]) -> torch.LongTensor:
    """(n, n): which of KINDS each two are, by their lengths in words; in one frame they are sentences at the least."""
    length = torch.tensor([each.length for each in responses])
    shorter, longer = torch.minimum(length[:, None], length), torch.maximum(length[:, None], length)
    short = (shorter <= SHORT_ANSWER) & (longer <= BESIDE_SHORT)
    sentences = (shorter <= SENTENCE) & (longer <= BESIDE_SENTENCE)  # of the lengths of short answers too
    found = short.long() + sentences.long()
    long = [k for k, each in enumerate(responses) if each.length > SENTENCE]
    for first, second in order.framed([responses[k].text for k in long]):
        places = [long[first], long[second]]
        found[places, places[::-1]] = found[places, places[::-1]].clamp(min=1)
    return found


def _of_vectors(prompt: Encoded, responses: Sequence[Encoded]) -> dict[str, np.ndarray]:
    """(n, n) each: best matches of the chunks, and cosines of the whole; `apart`: without the prompt's direction."""
    chunks = np.concatenate([each.chunks.numpy() for each in responses])  # (T, d), of all responses
    sizes = [each.sizes.numpy() for each in responses]
    starts = np.cumsum([0, *map(len, sizes)])
    match, match_apart = _best_matches(chunks, sizes, starts, prompt.vector.numpy())
    apart = _apart(chunks, prompt.vector.numpy())
    pooled = _unit(np.stack([size @ apart[k : k + len(size)] for k, size in zip(starts, sizes, strict=False)]))
    opening = chunks[starts[:-1]]
    return {
        "match_low": np.minimum(match, match.T),
        "match_high": np.maximum(match, match.T),
        "match_low_apart": np.minimum(match_apart, match_apart.T),
        "pooled_apart": pooled @ pooled.T,
        "opening": opening @ opening.T,
    }


def _best_matches(
    chunks: np.ndarray, sizes: list[np.ndarray], starts: np.ndarray, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n, n) each: the mean over i's chunks, by their tokens, of the best cosine in j; plain, and apart.

    Of vectors of length 1, u and v, without their parts a and b along a direction the cosine is
    (u v - a b) / sqrt((1 - a^2) (1 - b^2)): one matrix product does for both.
    """
    n = len(sizes)
    along = chunks @ direction
    left = np.sqrt(np.maximum(1 - along**2, 1e-12))
    share = np.concatenate([size / size.sum() for size in sizes])
    found = np.empty((2, n, n), np.float32)
    for i in range(n):
        own, others = slice(starts[i], starts[i + 1]), slice(starts[i], None)
        cosines = chunks[own] @ chunks[others].T
        without = (cosines - along[own, None] * along[others]) / (left[own, None] * left[others])
        first = starts[i:-1] - starts[i]
        for which, each in enumerate((cosines, without)):
            found[which, i, i:] = share[own] @ np.maximum.reduceat(each, first, axis=1)
            found[which, i:, i] = np.add.reduceat(each.max(0) * share[others], first)
    return found[0], found[1]


def _of_tokens(prompt: Encoded, responses: Sequence[Encoded], weights: np.ndarray) -> dict[str, np.ndarray]:
    """(n, n) each: what two share of their tokens, of whole responses and of their beginnings."""
    asked = np.zeros(len(weights), bool)
    asked[prompt.ids] = True
    values = {}
    for suffix, length in (("", None), ("_begin", BEGINNING)):
        tokens = [each.ids[:length] for each in responses]
        apart = [own[~asked[own]] for own in tokens]
        values["tokens" + suffix] = Sets(tokens, weights).jaccard
        values["tokens_apart" + suffix] = Sets(apart, weights).of_larger
        values["rare_tokens" + suffix] = Sets([own[weights[own] > RARE] for own in apart]).jaccard
        values["token_pairs" + suffix] = Sets([runs(own, 2, len(weights)) for own in tokens]).jaccard
    size = np.log1p([float(len(each.ids)) for each in responses])
    values["size"] = (size[:, None] + size) / 2
    values["size_ratio"] = np.abs(size[:, None] - size)
    return values


def _of_texts(responses: Sequence[Encoded]) -> dict[str, np.ndarray]:
    """(n, n) each: capitalised words, headings and lines."""
    capitals = Sets(numbered([CAPITAL.findall(each.text) for each in responses]))
    headings = [" ".join(map(" ".join, HEADING.findall("\n" + each.text))).casefold() for each in responses]
    lines = np.array([float(sum(1 for line in each.text.split("\n") if line.strip())) for each in responses])
    return {
        "capitals": capitals.jaccard,
        "capitals_shared": np.log1p(capitals.shared),
        "capital_words": _mean_of_logs(capitals.totals),
        "headings": Sets(numbered([WORD.findall(own) for own in headings])).jaccard,
        "lines": _mean_of_logs(lines),
    }


# Of these the larger value counts where two readings differ: they speak against equivalence.
DISAGREE = {"each_adds", "numbers_differ", "replaced", "exchanged", "opposed"}


def _of_few_words(prompt: Encoded, responses: Sequence[Encoded], weights: np.ndarray) -> dict[str, np.ndarray]:
    """(n, n) each: the features that short answers and sentences alone have.

    Two agree if they do as they are written, or by what their quantities are worth: "1 km" and "1000 m".
    """
    texts = [each.text.strip() for each in responses]
    values = _agreement(prompt.words, [each.words for each in responses], texts)
    if any(each.values != each.words for each in (prompt, *responses)):
        worth = _agreement(prompt.values, [each.values for each in responses], texts)
        values = {
            name: (np.minimum if name in DISAGREE else np.maximum)(own, worth[name]) for name, own in values.items()
        }
    for i, j in order.other_codes(texts):
        values["numbers_differ"][[i, j], [j, i]], values["numbers_agree"][[i, j], [j, i]] = 1.0, 0.0
    # A prompt's < and > may be those of its chat template's marks.
    asked = set(prompt.words) - {"<", ">"}
    symbols = Sets(numbered([[w for w in each.words if w in SYMBOLS and w not in asked] for each in responses]))
    values["symbols_differ"] = np.minimum(symbols.lacking, symbols.lacking.T) > 0
    negated = np.array([any(w in NEGATIONS for w in each.words) for each in responses])
    values["negated"] = negated[:, None] != negated
    values["rare_shared"], added = _rarest(prompt, responses, weights)
    values["rare_added"] = np.minimum(added, added.T)
    values["only_negated"] = values["negated"] & (values["rare_added"] < COMMON)
    return values


def _agreement(asked: Sequence[str], responses: Sequence[list[str]], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """(n, n) each, of the words of responses to a prompt with the words asked; a text of no words is its own form."""
    found: dict[str, np.ndarray] = {}
    asked = set(asked)
    # Where all words are fillers the last is the answer: "The answer is A".
    content = [[w for w in words if w not in FILLERS] or words[-1:] for words in responses]
    # Where an answer repeats nothing but the prompt ("Tea or coffee?" "Tea"), those words are the answer.
    apart = [[w for w in own if w not in asked] or own for own in content]
    for suffix, words in (("", content), ("_apart", apart)):
        shared = Sets(numbered(words))
        found["words" + suffix] = shared.jaccard
        found["contained" + suffix] = shared.of_smaller
    found["each_adds"] = np.log1p(np.minimum(shared.lacking, shared.lacking.T))  # apart from the prompt
    numbers = Sets(numbered([counted(w for w in own if is_number(w)) for own in content]))
    both = (numbers.totals[:, None] > 0) & (numbers.totals > 0)
    found["numbers_agree"] = both & (numbers.jaccard == 1)
    found["numbers_differ"] = np.minimum(numbers.lacking, numbers.lacking.T) > 0
    forms = [" ".join(own) or text for own, text in zip(content, texts, strict=True)]
    form = np.array([forms.index(each) for each in forms])
    found["same_form"] = form[:, None] == form
    found |= _in_order(responses, content)
    return {name: value.astype(np.float32) for name, value in found.items()}


def _in_order(responses: Sequence[list[str]], content: Sequence[list[str]]) -> dict[str, np.ndarray]:
    """(n, n) each: what the words of two texts tell in their order; content: without fillers."""
    n = len(responses)
    found = {name: np.zeros((n, n), np.float32) for name in ("replaced", "exchanged", "opposed", "initials")}
    whole = [order.initials(own) if len(own) > 1 or any(" " in each for each in own) else "" for own in content]
    bags, refused = [tuple(sorted(each)) for each in responses], [order.opposites(each) for each in responses]
    for i, j in combinations([k for k, each in enumerate(responses) if each], 2):
        first, second = responses[i], responses[j]
        # Most pairs have none of these, which is told at a glance: a group of a thousand has half a million pairs.
        if first[0] == second[0] or first[-1] == second[-1]:
            found["replaced"][i, j] = order.replaced(first, second, FILLERS)
        if bags[i] == bags[j]:
            found["exchanged"][i, j] = order.exchanged(first, second)
        if not refused[i].isdisjoint(second):
            found["opposed"][i, j] = order.opposed(first, second)
        if content[i] == [whole[j]] or content[j] == [whole[i]]:
            found["initials"][i, j] = 1.0
    return {name: value + value.T for name, value in found.items()}


def _rarest(prompt: Encoded, responses: Sequence[Encoded], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, n) each: weight of the rarest token, none of the prompt's, that two share; that the first alone has."""
    members = np.setdiff1d(np.concatenate([each.ids for each in responses]), prompt.ids)
    there = np.stack([np.isin(members, each.ids) for each in responses])
    weight = there * weights[members]
    shared = np.stack([(own * there).max(1, initial=0.0) for own in weight])
    return shared, np.stack([(own * ~there).max(1, initial=0.0) for own in weight])


def _mean_of_logs(counts: np.ndarray) -> np.ndarray:
    logs = np.log1p(counts)
    return (logs[:, None] + logs) / 2


def _apart(vectors: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The vectors without what they have of that direction: two responses are alike in being about the prompt."""
    return _unit(vectors - (vectors @ direction)[:, None] * direction)


def _unit(vectors):
    """NumPy's or torch's, each row of length 1."""
    length = (vectors * vectors).sum(-1) ** 0.5
    return vectors / length[..., None].clip(min=1e-6)
