"""Which groups a partition actor measures together: those that arrive in a burst, or while it is at work."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from darling_plugin.openrlhf.watchdog import Watchdog
from darling_plugin.partition import Group, Measurement
from darling_plugin.partition.engine.device import breaks_accelerator

SETTLING = 1.0  # seconds that a process started after a hang waits for the groups at hand
# How long an idle actor waits for more groups: a burst of finished prompts comes in one by one, and its first group
# would be a batch of its own. No group is held back longer than this.
GATHER_SECONDS = 0.005
# Characters of the responses in a batch, about 250,000 tokens, so that --darling.partition_timeout is a deadline for
# that much text, and not for however many groups have arrived. A single group may be longer. It is plenty for a GPU.
BATCH_CHARACTERS = 1_000_000
# Without a group before an actor rests: generation hands in its groups one by one, training comes after the last.
REST_AFTER = 1.0


@dataclass
class Waiting:
    """A group until it is measured; `measured` gets its Measurement or what was raised, and the seconds it took."""

    number: int
    group: Group
    measured: asyncio.Future


class Batcher:
    """Measures groups in batches.

    When idle, a batch is what arrives within GATHER_SECONDS of its first group; groups that arrive while a batch is
    being measured make up the next, which begins at once. A batch has at most BATCH_CHARACTERS: the rest waits.

    After an error of the accelerator that is no shortage of memory this process ends, and Ray starts another: every
    later call in it would fail.

    Args:
        measure_each: groups -> for each its Measurement, or what was raised for it; raises what broke the accelerator.
        rest: called, in a thread, when no group has come for REST_AFTER, and never while groups are measured; None:
            there is nothing to give back.
    """

    def __init__(
        self,
        measure_each: Callable[[list[Group]], list[Measurement | BaseException]],
        watchdog: Watchdog,
        rest: Callable[[], None] | None = None,
    ) -> None:
        # One thread for all batches: CUDA keeps a workspace for each thread that ever computed, of up to 32 MiB.
        self._thread = ThreadPoolExecutor(1)
        self._rest, self._awake, self._bursts = rest, asyncio.Lock(), 0
        self._measure_each = measure_each
        self._watchdog = watchdog
        self._waiting: list[Waiting] = []
        self._measuring: asyncio.Task | None = None

    async def measure(self, number: int, group: Group) -> tuple[Measurement, float]:
        """The group's measurement, and its share of the seconds that its batch took.

        Args:
            number: of the group in this run; the watchdog knows it by that.

        Raises what the partition model raised for this group, TimeoutError where it hung on it.
        """
        if number in self._watchdog.hung:
            raise TimeoutError(
                f"no answer within --darling.partition_timeout {self._watchdog.limit:g} s, or an error that broke the "
                "accelerator: this actor's log says which, and where"
            )
        waiting = Waiting(number, group, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure_waiting())
        outcome, seconds = await waiting.measured
        if isinstance(outcome, BaseException):
            # One that is no Exception, a SystemExit or a panic in a tokenizer, would end this process without a word.
            raise outcome if isinstance(outcome, Exception) else RuntimeError(repr(outcome))
        return outcome, seconds

    async def _in_thread(self, compute: Callable, *args: Any) -> Any:
        run = contextvars.copy_context().run  # which has the watchdog's ear
        return await asyncio.get_running_loop().run_in_executor(self._thread, run, compute, *args)

    async def _measure_waiting(self) -> None:
        async with self._awake:
            await self._measure_all()
        if self._rest is not None:
            self._bursts += 1
            self._resting = asyncio.create_task(self._rest_after(self._bursts))

    async def _rest_after(self, burst: int) -> None:
        await asyncio.sleep(REST_AFTER)
        if burst == self._bursts and self._measuring.done():
            async with self._awake:  # a group that comes now waits until all is given back, and then wakes the model
                await self._in_thread(self._rest)

    async def _measure_all(self) -> None:
        # After a hang Ray sends the groups at hand once more; those known to hang are to be answered before another
        # one may.
        await asyncio.sleep(SETTLING if self._watchdog.hung else GATHER_SECONDS)
        while self._waiting:
            arrived, self._waiting = self._waiting, []
            # Those that hung together are measured alone: the one that hangs again does so on its own account.
            alone = [[each] for each in arrived if each.number in self._watchdog.suspects]
            together = [each for each in arrived if each.number not in self._watchdog.suspects]
            for batch in [*_in_batches(together), *alone]:
                started = time.perf_counter()
                try:
                    with self._watchdog.over([each.number for each in batch]):
                        outcomes = await self._in_thread(self._measure_each, [each.group for each in batch])
                except Exception as error:
                    if breaks_accelerator(error):
                        self._watchdog.end([each.number for each in batch], error)
                    outcomes = [error] * len(batch)
                seconds = (time.perf_counter() - started) / len(batch)
                for each, outcome in zip(batch, outcomes, strict=True):
                    if not each.measured.done():  # OpenRLHF up to 0.11.0 cancels groups that it no longer needs
                        each.measured.set_result((outcome, seconds))


def _in_batches(waiting: list[Waiting]) -> Iterator[list[Waiting]]:
    batch, characters = [], 0
    for each in waiting:
        own = sum(map(len, each.group.responses))
        if batch and characters + own > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(each)
        characters += own
    if batch:
        yield batch
