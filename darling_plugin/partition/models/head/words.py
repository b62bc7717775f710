"""What the head calls a word: words, numbers, negations and symbols of a text, each in one spelling.

"Minus twenty-one cats" has the words of "-21 cat", "x >= 1,000.0" those of "x ≥ 1000". A text is read twice: as it
is written, and with its quantities, dates and fractions by what they are worth ("half a km" is "500 meter" then).
"""

from __future__ import annotations

import re
from functools import lru_cache

from breame.spelling import get_american_spelling

from darling_plugin.partition.base import UNSPACED
from darling_plugin.partition.models.head.quantities import valued
from darling_plugin.partition.models.head.spelling import MARKED, plain

SIGNS = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "%": "percent", "°": "degree", "minus": "minus"}
NEGATIONS = {"no", "not", "never", "none", "nothing", "neither", "nor", "without", "false", "nope"}
NOT = {"won't": "will not", "can't": "can not", "cannot": "can not", "n't": " not"}
# One spelling of each; where the short one is a word too ("sun"), it is not here.
ABBREVIATIONS = dict(
    pair.split(":")
    for pair in "jan:january feb:february apr:april jun:june jul:july aug:august sep:september sept:september "
    "oct:october nov:november dec:december mon:monday tue:tuesday tues:tuesday wed:wednesday thu:thursday "
    "thur:thursday thurs:thursday fri:friday dr:doctor prof:professor mr:mister mt:mount vs:versus "
    "approx:about approximately:about volkswagen:vw television:tv telephone:phone photograph:photo "
    "bicycle:bike refrigerator:fridge laboratory:lab mathematics:math maths:math examination:exam "
    "automobile:car advertisement:ad application:app information:info dept:department govt:government "
    "max:maximum temp:temperature km:kilometer kg:kilogram cm:centimeter mm:millimeter ml:milliliter "
    "hr:hour hrs:hour mins:minute secs:second".split()
)
# A pair's kind, which has weights of its own, by the words of its shorter and of its longer response: short answers,
# sentences, in which an answer stands among words that do not matter, and long responses, all others. The first two
# know no longer ones, among whose words those of a short text are found by chance.
SHORT_ANSWER, BESIDE_SHORT = 8, 24
SENTENCE, BESIDE_SENTENCE = 24, 32
LONG_TEXT = 1000  # characters, which more words than that nearly always have
# Words that say nothing in a short answer.
FILLERS = set(
    "a an the is are was be it its it's this that i i'm i'd i'll my me we you your of to in on for and as at with "
    "will would say think answer choose pick go get let's sure okay ok well here here's please so just "
    "called about =".split()
)
# Symbols of formulas: a response's words too, each with its other spellings.
SYMBOLS = {symbol: symbol for symbol in "<>≤≥≠=≈±+×÷^√→*/-"}
SYMBOLS |= {"<=": "≤", ">=": "≥", "!=": "≠", "==": "=", "->": "→", "=>": "→", "÷": "/", "*": "×"}
LETTERS = rf"(?:(?![{UNSPACED}])[^\W\d_])+"
NUMBER = r"\d+(?:,\d{3}(?!\d)|[.:/]\d+)*"
WORD = re.compile(
    # What spelling.py and quantities.py marked as one word.
    rf"{MARKED.pattern.replace('(', '(?:')}"
    r"|\d{4}-\d\d?-\d\d?(?!\d)|\d+(?:st|nd|rd|th)\b|"
    # Numbers, of which -7 is one, and 12:30, 2/3 and 1,000; 1,2 is two. "10-20" has no -20, nor "x.5" a .5.
    rf"(?<![\w.)])-?\.?{NUMBER}|{NUMBER}"
    rf"|(?!\d)[{UNSPACED}]"
    # Words, with the signs that make another of them: C++, C#, A+, A-.
    rf"|(?<!\w)[^\W\d_]-(?![\w>-])|{LETTERS}(?:['’]{LETTERS})*(?:\+\+?(?!\w)|\#(?!\w))?"
    # Symbols; > at the beginning of a line is a quotation, and * - / are symbols between operands alone.
    r"|<=|>=|!=|==|->|=>|(?!^> *[^\W\d])>|[<≤≥≠=≈±+×÷^√→]"
    r"|(?<=\d)\*(?=\d)|(?<=[\w)] )[*/](?= [\w(])|(?<=[\w)] )-(?= \d)|(?<=\d )-(?= [\w(])|(?<=\b[^\W\d_] )-(?= \w\b)"
    r"|(?<![^\W\d_][^\W\d_])(?<=[^\W\d_])-(?=\d)|(?<=\d)[-–](?=\d)"
    r"|[$€£¥%°]"
    # Card suits, ticks, emoji.
    "|[\u2600-\u27bf\U0001f300-\U0001faff]",
    re.MULTILINE,
)
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")


def words_of(text: str) -> list[str]:
    """Case-folded, plurals' s left out, numbers in digits: "Minus twenty-one cats" is ["-21", "cat"]."""
    return _words(plain(text))


def values_of(text: str) -> list[str]:
    """words_of, in which quantities, dates, times and fractions are what they are worth: "1 km" is ["1000 meter"]."""
    return _words(valued(plain(text)))


def is_number(word: str) -> bool:
    """Whether one of words_of's words is a number, such as "-21", "2/3" and "12:30", or a code, such as "#ff0000"."""
    code = len(word) > 1 and (word[0] == "#" or any(sign in word for sign in ("@", ",", "://", "www.")))
    return code or word.lstrip("-^")[:1].isdigit()


def _words(text: str) -> list[str]:
    for short, spelled in NOT.items():
        text = text.replace(short, spelled)
    found: list[str] = []
    for word in WORD.findall(text):
        spelling = word[1:-1] if word[0] == "⟦" else _spelling(word)
        if spelling[0].isdigit() and found[-1:] in (["minus"], ["negative"]):
            found[-1] = f"-{spelling}"
        else:
            found.append(spelling)
    return found


@lru_cache(maxsize=1 << 16)
def _spelling(word: str) -> str:
    """One of those that mean the same: "cats" is cat, "1,000.0" 1000, ".50" 0.5, ">=" ≥ and "$" dollar."""
    if word in SIGNS or word in SYMBOLS:
        return SIGNS.get(word) or SYMBOLS[word]
    if word[-1].isdigit():
        sign, amount = ("-", word[1:]) if word[0] == "-" else ("", word)
        whole, _, decimals = THOUSANDS.sub("", amount).partition(".")
        if not (whole + decimals).isdigit():
            return word
        decimals = decimals.rstrip("0")
        return sign + (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")
    word = ABBREVIATIONS.get(word) or _american(word)
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "s'" and word not in FILLERS else word


def _american(word: str) -> str:
    """breame knows "flavour" and "flavoured", but not every word that is made of it, such as "flavourful"."""
    stem, ending = (word[:-3], "ful") if word.endswith("ful") else (word, "")
    return get_american_spelling(stem) + ending
