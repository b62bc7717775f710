"""NoveltyBench's files, as its own scripts write them: keys are cumulative, a JSON object a line.

`distinct` there is the largest class number, one less than there are classes; `generation_scores` are 0 unless the
class is new, `partition_scores` one a class. Its score step (github novelty-bench/novelty-bench) asserts the classes'
order.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.measures import utility
from darling_plugin.evaluation.samples import Samples

# Skywork-Reward-Gemma-2-27B-v0.2's deciles, from NoveltyBench.
DECILES = (-7.71875, -6.28125, -6, -5.71875, -5.5, -5, -4.375, -3.4375, -2.046875)
FILES = ("generations", "partitions", "scores")


def decile(reward: float) -> int:
    """1 to 10: 1 and how many of DECILES the reward exceeds; the score step takes one that equals it for lower too.

    Raises DarlingError for NaN and infinity.
    """
    if not math.isfinite(reward):
        raise DarlingError("a finite logit, for its decile", f"{reward}", "look at what the reward model gives")
    return bisect.bisect_left(DECILES, reward) + 1


def by_first_appearance(labels: Sequence[int]) -> list[int]:
    """The classes numbered from 0 in the order in which they first appear, which the score step asserts."""
    number: dict[int, int] = {}
    return [number.setdefault(label, len(number)) for label in labels]


def lines(samples: Samples, labels: Sequence[int], model: str) -> dict[str, dict[str, Any]]:
    """The lines of one prompt by file; of scores only where the samples have a quality."""
    generations = {
        "id": samples.id,
        "prompt": samples.prompt,
        "model": model,
        "generations": samples.responses,
    }
    partition = by_first_appearance(labels)
    found = {"generations": generations}
    found["partitions"] = generations | {"partition": partition, "distinct": max(partition)}
    if samples.quality is not None:
        first = [partition.index(label) for label in range(max(partition) + 1)]
        scores = [samples.quality[k] for k in first]
        is_first = [k in first for k in range(len(partition))]
        found["scores"] = found["partitions"] | {
            "generation_scores": [q if new else 0 for q, new in zip(samples.quality, is_first, strict=True)],
            "partition_scores": scores,
            "utility": utility(partition, samples.quality),
            "quality": samples.quality,  # no key of its own: what a response is worth whose class came before
        }
    return found


def write(folder: Path, of_prompts: Sequence[dict[str, dict[str, Any]]]) -> None:
    """generations.jsonl, partitions.jsonl, and where every prompt has scores scores.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        rows = [each[name] for each in of_prompts if name in each]
        if len(rows) == len(of_prompts):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", errors="backslashreplace")
