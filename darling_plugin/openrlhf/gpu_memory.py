"""The GPU memory of a partition actor: no more than its share, and given back while training has the GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from darling_plugin.errors import DarlingError
from darling_plugin.partition import PartitionModel
from darling_plugin.partition.base import out_of_memory

WAKE_WITHIN, WAKE_AGAIN = 60.0, 0.5  # seconds that a model waits for memory to wake in, and between its attempts


def bind_to_share(share: float) -> None:
    """Bounds what this process takes of the GPU's memory to `share` of it; 0, and 1 or more, bound nothing.

    Beyond it torch raises OutOfMemoryError here, where batches get smaller, and not in the training's backward pass.
    Called before the model loads: on the way it may take more than it keeps.
    """
    if 0 < share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


class GpuMemory:
    """What a partition model holds of the GPU that it shares with the models that train.

    Args:
        share: --darling.gpus_per_partition_actor.
        sleeps: --darling.partition_sleep: whether the weights go too, and not only what torch has cached.

    Attributes:
        used: whether there is anything to give back.
    """

    def __init__(self, model: PartitionModel, *, share: float, sleeps: bool) -> None:
        self._model, self._sleeps, self._asleep = model, sleeps, False
        if sleeps and getattr(model.sleep, "__func__", None) is PartitionModel.sleep:
            raise DarlingError(
                "a partition model that can give back its weights, for --darling.partition_sleep",
                f"{type(model).__name__}, which has no method sleep of its own",
                "drop the flag, or write sleep and wake",
            )
        self.used = sleeps or (share > 0 and torch.cuda.is_available())

    def awake(self, measure: Callable[..., Any]) -> Callable[..., Any]:
        """`measure`, which wakes the model first."""

        def measured(*args: Any) -> Any:
            if self._asleep:
                self._wake()
                self._asleep = False
            return measure(*args)

        return measured

    def _wake(self) -> None:
        """Waits for memory, as while an asynchronous run's training has the GPU; what has moved already stays."""
        until = time.monotonic() + WAKE_WITHIN
        while True:
            try:
                return self._model.wake()
            except Exception as error:
                if not out_of_memory(error) or time.monotonic() > until:
                    raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            time.sleep(WAKE_AGAIN)

    def give_back(self) -> None:
        if self._sleeps and not self._asleep:
            self._model.sleep()
            self._asleep = True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
