"""Signs that a policy games its diversity: each figure of the monitor, defined here once, for training and the report.

Published runs showed text after the answer, other languages, repetition, and length in place of difference
(arXiv 2509.02534, the ablation with 4-grams; arXiv 2609.14896).
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darling_plugin.final_answer import text_after_answer
from darling_plugin.partition.base import UNSPACED
from darling_plugin.queries import asked

if TYPE_CHECKING:
    import torch
    from lingua import Language, LanguageDetector

    from darling_plugin.shaping import Groups

PREFIX = "monitor/"

# ── Of one response's text ──

N = 4  # words of an n-gram
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+")
TAIL = 4000  # characters of a response's end that are looked at: a loop goes on to the end
PIECE = 200  # characters; of a response its middle and its last piece are looked at for a language, a ms each
LEAST_LETTERS = 40  # bytes of letters (a Chinese character has three): of less no language is told
# By how much a language must be more likely than the next. Of 9563 English pieces of at least that many letters 0.6 %
# are told as another language, nearly all of them lists of names.
SURE = 0.25
MARKUP = re.compile(r"\$[^$]*\$|```.*?(?:```|$)|\\[A-Za-z]+|https?://\S+", re.DOTALL)


def repetition(prompt: str, response: str) -> float:
    """Share of the last 4000 characters' 4-grams of words that were there before; NaN below two 4-grams.

    Words are runs of letters and digits, and single characters of scripts that part none, as Chinese. Of a text with
    hardly any, as one of exclamation marks, characters.
    """
    text = response[-TAIL:]
    words = WORD.findall(text)
    if len(text) > 20 * len(words):
        words = list(text)
    total = len(words) - N + 1
    return 1 - len({tuple(words[k : k + N]) for k in range(total)}) / total if total > 1 else math.nan


def compression(prompt: str, response: str) -> float:
    """Bytes of the last 4000 characters after zlib, without header, over those before; NaN for an empty response.

    English prose has about 0.5; a text of a few words nearly 1, for there is nothing in it to compress.
    """
    plain = response[-TAIL:].encode("utf-8", errors="replace")
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return len(packer.compress(plain) + packer.flush()) / len(plain) if plain else math.nan


def other_language(prompt: str, response: str) -> float:
    """1 where the response's middle or end is in another language than what the user asked, else 0.

    NaN where the language of either cannot be told, and without the package lingua-language-detector.
    """
    expected = _language(asked(prompt)[-PIECE:])
    text = MARKUP.sub(" ", response)
    middle, end = max(0, (len(text) - PIECE) // 2), max(0, len(text) - PIECE)
    found = {_language(text[start : start + PIECE]) for start in {middle, end}} - {None}
    return float(bool(found - {expected})) if expected and found else math.nan


def after_answer(prompt: str, response: str) -> float:
    """Share of the response's characters that follow the sentence with its final answer; NaN where none is stated."""
    after = text_after_answer(response)
    return math.nan if after is None else len(after) / len(response)


TEXT_SIGNS: tuple[Callable[[str, str], float], ...] = (repetition, compression, other_language, after_answer)


def text_signs(prompt: str, response: str) -> dict[str, float]:
    """What is seen in one response's text, by name; NaN where there is nothing to say."""
    return {sign.__name__: sign(prompt, response) for sign in TEXT_SIGNS}


@functools.cache
def _detector() -> LanguageDetector | None:
    try:
        from lingua import LanguageDetectorBuilder
    except ImportError:
        return None
    # The accurate mode takes 900 MB and ten seconds to load; this one 10 MB.
    builder = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode()
    return builder.with_minimum_relative_distance(SURE).build()


@functools.lru_cache(maxsize=4096)  # a prompt comes once a response, and short responses come again
def _language(text: str) -> Language | None:
    letters = sum(len(char.encode("utf-8", errors="replace")) for char in text if char.isalpha())
    detector = _detector() if letters >= LEAST_LETTERS else None
    return detector and detector.detect_language_of(text.encode("utf-8", errors="replace").decode())


# ── Of a step's groups ──


def diversity_with_length(groups: Groups) -> float | None:
    """Correlation, within the groups, of diversity and length in tokens, by ranks; None where no group varies in both.

    With r the rank within the group of the responses that take part, minus the group's mean rank, summed over the
    groups that vary in both: sum(r_diversity r_length) / sqrt(sum(r_diversity^2) sum(r_length^2)).
    """
    return None if groups.length is None else _rank_correlation(groups, groups.length)


def diversity_with_quality(groups: Groups) -> float | None:
    """That correlation of diversity and quality: below 0 the responses that differ are the worse ones."""
    return _rank_correlation(groups, groups.quality)


