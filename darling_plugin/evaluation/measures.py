"""What a prompt's samples are worth: each figure of darling-evaluate, defined here once.

A figure is of one prompt; a model's is the mean over the prompts that have it, with a bootstrap over prompts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from darling_plugin.evaluation.monitor import compression, repetition
from darling_plugin.evaluation.samples import Samples
from darling_plugin.partition.base import UNSPACED

WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\S)+")
DECILES = ("partition_scores", ", deciles")  # what a quality in them is said to be from
PATIENCE = 0.8  # NoveltyBench's: how likely a reader goes on to the next response
RESAMPLES = 2000
LEVEL = 0.95
# How a reader asks: how good, how varied, both; then the rest. Those of k go with their name.
ORDER = (
    "quality",
    "distinct",
    "diversity",
    "expected_diversity",
    "pass",
    "distinct_correct",
    "utility",
    "darling_utility",
)


def none_of(n: int, c: int, k: int) -> float:
    """C(n - c, k) / C(n, k): how likely k of n responses, drawn without putting back, have none of c of them.

    ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n {n}, c {c}, k {k}")
    if n - c < k:
        return 0.0
    return math.exp(gammaln(n - c + 1) - gammaln(n - c - k + 1) - gammaln(n + 1) + gammaln(n - k + 1))


def pass_at(k: int, correct: Sequence[bool]) -> float:
    """1 - C(n - c, k) / C(n, k) with c of n responses correct: unbiased (arXiv 2107.03374)."""
    return 1 - none_of(len(correct), sum(map(bool, correct)), k)


def expected_distinct(k: int, labels: Sequence[int], counts: Sequence[bool] | None = None) -> float:
    """The number of classes that k of the n responses are expected to show.

    Sum over the classes of 1 - C(n - s, k) / C(n, k), with s the responses of the class; k = n: their number.

    Args:
        counts: (n,) which responses count, such as the correct ones; the others are drawn, and show nothing.
    """
    counts = [True] * len(labels) if counts is None else counts
    sizes = Counter(label for label, each in zip(labels, counts, strict=True) if each)
    return math.fsum(1 - none_of(len(labels), size, k) for size in sizes.values())


def mean_diversity(labels: Sequence[int]) -> float:
    """Mean over the responses of the share of the others in other classes (arXiv 2509.02534, section 3).

    ZeroDivisionError for one response: it has no others. Training, which has to give it a reward, leaves its quality.
    """
    n = len(labels)
    return sum(size * (n - size) for size in Counter(labels).values()) / (n * (n - 1))


def utility(labels: Sequence[int], scores: Sequence[float], patience: float = PATIENCE) -> float:
    """NoveltyBench's: sum of p^(i-1) new_i u_i / sum of p^(i-1), new_i where response i is the first of its class."""
    seen: set[int] = set()
    gained = weight = 0.0
    for i, (label, score) in enumerate(zip(labels, scores, strict=True)):
        gained += patience**i * score * (label not in seen)
        weight += patience**i
        seen.add(label)
    return gained / weight


def darling_utility(labels: Sequence[int], scores: Sequence[float]) -> float:
    """That of DARLING's copy of NoveltyBench: the score of each class's first response, their sum over n."""
    first = dict(zip(reversed(labels), reversed(scores), strict=True))
    return math.fsum(first.values()) / len(scores)


