"""How a model's diversities, of each kind, compare with those of labelled groups: darling-partition --report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from darling_plugin.diversity import DIVERSITIES, class_diversity, compute_diversity
from darling_plugin.evaluation.within_group import WithinGroup, within_group

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from darling_plugin.partition import Measurement


class Agreement:
    """Collects groups whose classes are known, and compares.

    Args:
        threshold: of a SimilarityModel, whose measurements have similarities; None: classes are all that there is.
    """

    def __init__(self, threshold: float | None) -> None:
        self._threshold = threshold
        self._true: list[torch.Tensor] = []
        self._given: dict[str, list[torch.Tensor]] = {
            kind: [] for kind in (DIVERSITIES if threshold is not None else DIVERSITIES[:1])
        }

    def add(self, true_labels: Sequence[int], measurement: Measurement) -> None:
        """true_labels: the class of each of the n responses."""
        import torch

        self._true.append(class_diversity(torch.tensor(true_labels)))
        for kind, given in self._given.items():
            given.append(compute_diversity(kind, measurement.labels, measurement.similarity, self._threshold))

    def figures(self) -> dict[str, WithinGroup]:
        """The figures of each kind of diversity; none where no group was added."""
        if not self._true:
            return {}
        return {kind: within_group(given, self._true) for kind, given in self._given.items()}

    def table(self) -> Table:
        """A row a kind: what an advantage sees of it (within_group)."""
        from rich.table import Table

        table = Table(title=f"diversity against the labels of {len(self._true)} groups, within the group")
        for column in ("diversity", "correlation", "push", "noise", "error", "flat groups"):
            table.add_column(column, justify="right")
        for kind, each in self.figures().items():
            numbers = (each.correlation, each.push, each.noise, each.error)
            table.add_row(kind, *(f"{number:.3f}" for number in numbers), f"{each.flat}")
            table.caption = f"error of no signal at all: {each.error_of_none:.3f}"
        return table
