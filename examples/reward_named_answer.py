"""OpenRLHF reward function of the demo: 1 for a response that names an accepted answer, else 0.

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
        count = len(named_answers(response_of(query, prompt), label))
        rewards.append(float(1 <= count <= MAX_NAMED_ANSWERS))
    reward_tensor = torch.tensor(rewards, dtype=torch.float32)
    return {"rewards": reward_tensor, "scores": reward_tensor, "extra_logs": {}}
