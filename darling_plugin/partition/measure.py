"""Groups -> labels and diversity: what a partition model returned, checked and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from darling_plugin.diversity import class_diversity, pair_diversity
from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import Group, PartitionModel, SimilarityModel, start, to_tensor
from darling_plugin.partition.clustering import cluster

if TYPE_CHECKING:
    import torch


@dataclass
class Measurement:
    """One group's partition and diversity.

    labels: (n,) int64 class of each response, from 0 to the number of classes - 1. diversity: (n,) float32 in [0, 1].
    equivalent: (n, n) bool where the clustering is "pairwise", else None.
    """

    labels: torch.LongTensor
    diversity: torch.FloatTensor
    equivalent: torch.BoolTensor | None = None


def measure(model: PartitionModel, groups: Sequence[Group]) -> list[Measurement]:
    """Labels and diversity of every group, in order; checks what the model returned.

    Diversity is :func:`~darling_plugin.diversity.class_diversity` of the labels, or, for a SimilarityModel with
    clustering "pairwise", :func:`~darling_plugin.diversity.pair_diversity` of its judgements.
    """
    if not groups:
        return []
    if isinstance(model, SimilarityModel) and model.clustering == "pairwise":
        judged = model.equivalent(groups)
        return [Measurement(cluster(each, "pairwise"), pair_diversity(each), each) for each in judged]

    owner = type(model).__name__
    needed = f"one result a group from {owner}.partition"
    results = model.partition(groups)
    try:
        results = list(results)
    except TypeError as error:
        raise DarlingError(needed, type(results).__name__, "return a list of labels") from error
    if len(results) != len(groups):
        raise DarlingError(
            needed, f"{len(results)} for {len(groups)} groups", "return them in the order of the groups"
        )
    all_labels = [_checked_labels(result, group, owner) for result, group in zip(results, groups, strict=True)]
    return [Measurement(labels, class_diversity(labels)) for labels in all_labels]


def measure_each(model: PartitionModel, groups: Sequence[Group]) -> list[Measurement | BaseException]:
    """What :func:`measure` gives for each group, or what it raised for that one.

    All together first. If that fails they are measured one by one, so that only the groups that cause the failure
    suffer from it. Ctrl-C passes through.
    """
    try:
        return measure(model, groups)
    except BaseException as error:  # a SystemExit, or a panic in a tokenizer, is no Exception
        if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
            raise  # Ctrl-C reaches the main thread alone; in another one the model itself has raised it
        if len(groups) == 1:
            return [error]
    return [measure_each(model, [group])[0] for group in groups]


def _checked_labels(result: Any, group: Group, owner: str) -> torch.LongTensor:
    n = len(group.responses)
    needed = f"{n} integer labels >= 0 from {owner}.partition for the prompt that starts {start(group.prompt)}"
    labels = to_tensor(result, needed)
    numeric = str(labels.dtype).removeprefix("torch.")
    if not numeric.startswith(("int", "uint")) or tuple(labels.shape) != (n,):
        raise DarlingError(needed, f"{numeric} of shape {tuple(labels.shape)}", "return one class index a response")
    labels = labels.long()
    if labels.min() < 0:
        raise DarlingError(needed, f"the label {int(labels.min())}", "number the classes from 0")
    # Numbered like our own clusterings: by first appearance, without the gaps that a user's labels may have.
    number: dict[int, int] = {}
    return labels.new_tensor([number.setdefault(label, len(number)) for label in labels.tolist()])
