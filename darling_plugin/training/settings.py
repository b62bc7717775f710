"""What is asked of a training: the command's options, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.training.cross_encoder import Settings
from darling_plugin.training.pairs import Columns, Input

KINDS = ("head", "cross-encoder")


@dataclass(frozen=True)
class TrainingSettings:
    """How train_partition trains and tests.

    Args:
        inputs: labelled pairs and groups, each file with the weight of its pairs.
        output: folder for model and report, new or of an unfinished training of the same settings.
        kind: one of KINDS.
        split: of data sets.
        folds: into which the prompts are split; test_folds: those tested on, all of them for a head and one for a
            cross-encoder by default.
        threshold_for: what the threshold is best for, one of report.AIMS.
        encoder, dtype: of a head, as for HeadTrainer.
        adapt: inputs to train a head's adapter on; (): those of the head; None: it gets none.
        cross_encoder: how that is trained; its base "" for a head.
    """

    inputs: tuple[Input, ...]
    output: Path
    kind: str = "head"
    split: str = "train"
    columns: Columns = field(default_factory=Columns)
    folds: int = 5
    test_folds: int | None = None
    seed: int = 0
    threshold_for: str = "balanced_accuracy"
    encoder: str | None = None
    dtype: str | None = None
    adapt: tuple[Input, ...] | None = None
    cross_encoder: Settings = field(default_factory=lambda: Settings(""))

    @property
    def tested(self) -> int:
        """How many folds are tested on. DarlingError where there are not so many."""
        count = self.test_folds if self.test_folds is not None else self.folds if self.kind == "head" else 1
        if not 1 <= count <= self.folds:
            needed = f"{spelled('test_folds')} from 1 to {self.folds}"
            raise DarlingError(needed, f"{count}", "correct it, or the folds")
        return count
