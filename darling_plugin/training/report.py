"""How good a partition model is on labelled pairs: numbers with intervals, calibration, pictures."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from darling_plugin.partition.clustering import DEFAULT_CLUSTERING
from darling_plugin.training.group_report import group_figures, of_sources
from darling_plugin.training.pairs import LabelledGroup, LabelledPair, groups_of

RESAMPLES = 1000  # of the bootstrap
LEVEL = 0.95
BINS = 10  # of the reliability curve
THRESHOLDS = [k / 20 for k in range(1, 20)]  # of which the report says how many pairs each joins

# Scores of each cut, by the weight of the similar pairs above it and of the different ones below it.
AIMS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": lambda similar, different: (similar + different).astype(float),
    "balanced_accuracy": lambda similar, different: (
        similar / max(similar[0], 1e-9) + different / max(different[-1], 1e-9)
    ),
    "f1": lambda similar, different: 2 * similar / np.maximum(similar[0] + similar + different[-1] - different, 1e-9),
}


@dataclass(frozen=True)
class Measure:
    """A value with its bootstrap interval, low to high, over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def best_threshold(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None, aim: str = "accuracy"
) -> float:
    """The probability above which calling pairs similar is best, by one of AIMS.

    accuracy is the share of pairs told right; balanced_accuracy the mean of that among the similar and among the
    others, which does not depend on how many there are of either; f1 that of the similar.

    Of all cuts between two neighbouring probabilities the score is smoothed over the nearest 5 % of the pairs, for
    its highest single peak is mostly luck.

    Args:
        weights: (M,) how much each pair counts; default: all alike.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    order = np.argsort(probabilities)
    labels, probabilities, weights = labels[order], probabilities[order], weights[order]
    # Equal probabilities have no order and no cut between them: each gets the share of their labels.
    _, of_equals = np.unique(probabilities, return_inverse=True)
    labels = (np.bincount(of_equals, labels * weights) / np.bincount(of_equals, weights))[of_equals]
    # Cut k calls the first k pairs different: right about each 0 before it and each 1 after it.
    different = np.concatenate([[0], np.cumsum(weights * (1 - labels))])
    similar = (weights * labels).sum() - np.concatenate([[0], np.cumsum(weights * labels)])
    scores = AIMS[aim](similar, different)
    width = max(1, len(labels) // 20)
    padded = np.pad(scores, width, mode="reflect" if len(scores) > width else "edge")
    smooth = np.convolve(padded, np.ones(2 * width + 1) / (2 * width + 1), mode="valid")
    smooth[1:-1][probabilities[1:] == probabilities[:-1]] = -np.inf
    # Ends aside: a model that calls everything the same is no partition model.
    cut = 1 + int(np.argmax(smooth[1:-1])) if len(smooth) > 2 else 1
    return float((probabilities[cut - 1] + probabilities[min(cut, len(labels) - 1)]) / 2)


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean distance of the share of similar pairs from the mean probability, over BINS bins of equally many pairs."""
    parts = reliability(labels, probabilities)
    return float(sum(count * abs(said - found) for said, found, count in parts) / len(labels))


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[float, float, int]]:
    """For each bin: the mean probability, the share of similar pairs, how many pairs."""
    parts = [part for part in np.array_split(np.argsort(probabilities, kind="stable"), BINS) if len(part)]
    return [(float(probabilities[part].mean()), float(labels[part].mean()), len(part)) for part in parts]


def measures(
    pairs: Sequence[LabelledPair], probabilities: np.ndarray, thresholds: np.ndarray, seed: int = 0
) -> dict[str, Measure]:
    """Accuracy, balanced accuracy, F1, ROC-AUC and calibration error; thresholds (M,) are those of each pair's fold.

    The interval is a percentile bootstrap over prompts, for pairs of one prompt are no independent evidence.
    """
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

    labels = np.array([pair.similar for pair in pairs])
    called = (probabilities > thresholds).astype(int)
    numbers: dict[str, Callable[[np.ndarray], float]] = {
        "accuracy": lambda at: accuracy_score(labels[at], called[at]),
        "balanced_accuracy": lambda at: balanced_accuracy_score(labels[at], called[at]),
        "f1": lambda at: f1_score(labels[at], called[at], zero_division=0.0),
        "roc_auc": lambda at: roc_auc_score(labels[at], probabilities[at]),
        "calibration_error": lambda at: expected_calibration_error(labels[at], probabilities[at]),
    }
    of_prompt: dict[str, list[int]] = {}
    for k, pair in enumerate(pairs):
        of_prompt.setdefault(pair.prompt, []).append(k)
    clusters = [np.array(own) for own in of_prompt.values()]
    random = np.random.default_rng(seed)
    samples = []
    while len(samples) < RESAMPLES:
        at = np.concatenate([clusters[k] for k in random.integers(len(clusters), size=len(clusters))])
        if 0 < labels[at].sum() < len(at):  # a sample with one label has no AUC
            samples.append([number(at) for number in numbers.values()])
    edges = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    everything = np.arange(len(pairs))
    return {
        name: Measure(float(number(everything)), float(low), float(high))
        for (name, number), low, high in zip(numbers.items(), *edges, strict=True)
    }


