"""Where groups are dispatched to: Ray actors that hold the partition model and score a group once it is generated.

A group's generation ref goes straight into `PartitionActor.score`; Ray starts that call when the generation ends, so
scoring overlaps the generation of every other group.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import platform
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import torch

from darling_plugin.config import AUTO, DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.monitor import text_signs
from darling_plugin.openrlhf import placement, responses
from darling_plugin.openrlhf.batching import Batcher
from darling_plugin.openrlhf.gpu_memory import GpuMemory, bind_to_share
from darling_plugin.openrlhf.scoring_time import Step, Timed, cannot_be_timed, choose, said, time_group
from darling_plugin.openrlhf.watchdog import Watchdog
from darling_plugin.partition import Group, Measurement, load_partition_model, measure_each
from darling_plugin.partition.text import read_partition_text
from darling_plugin.quality_gate import NONE, read_quality_gate
from darling_plugin.user_code import import_user_code

logger = logging.getLogger(__name__)

# How often Ray submits a group again whose actor died, before the run stops. Ray may count a death twice: once for the
# connection that broke, once for the process.
RETRIES = 20


class PartitionPool:
    """The run's partition actors, as the sample generator sees them."""

    def __init__(
        self,
        config: DarlingConfig,
        tokenizer: Any,
        *,
        quality_expected: bool,
        colocate_with: Any = None,
        step: Step | None = None,
    ) -> None:
        """Starts the actors, waits until each has loaded its model, and says how long a step's scoring will take.

        Args:
            quality_expected: whether each response comes with its reward, and not from a reward model later.
            colocate_with: placement group whose bundles lend the actors their GPU share, in turn; None takes it from
                what the cluster has free.
            step: of the run; None times nothing.

        Raises DarlingError, which names those that are late, when they are not ready within --darling.start_timeout.
        """
        self._dispatched = itertools.count()
        # Held here: Ray keeps large arguments of an actor in its object store, drops them once the actor has started,
        # and then cannot start it again.
        self._tokenizer = ray.put(tokenizer)
        self._actor_class = ray.remote(max_restarts=-1, max_task_retries=RETRIES)(PartitionActor)
        self._actors: list[Any] = []
        self._quality_expected, self._group = quality_expected, colocate_with
        if config.num_partition_actors == AUTO:
            config = self._with_number(config, step)
        self._start(config, config.num_partition_actors)
        self.description = ray.get(self._actors[0].describe.remote()) | {"actors": len(self._actors)}
        if step is not None:
            self._say_how_long(config, step)

    def _start(self, config: DarlingConfig, number: int) -> None:
        """Starts what is missing of so many actors, and waits for them."""
        deadline = time.monotonic() + config.start_timeout
        for k in range(len(self._actors), number):
            journal = f"darling-{uuid.uuid4().hex}"
            resources = placement.actor_options(config, self._group, k)
            actor = self._actor_class.options(**resources).remote(
                config, self._tokenizer, self._quality_expected, journal
            )
            self._actors.append(actor)
            if config.partition_model.startswith("vllm:"):  # an engine measures what is free while it alone starts
                ready, late = ray.wait([actor.describe.remote()], timeout=max(0, deadline - time.monotonic()))
                if late:
                    raise placement.no_room(config, self._group, [k])
                ray.get(ready)
        descriptions = [actor.describe.remote() for actor in self._actors]
        _, late = ray.wait(descriptions, num_returns=len(descriptions), timeout=max(0, deadline - time.monotonic()))
        if late:
            ray.get([each for each in descriptions if each not in late])  # what one of them failed by says more
            raise placement.no_room(config, self._group, [descriptions.index(each) for each in late])
        ray.get(descriptions)

    def _with_number(self, config: DarlingConfig, step: Step) -> DarlingConfig:
        """The configuration with a number of actors for --darling.num_partition_actors auto, by what one measures."""
        most = placement.room(config, self._group)
        self._start(replace(config, num_partition_actors=most), 1)
        try:
            timed = self._time(config, step)
        except Exception as error:
            raise cannot_be_timed(error) from error
        number, why = choose(step, timed, most)
        _say(why)
        return replace(config, num_partition_actors=number)

    def _say_how_long(self, config: DarlingConfig, step: Step) -> None:
        try:
            timed = self._time(config, step)
        except Exception as error:  # the run does without it
            _say(f"How long scoring takes could not be measured: {type(error).__name__}: {error}")
        else:
            if timed is not None:
                _say(said(step, timed, len(self._actors)))

    def _time(self, config: DarlingConfig, step: Step) -> Timed | None:
        """Of the slowest actor, all at work together."""
        timed = ray.get([actor.time_group.remote(step) for actor in self._actors], timeout=config.start_timeout)
        return max((each for each in timed if each), key=lambda each: each.seconds, default=None)

    def submit(self, generated: ray.ObjectRef, *, split: str, max_len: int) -> ray.ObjectRef:
        """A ref to the same list of response dicts that `generated` will hold, scored."""
        group = next(self._dispatched)
        return self._actors[group % len(self._actors)].score.remote(generated, group, split, max_len)


