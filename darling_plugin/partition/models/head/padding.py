"""A short answer with something after it that has to do with neither the prompt nor the answer is that answer.

Otherwise thirty nonsense words, or a paragraph on steam engines, would make another class of any answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from darling_plugin.partition.models.head.features import Encoded
from darling_plugin.partition.models.head.words import BESIDE_SHORT, FILLERS, SHORT_ANSWER, words_of

# What comes after has a cosine below this with the prompt and with the answer: so have most padded answers in
# tests/padding.json, and of 2000 of NoveltyBench's responses one, "I am doing well" with "As a large language model".
OFF_TOPIC = 0.27
READ = 300  # characters of what comes after: padding shows soon, and to encode all of it again would cost more
HEAP = 0.05  # at most this share of little words; in English sentences it is some 0.4
OPENING = re.compile(r"\s*([^\n.!?…]{1,80}?(?:[.!?…](?=\s)|(?=\n|```)))\s*(\S.*)", re.DOTALL)
# What announces or heads the rest, as "Here's another one:", "## Chapter 1" and "**Title**" do, is no answer.
HEADS = re.compile(
    r"\s*(?:[#>*_]|(?:okay|ok|here|let|sure|hmm|well|so|another|introducing|title|subject|dear|chapter)\b)"
    r"|.*(?:[:,]|\b[DM]rs?\.)\W*$",
    re.IGNORECASE | re.DOTALL,
)
# These open a response and answer nothing.
GREETINGS = FILLERS | set("hello hi hey certainly absolutely course sorry thank thanks great understand title".split())


def opening_and_rest(response: str, others: Sequence[str]) -> tuple[str, str] | None:
    """Where a response of many words opens with a short answer: that, and the beginning of what comes after.

    The answer is a line or sentence of its own, or another of the responses to the prompt.
    """
    if found := OPENING.match(response):
        opening, rest = found.groups()
    else:
        begun = [other for other in others if _begins_with(response, other)]
        opening = max(begun, key=lambda other: (len(other), other), default="")
        rest = response.strip()[len(opening.strip().rstrip(".!")) :]
        # "A fox crossed the river" goes on from "A fox"; a new sentence or a heap of words does not.
        after = words_of(rest[:READ])
        if not rest.strip()[:1].isupper() and sum(word in FILLERS for word in after) > HEAP * len(after):
            return None
    words = words_of(opening)
    if HEADS.match(opening):
        return None
    if not set(words) - GREETINGS or len(words) > SHORT_ANSWER or len(words_of(response[: 2 * READ])) <= BESIDE_SHORT:
        return None
    return opening, rest[:READ]


def without_padding(encoded: Mapping[str, Encoded], prompt: str, response: str, parts: tuple[str, str]) -> Encoded:
    """The opening in the response's place if what comes after is off its topic and the prompt's."""
    opening, rest = (encoded[part] for part in parts)
    cosines = [float(rest.vector @ other.vector) for other in (encoded[prompt], opening)]
    return opening if max(cosines) < OFF_TOPIC else encoded[response]


def _begins_with(response: str, other: str) -> bool:
    start = other.strip().rstrip(".!").casefold()
    if not 0 < len(start) < READ / 3:
        return False
    # Of a long response only what is compared; a character may become three in casefold, and none becomes fewer.
    whole = response.lstrip()[:READ].casefold()
    return whole.startswith(start) and re.match(r"\s+\S", whole[len(start) :]) is not None
