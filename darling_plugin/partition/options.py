"""Options of partition models: their types, as `__init__` annotates them, and ranges, checked before any is built."""

from __future__ import annotations

import inspect
import json
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from darling_plugin.errors import DarlingError
from darling_plugin.registry import nearest

DTYPES = ("bfloat16", "float16", "float32", "float64", "half", "float", "double")  # in which a model may compute


@dataclass(frozen=True)
class Between:
    """Numbers from `least` to `greatest`, both included."""

    least: float = -math.inf
    greatest: float = math.inf

    def __contains__(self, value: Any) -> bool:
        return _is(value, float) and self.least <= value <= self.greatest  # false for NaN

    def __str__(self) -> str:
        bounds = (("from", self.least), ("to", self.greatest))
        return "".join(f" {word} {bound:g}" for word, bound in bounds if math.isfinite(bound))


@dataclass(frozen=True)
class OneOf:
    """Known words."""

    words: tuple[str, ...]

    def __contains__(self, value: Any) -> bool:
        return value in self.words


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _as_json(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | bool) else text


def read_option(cls: type, option: str, text: str, *, untyped: Callable[[str], Any] = _as_json) -> Any:
    """What a text stands for, given to `cls` as that option: of the type of the option's annotation.

    Annotations of str, int, float, bool, unions of these and with None are understood. With any other, and with none,
    `untyped` reads the text: numbers and true and false as JSON has them, and all else stays text.

    Raises DarlingError for a text that does not stand for what the annotation names.
    """
    kinds = _kinds(cls, option)
    if kinds is None:
        return untyped(text)
    for kind, read in ((bool, _truth), (int, _integer), (float, _number), (str, str)):
        if kind in kinds:
            try:
                return read(text)
            except ValueError:
                continue
    raise _wrong(cls, option, text)


def check_options(cls: type, **options: Any) -> None:
    """Raises DarlingError for a value that is not of its option's annotated type, or not in `cls.option_limits`.

    None is left to `__init__`, and so is a type that :func:`read_option` does not understand.
    """
    limits = option_limits(cls)
    for option, value in options.items():
        kinds = _kinds(cls, option)
        good = kinds is None or any(_is(value, kind) for kind in kinds)
        if value is not None and not (good and value == value and value in limits.get(option, (value,))):
            raise _wrong(cls, option, value)


def option_limits(cls: type) -> dict[str, Between | OneOf]:
    """Those in the class's attribute `option_limits`, and for other options those of its bases."""
    merged: dict[str, Between | OneOf] = {}
    for base in reversed(cls.__mro__):
        merged |= vars(base).get("option_limits", {})
    return merged


def _wrong(cls: type, option: str, value: Any) -> DarlingError:
    limit, kinds = option_limits(cls).get(option), _kinds(cls, option) or {float}
    owner = f" as {option} of the partition model {cls.__name__}"
    if isinstance(limit, OneOf):
        known = f"{nearest(str(value), list(limit.words))}known: {', '.join(limit.words)}"
        return DarlingError(f"a known word{owner}", repr(value), known)
    needed = " or ".join(name for kind, name in KINDS.items() if kind in kinds)
    return DarlingError(f"{needed}{limit or ''}{owner}", repr(value), "correct it, or leave it out")


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:  # which Python takes for an int
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    return float(text.replace("_", "x"))  # Python would take 1_0 for 10


def _kinds(cls: type, option: str) -> set[type] | None:
    """Those of KINDS that the option's annotation names; None where it names something else, or there is none."""
    annotation = _annotation(cls, option)
    is_union = get_origin(annotation) in (Union, types.UnionType)
    kinds = set(get_args(annotation) if is_union else (annotation,)) - {type(None)}
    return kinds if kinds and kinds <= set(KINDS) else None


def _annotation(cls: type, option: str) -> Any:
    """Of the option's parameter, in `cls.__init__` or, where that takes any option, in the next one behind it."""
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if init is None or base is object:
            continue
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(init).parameters
        if option in parameters:
            return _evaluated(parameters[option].annotation, init)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return None


def _evaluated(annotation: Any, init: Any) -> Any:
    """An annotation that is a text, as under `from __future__ import annotations`, evaluated where it was written."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, init.__globals__)
    except Exception:  # a name that only type checkers import
        return None
