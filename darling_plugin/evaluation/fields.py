"""What the fields of a file of samples hold: texts, chats, qualities, classes; and what is wrong with one."""

from __future__ import annotations

import json
import math
from typing import Any

from darling_plugin.partition.base import encodable

REFERENCES = ("answers", "label", "gts", "answer", "solution", "target")  # what a correct answer is
LARGEST = 1e100  # of a quality: sums of larger ones may be no floats any more


class Fault(ValueError):
    """What is wrong with a line."""


def text_of(value: Any) -> str:
    """A text, or the contents of a chat's messages, one below the other."""
    if is_chat(value):
        value = "\n".join(_content(message) for message in value)
    if not isinstance(value, str):
        raise Fault(f"needs texts as prompt and responses, found {type(value).__name__}")
    return encodable(value)


def _content(message: dict[str, Any]) -> str:
    """A message's, of which a call of a tool may have none, or the texts among its parts."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(text for text in texts if isinstance(text, str))
    return "" if content is None else str(content)


def is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def list_of(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise Fault(f"needs a list as {name}, found {type(value).__name__}")
    return value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf  # NaN is not


def is_quality(value: Any) -> bool:
    """Whether it is a number, or right and wrong as true and false."""
    return is_number(value) or isinstance(value, bool)


def quality_of(value: Any) -> float | None:
    """None for null and NaN: a response without one. Raises Fault for what is no number, or beyond LARGEST."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, int | float) or abs(value) > LARGEST:
        raise Fault(f"needs a quality from {-LARGEST:g} to {LARGEST:g}, found {value!r:.40}")
    return float(value)


def qualities_of(values: Any, n: int) -> list[float] | None:
    """Of n responses; None where one of them has none: a mean over the others would be of other responses."""
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != n:
        raise Fault(f"needs a quality for each of {n} responses, found {values!r:.80}")
    found = [quality_of(value) for value in values]
    return None if None in found else found


def labels_of(values: Any, n: int) -> list[int] | None:
    if values is None:
        return None
    whole = isinstance(values, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in values)
    if not whole or len(values) != n:
        raise Fault(f"needs a class for each of {n} responses, found {values!r:.80}")
    return values if min(values) >= 0 else None  # -1: the quality gate left it out of the partition


def reference_of(record: dict[str, Any]) -> str | None:
    for key in REFERENCES:
        if record.get(key) is not None:
            return record[key] if isinstance(record[key], str) else json.dumps(record[key], default=str)
    return None


def step_of(value: Any) -> int | None:
    """ms-swift's are texts."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    return int(value) if is_number(value) else None


def id_of(record: dict[str, Any], number: int, key: str = "id") -> str:
    """What a record calls itself, else its number; data sets have null in a column that a row lacks."""
    return str(number if record.get(key) is None else record[key])
