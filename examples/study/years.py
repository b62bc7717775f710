"""The study's second task, verifiable by arithmetic alone: a year between two others. Its prompts and its reward.

    --reward.remote_url examples/study/years.py

The untrained model is right one time in four, and finds few of the 19 to 59 right years: docs/study.md says which
other tasks were measured. The label of a prompt is the two years, joined with ``-``.
"""

import random
import re

import torch

from darling_plugin.queries import response_of

YEAR = re.compile(r"(?<![\w.,])\d{4}(?!\w|[.,]\d)")  # no decade such as 1930s, no number of five digits
PROMPTS = 136  # as many as the first task has


def records() -> list[dict[str, str]]:
    """The prompts and their labels, always the same."""
    spans = [(first, first + width) for first in range(1700, 1990, 5) for width in (20, 30, 40, 50, 60)]
    spans = [(first, last) for first, last in spans if last <= 2020]
    chosen = random.Random(0).sample(spans, PROMPTS)
    return [
        {"input": f"What is one example of a year between {first} and {last}?", "answers": f"{first}-{last}"}
        for first, last in chosen
    ]


def named_year(response: str, label: str) -> str | None:
    """The first year that the response names, but for the two of the question; None where it is not between them."""
    first, last = label.split("-")
    named = [year for year in YEAR.findall(response) if year not in (first, last)]
    return named[0] if named and int(first) < int(named[0]) < int(last) else None


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict:
    """1 for a response whose first year lies between those of its label, else 0."""
    responses = [response_of(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    rewards = [float(named_year(*each) is not None) for each in zip(responses, labels, strict=True)]
    reward_tensor = torch.tensor(rewards, dtype=torch.float32)
    return {"rewards": reward_tensor, "scores": reward_tensor, "extra_logs": {}}