class PartitionActor:
    """Holds one partition model, and adds to each group's responses what it measures of them."""

    def __init__(self, config: DarlingConfig, tokenizer: Any, quality_expected: bool, journal: str) -> None:
        placement.see_own_gpus_alone(config)
        placement.check_gpu(config)
        placement.stay_within_own_cores(config)
        if config.import_path:
            import_user_code(config.import_path)
        self._config = config
        self._tokenizer = tokenizer
        self._quality_expected = quality_expected
        bind_to_share(config.gpus_per_partition_actor)
        self._model = load_partition_model(
            config.partition_model, threshold=config.threshold, clustering=config.clustering
        )
        self._text, self._gate = read_partition_text(config.partition_text), read_quality_gate(config.quality_gate)
        self._gates_here = quality_expected
        gate_is_due = config.quality_gate != NONE and not quality_expected
        # To make classes or diversity again from, exactly; or for a reward or an advantage alone, to three digits.
        exact = gate_is_due or config.diversity != "classes" or getattr(self._model, "clustering", None) == "average"
        with_similarity = exact or config.reads("similarity")
        self._made = responses.Made.by(self._model, exact=exact) if with_similarity else None
        measure = partial(measure_each, self._model, diversity=config.diversity, with_similarity=with_similarity)
        memory = GpuMemory(self._model, share=config.gpus_per_partition_actor, sleeps=config.partition_sleep)
        watchdog = Watchdog(os.path.join(tempfile.gettempdir(), journal), config.partition_timeout)
        measure = memory.awake(placement.with_own_cores(measure))
        self._batcher = Batcher(measure, watchdog, memory.give_back if memory.used else None)
        self._warned = self._warned_of_signs = False

    async def describe(self) -> dict[str, Any]:
        """What was loaded, for run.json; its answer also says that the actor is ready."""
        return {
            "class": f"{type(self._model).__module__}.{type(self._model).__qualname__}",
            "threshold": getattr(self._model, "threshold", None),
            "clustering": getattr(self._model, "clustering", None),
            "node": platform.node(),
            "device": placement.device(self._config),
        }

    async def time_group(self, step: Step) -> Timed | None:
        """What a group of the run's shape takes here; None where the model is not local: it may cost, or count."""
        return await time_group(self._model, self._batcher.measure, step) if self._model.local else None

    async def score(self, group: list[dict[str, Any]], number: int, split: str, max_len: int) -> list[dict[str, Any]]:
        """The response dicts with what was measured added to their `extra_logs`.

        Args:
            group: one prompt's n response dicts, as OpenRLHF's rollout actor returns them.
            number: of the group in this run, for errors and the regrouping check.
            split: "train" or "eval".
            max_len: tokens of prompt and response that OpenRLHF keeps.

        Raises DarlingError when a reward is missing or not finite, and, with --darling.on_error fail, when the group
        cannot be partitioned.
        """
        generated_at = time.time()
        prompt = responses.prompt(group[0])
        # The end of the prompt, for chat templates begin them all alike.
        which_group = f"{split} prompt {number} of this run, which ends {prompt[-80:]!r}"
        responses.check_quality(group, which_group, expected=self._quality_expected)
        taking_part = self._taking_part(group)
        measurement, seconds, missing, signs = None, 0.0, [False] * len(group), None
        try:
            whole = [responses.text(each, self._tokenizer, max_len) for each in group]
            # Beside the measurement: a burst of groups that waited for them here would come one by one.
            signs = asyncio.create_task(asyncio.to_thread(self._signs, prompt, whole))
            texts = [self._text(prompt, text) for text in whole]
            missing = [text is None for text in texts]
            measurement, seconds = await self._measure(number, prompt, [texts[k] or "" for k in taking_part])
        except Exception as error:
            self._handle_failure(error, which_group, len(group))
        responses.add_measurement(
            group,
            measurement,
            taking_part,
            group=number,
            generated_at=generated_at,
            scored_at=time.time(),
            scoring_seconds=seconds,
            made=self._made,
            missing=None if self._config.partition_text == "whole" else missing,
            counts_cuts=self._model.cuts is not None,
            signs=await signs if signs else None,
        )
        return group

    def _signs(self, prompt: str, texts: list[str]) -> list[dict[str, float]] | None:
        """What the monitor sees in them; None, said once, where it fails: nothing that trains depends on it."""
        try:
            return [text_signs(prompt, text) for text in texts]
        except Exception as error:
            if not self._warned_of_signs:
                self._warned_of_signs = True
                logger.warning("A group has no signs in darling/monitor, nor may others: %r", error, exc_info=True)
            return None

    def _taking_part(self, group: list[dict[str, Any]]) -> list[int]:
        """Which of the responses pass the quality gate; all, where their quality is not known yet."""
        if not self._gates_here:
            return list(range(len(group)))
        quality = torch.tensor([[responses.quality(response) for response in group]], dtype=torch.float32)
        return self._gate(quality)[0].nonzero().flatten().tolist()

    async def _measure(self, number: int, prompt: str, texts: list[str]) -> tuple[Measurement, float]:
        if not texts:  # no response passes the gate: that is a result, not a failure
            return Measurement(torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(0, 0)), 0.0
        return await self._batcher.measure(number, Group(prompt, texts))

    def _handle_failure(self, error: Exception, which_group: str, n: int) -> None:
        """Raises DarlingError under --darling.on_error fail; warns once under quality_only."""
        cause = f"{type(error).__name__}: {error}"
        if self._config.on_error == "fail":
            raise DarlingError(
                f"a partition of {n} responses by {self._config.partition_model!r}",
                f"{cause}, for {which_group}",
                "mend the partition model, or pass --darling.on_error quality_only to train such groups on quality",
            ) from error
        if not self._warned:
            self._warned = True
            logger.warning("Trained on quality alone, as are later ones without a word: %s. %s", which_group, cause)


def _say(line: str) -> None:
    print(f"[darling] {line}", file=sys.stderr, flush=True)  # Ray shows it in the driver's output