def partitions_agree(
    pairs: Sequence[LabelledPair], probabilities: np.ndarray, thresholds: np.ndarray, clustering: str
) -> tuple[int, int]:
    """Of the groups of three or more responses with all pairs labelled: how many get the classes of their labels.

    The labels' are union-find's, those of the probabilities `clustering`'s. Returns agreeing, all.
    """
    import torch

    from darling_plugin.partition.clustering import cluster

    of_group: dict[int | None, list[int]] = defaultdict(list)
    for k, pair in enumerate(pairs):
        of_group[pair.group].append(k)
    count = agree = 0
    for at in of_group.values():
        own = [pairs[k] for k in at]
        said = {
            (pair.prompt, frozenset((pair.first, pair.second))): (float(probabilities[k]), float(thresholds[k]))
            for k, pair in zip(at, own, strict=True)
        }
        for prompt, responses, labels in groups_of(own):
            threshold = said[prompt, frozenset(responses[:2])][1]  # one fold's: a prompt is not split
            called = [[1.0 if a == b else said[prompt, frozenset((a, b))][0] for b in responses] for a in responses]
            true = cluster(torch.tensor(labels).float(), 0.5)
            found = cluster(torch.tensor(called, dtype=torch.float64), threshold, clustering)
            agree, count = agree + int(torch.equal(true, found)), count + 1
    return agree, count


def write(
    folder: Path,
    pairs: Sequence[LabelledPair],
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    facts: dict[str, Any],
    seed: int = 0,
    groups: Sequence[LabelledGroup] = (),
    clustering: str = DEFAULT_CLUSTERING,
) -> str:
    """Writes report.json, predictions.jsonl, roc.png, reliability.png, scores.png; returns the numbers to print.

    A line of predictions.jsonl is a pair tested on, by the line of the input that it was read from.

    Args:
        probabilities: (M,) P(similar) of each pair, by a model that was trained without that pair's prompt.
        thresholds: (M,) that model's.
        facts: what else belongs into report.json.
        groups: of which a diversity is measured, those of whose pairs all are among the pairs.
        clustering: of the model.
    """
    labels = np.array([pair.similar for pair in pairs])
    found = measures(pairs, probabilities, thresholds, seed)
    agree, count = partitions_agree(pairs, probabilities, thresholds, clustering)
    sources = of_sources(pairs, probabilities, thresholds)
    diversities = group_figures(groups, pairs, probabilities, thresholds)
    report = {
        **facts,
        "pairs": len(pairs),
        "similar": int(labels.sum()),
        "prompts": len({pair.prompt for pair in pairs}),
        "measures": {name: asdict(each) for name, each in found.items()},
        "interval": f"{LEVEL:.0%}, bootstrap over prompts, {RESAMPLES} resamples",
        "sources": sources,
        "groups": diversities,
        "partitions": {"groups": count, "agree": agree},
        "reliability": [{"said": said, "found": share, "pairs": count} for said, share, count in
                        reliability(labels, probabilities)],
        "thresholds": [{"threshold": at, "similar_joined": float((probabilities > at)[labels == 1].mean()),
                        "different_joined": float((probabilities > at)[labels == 0].mean())} for at in THRESHOLDS],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    with open(folder / "predictions.jsonl", "w") as predictions:
        for pair, probability, threshold in zip(pairs, probabilities.tolist(), thresholds.tolist(), strict=True):
            row = {
                "source": pair.source,
                "line": pair.line,
                "similar": pair.similar,
                "probability": probability,
                "threshold": threshold,
            }
            predictions.write(json.dumps(row) + "\n")
    _plot(folder, labels, probabilities, float(np.median(thresholds)))
    lines = [f"{name.replace('_', ' '):<18} {each}" for name, each in found.items()]
    if count:
        lines.append(f"{'partitions':<18} {agree} of {count} groups agree with their labels")
    lines += [
        f"{name + ', P(similar)':<30} said {own['said']:.2f}, found {own['similar']:.2f}, of {own['pairs']} pairs"
        for name, own in sources.items()
    ]
    for name, own in diversities.items():
        of = {each: math.nan if value is None else value for each, value in own["expected"].items()}
        lines.append(
            f"{name + ', expected diversity':<40} correlation {of['correlation_of_groups']:.2f}, push "
            f"{of['push']:.2f}, error {of['error']:.3f} of {of['error_of_none']:.3f}"
        )
    return "\n".join(lines)


def _plot(folder: Path, labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> None:
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_auc_score, roc_curve

    def axes(title: str, x: str, y: str) -> tuple[Figure, Any]:
        figure = Figure(figsize=(5, 4.4), layout="constrained")
        plot = figure.add_subplot(title=title, xlabel=x, ylabel=y)
        plot.spines[["top", "right"]].set_visible(False)
        return figure, plot

    figure, plot = axes("Which pairs are similar", "false positives", "true positives")
    false, true, _ = roc_curve(labels, probabilities)
    plot.plot(false, true, label=f"AUC {roc_auc_score(labels, probabilities):.3f}")
    at = probabilities > threshold
    plot.plot(at[labels == 0].mean(), at[labels == 1].mean(), "o", label=f"threshold {threshold:.2f}")
    plot.plot([0, 1], [0, 1], ":", color="grey")
    plot.legend(loc="lower right")
    figure.savefig(folder / "roc.png", dpi=120)

    figure, plot = axes("Calibration", "P(similar), mean of a tenth of the pairs", "share of them that is similar")
    said, found, counts = (np.array(each) for each in zip(*reliability(labels, probabilities), strict=True))
    plot.plot([0, 1], [0, 1], ":", color="grey")
    error = 1.96 * np.sqrt(found * (1 - found) / counts)
    plot.errorbar(said, found, [np.minimum(error, found), np.minimum(error, 1 - found)], fmt="o-", capsize=2)
    figure.savefig(folder / "reliability.png", dpi=120)

    figure, plot = axes("Scores by label", "P(similar)", "pairs")
    edges = np.linspace(0, 1, 26)
    plot.hist([probabilities[labels == 0], probabilities[labels == 1]], edges, label=["different", "similar"])
    plot.axvline(threshold, color="black", linewidth=1, label=f"threshold {threshold:.2f}")
    plot.legend()
    figure.savefig(folder / "scores.png", dpi=120)
