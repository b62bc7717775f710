r"""One answer's own text, as `5\text{ km}` or `2½`, in the form that math-verify reads: value, unit, or words.

Strings alone: no sympy here. `final_answer` finds the text; `maths` compares what this module makes of it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class FinalAnswer:
    """An answer: LaTeX of its value, or, if literal, as words and times of day, what is compared letter by letter."""

    text: str
    unit: str = ""
    literal: bool = False


# ── Characters ──

CHARACTERS = {
    **dict.fromkeys("−–‒﹣‐‑", "-"),
    **dict.fromkeys("⋅·∙", r" \cdot "),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **{"×": r" \times ", "º": "°", "√": r"\sqrt ", "∶": ":", "、": ",", "±": r"\pm ", "∞": r"\infty "},
    **{"≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "→": r"\to "},
    **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "…": "..."},
}
SCRIPTS = {"^": ("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n"), "_": ("₀₁₂₃₄₅₆₇₈₉", "0123456789")}
ROOT = re.compile(r"\\sqrt \s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])))")


def plain_characters(text: str) -> str:
    """Digits, operators, exponents and fractions of Unicode as ASCII and LaTeX."""
    if text.isascii():
        return text
    for mark, (raised, plain) in SCRIPTS.items():
        table = str.maketrans(raised, plain)
        text = re.sub(f"[{raised}]+", lambda run, t=table, m=mark: f"{m}{{{run[0].translate(t)}}}", text)
    text = re.sub(r"[^\x00-\x7f\u4e00-\u9fff]", lambda char: _plain(char[0]), text)
    text = ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
    return re.sub(r"(\\[a-z]+) (?![A-Za-z])", r"\1", text)  # bold is not **2\pi **


@functools.cache
def _plain(char: str) -> str:
    if char in CHARACTERS:
        return CHARACTERS[char]
    if "\uff01" <= char <= "\uff5e":  # full width
        return chr(ord(char) - 0xFEE0)
    if char.isspace():
        return "\n" if char in "\u2028\u2029" else " "
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    fraction = unicodedata.normalize("NFKC", char).split("⁄")
    if len(fraction) == 2 and all(fraction):
        return rf"\frac{{{fraction[0]}}}{{{fraction[1]}}}"
    name = unicodedata.name(char, "")
    return rf"\{name.split()[-1].lower()} " if re.fullmatch("GREEK SMALL LETTER [A-Z]+", name) else char


# ── Units ──

# One spelling, then the others; a plural's s may follow each.
UNITS = r"""
km kilometer kilometre 千米 公里; m meter metre 米; cm centimeter centimetre 厘米; mm millimeter millimetre 毫米;
mile mi; ft foot feet; inch inche; yd yard; acre; hectare ha; kg kilogram kilo 千克 公斤; g gram 克; mg milligram;
ton tonne; lb pound; oz ounce; h hr hour 小时; min minute 分钟; s sec second 秒; ms millisecond; day 天; week; month;
year yr; L l liter litre 升; mL ml milliliter millilitre 毫升; gallon gal; $ dollar usd; cent; € euro eur; £ gbp;
¥ yen yuan 元; ₹ rupee rs; ° degree deg 度; °C; °F; rad radian;
mile/h mph; km/h kmh kmph; am a.m.; pm p.m.; J joule; N newton; W watt; V volt; Hz hertz; Pa pascal; mol mole
"""
SPELLINGS = [spellings.split() for spellings in UNITS.split(";")]
CANONICAL = {spelling: spellings[0] for spellings in SPELLINGS for spelling in spellings}
NAMES = "|".join(sorted(map(re.escape, CANONICAL), key=len, reverse=True))
POWER = r"(?:\s*\^\s*\{?([23])\}?|\s+(squared|cubed))?"
ONE_UNIT = rf"(?:(square|cubic|sq\.?|cu\.?)\s*)?({NAMES})s?{POWER}"
UNIT = re.compile(rf"{ONE_UNIT}(?:\s*(?:/|\bper\b)\s*{ONE_UNIT})?(?![A-Za-z])")
CURRENCY = re.compile(r"(-?)\s*(?:\\?([$])|([€£¥₹]))\s*(?=[\d.])")
MULTIPLIERS = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
MULTIPLIERS |= {"万": 10**4, "亿": 10**8}
POWERS = {None: "", "2": "^2", "3": "^3", "squared": "^2", "cubed": "^3"}


def match_unit(text: str) -> tuple[str, int]:
    """The unit that the text begins with, in one spelling, and its length; ("", 0) without one."""
    found = UNIT.match(text)
    if not found:
        return "", 0
    above, below = (_one_unit(*found.groups()[k : k + 4]) for k in (0, 4))
    return f"{above}/{below}" if below else above, found.end()


def _one_unit(prefix: str | None, name: str | None, digit: str | None, word: str | None) -> str:
    if name is None:
        return ""
    power = POWERS[digit or word] or (("^2" if prefix[0] == "s" else "^3") if prefix else "")
    return CANONICAL[name] + power


# ── Forms ──

LONGEST = 1000  # characters of an answer: what is longer is nothing to calculate with, but takes long to parse

SPACES = re.compile(r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\\(?:displaystyle|limits)(?![A-Za-z])|\s+")
GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\\[,! ]|\{,\}| )\d{3})+(?!\d)")
STYLES = re.compile(
    r"\\(?:textbf|mathbf|boldsymbol|bm|textit|emph|underline|mathit|textsf|texttt|mathsf)\s*\{([^{}]*)\}"
)
TEXT = re.compile(r"\\(?:text|textrm|textnormal|mathrm|mbox|hbox|operatorname)\s*\{([^{}]*)\}")
UNIT_FRACTION = re.compile(r"\\frac\s*" + 2 * r"\{\s*\\(?:text|mathrm)\s*\{([^{}]*)\}\s*\}\s*")
ORDINAL = re.compile(r"\^\s*\{?\s*\\(?:text|mathrm)\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?")
DEGREES = re.compile(r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})\s*")
EMPHASIS = re.compile(r"^(?:\*{1,3}|_{1,3}|`+)(.*?)(?:\*{1,3}|_{1,3}|`+)$")
CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s*)?(?:\(([A-H])\)|(?<=[nert] )([A-H])(?=$|\W)|([A-H])(?:\)|[.:](?=\s)|$))"
    r"(?!\s*(?:[-+*/^_=<>!]\s|[+*/^_=<>!]|\\(?:cup|cap|times|cdot|div|pm|le|ge|ne|in|to)(?![A-Za-z])|[(,]))",
    re.IGNORECASE,
)
CLOCK = re.compile(r"(\d{1,2}:[0-5]\d(?::[0-5]\d)?)\s*(?:([ap])\.?m\.?)?", re.IGNORECASE)
BASE = re.compile(r"\(?([0-9A-Fa-f]+)\)?\s*_\s*\{?\s*\(?(\d{1,2})\)?\s*\}?")
NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)|(?=\.\d))(?:\.\d+)?"
QUANTITY = re.compile(rf"\s*(?:(?:,|;|\band\b)\s*)*({NUMBER})\s*")
WORDS = re.compile(r"(?=.*?(?!and\b)[^\W\d_]{3})[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*", re.IGNORECASE)
# What makes words after a number more than a noun: 5 more than x, 5 plus six.
NO_NOUNS = frozenset(
    """and or plus minus times divided over mod choose more less fewer than not is are was gives makes equals if for to
    point squared cubed sin cos tan log ln exp sqrt pi half one two three four five six seven eight nine ten eleven
    twelve thirteen fifteen twenty thirty forty fifty sixty seventy eighty ninety""".split()
)


def read_form(text: str) -> FinalAnswer | None:
    r"""The answer that a text is, as `A) 5 apples`, `1.5e8`, `5\text{ km}` or `Tuesday`; None where it is empty."""
    if len(text) > LONGEST:
        return FinalAnswer(re.sub(r"\s+", " ", text).strip(), literal=True)
    raw = _tidy(text)
    words = TEXT.sub(r" \1 ", raw)
    words = re.sub(r"\s+", " ", words).strip(" .,;:\"'")
    if not re.search(r"\w", words) and not re.search(r"\\[A-Za-z]", words):
        return None
    choice = CHOICE.match(words)
    if choice and (letter := choice[1] or choice[2] or choice[3]).isupper():
        return FinalAnswer(letter)
    return _literal(words) or _quantities(words) or _value(raw)


def _tidy(text: str) -> str:
    """Without delimiters, markdown, styles and spacing commands."""
    text = re.sub(r"\s+", " ", text).strip()
    text = GROUPS.sub(lambda run: re.sub(r"\\[,! ]|[{},\s]", "", run[0]), text)
    text = DEGREES.sub("°", ORDINAL.sub("", UNIT_FRACTION.sub(r" \\text{\1/\2}", text)))
    for _ in range(3):
        text = STYLES.sub(r"\1 ", text)
    text = SPACES.sub(" ", re.sub(r"\\[()\[\]]|\\boxed(?![A-Za-z])", " ", text)).strip()
    if not (text.count("$") == 1 and CURRENCY.match(text)):
        text = re.sub(r"(?<!\\)\$", "", text).strip()
    text = EMPHASIS.sub(r"\1", text)
    return re.sub(r"(?<=[\w)}\]!%'\"])[.,;:]+$", "", text.strip()).strip()


def _literal(words: str) -> FinalAnswer | None:
    clock = CLOCK.fullmatch(words)
    if clock:
        return FinalAnswer(clock[1], f"{clock[2].lower()}m" if clock[2] else "", literal=True)
    # Letter by letter, for to math-verify words are products of letters: listen = silent.
    if WORDS.fullmatch(words) and words.casefold() not in ("infinity", "inf"):
        return FinalAnswer(words.casefold(), literal=True)
    return None


def _quantities(words: str) -> FinalAnswer | None:
    """Several numbers with units: a list where the units are the same, else literal, as 2 hours 30 minutes."""
    numbers, units, at = [], [], 0
    while at < len(words):
        number = QUANTITY.match(words, at)
        unit, length = match_unit(words[number.end() :]) if number else ("", 0)
        if not unit:
            return None
        numbers.append(number[1])
        units.append(unit)
        at = number.end() + length
    if len(units) < 2:
        return None
    if len(set(units)) == 1:
        return FinalAnswer(", ".join(map(value_text, numbers)), units[0])
    return FinalAnswer(" ".join(f"{number} {unit}" for number, unit in zip(numbers, units, strict=True)), literal=True)


def _value(text: str) -> FinalAnswer | None:
    base = BASE.fullmatch(text)
    if base and (base[1].isdigit() or int(base[2]) > 10):
        digits = base[1].upper().lstrip("0") or "0"
        return FinalAnswer(digits, f"base {base[2]}", literal=not digits.isdigit())
    currency = CURRENCY.match(text)
    unit = (currency[2] or currency[3]) if currency else ""
    text = currency[1] + text[currency.end() :] if currency else text
    text, after = _split_unit(text)
    text = value_text(text.replace(r"\$", ""))
    if text is None:
        return None
    # math-verify adds numbers that stand side by side: 3 4 is 7 to it.
    return FinalAnswer(text, unit or after, literal=bool(SIDE_BY_SIDE.search(text)))


def _split_unit(text: str) -> tuple[str, str]:
    """The value and the unit; a noun that is no unit is left out, as in 5 apples."""
    tail = next((m for m in _tails(text) if m[2]), None)
    if tail is None:
        return text, ""
    value, spaced, words = tail
    first = re.match(r"\S+", words)[0]
    if first.lower() in MULTIPLIERS:
        rest = words[len(first) :].strip()
        return rf"{value} \cdot {MULTIPLIERS[first.lower()]}", _unit_or_noun(rest)[0]
    if first.lower().rstrip("s") in ("percent", "pct", "percentage"):
        return value + r"\%", ""
    unit, known = _unit_or_noun(words)
    glued_letter = not spaced and len(words) == 1 and words.isascii()  # 3t is a product
    if not known or glued_letter or (not spaced and not unit):
        return text, ""
    return value, unit


def _tails(text: str) -> list[tuple[str, bool, str]]:
    r"""Value, whether a space or \text parts them, and the words after it, at the first place where words begin."""
    marked = TEXT.sub(r" \1 ", text).rstrip()
    found = []
    for end in re.finditer(r"[\d)}\]!%]|\\pi(?![A-Za-z])|\\infty", marked):
        after = marked[end.end() :]
        words = re.sub(r"°\s+(?=[CF]$)", "°", after.strip())
        if re.fullmatch(r"°\s*[CF]?|[€£¥₹]|[^\W\d_](?:[^\W\d_]|[ '/.-]|\^\{?[23]\}?)*", words):
            found.append((marked[: end.end()].strip(), after[:1].isspace() or after[:1] == "°", words))
    return found


def _unit_or_noun(words: str) -> tuple[str, bool]:
    """The unit in words, and whether they are one, or a noun."""
    unit, length = match_unit(words)
    rest = re.findall(r"[^\W\d_]+", words[length:] if unit else words)
    plain = all(len(word) > 1 and word.lower() not in NO_NOUNS for word in rest)
    return (unit, True) if unit and plain else ("", plain and not unit)


# ── Values ──

MIXED = re.compile(r"(?<![\d.^_{/}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
SCIENTIFIC = re.compile(r"(?<![A-Za-z\\])(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?\d+)(?![\d.A-Za-z])")
REPEATING = re.compile(r"(\d+)\.(\d*)\\(?:overline|dot|bar)\s*\{?(\d+)\}?")
SIDE_BY_SIDE = re.compile(r"(?<![_^\d.])(?<!frac)(?<!frac )\d+\s+\d")
REWRITES = (
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\s*(-?\d{2,}|-\d)"), r"^{\1}"),
    (re.compile(r"(?<![A-Za-z\\])(?:sqrt)\s*(\d+)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z\\])(pi|infinity)(?![A-Za-z])"), lambda m: {"pi": r"\pi ", "infinity": r"\infty "}[m[1]]),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"(?<![_^]\d)(?<![_^]\d\d)(?<=[\d)])\s*\((?![^()]*,)"), r" \\cdot ("),  # to math-verify 3(4) is 7
    (re.compile(r"°"), r"^{\\circ}"),
)
EQUALS = re.compile(r"(?<![\\<>!:])=")


def value_text(text: str) -> str | None:
    """LaTeX of a value that math-verify reads as it is meant; None where an equation has no right side."""
    text = re.split(r"\\(?:approx|simeq|thickapprox)(?![A-Za-z])", text)[-1]
    *left, right = EQUALS.split(text)
    # 6 * 7 = 42 says 42; x = 5 and 2x + y = 5 are left whole.
    if left and "," not in text and not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", "".join(left))):
        text = right
    text = text.strip()
    if not text or text.endswith("?") or right.strip() in ("", "?"):
        return None
    text = REPEATING.sub(_repeating, text)
    text = MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    text = SCIENTIFIC.sub(lambda m: rf"{m[1]} \times 10^{{{int(m[2])}}}", text)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip("\\")


def _repeating(found: re.Match) -> str:
    whole, first, again = found[1], found[2], found[3]
    nines = int("9" * len(again) + "0" * len(first))
    return rf"\frac{{{int(whole + first + again) - int(whole + first)}}}{{{nines}}}"
