"""How far apart healthy weight syncs leave the log-probabilities, and how rarely a look would stop a healthy run.

python benchmarks/sync_healthy.py LOG...

Each LOG is what a healthy CPU run printed. Each sync has a reading in it: the distance between vLLM's and the
trainer's log-probabilities, in % of their spread. One that repeats the one before is left out: its weights are
the same, after a step that did not fill its batch. So is the first of each run but one: all start from one model. The
tail of the rest is taken for that of a Gumbel distribution with their mean and standard deviation; it gives the chance
that a look exceeds the tolerance, in `the largest of each ten` that one of ten looks does. `drift` is the slope of a
straight line over a run's syncs. The most pessimistic row comes first. SmolLM2-135M-Instruct, learning rate 4e-5,
trainer and vLLM in bfloat16: runs of docs/study.md, of the demo and of its tests, at the commits b18d4be to b849c2d.
"""

import argparse
import math
import re
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
from common import save

from darling_plugin.openrlhf.weight_sync import TOLERANCE

READING = re.compile(
    r"weights synced, (\d+) tensors, (\d+) of them not to be followed, "
    r"log-probabilities of vLLM and the trainer differ by ([\d.]+)%"
)
STOPPED = "do not reach CPU vLLM whole"
LONG = 20  # readings of a run that has a row of its own

Readings = list[tuple[int, float]]  # the number of the sync in its run, from 0; in %


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG")
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in parser.parse_args().logs]
    runs = [readings(log) for log in logs]
    save(
        "sync_healthy",
        "Healthy weight syncs",
        __doc__,
        table(runs),
        syncs=sum(map(len, runs)),
        runs=len(runs),
        stopped=sum(STOPPED in log for log in logs),
        tensors=sorted({tuple(map(int, found)) for log in logs for *found, _ in READING.findall(log)}),
        readings=[[each for _, each in run] for run in runs],
    )


def readings(log: str) -> Readings:
    return [(k, float(gap)) for k, (*_, gap) in enumerate(READING.findall(log))]


def changed(run: Readings) -> Readings:
    """Without those that repeat the one before."""
    return [each for k, each in enumerate(run) if k == 0 or each[1] != run[k - 1][1]]


def table(runs: list[Readings]) -> list[dict]:
    """The fits, the one with the greatest chance first."""
    runs = [changed(run) for run in runs if run]
    trained = [run[1:] for run in runs]
    everything = [runs[0][0], *(each for run in trained for each in run)]
    rows = [
        row("all", everything),
        row("the first half of each run", [each for run in trained for each in run[: len(run) // 2]]),
        row("the second half of each run", [each for run in trained for each in run[len(run) // 2 :]]),
        row("the largest of each ten", [max(ten, key=lambda each: each[1]) for run in trained for ten in tens(run)]),
    ]
    long = [run for run in trained if len(run) >= LONG]
    rows += [row(f"run {k + 1}", run) for k, run in enumerate(long)]
    return sorted(rows, key=lambda each: -float(each["chance of more than the tolerance"]))


def tens(run: Readings) -> list[Readings]:
    return [run[k : k + 10] for k in range(0, len(run) - 9, 10)]


def row(name: str, found: Readings) -> dict:
    at, gaps = zip(*found, strict=True)
    return {
        "readings of": name,
        "readings": len(gaps),
        "median, %": median(gaps),
        "most, %": max(gaps),
        "drift, points in 50 syncs": 50 * float(np.polyfit(at, gaps, 1)[0]),
        "chance of more than the tolerance": f"{chance(gaps, 100 * TOLERANCE):.0e}",
    }


def chance(gaps: tuple[float, ...], tolerance: float) -> float:
    """P(X > tolerance), X of the Gumbel distribution with the mean and standard deviation of the gaps."""
    scale = stdev(gaps) * math.sqrt(6) / math.pi
    location = mean(gaps) - np.euler_gamma * scale
    return -math.expm1(-math.exp(-(tolerance - location) / scale))


if __name__ == "__main__":
    main()
