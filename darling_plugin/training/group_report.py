"""What a partition model's judgements of pairs make of labelled groups: their diversity, and by source."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from darling_plugin.training.pairs import LabelledGroup, LabelledPair

ALL = "all groups"


def of_sources(pairs: Sequence[LabelledPair], probabilities: np.ndarray, thresholds: np.ndarray) -> dict[str, Any]:
    """For each source of pairs: how many, the share of similar ones, the mean probability, and what is told right.

    `said` and `similar` are equal where the probabilities are calibrated for the source's base rate. NaN is no JSON:
    a figure that takes both labels is None for a source that has one.
    """
    from sklearn.metrics import roc_auc_score

    from darling_plugin.training.report import expected_calibration_error

    at_source: dict[str, list[int]] = defaultdict(list)
    for k, pair in enumerate(pairs):
        at_source[pair.source].append(k)
    found = {}
    for source, at in sorted(at_source.items()):
        labels, own = np.array([pairs[k].similar for k in at]), probabilities[at]
        above = own > thresholds[at]
        both = 0 < labels.sum() < len(labels)
        found[source] = {
            "pairs": len(at),
            "similar": float(labels.mean()),
            "said": float(own.mean()),
            "calibration_error": expected_calibration_error(labels, own),
            "similar_joined": float(above[labels == 1].mean()) if labels.any() else None,
            "different_joined": float(above[labels == 0].mean()) if not labels.all() else None,
            "roc_auc": float(roc_auc_score(labels, own)) if both else None,
        }
    return found


def group_figures(
    groups: Sequence[LabelledGroup], pairs: Sequence[LabelledPair], probabilities: np.ndarray, thresholds: np.ndarray
) -> dict[str, Any]:
    """For all groups and each source: the figures of evaluation/within_group.py by kind of diversity, and ARI.

    Kinds are classes (union-find above the threshold), average (classes by average linkage), pairs and expected, as in
    diversity.py; the true diversity is that of the labels' classes. ARI: their mean adjusted Rand index. A group
    counts if all its pairs of different texts were tested; none: no figures.
    """
    of_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for group, found in zip(groups, group_diversities(groups, pairs, probabilities, thresholds), strict=True):
        if found is not None:
            of_source[group.source].append(found)
    if not of_source:
        return {}
    everything = [each for own in of_source.values() for each in own]
    return {ALL: _figures(everything)} | {source: _figures(own) for source, own in sorted(of_source.items())}


def group_diversities(
    groups: Sequence[LabelledGroup], pairs: Sequence[LabelledPair], probabilities: np.ndarray, thresholds: np.ndarray
) -> list[dict[str, Any] | None]:
    """Of each group its diversity (n,) by kind, its labels' as `true`, and `ari`; None if a pair was not tested."""
    judged = {
        (pair.group, frozenset((pair.first.strip(), pair.second.strip()))): (float(p), float(threshold))
        for pair, p, threshold in zip(pairs, probabilities, thresholds, strict=True)
        if pair.group is not None
    }
    return [_diversities(group, judged) for group in groups]


def _diversities(
    group: LabelledGroup, judged: dict[tuple[int, frozenset[str]], tuple[float, float]]
) -> dict[str, Any] | None:
    import torch
    from sklearn.metrics import adjusted_rand_score

    from darling_plugin.diversity import class_diversity, expected_diversity, pair_diversity
    from darling_plugin.partition.clustering import cluster

    texts, n = [each.strip() for each in group.responses], len(group.responses)
    probability, threshold = torch.ones(n, n, dtype=torch.float64), 0.0
    for i in range(n):
        for j in range(n):
            if texts[i] != texts[j]:
                if (both := judged.get((group.number, frozenset((texts[i], texts[j]))))) is None:
                    return None
                probability[i, j], threshold = both  # a group is of one fold
    classes = cluster(probability, threshold)
    return {
        "true": class_diversity(torch.tensor(group.labels)),
        "classes": class_diversity(classes),
        "average": class_diversity(cluster(probability, threshold, "average")),
        "pairs": pair_diversity(probability > threshold),
        "expected": expected_diversity(probability),
        "ari": adjusted_rand_score(group.labels, classes.tolist()),
    }


def _figures(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from darling_plugin.evaluation.within_group import within_group

    true = [each["true"] for each in found]
    figures: dict[str, Any] = {"adjusted_rand_index": float(np.mean([each["ari"] for each in found]))}
    for kind in ("classes", "average", "pairs", "expected"):
        own = asdict(within_group([each[kind] for each in found], true))
        figures[kind] = {name: value if math.isfinite(value) else None for name, value in own.items()}
    return figures
