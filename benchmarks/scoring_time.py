"""Seconds that a training step's scoring takes on CPU cores, one core an actor.

    python benchmarks/scoring_time.py

Made-up groups of 8 responses, all different and all as long as can be: the worst case. A few groups are scored with
one thread, one after the other, until they have taken a second; of the cross-encoder (ModernBERT-base's shape, random
weights, pairs of at most 2048 tokens) 4 responses, 6 of a group's 28 pairs. The CPU time of one is multiplied by the
groups of the step. Nothing is compiled, which in a long run gains. Two cores are two actors, which take a half of the
groups each: computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from common import console, save
from cross_encoders import path_of

from darling_plugin.openrlhf.scoring_time import made_up
from darling_plugin.partition import load_partition_model, measure

STEPS = ((32, 1024), (256, 8192))  # prompts, tokens a response
RESPONSES, ENOUGH = 8, 1.0


def cpu_seconds() -> float:
    """Of this process and the workers that it started, of the partition model `answer`."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def rows() -> Iterator[dict[str, Any]]:
    modernbert = f"cross-encoder:{path_of('modernbert-base')}?max_length=2048"
    for name, spec, responses in (
        ("lexical", "lexical", RESPONSES),
        ("answer", "answer", RESPONSES),
        ("embedding", "embedding", RESPONSES),
        ("default", "default", RESPONSES),
        ("cross-encoder, ModernBERT-base", modernbert, 4),
    ):
        torch.set_num_threads(1)
        # A random classifier's scores shall not spare pairs.
        model = load_partition_model(spec, **({"threshold": 1.0} if responses == 4 else {}))
        measure(model, [made_up(2, 64)])  # warms up
        for prompts, tokens in STEPS:
            began, started = cpu_seconds(), time.perf_counter()
            groups = 0
            while groups == 0 or cpu_seconds() - began < ENOUGH:
                measure(model, [made_up(responses, tokens)])
                groups += 1
            share = responses * (responses - 1) / (RESPONSES * (RESPONSES - 1))
            seconds = (cpu_seconds() - began) / groups / share
            console.print(f"{name} {tokens}: {seconds:.3g} s, {time.perf_counter() - started:.3g} s by the clock")
            yield {
                "model": name,
                "step": f"{prompts} x {RESPONSES} x {tokens}",
                "groups scored": groups,
                "their responses": responses,
                "CPU s a group": seconds,
                "s a step, 1 core": seconds * prompts,
                "s a step, 2 cores": seconds * prompts / 2,
            }


def main() -> None:
    save("scoring_time", "A training step's scoring on CPU cores", __doc__, rows())


if __name__ == "__main__":
    main()
