"""What a model reads at once: the token ids of a text, or of a pair of texts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class ModelInput:
    """The token ids of one text or pair: `beginning`, then `own`.

    Args:
        own: (t,) int64, t > 0.
        beginning: (b,) int64, empty for a text. Inputs of one call that begin alike share one array: CausalForward
            knows by it that they do.
        types: (b + t,) int64 token types, in all inputs of a call or in none; None: the model is given none.
    """

    own: np.ndarray
    beginning: np.ndarray = field(default_factory=lambda: NOTHING)
    types: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.beginning) + len(self.own)

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate([self.beginning, self.own])
