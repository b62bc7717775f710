"""Groups from lines of JSON: {"prompt": ..., "responses": [...]}, each with what else its line holds.

Responses may also be called `generations`, as NoveltyBench writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import Group


class BadLine(ValueError):
    """Says what is wrong with a line of the input."""


class GroupLine(NamedTuple):
    """A line of the input: its number from 1, all that it holds, and the group in it (`Group` replaces surrogates)."""

    number: int
    record: dict[str, Any]
    group: Group


def read_groups(lines: Iterable[bytes], report: Callable[[int, str], None]) -> Iterator[GroupLine]:
    """The groups, as they come; blank lines are left out.

    Args:
        report: gets the number of each line that is no group, and what is wrong with it; the line is left out.
    """
    for number, line in enumerate(lines_of(lines), start=1):
        if not line.strip():
            continue
        try:
            record, group = parse_group(line)
        except BadLine as error:
            report(number, str(error))
        else:
            yield GroupLine(number, record, group)


def lines_of(source: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, which may be LF, CR LF or CR: JSON has none of them within a text."""
    for line in source:
        yield from line.splitlines()


def given_responses(record: dict[str, Any]) -> Any:
    """What the record has for responses, under either name; None where it has neither."""
    return record.get("responses", record.get("generations"))


def parse_group(line: bytes) -> tuple[dict[str, Any], Group]:
    """A line as an object and the group in it; BadLine for anything else."""
    try:
        # -sig: Windows programs put a mark before the first line.
        record = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise BadLine(f"not UTF-8: {error.reason} at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise BadLine(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # an integer of 5000 digits; [[[[…
        raise BadLine(f"JSON that Python cannot read: {error}") from error
    if not isinstance(record, dict):
        raise BadLine(f"needs an object with prompt and responses, found {type(record).__name__}")
    for key, value, kind in (("prompt", record.get("prompt"), str), ("responses", given_responses(record), list)):
        if not isinstance(value, kind):
            found = type(value).__name__ if value is not None or key in record else f"no {key}"
            raise BadLine(f"needs a {kind.__name__} as {key}, found {found}")
    try:
        return record, Group(record["prompt"], given_responses(record))
    except DarlingError as error:
        needed, found, _ = error.args
        raise BadLine(f"needs {needed}, found {found}") from error
