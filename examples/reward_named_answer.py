"""OpenRLHF reward function of the demo: 1 for a response that names an accepted answer, else 0.

A list earns 1 only if each of its items is an accepted answer, or it would pay to guess: Rome, Berlin, Bangkok.

The label of a prompt is its accepted answers, joined with ``|``.
"""

import re
import unicodedata
from functools import lru_cache

import torch

from darling_plugin.queries import response_of

# A response that names more answers than this is a list, not an answer, and earns nothing. In twelve tokens the
# untrained model hardly ever gets there (see data/README.md), so the cap only shuts the way to listing everything.
MAX_NAMED_ANSWERS = 3

SPECIAL_TOKEN = re.compile(r"<\|[^|]*\|>")
WORD = re.compile(r"[^\W_]+")
ITEM_BREAK = re.compile(r"[,;\n•]|\b(?:and|or)\b|\s\d+[.)]|^\d+[.)]", re.IGNORECASE)
LEAD_IN = re.compile(r"\b(?:is|are|include|like|as)\b")
NO_ITEM_WORDS = frozenset(("a", "an", "the", "and", "or"))
MOST_ITEM_WORDS = 3


def _words(text: str) -> list[str]:
    """Split into words without case and accents; hyphens and apostrophes part words."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return WORD.findall("".join(char for char in decomposed if not unicodedata.combining(char)))


def _singular_and_plurals(word: str) -> list[str]:
    """Return the word and what its regular English plurals look like."""
    forms = [word, word + "s", word + "es"]
    for ending, plural_ending in (("y", "ies"), ("fe", "ves"), ("f", "ves")):
        if word.endswith(ending):
            forms.append(word.removesuffix(ending) + plural_ending)
    return forms


@lru_cache(maxsize=1024)
def _answer_by_words(answers: str) -> dict[tuple[str, ...], str]:
    """Map each accepted spelling, as a tuple of words, to its answer."""
    answer_by_words: dict[tuple[str, ...], str] = {}
    for answer in answers.split("|"):
        *first_words, last_word = _words(answer)
        for form in _singular_and_plurals(last_word):
            answer_by_words.setdefault((*first_words, form), answer)
    return answer_by_words


def list_items(response: str) -> list[list[str]]:
    """The words of each item, without articles, where the response is a list; empty where it is a sentence.

    Commas, lines, and, or part a list into three short items, or into two after a colon. Words before the first item
    are left out: "Some capitals are Rome, ...".
    """
    _, colon, after = response.rpartition(":")
    parts = [_words(part) for part in ITEM_BREAK.split(after if colon else response)]
    items = [words for part in parts if (words := [word for word in part if word not in NO_ITEM_WORDS])]
    if items and not colon:
        items[0] = _words(LEAD_IN.split(" ".join(items[0]))[-1])
    short = all(1 <= len(words) <= MOST_ITEM_WORDS for words in items)
    return items if short and len(items) >= (2 if colon else 3) else []


def lists_a_wrong_one(response: str, answers: str) -> bool:
    """Whether the response is a list with an item that is no accepted answer."""
    accepted = {tuple(word for word in words if word not in NO_ITEM_WORDS) for words in _answer_by_words(answers)}
    return any(tuple(item) not in accepted for item in list_items(SPECIAL_TOKEN.sub(" ", response)))


def named_answers(response: str, answers: str) -> list[str]:
    """Return the different accepted answers that the response names, ordered by first occurrence.

    Answers match as whole words. Where a long and a short answer begin at the same word the long one counts.
    """
    answer_by_words = _answer_by_words(answers)
    longest = max(map(len, answer_by_words))
    words = _words(SPECIAL_TOKEN.sub(" ", response))
    named: dict[str, None] = {}
    start = 0
    while start < len(words):
        for length in range(longest, 0, -1):
            answer = answer_by_words.get(tuple(words[start : start + length]))
            if answer is not None:
                named[answer] = None
                start += length
                break
        else:
            start += 1
    return list(named)


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict:
    """Reward each query, which is its prompt followed by the response."""
    rewards = []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        if not label:
            raise ValueError("no accepted answers: is --data.label_key set to 'answers'?")
        response = response_of(query, prompt)
        named = 1 <= len(named_answers(response, label)) <= MAX_NAMED_ANSWERS
        rewards.append(float(named and not lists_a_wrong_one(response, label)))
    reward_tensor = torch.tensor(rewards, dtype=torch.float32)
    return {"rewards": reward_tensor, "scores": reward_tensor, "extra_logs": {}}
