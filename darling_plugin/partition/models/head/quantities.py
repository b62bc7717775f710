"""What numbers, quantities, dates and times of a text are worth, in one spelling: "1 km" is "1000 meter"."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from fractions import Fraction
from functools import cache, lru_cache

# Units that are read, by what they are written like in lower case; pint knows how much they are. What is a unit only
# now and then ("stone", "degree", "in") is not one here.
SHORT_UNITS = {
    "m": "meter", "cm": "centimeter", "mm": "millimeter", "km": "kilometer", "mi": "mile", "ft": "foot", "yd": "yard",
    "g": "gram", "kg": "kilogram", "mg": "milligram", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "l": "liter", "ml": "milliliter", "cl": "centiliter", "dl": "deciliter",
    "s": "second", "sec": "second", "secs": "second", "min": "minute", "mins": "minute", "h": "hour", "hr": "hour",
    "hrs": "hour", "kb": "kilobyte", "mb": "megabyte", "gb": "gigabyte", "tb": "terabyte",
    "km/h": "kilometer/hour", "kph": "kilometer/hour", "kmh": "kilometer/hour", "mph": "mile/hour",
    "m/s": "meter/second",
    "w": "watt", "kw": "kilowatt", "mw": "megawatt", "hz": "hertz", "khz": "kilohertz", "mhz": "megahertz",
    "ghz": "gigahertz", "kcal": "kilocalorie", "kj": "kilojoule", "v": "volt", "kv": "kilovolt", "ms": "millisecond",
    "feet": "foot", "inches": "inch", "metric tons": "metric_ton", "tonnes": "metric_ton", "tonne": "metric_ton",
    "°c": "degC", "° c": "degC", "degrees celsius": "degC", "celsius": "degC", "degrees c": "degC",
    "°f": "degF", "° f": "degF", "degrees fahrenheit": "degF", "fahrenheit": "degF", "degrees f": "degF",
}  # fmt: skip
LONG_UNITS = (
    "pound meter metre kilometer kilometre centimeter centimetre millimeter millimetre mile yard foot inch gram "
    "kilogram milligram ounce liter litre milliliter millilitre second minute hour day week kilobyte megabyte "
    "gigabyte terabyte watt kilowatt megawatt hertz volt millisecond"
).split()
_UNIT = "|".join(sorted([*map(re.escape, SHORT_UNITS), *(f"{unit}s?" for unit in LONG_UNITS)], key=len, reverse=True))
_AMOUNT = r"(?<![\w.,/⟦])(-?(?:\d+(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?)"
QUANTITY = re.compile(rf"{_AMOUNT}(?: |-)?({_UNIT})(?![\w°²³^/])")
PART_OF_UNIT = re.compile(
    rf"\b(half|1/4|3/4|1/2)(?: of)? an? (?=(?:{_UNIT})\b)|\ban? (?=(?:{'|'.join(LONG_UNITS)})\b)"
)
# Digits of a number that is read: a float holds no more, and a response may be hundreds of nines.
MOST_DIGITS = 15
PERCENT = re.compile(rf"{_AMOUNT} ?(?:%|percent|per cent)(?!\w)")
RATIO = re.compile(r"(?<![\w.,/])(\d+)/([1-9]\d*)(?![\w/]|\.\d)")
HALF = re.compile(r"\b(?:1 |a )?half\b(?! (?:an? |past|of the time))")

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)[a-z]*\.?"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
DATE = re.compile(
    rf"\b(?:(?P<iso>\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}})|(?P<numbers>\d{{1,2}}[-/.]\d{{1,2}}[-/.]\d{{4}})"
    rf"|(?:the )?(?P<words>{_DAY}(?: of)? {_MONTH}(?:,? \d{{4}})?|{_MONTH} (?:the )?{_DAY}(?:,? \d{{4}})?))(?![\w/])"
)
TIME = re.compile(
    r"\b(\d{1,2})(?:[:.]([0-5]\d))? ?([ap])\.?m\b\.?|\b([01]?\d|2[0-3]):([0-5]\d)(?![:\d])|\b(noon|midnight)\b"
)
GATE = re.compile(
    r"\d|\bhalf\b|\ban? (?:meter|metre|kilo|mile|gram|lit|second|minute|hour|day|week)|\bnoon\b|midnight"
)


@lru_cache(maxsize=1 << 14)
def valued(text: str) -> str:
    """A text of spelling.plain with the values of its quantities marked in their place, as it is if it has none."""
    if not GATE.search(text):
        return text
    text = DATE.sub(_date, text)
    text = TIME.sub(_time, text)
    text = PART_OF_UNIT.sub(lambda found: {None: "1 ", "half": "0.5 "}.get(found[1], f"{found[1]} "), text)
    text = PERCENT.sub(_if_short(lambda found: _number(_fraction(found[1]) / 100)), text)
    text = QUANTITY.sub(_if_short(_quantity), text)
    text = RATIO.sub(_if_short(lambda found: _number(Fraction(int(found[1]), int(found[2])))), text)
    return HALF.sub("0.5", text)


def _if_short(worth: Callable[[re.Match], str]) -> Callable[[re.Match], str]:
    return lambda found: found[0] if sum(map(str.isdigit, found[0])) > MOST_DIGITS else worth(found)


def _fraction(amount: str) -> Fraction:
    whole, _, below = amount.replace(",", "").partition("/")
    return Fraction(whole) / (int(below or 1) or 1)


def _number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.9f}".rstrip("0").rstrip(".")


def _quantity(found: re.Match) -> str:
    name = SHORT_UNITS.get(found[2]) or found[2]
    value = _units().Quantity(float(_fraction(found[1])), name).to_base_units()
    return f"⟦{value.magnitude:.12g} {value.units}⟧"


def _date(found: re.Match) -> str:
    """⟦2024-03-03⟧, or ⟦03-03⟧ without a year; 3/4/2024 may be two days and stays."""
    from dateutil.parser import parse

    if found["numbers"]:
        first, second = map(int, re.split(r"[-/.]", found["numbers"])[:2])
        if max(first, second) <= 12 and first != second:
            return found[0]
    written = re.sub(r"\bof\b|\bthe\b", "", found["iso"] or found["numbers"] or found["words"])
    try:
        read = parse(written.replace(".", "-") if found["words"] is None else written, default=datetime(4, 1, 1))
    except (ValueError, OverflowError):
        return found[0]
    return f"⟦{read:%m-%d}⟧" if read.year == 4 else f"⟦{read.year}-{read:%m-%d}⟧"


def _time(found: re.Match) -> str:
    hour, minute, half, hour_of_24, minute_of_24, named = found.groups()
    if named:
        return "⟦12:00⟧" if named == "noon" else "⟦0:00⟧"
    if hour_of_24:
        return f"⟦{int(hour_of_24)}:{minute_of_24}⟧"
    if not 1 <= int(hour) <= 12:
        return found[0]
    return f"⟦{int(hour) % 12 + (12 if half == 'p' else 0)}:{minute or '00'}⟧"


@cache
def _units():
    import pint

    return pint.UnitRegistry(autoconvert_offset_to_baseunit=True)
