"""Lines of a file that are one response each, as verl's, TRL's and ms-swift's, and which of their columns rate it."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from darling_plugin.errors import spelled
from darling_plugin.evaluation.fields import (
    REFERENCES,
    Fault,
    is_chat,
    is_number,
    is_quality,
    quality_of,
    step_of,
    text_of,
)

logger = logging.getLogger(__name__)

RESPONSES = ("completion", "output", "response")
PROMPTS = ("prompt", "input", "messages")
STEPS = ("step", "gen_step")
QUALITIES = ("score", "quality", "reward")
NO_REWARD = {*STEPS, *REFERENCES, "global_step", "index", "doc_id", "uid"}  # numbers that are no reward
ADVANTAGES = ("advantage", "advantages")


@dataclass(frozen=True)
class Row:
    """One response to a prompt whose others have lines, or places in a step's lists, of their own.

    Attributes:
        record: the rest of the line, or that place of each list.
        of_lists: whether it is from a step's lists: ms-swift's, whose numbers are rewards.
    """

    number: int
    prompt: str
    response: str
    record: dict[str, Any]
    of_lists: bool

    @property
    def step(self) -> int | None:
        return next((step_of(self.record[key]) for key in STEPS if key in self.record), None)

    def quality(self, columns: Sequence[str]) -> float | None:
        """The sum; a reward function that has nothing to say of a response gives null or NaN: the others count."""
        found = [quality_of(self.record.get(column)) for column in columns]
        given = [each for each in found if each is not None]
        return quality_of(math.fsum(given)) if given else None


def rows_of(record: dict[str, Any], number: int) -> Iterator[Row]:
    """Raises Fault for a line that has no prompt and response."""
    prompt_key = next((key for key in PROMPTS if key in record), None)
    response_key = next((key for key in RESPONSES if key in record), None)
    if prompt_key is None or response_key is None:
        raise Fault(f"needs a prompt and responses, found the keys {', '.join(list(record)[:12]) or 'none'}")

    def row(record: dict[str, Any], of_lists: bool) -> Row:
        rest = {key: value for key, value in record.items() if key not in (prompt_key, response_key)}
        return Row(number, text_of(record[prompt_key]), text_of(record[response_key]), rest, of_lists)

    responses = record[response_key]
    if not isinstance(responses, list) or is_chat(responses):
        yield row(record, of_lists=False)
        return
    if not responses:
        raise Fault("needs at least one response, found none")
    lists = {key: value for key, value in record.items() if isinstance(value, list) and len(value) == len(responses)}
    if prompt_key not in lists:
        raise Fault(f"needs {len(responses)} prompts for {len(responses)} responses")
    for k in range(len(responses)):
        yield row(record | {key: value[k] for key, value in lists.items()}, of_lists=True)


def reward_columns(rows: Sequence[Row]) -> list[str]:
    """Which columns of a file's rows make a response's quality: the same for all, also where a row lacks one.

    verl's is one of QUALITIES. TRL and ms-swift write a column a reward function before the advantage, and what else
    there is (entropy) after it. A user's own may stand among them: where any is named reward, only those count.
    """
    rated = {key for row in rows for key, value in row.record.items() if is_quality(value)}
    known = next((name for name in QUALITIES if name in rated), None)
    if known is not None:  # its extras may be numbers too
        return [known]
    before: dict[str, None] = {}
    for row in rows:
        before |= dict.fromkeys(itertools.takewhile(lambda key: key not in ADVANTAGES, row.record))
    named = [key for key in before if key in rated and key not in NO_REWARD and "reward" in key.lower()]
    if named or not any(row.of_lists or not row.record.keys().isdisjoint(ADVANTAGES) for row in rows):
        return named
    numbers = {key for row in rows for key, value in row.record.items() if is_number(value)}
    found = [key for key in before if key in numbers and key not in NO_REWARD]
    if len(found) > 1:
        names = ", ".join(found)
        logger.warning(
            "the quality is the sum of %s: if it is not, name the right one, %s", names, spelled("quality_key")
        )
    return found
