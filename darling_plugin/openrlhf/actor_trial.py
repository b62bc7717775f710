"""A partition actor on trial, where the run's actors will be: for `python3 -m darling_plugin.check`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray

from darling_plugin.config import DarlingConfig
from darling_plugin.openrlhf.partition_actor import PartitionPool
from darling_plugin.openrlhf.responses import LABEL

# Two that say the same, and one that does not: any model takes them.
ANSWERS = ("The capital is Paris.", "The capital is Paris.", "I would go for Rome.")


@dataclass
class Loaded:
    """Where a partition actor came up, after how long, and how long its second group took."""

    node: str
    device: str
    start_seconds: float
    group_seconds: float
    responses: int = len(ANSWERS)


class _Letters:
    """A tokenizer of code points: what the policy's would decode to."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, token_ids))


def loaded_where_actors_run(config: DarlingConfig) -> Loaded:
    """Starts the run's pool with one actor in the Ray at hand, and has it score two groups.

    Raises what the pool or the model raises, and RuntimeError where identical responses are not one class.
    """
    began = time.monotonic()
    pool = PartitionPool(config, _Letters(), quality_expected=False)
    start_seconds = time.monotonic() - began
    for _ in range(2):  # the first warms up
        began = time.monotonic()
        scored = ray.get(pool.submit(ray.put(_group()), split="train", max_len=10**6))
    group_seconds = time.monotonic() - began
    labels = [response["extra_logs"][LABEL] for response in scored]
    if labels[0] != labels[1]:
        raise RuntimeError(f"identical responses in different classes: {labels}")
    return Loaded(pool.description["node"], pool.description["device"], start_seconds, group_seconds)


def _group() -> list[dict[str, Any]]:
    prompt = "Name a capital. "
    return [
        {
            "prompt": prompt,
            "observation_tokens": [ord(character) for character in prompt + answer],
            "action_ranges": [(len(prompt), len(prompt + answer))],
        }
        for answer in ANSWERS
    ]
