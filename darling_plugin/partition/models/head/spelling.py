"""One spelling for a text before its words are found: Unicode, LaTeX, number words, codes and names.

What a word of the text alone cannot tell is marked: ⟦west virginia⟧ is one word, and so is ⟦(1,2)⟧.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import cache, lru_cache

LONGEST = 1000  # characters

# Text between these is one word, whatever it has.
MARKED = re.compile(r"⟦([^⟧]*)⟧")

_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS_AND_TENS = f"zero one two three four five six seven eight nine {_TEENS} {_TENS}"
_ORDINALS = (
    "first third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth "
    "ninetieth hundredth thousandth millionth"
)
_ONE = "(?:" + "|".join(sorted(_UNITS_AND_TENS.split(), key=len, reverse=True)) + ")"
_MORE = rf"(?:{_ONE}|hundred|thousand|million|billion|trillion)"
_ORDINAL = "(?:" + "|".join(sorted([*_ORDINALS.split(), r"(?<=-)second"], key=len, reverse=True)) + ")"
NUMBER_WORDS = re.compile(
    rf"\b(?:(?:{_ONE}|a (?=hundred\b|thousand\b|million\b|billion\b){_MORE})(?:(?:[ -]|,? and ){_MORE})*"
    rf"(?:(?:[ -]|,? and ){_ORDINAL})?|{_ORDINAL})\b"
)
SECOND = re.compile(r"(?<!\d )(?<!\ba )(?<!\bper )(?<!\beach )(?<!\bevery )\bsecond\b")
# "nineteen eighty-four", as years are said.
YEAR = re.compile(r"^(1\d|20) ([1-9]\d)$")
MAGNITUDES = {"thousand": 3, "k": 3, "million": 6, "billion": 9, "bn": 9, "trillion": 12}
MAGNITUDE = re.compile(
    r"(?<![\w.,])(\d+(?:,\d{3})*(?:\.\d+)?)(?: |(?=k\b|bn\b))(thousand|million|billion|trillion|k|bn)\b"
)
PARTS = {"half": 2, "third": 3, "3rd": 3, "quarter": 4, "fourth": 4, "4th": 4, "fifth": 5, "5th": 5, "sixth": 6}
PARTS |= {"6th": 6, "eighth": 8, "8th": 8, "tenth": 10, "10th": 10, "hundredth": 100, "100th": 100}
# "two thirds" and "a quarter", but neither "a third man" nor "quarter past".
FRACTION = re.compile(
    rf"\b(a|an|1|[2-9]|1\d)[ -]({'|'.join(PARTS)})(s\b|\b(?= of\b| (?:an? )?[a-z]+$|\W*$))(?! (?:past|to|hour))"
)
MIXED = re.compile(r"\b(\d+)(?:,? and | )(?:a (half|quarter)\b|([1-9])/([2-9]|1[0-6])(?![\d/]))")
DOZEN = re.compile(r"\b(half a|an?|[2-9]|\d\d) dozen\b")

LATEX = re.compile(
    r"\\(?:[dct]?frac|sqrt|boxed|text|math\w+|cdot|times|div|[lg]eq?|neq?|pm|infty|pi|theta|alpha|beta|left|"
    r"approx|to|rightarrow|%|\{|\(|\[)|\$[^$\n]*[^$\s]\$(?!\d)"
)
SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
# Skin tones and variation selectors say nothing; one sign for each of these.
SAME_SIGN = str.maketrans(
    dict.fromkeys([*range(0xFE00, 0xFE10), *range(0x1F3FB, 0x1F400), 0x200B, 0x200D])
    | {ord(sign): other for sign, other in {"’": "'", "−": "-", "º": "°", "⁄": "/", "·": "×", "⋅": "×"}.items()}
    | {ord("π"): " pi ", ord("“"): '"', ord("”"): '"'}
)

# A URL, an e-mail address, a hex colour, a password or another word of letters and digits in turn.
CODE = re.compile(
    r"(?:https?://|www\.)[^\s<>\"'\])]*[^\s<>\"'\]).,;:!?]|[\w.+-]+@[\w-]+(?:\.\w+)+|(?<!\w)#[0-9a-f]{6}\b|(?<!\w)#[0-9a-f]{3}\b"
    r"|(?<![\w.])(?=[a-z\d!$%&_]*?(?:[a-z][!$%&_]*\d+[!$%&_]*[a-z]|\d[!$%&_]*[a-z]+[!$%&_]*\d))[a-z\d][a-z\d!$%&_]{4,}[a-z\d]\b"
)
MAY_HAVE_CODE = re.compile(r"[@#]|://|www\.|[a-z]\d|\d[a-z]")
TUPLE = re.compile(r"[(\[]\s*-?[\d.]+(?:\s*,\s*-?[\d.]+)+\s*[)\]]")
# The part of a book, of which 2.10 is not 2.1.
PART = re.compile(r"\b(section|chapter|version|figure|table|release|appendix|exercise|v|§) ?(\d+(?:\.\d+)+)\b")
POWER = re.compile(
    r" ?\^ ?[({]?(-?\d+|[a-z](?![a-z]))[)}]?|(?<=[\w)]) (squared|cubed)(?! (?:meter|metre|km|feet|mile))\b"
)
# "7 of hearts", "K♦": one code, of which 11, 12 and 13 are jack, queen and king.
FACES = {"ace": "1", "a": "1", "jack": "11", "j": "11", "queen": "12", "q": "12", "king": "13", "k": "13"}
SUITS = {"♥": "hearts", "♡": "hearts", "♠": "spades", "♤": "spades", "♦": "diamonds", "♣": "clubs", "♢": "diamonds"}
_RANK = "|".join(sorted(FACES, key=len, reverse=True))
CARD = re.compile(rf"\b(\d\d?|{_RANK})(?: of (hearts|spades|diamonds|clubs)\b| ?([{''.join(SUITS)}]))")
INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}(?!\w)")
# West Virginia is not in Virginia. Without capitals these are read, for "a new car" is a car.
PLACE = re.compile(
    r"\b(?:[Nn]orth|[Ss]outh|[Ee]ast|[Ww]est|New) [A-Z]\w+|\b(?:north|south|east|west|new) (?:virginia|york|orleans|"
    r"zealand|jersey|hampshire|mexico|delhi|carolina|dakota|korea|africa|guinea|england|timor|sudan|germany)\b"
)
# "The answer is A." and "(I)", but not "A dog" or "I think".
LETTER = re.compile(r"(?<![\w'’.+-])(?<![-+*/=^×÷<>] )[aiAI](?=[.)!?*\"']*\s*$|[)]|\*\*$)", re.MULTILINE)
# "A-17", "a17", "12A" and "gate A 12", whose a is no article; and so with "I-17". A formula's a-2 and 2a are none.
LETTER_OF_CODE = re.compile(
    r"(?<![\w'’.+@/-])(?<![-+*/=^×÷<>] )(?:([aAiI])(?:(?<=[AI])-)?(?=\d+(?![\w@#$%&/-]|[.!]\w))"
    r"|(\d+)-?([AI]|(?<=\d\d)[ai])(?![\w@#$%&/-]|[.!]\w| ?[-+*/=^])|(A) (?=\d+[.!?]?\s*$))",
    re.MULTILINE,
)
COUNTRIES = re.compile(r"\b(?:u\.s\.(?:a\.)?|the us|united states(?: of america)?)(?!\w)")


@lru_cache(maxsize=1 << 14)
def plain(text: str) -> str:
    """The text case-folded and in one spelling; numbers are digits: "Two and a half million" is "2500000".

    What is longer than any answer in a sentence is case-folded alone: its words are counted, and asked for what a
    prompt mentions.
    """
    if len(text) > LONGEST:
        return unicodedata.normalize("NFKC", text.translate(SAME_SIGN)).casefold()
    if LATEX.search(text):
        text = "\n".join(_without_latex(line) if LATEX.search(line) else line for line in text.split("\n"))
    if not text.isascii():
        text = SUPERSCRIPT.sub(lambda found: "^" + found[0].translate(DIGITS), text)
        text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
        text = unicodedata.normalize("NFKC", text.translate(SAME_SIGN)).translate(SAME_SIGN)
    text = text.replace("⟦", "[").replace("⟧", "]")
    text = re.sub(r"\bSt\.? (?=[A-Z])", "saint ", re.sub(r"\bUS\b", "usa", text))
    text = text.replace("e.g.", "for example").replace("i.e.", "that is")
    text = LETTER.sub(lambda found: f"⟦letter {found[0].lower()}⟧", text)
    text = re.sub(r"\b[Ii]nterstate (?=\d)", "I-", text)
    text = LETTER_OF_CODE.sub(lambda found: f"{found[2] or ''} ⟦letter {found[1] or found[3] or found[4]}⟧ ", text)
    text = PLACE.sub(lambda found: f"⟦{found[0]}⟧", text).casefold()
    text = COUNTRIES.sub("usa", text)
    text = INITIALS.sub(lambda found: found[0].replace(".", ""), text)
    if MAY_HAVE_CODE.search(text):
        text = CODE.sub(lambda found: f"⟦{found[0]}⟧", text)
    text = TUPLE.sub(_tuple, text) if "," in text else text
    text = text.replace("sqrt", "√")
    text = PART.sub(r"\1 ⟦\2⟧", text)
    text = re.sub(r"(?<=[\w)])\*\*(?=\d)", "^", text)
    text = POWER.sub(lambda found: f" ⟦^{found[1] or 2 + (found[2] == 'cubed')}⟧", text)
    return _with_numbers(text)


def _tuple(found: re.Match) -> str:
    return "⟦" + "".join(sign for sign in found[0] if sign not in "[]() ") + "⟧"


def _with_numbers(text: str) -> str:
    """Numbers in digits: "three thousand and five" 3005, "40 thousand" 40000, "a quarter" 1/4, "first" 1st."""
    text = NUMBER_WORDS.sub(lambda found: _digits(found[0]), text)
    text = SECOND.sub("2nd", text)
    text = DOZEN.sub(
        lambda found: str(12 * int(found[1]) if found[1].isdigit() else 6 * (2 - ("h" in found[1]))), text
    )
    text = MIXED.sub(_mixed, text)
    text = FRACTION.sub(lambda found: f"{found[1] if found[1].isdigit() else 1}/{PARTS[found[2]]}", text)
    text = re.sub(r"\bhalf a (?=million|billion)", "0.5 ", text)
    text = CARD.sub(lambda found: f"⟦{FACES.get(found[1], found[1])} of {found[2] or SUITS[found[3]]}⟧", text)
    return MAGNITUDE.sub(_magnified, text)


@lru_cache(maxsize=1 << 14)
def _digits(words: str) -> str:
    from text_to_num import alpha2digit

    digits = alpha2digit(f"one {words[2:]}" if words.startswith("a ") else words, "en", 0)
    return YEAR.sub(r"\1\2", digits)


def _mixed(found: re.Match) -> str:
    whole, named, above, below = found.groups()
    if max(len(part or "") for part in (whole, above, below)) > 15:  # digits: a float holds no more
        return found[0]
    above, below = (1, PARTS[named]) if named else (int(above), int(below))
    return f"{round(int(whole) + above / below, 9)}" if above < below else found[0]


def _magnified(found: re.Match) -> str:
    return f"{Decimal(found[1].replace(',', '')).scaleb(MAGNITUDES[found[2]]).normalize():f}"


def _without_latex(line: str) -> str:
    """The line with its formulas as one would type them: \\frac{1}{2} is 1/2."""
    line = re.sub(r"\\[dct]frac", r"\\frac", line)
    line = re.sub(r"\\[()\[\]]|\\(?:left|right)(?![a-z])", "", line)
    line = re.sub(r"(?<!\\)[%&#]", r"\\\g<0>", line)
    try:
        found = _to_text().latex_to_text(line.replace("\\boxed", ""))
    except RecursionError:  # a response may be \sqrt{ a hundred times over
        return line
    return re.sub(r"√\(([\w.]+)\)", r"√\1", found)


@cache
def _to_text():
    import logging

    from pylatexenc.latex2text import LatexNodes2Text

    logging.getLogger("pylatexenc").setLevel(logging.ERROR)  # half a formula is no news
    return LatexNodes2Text(keep_comments=True)