def figures(samples: Samples, labels: Sequence[int], ks: Sequence[int], *, verifiable: bool) -> dict[str, float]:
    """Every figure of one prompt that its samples have.

    Args:
        labels: (n,) class of each response, by a partition model.
        ks: for the figures of k responses; those above n are left out.
        verifiable: whether quality is 1 for correct and 0 for wrong, in all of the input.
    """
    n = len(samples.responses)
    ks = [k for k in ks if k <= n]
    found = {"distinct": float(len(set(labels)))}
    if n > 1:
        found["diversity"] = mean_diversity(labels)
    found |= {f"distinct_{k}": expected_distinct(k, labels) for k in ks if k > 1}
    if samples.quality is not None:
        found["quality"] = math.fsum(samples.quality) / n
        found["utility"] = utility(labels, samples.quality)
        found |= {f"utility_{k}": utility(labels[:k], samples.quality[:k]) for k in ks}
        found["darling_utility"] = darling_utility(labels, samples.quality)
        if verifiable:
            correct = [quality > 0 for quality in samples.quality]
            found |= {f"pass@{k}": pass_at(k, correct) for k in ks}
            found |= {f"distinct_correct_{k}": expected_distinct(k, labels, correct) for k in ks}
    found["words"] = math.fsum(map(word_count, samples.responses)) / n
    for sign in (repetition, compression):
        values = [sign(samples.prompt, response) for response in samples.responses]
        values = [value for value in values if not math.isnan(value)]
        if values:
            found[sign.__name__] = math.fsum(values) / len(values)
    return found


def word_count(text: str) -> int:
    """What stands between spaces; of a script without them each character."""
    return sum(1 for _ in WORD.finditer(text))


def is_verifiable(all_samples: Sequence[Samples]) -> bool:
    """Whether each quality is 0 or 1, and there is one. Of NoveltyBench's scores 1 alone is the lowest decile."""
    values = {value for each in all_samples for value in each.quality or ()}
    deciles = any((each.quality_from or "").endswith(DECILES) for each in all_samples)
    return bool(values) and values <= {0.0, 1.0} and not (deciles and 0.0 not in values)


@dataclass(frozen=True)
class Interval:
    """A mean over P prompts, and a bootstrap over prompts of it: its 2.5th and 97.5th percentile."""

    mean: float
    low: float
    high: float
    prompts: int


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Of the prompts' values, which are drawn again RESAMPLES times; ValueError for none. Of one it is a point."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("a mean needs at least one prompt")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def summary(of_prompts: Sequence[dict[str, float]], seed: int = 0) -> dict[str, Interval]:
    """The interval of each figure, over the prompts that have it; by ORDER."""
    names = in_order(name for each in of_prompts for name in each)
    return {name: interval([each[name] for each in of_prompts if name in each], seed) for name in names}


def in_order(names: Iterable[str]) -> list[str]:
    """The names of figures, each once, by ORDER; others as they come, last."""

    def place(name: str) -> int:
        kind = re.sub(r"[_@]\d+$", "", name)
        return ORDER.index(kind) if kind in ORDER else len(ORDER)

    return sorted(dict.fromkeys(names), key=place)


def paired(
    first: dict[str, dict[str, float]], second: dict[str, dict[str, float]], seed: int = 0
) -> dict[str, Interval]:
    """second - first for each figure, over the prompts that both have: dicts prompt -> figures.

    Prompts are drawn together, so that what makes a prompt easy for both is not counted as noise.
    """
    differences = [
        {name: second[prompt][name] - own[name] for name in own if name in second[prompt]}
        for prompt, own in first.items()
        if prompt in second
    ]
    return summary(differences, seed)


def of_like_length(first: Samples, second: Samples, tolerance: float = 0.1) -> tuple[list[int], list[int]]:
    """Which responses of two models to one prompt are compared at matched length: as many of each, in pairs.

    Both are sorted by words, and the shorter one of the two that come next is left out unless their lengths differ by
    at most `tolerance` of the longer: so most pairs are found that can be.
    """
    lengths = [[word_count(response) for response in each.responses] for each in (first, second)]
    orders = [sorted(range(len(own)), key=own.__getitem__) for own in lengths]
    kept: tuple[list[int], list[int]] = ([], [])
    i = j = 0
    while i < len(orders[0]) and j < len(orders[1]):
        a, b = lengths[0][orders[0][i]], lengths[1][orders[1][j]]
        if abs(a - b) <= tolerance * max(a, b):
            kept[0].append(orders[0][i])
            kept[1].append(orders[1][j])
            i, j = i + 1, j + 1
        elif a < b:
            i += 1
        else:
            j += 1
    return sorted(kept[0]), sorted(kept[1])