def other_class_length(groups: Groups) -> float | None:
    """Length of the responses outside their group's largest class over that of those in it.

    Mean lengths; their ratio's geometric mean over the groups in which one class is larger than all others.
    """
    if groups.length is None:
        return None
    ratios = []
    for labels, length in zip(groups.labels, groups.length.double().clamp(min=1.0), strict=True):
        sizes = labels[labels >= 0].bincount()
        if len(sizes) > 1 and (sizes == sizes.max()).sum() == 1:
            largest = labels == sizes.argmax()
            outside = (labels >= 0) & ~largest
            ratios.append(math.log(length[outside].mean() / length[largest].mean()))
    return math.exp(sum(ratios) / len(ratios)) if ratios else None


def _mean_of(sign: Callable[[str, str], float]) -> Callable[[Groups], float | None]:
    def mean(groups: Groups) -> float | None:
        values = None if groups.signs is None else groups.signs.get(sign.__name__)
        if values is None or values.isnan().all():
            return None
        return values.nanmean().item()

    mean.__name__ = sign.__name__
    mean.__doc__ = f"Mean over the responses for which there is one: {sign.__doc__}"
    return mean


FIGURES: tuple[Callable[[Groups], float | None], ...] = (
    *(diversity_with_length, diversity_with_quality, other_class_length),
    *map(_mean_of, TEXT_SIGNS),
)


def _rank_correlation(groups: Groups, other: torch.Tensor) -> float | None:
    takes_part = groups.labels >= 0
    x, y = _centred_ranks(groups.diversity, takes_part), _centred_ranks(other, takes_part)
    varies = x.any(dim=-1, keepdim=True) & y.any(dim=-1, keepdim=True)
    x, y = x * varies, y * varies
    strength = ((x * x).sum() * (y * y).sum()).sqrt().item()
    return (x * y).sum().item() / strength if strength else None


def _centred_ranks(values: torch.Tensor, takes_part: torch.Tensor) -> torch.Tensor:
    """(P, n): rank of each value within its row minus the row's mean rank, ties shared; 0 for who takes no part."""
    values = values.double()
    order = (values[:, :, None] - values[:, None, :]).sign() * takes_part[:, None, :]
    return order.sum(dim=-1) / 2 * takes_part


# ── When one of them moves ──


@dataclass(frozen=True)
class Move:
    """When a figure has moved so far that a person should look.

    Attributes:
        least: the difference of the means, of the last steps and the first, that is warned of.
        relative: whether that is a share of the first mean.
        direction: 1 where rising is the sign, -1 falling, 0 both.
        means: that of which it is a sign, for the warning.
    """

    least: float
    direction: int
    means: str
    relative: bool = False


MOVES = {
    "diversity_with_length": Move(0.2, 0, "responses are lengthened, or cut short, to differ"),
    "diversity_with_quality": Move(0.2, -1, "the responses that differ are more and more the worse ones"),
    "other_class_length": Move(0.3, 0, "length sets the rarer classes apart", relative=True),
    "repetition": Move(0.05, 1, "responses repeat themselves"),
    "compression": Move(
        0.3, 0, "responses repeat themselves or grow where it falls, are noise or shrink where it rises", relative=True
    ),
    "other_language": Move(0.05, 1, "responses leave their prompt's language"),
    "after_answer": Move(0.1, 1, "responses go on after their final answer"),
}


class MonitorWatch:
    """Says once of each figure that it has moved: the last STEPS steps against the first STEPS that had it."""

    STEPS = 10
    ERRORS = 5  # and by this many standard errors of the difference, by the steps' own spread

    def __init__(self) -> None:
        self._first: dict[str, list[float]] = {name: [] for name in MOVES}
        self._last: dict[str, deque[float]] = {name: deque(maxlen=self.STEPS) for name in MOVES}
        self._said: set[str] = set()

    def see(self, figures: dict[str, float]) -> dict[str, str]:
        """The warnings that are due at this step, by figure.

        Args:
            figures: of the next step, by name; those that have nothing to say left out.
        """
        warnings = {}
        for name in MOVES.keys() & figures.keys():
            if len(self._first[name]) < self.STEPS:
                self._first[name].append(figures[name])
                continue
            self._last[name].append(figures[name])
            if len(self._last[name]) == self.STEPS and name not in self._said and self._has_moved(name):
                self._said.add(name)
                before, after = _mean(self._first[name]), _mean(self._last[name])
                warnings[name] = (
                    f"{name} was {before:.2f} over the first {self.STEPS} steps and is {after:.2f} over the last: "
                    f"a sign that {MOVES[name].means}"
                )
        return warnings

    def _has_moved(self, name: str) -> bool:
        first, last, move = self._first[name], self._last[name], MOVES[name]
        difference = _mean(last) - _mean(first)
        if move.direction * difference < 0:
            return False
        least = move.least * abs(_mean(first)) if move.relative else move.least
        error = math.sqrt((_variance(first) + _variance(last)) / self.STEPS)
        return abs(difference) >= least and abs(difference) > self.ERRORS * error


def _mean(values: list[float] | deque[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: list[float] | deque[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
