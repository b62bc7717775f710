"""Which part of a response is compared: `--darling.partition_text`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.user_code import import_user_code

# prompt and response -> the text that is compared; None where the response does not have it, which counts as empty.
PartitionText = Callable[[str, str], "str | None"]

FORMS = "whole, after:STRING, before:STRING, regex:PATTERN, package.module:function, file.py:function"


def read_partition_text(spec: str) -> PartitionText:
    """The function that `spec` names.

    - "whole": the response.
    - "after:STRING": what follows the last STRING, such as </think>; "before:STRING": what precedes the first.
    - "regex:PATTERN": the first group of the first match.
    - "package.module:function", "file.py:function": a function of your own; of prompt and response, both str, it makes
      the text, or None where there is none. The log calls it again, so it must give the same each time.

    Raises DarlingError for any other form, for a pattern that cannot be compiled or has no group, and for what is no
    function of two arguments.
    """
    form, _, argument = spec.partition(":")
    if spec == "whole":
        return lambda prompt, response: response
    if form in ("after", "before", "regex") and not argument:
        raise _unusable(spec, f"nothing after {form}:")
    if form == "after":
        return lambda prompt, response: response.rpartition(argument)[2] if argument in response else None
    if form == "before":
        return lambda prompt, response: response.partition(argument)[0] if argument in response else None
    if form == "regex":
        return _by_pattern(spec, argument)
    return _users(spec)


def as_logged(compared: Sequence[str], responses: Sequence[str]) -> list[str | None]:
    """What of each response was compared, as a log keeps it: None where that is all of it."""
    return [None if text == response else text for text, response in zip(compared, responses, strict=True)]


def _by_pattern(spec: str, pattern: str) -> PartitionText:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise _unusable(spec, f"{error}") from error
    if not compiled.groups:
        raise _unusable(spec, "a pattern without a group: put what is compared into ( )")

    def first_group(prompt: str, response: str) -> str | None:
        match = compiled.search(response)
        return match.group(1) if match else None

    return first_group


def _users(spec: str) -> PartitionText:
    source, _, name = spec.rpartition(":")
    if not (source and name.isidentifier()):
        raise _unusable(spec, "none of them")
    function = getattr(import_user_code(source), name, None)
    try:
        inspect.signature(function).bind("prompt", "response")
    except (TypeError, ValueError) as error:
        raise _unusable(spec, f"{name} there is no function of prompt and response: {error}") from error

    def checked(prompt: str, response: str) -> str | None:
        try:
            text: Any = function(prompt, response)
        except (SystemExit, StopIteration) as error:  # no other than any error of that function, for who calls this
            raise RuntimeError(f"{spec} raised {error!r}") from error
        if not (text is None or isinstance(text, str)):
            raise DarlingError(f"a str or None from {spec}", f"{type(text).__name__}", "correct that function")
        return text

    return checked


def _unusable(spec: str, found: str) -> DarlingError:
    return DarlingError(f"{spelled('partition_text')} in one of the forms {FORMS}", f"{spec!r}: {found}", "correct it")
