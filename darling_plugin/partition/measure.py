"""Groups -> labels and diversity: what a partition model returned, checked and measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from darling_plugin.diversity import class_diversity, compute_diversity
from darling_plugin.errors import DarlingError, spelled
from darling_plugin.partition.base import Group, PartitionModel, SimilarityModel, start, to_tensor
from darling_plugin.partition.clustering import cluster
from darling_plugin.partition.engine.device import breaks_accelerator

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass
class Measurement:
    """One group's partition and diversity.

    labels: (n,) int64 class of each response, from 0 to the number of classes - 1. diversity: (n,) float32 in [0, 1].
    similarity: (n, n) float32, as SimilarityModel.all_similarities gives it; None where it was not needed.
    cut_share: of what the model read in the call that measured this group, the share that it did not read to its end;
    None of a model that has no `cuts`.
    """

    labels: torch.LongTensor
    diversity: torch.FloatTensor
    similarity: torch.FloatTensor | None = None
    cut_share: float | None = None


def check_diversity(model: type[PartitionModel], diversity: str) -> None:
    """Whether that kind of diversity (one of DIVERSITIES) can be made of what such a model gives.

    Raises DarlingError for a model without similarities, unless the kind is "classes". Warns where "expected" takes a
    similarity for a probability that nobody has calibrated.
    """
    _check_similarities(model, diversity)
    if diversity == "expected" and not (model.calibrated or model.is_overlap):
        logger.warning(
            "%s expected takes the similarity of %s for the probability that two responses are equivalent, and it is "
            "none: the diversity may be far too high or too low throughout. Models with calibrated = True are made "
            "for it, such as default",
            spelled("diversity"),
            model.__name__,
        )


def _check_similarities(model: type[PartitionModel], diversity: str) -> None:
    if diversity != "classes" and not issubclass(model, SimilarityModel):
        raise DarlingError(
            f"a partition model with similarities, for {spelled('diversity')} {diversity}",
            f"{model.__name__}, which gives classes alone",
            f"pass {spelled('diversity')} classes, or another partition model",
        )


def measure(
    model: PartitionModel, groups: Sequence[Group], diversity: str = "classes", *, with_similarity: bool = False
) -> list[Measurement]:
    """Labels and diversity of every group, in order; checks what the model returned.

    Args:
        diversity: one of DIVERSITIES; "pairs" and "expected" need a SimilarityModel (:func:`check_diversity`).
        with_similarity: whether the similarities are wanted too: every pair is scored for them. They come anyway with
            other diversities than "classes" and with average linkage. Of a model that gives classes alone they are 1
            within a class, else 0.
    """
    if not groups:
        return []
    _check_similarities(type(model), diversity)
    before = replace(model.cuts) if model.cuts else None
    measurements = _measure(model, groups, diversity, with_similarity)
    if before is None:
        return measurements
    read, cut = model.cuts.read - before.read, model.cuts.cut - before.cut
    return [replace(each, cut_share=cut / max(read, 1)) for each in measurements]


def _measure(
    model: PartitionModel, groups: Sequence[Group], diversity: str, with_similarity: bool
) -> list[Measurement]:
    if isinstance(model, SimilarityModel) and (
        with_similarity or diversity != "classes" or model.clustering == "average"
    ):
        return [_of_similarity(model, diversity, each) for each in model.all_similarities(groups)]

    owner = type(model).__name__
    needed = f"one result a group from {owner}.partition"
    # Copies: a model may work in place, and the responses are written out, or tried again one group at a time.
    results = model.partition([Group(group.prompt, group.responses) for group in groups])
    try:
        results = list(results)
    except TypeError as error:
        raise DarlingError(needed, type(results).__name__, "return a list of labels") from error
    if len(results) != len(groups):
        raise DarlingError(
            needed, f"{len(results)} for {len(groups)} groups", "return them in the order of the groups"
        )
    all_labels = [_checked_labels(result, group, owner) for result, group in zip(results, groups, strict=True)]
    return [
        Measurement(labels, class_diversity(labels), (labels[:, None] == labels).float() if with_similarity else None)
        for labels in all_labels
    ]


def measure_each(
    model: PartitionModel, groups: Sequence[Group], diversity: str = "classes", *, with_similarity: bool = False
) -> list[Measurement | BaseException]:
    """What :func:`measure` gives for each group, or what it raised for that one.

    All together first. If that fails they are measured one by one, so that only the groups that cause the failure
    suffer from it. Ctrl-C passes through, and so does an error that broke the accelerator: one by one all would fail.
    """
    try:
        return measure(model, groups, diversity, with_similarity=with_similarity)
    except BaseException as error:  # a SystemExit, or a panic in a tokenizer, is no Exception
        if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
            raise  # Ctrl-C reaches the main thread alone; in another one the model itself has raised it
        if breaks_accelerator(error):
            raise
        if len(groups) == 1:
            return [error]
    return [measure_each(model, [group], diversity, with_similarity=with_similarity)[0] for group in groups]


def _of_similarity(model: SimilarityModel, diversity: str, similarity: torch.FloatTensor) -> Measurement:
    labels = cluster(similarity, model.threshold, model.clustering)
    return Measurement(labels, compute_diversity(diversity, labels, similarity, model.threshold), similarity)


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
