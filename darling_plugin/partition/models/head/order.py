"""What the words of two texts tell in their order: one frame, in short ones other codes, an exchange, opposites."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from darling_plugin.partition.models.head.words import values_of

# Both sides of these may be exchanged: "a and b", "Oslo is the capital".
COMMUTATIVE = set("and or is are was were be plus times + × = ≠ & both the a an".split())
# Words that are each other's opposites, and say another thing in the same place.
_PAIRS = (
    "take avoid, take skip, take stop, take refuse, use avoid, do avoid, eat avoid, drink avoid, seek avoid, start "
    "stop, begin end, begin stop, start finish, keep remove, keep drop, keep leave, keep change, stay leave, stay "
    "go, accept reject, accept decline, accept refuse, agree disagree, allow forbid, allow ban, allow prevent, "
    "permit forbid, encourage discourage, support oppose, help hinder, help hurt, help harm, improve worsen, "
    "increase decrease, increase reduce, increase lower, raise lower, rise fall, grow shrink, gain lose, win lose, "
    "buy sell, lend borrow, give take, send receive, push pull, open close, open closed, open shut, lock unlock, "
    "add remove, add subtract, multiply divide, build destroy, love hate, like dislike, like hate, enjoy hate, "
    "trust distrust, remember forget, arrive leave, arrive depart, enter leave, live die, alive dead, save spend, "
    "save waste, pass fail, succeed fail, success failure, victory defeat, laugh cry, attack defend, hire fire, "
    "good bad, good poor, good evil, better worse, best worst, big small, large small, long short, tall short, high "
    "low, higher lower, hot cold, warm cold, warm cool, fast slow, early late, earlier later, easy difficult, easy "
    "hard, hard soft, heavy light, dark light, bright dark, wet dry, full empty, rich poor, cheap expensive, strong "
    "weak, safe dangerous, safe unsafe, healthy unhealthy, happy sad, happy unhappy, kind cruel, brave cowardly, "
    "clean dirty, thick thin, wide narrow, deep shallow, loud quiet, old new, old young, true false, right wrong, "
    "right left, correct incorrect, possible impossible, legal illegal, likely unlikely, guilty innocent, public "
    "private, positive negative, male female, man woman, boy girl, first last, always never, often rarely, often "
    "seldom, more less, more fewer, most least, many few, much little, all none, everything nothing, everyone "
    "nobody, before after, above below, over under, up down, in out, on off, inside outside, here there, with "
    "without, north south, east west, for against, yes no, too enough, day night, morning evening, summer winter, "
    "maximum minimum, majority minority, ally enemy, friend enemy, cause prevent, cause cure, causes prevents"
)


def _forms(word: str) -> list[str]:
    """Of a verb or an adjective: "avoided", "avoiding", besides itself ("avoids" has lost its s)."""
    stem = word[:-1] if word.endswith("e") else word
    return [word, f"{stem}ed", f"{stem}ing"] if len(word) > 3 else [word]


OPPOSITES = frozenset(
    each
    for pair in _PAIRS.split(", ")
    for some in zip(*map(_forms, pair.split()), strict=False)
    for each in (some, some[::-1])
)


_OF = defaultdict(set)
for _word, _its in OPPOSITES:
    _OF[_word].add(_its)


def opposites(words: Sequence[str]) -> set[str]:
    """The opposites of all of the words: of a text that has none of these, :func:`opposed` is False."""
    return {its for word in words for its in _OF.get(word, ())}


def opposed(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the one has a word where the other has its opposite."""
    only, other = set(first) - set(second), set(second) - set(first)
    return any((word, its) in OPPOSITES for word in only for its in other)


def replaced(first: Sequence[str], second: Sequence[str], fillers: set[str]) -> float:
    """How much of the longer is the frame, in which the two have other words; 0 where it is not one place."""
    start, end = _frame(first, second)
    gaps = first[start : len(first) - end], second[start : len(second) - end]
    content = [set(gap) - fillers for gap in gaps]
    if not all(content) or content[0] & content[1]:
        return 0.0
    return (start + end) / max(len(first), len(second))


