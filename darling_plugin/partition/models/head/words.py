"""What the head calls a word: words, numbers, negations and symbols of a text, each in one spelling.

"Minus twenty-one cats" has the words of "-21 cat", "x >= 1,000.0" those of "x ≥ 1000".
"""

from __future__ import annotations

import re

# Number words, English alone: "twenty-one" and "one hundred" are read, "two thousand and six" is not.
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_ONES = f"zero one two three four five six seven eight nine {_TEENS}"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBERS = {word: number for number, word in enumerate(_ONES.split())}
TENS = {10 * number: word for number, word in enumerate(_TENS.split(), start=2)}
NUMBERS |= {word: number for number, word in TENS.items()}
SIGNS = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "%": "percent", "°": "degree", "minus": "minus"}
NEGATIONS = {"no", "not", "never", "none", "nothing", "neither", "nor", "without", "false", "nope"}
NOT = {"won't": "will not", "can't": "can not", "cannot": "can not", "n't": " not"}
# Words that say nothing in a short answer.
FILLERS = set(
    "a an the is are was be it its it's this that i i'm i'd i'll my me we you your of to in on for and as at with "
    "will would say think answer choose pick go get let's sure okay ok well here here's please so just "
    "called about =".split()
)
# Symbols of formulas: a response's words too, each with its other spellings.
SYMBOLS = {symbol: symbol for symbol in "<>≤≥≠=≈±+×÷^√→*/-"}
SYMBOLS |= {"<=": "≤", ">=": "≥", "!=": "≠", "==": "=", "->": "→", "=>": "→", "÷": "/", "*": "×"}
# Chinese, Japanese and Thai have no spaces: a character counts as a word.
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
LETTERS = rf"(?:(?![{UNSPACED}])[^\W\d_])+"
NUMBER = r"\d+(?:,\d{3}(?!\d)|[.:/]\d+)*"
WORD = re.compile(
    # Numbers, of which -7 is one, and 12:30, 2/3 and 1,000; 1,2 is two. "10-20" has no -20, nor "x.5" a .5.
    rf"(?<![\w.)])-?\.?{NUMBER}|{NUMBER}"
    rf"|(?!\d)[{UNSPACED}]"
    # Words, with the signs that make another of them: C++, C#, A+, A-.
    rf"|(?<!\w)[^\W\d_]-(?![\w>-])|{LETTERS}(?:['’]{LETTERS})*(?:\+\+?(?!\w)|\#(?!\w))?"
    # Symbols; > at the beginning of a line is a quotation, and * - / are symbols between operands alone.
    r"|<=|>=|!=|==|->|=>|(?!^> *[^\W\d])>|[<≤≥≠=≈±+×÷^√→]"
    r"|(?<=\d)\*(?=\d)|(?<=[\w)] )[*/](?= [\w(])|(?<=[\w)] )-(?= \d)|(?<=\d )-(?= [\w(])|(?<=\b[^\W\d_] )-(?= \w\b)"
    r"|(?<![^\W\d_][^\W\d_])(?<=[^\W\d_])-(?=\d)"
    r"|[$€£¥%°]"
    # Card suits, ticks, emoji.
    "|[\u2600-\u27bf\U0001f300-\U0001faff]",
    re.MULTILINE,
)
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")


def words_of(text: str) -> list[str]:
    """Case-folded, plurals' s left out, numbers in digits: "Minus twenty-one cats" is ["-21", "cat"]."""
    found: list[str] = []
    value: int | None = None  # of the number words just before
    text = text.casefold().replace("’", "'").replace("−", "-")
    for short, spelled in NOT.items():
        text = text.replace(short, spelled)
    for word in WORD.findall(text):
        number = NUMBERS.get(word)
        if value and (word == "hundred" or (value in TENS and number and number < 10)):
            value = value * 100 if word == "hundred" else value + number
            found[-1] = str(value)
            continue
        value = number
        spelling = _spelling(word) if number is None else str(number)
        if spelling[0].isdigit() and found[-1:] in (["minus"], ["negative"]):
            found[-1] = f"-{spelling}"
        else:
            found.append(spelling)
    return found


def is_number(word: str) -> bool:
    """Whether one of words_of's words is a number, such as "-21", "2/3" and "12:30"."""
    return word.lstrip("-")[:1].isdigit()


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
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "s'" and word not in FILLERS else word
