"""Groups of a step that a person should see: the best, the worst, and one at random, as rows and as Markdown."""

from __future__ import annotations

import html
import random
from typing import TYPE_CHECKING, Any

from darling_plugin.queries import asked

if TYPE_CHECKING:
    import torch

COLUMNS = ("step", "group", "prompt", "class", "response", "quality", "diversity", "reward", "advantage")
LONGEST = 500  # characters of a text in Markdown


def choose(reward: torch.Tensor, seed: int) -> dict[str, int]:
    """Places of the groups with the highest and the lowest mean reward, and of another; fewer where there are fewer.

    Args:
        reward: (P, n).
        seed: of the random one.
    """
    mean = reward.mean(dim=-1)
    chosen = {"best": int(mean.argmax()), "worst": int(mean.argmin())}
    if chosen["worst"] == chosen["best"]:  # one group, or all alike
        del chosen["worst"]
    others = sorted(set(range(len(reward))) - set(chosen.values()))
    return chosen | ({"random": random.Random(seed).choice(others)} if others else {})


def rows(record: dict[str, Any], name: str, step: int) -> list[list[Any]]:
    """One row of COLUMNS a response of a group, class by class.

    Args:
        record: as a line of partitions.jsonl; labels and diversity None where it could not be partitioned.
        name: "best", "worst" or "random".
    """
    n = len(record["responses"])
    labels, diversity, advantage = (record[key] or [None] * n for key in ("labels", "diversity", "advantage"))
    question = asked(record["prompt"])
    return [
        [
            *(step, name, question, labels[k], record["responses"][k]),
            *(record["quality"][k], diversity[k], record["reward"][k], advantage[k]),
        ]
        for k in sorted(range(n), key=lambda k: (labels[k] is not None and labels[k] < 0, labels[k] or 0))
    ]


def markdown(tables: list[list[list[Any]]]) -> str:
    """Tables of `rows`, each under its name and prompt."""
    text = []
    for table in tables:
        _, name, question, *_ = table[0]
        text += [f"**{name}**: {_cell(question)}", "", f"| {' | '.join(COLUMNS[3:])} |", "|---|---|---|---|---|---|"]
        text += [f"| {' | '.join(map(_cell, row[3:]))} |" for row in table] + [""]
    return "\n".join(text)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}"
    short = " ".join(str(value).split())
    cut = short if len(short) <= LONGEST else short[:LONGEST] + "…"
    # Neither Markdown nor HTML of a response's own.
    return "".join(f"\\{char}" if char in r"\`*_{}[]()#+-!|~" else char for char in html.escape(cut, quote=False))