def exchanged(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the same words say it in reverse: "Tom beat Jerry", but not "Tom and Jerry" or "Beat Jerry, Tom"."""
    if list(first) == list(second) or Counter(first) != Counter(second):
        return False
    turns = [[*second[k:], *second[:k]] for k in range(len(second))]
    return list(first) not in turns and any(_exchanged(first, turn) for turn in turns)


def initials(words: Sequence[str]) -> str:
    """ "nasa" of national, aeronautics, space and administration; a word marked as one counts with its parts."""
    return "".join(part[0] for word in words for part in word.split())


def _frame(first: Sequence[str], second: Sequence[str]) -> tuple[int, int]:
    """How many words both begin and end with, no word twice."""
    shorter = min(len(first), len(second))
    start = next((k for k in range(shorter) if first[k] != second[k]), shorter)
    most = shorter - start
    return start, next((k for k in range(most) if first[-1 - k] != second[-1 - k]), most)


def _exchanged(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether first is a X m Y b and second a Y m X b, with a word in m that counts."""
    start, end = _frame(first, second)
    first, second = list(first[start : len(first) - end]), list(second[start : len(second) - end])
    for left in range(1, len(first)):
        for right in range(1, len(first) - left):
            middle = first[left:-right]
            if second == [*first[-right:], *middle, *first[:left]] and not set(middle) <= COMMUTATIVE:
                return True
    return False


NUMERIC = re.compile(r"[\d@#]|://|www\.")  # in a number or a code


def framed(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Of each two texts that are the same word for word, but for numbers or codes that differ, their places.

    Texts of any length: of the long ones hardly two have as many words, and no others are looked at.
    """
    split = [text.split() for text in texts]
    have = Counter(len(words) for words in split)
    frames: dict[tuple[str, ...], list[tuple[int, list[str]]]] = defaultdict(list)
    for place, words in enumerate(split):
        if have[len(words)] > 1:
            numeric = [NUMERIC.search(word) for word in words]
            frame = tuple("" if found else word for word, found in zip(words, numeric, strict=True))
            # With the word before, which may say what it is: 2.10 is another section than 2.1, but the same price.
            both = (" ".join(words[max(k - 1, 0) : k + 1]) for k, found in enumerate(numeric) if found)
            told = values_of(" ".join(both))
            frames[frame].append((place, told))
    yield from _told_apart(frames.values())


def _told_apart(frames: Iterable[list[tuple[int, list[str]]]]) -> Iterator[tuple[int, int]]:
    for own in frames:
        for (first, told), (second, other) in combinations(own, 2):
            if told != other:
                yield first, second


# Letters before digits (A-17, BA2490), one letter after them (12C), or capitals between them (27H9). What else begins
# with digits is a quantity: 5km, 18years, 90s.
LETTERS_AND_DIGITS = re.compile(
    r"[A-Za-z]+-?\d[A-Za-z\d-]*|\d+-?(?:[A-Z]|[a-rt-z])|\d+-?(?=[a-z]*[A-Z])[A-Za-z]+-?\d[A-Za-z\d-]*"
)
PUNCTUATION = ".,;:!?\"'()[]*"


def other_codes(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Of each two texts that are the same word for word, but for codes of letters and digits, their places.

    Elsewhere a word's letters and digits are read apart: "seat 12A" and "seat 12B" have the same number. A hyphen, a
    letter's case and a last s make no other code.
    """
    frames: dict[tuple[str, ...], list[tuple[int, list[str]]]] = defaultdict(list)
    for place, text in enumerate(texts):
        words = [word.strip(PUNCTUATION) for word in text.split()]
        codes = [word if LETTERS_AND_DIGITS.fullmatch(word) else "" for word in words]
        if any(codes):
            frame = tuple("" if code else word.casefold() for word, code in zip(words, codes, strict=True))
            told = [code.replace("-", "").casefold().removesuffix("s") for code in codes if code]
            frames[frame].append((place, told))
    yield from _told_apart(frames.values())
