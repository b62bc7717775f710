"""Seam 1's other end: Ray actors that hold the partition model and score a group as soon as it is generated.

A group's generation ref goes straight into `PartitionActor.score`; Ray starts that call when the generation ends, so
scoring overlaps the generation of every other group. What an actor finds out rides to the training step in each
response's `extra_logs`, which OpenRLHF turns into `experience.info`.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import json
import logging
import math
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, Measurement, SimilarityModel, load_partition_model, measure
from darling_plugin.user_code import import_user_code

logger = logging.getLogger(__name__)

# Keys of `extra_logs` and `experience.info`, one value a response. The hooks take them out again before training.
LABEL = "darling_label"  # class in its group; -1: left out of the partition
DIVERSITY = "darling_diversity"  # in [0, 1]
GROUP = "darling_group"  # how many groups this run had dispatched before this one
QUALITY_ONLY = "darling_quality_only"  # 1 where the group could not be partitioned and on_error is quality_only
GENERATED_AT = "darling_generated_at"  # microseconds since the epoch, as are all times: integers survive as int64
SCORED_AT = "darling_scored_at"
SCORING_SECONDS = "darling_scoring_seconds"  # this group's share of the batch it was scored in
EQUIVALENT = "darling_equivalent"  # this response's row of pair decisions, (n,); with clustering "pairwise" alone
CARRIED = (LABEL, DIVERSITY, GROUP, QUALITY_ONLY, GENERATED_AT, SCORED_AT, SCORING_SECONDS)

START_TIMEOUT = 600.0  # seconds for the actors to be placed and the partition model to load
# How often Ray submits a group again whose actor died, before the run stops. Ray may count a death twice: once for the
# connection that broke, once for the process.
RETRIES = 20
SETTLING = 1.0  # seconds that a process started after a hang waits for the groups at hand
# How long an idle actor waits for more groups: a burst of finished prompts comes in one by one, and its first group
# would be a batch of its own. No group is held back longer than this.
GATHER_SECONDS = 0.005


def response_text(tokenizer: Any, token_ids: list[int]) -> str:
    """The text that is partitioned and logged: the response's own tokens, special ones left out."""
    return tokenizer.decode(token_ids, skip_special_tokens=True)


def _quality(response: dict[str, Any]) -> float | None:
    """The response's reward; OpenRLHF takes a number, a tensor, or a list of one, as its reward server sends it."""
    reward = response.get("reward")
    return None if reward is None else torch.as_tensor(reward).item()


class PartitionPool:
    """The run's partition actors, as the sample generator sees them."""

    def __init__(
        self, config: DarlingConfig, tokenizer: Any, *, quality_expected: bool, colocate_with: Any = None
    ) -> None:
        """Starts the actors and waits until each has loaded its model.

        Args:
            quality_expected: whether each response comes with its reward, and not from a reward model later.
            colocate_with: placement group whose bundles lend the actors their GPU share, in turn; None takes it from
                what the cluster has free.

        Raises DarlingError when they cannot be placed or started within START_TIMEOUT.
        """
        self._dispatched = itertools.count()
        actor_class = ray.remote(PartitionActor)
        options = {"max_restarts": -1, "max_task_retries": RETRIES, "num_gpus": config.gpus_per_partition_actor}
        self._actors = []
        for k in range(config.num_partition_actors):
            if colocate_with is None:
                place: dict[str, Any] = {"num_cpus": 1}
            else:  # OpenRLHF's models hold what there is of the bundle's one CPU
                bundle = k % colocate_with.bundle_count
                place = {"num_cpus": 0, "scheduling_strategy": PlacementGroupSchedulingStrategy(colocate_with, bundle)}
            journal = os.path.join(tempfile.gettempdir(), f"darling-{uuid.uuid4().hex}")
            actor = actor_class.options(**options, **place).remote(config, tokenizer, quality_expected, journal)
            self._actors.append(actor)
        try:
            self.description = ray.get([actor.describe.remote() for actor in self._actors], timeout=START_TIMEOUT)[0]
        except ray.exceptions.GetTimeoutError:
            raise DarlingError(
                f"{config.num_partition_actors} partition actor(s) with {config.gpus_per_partition_actor:g} GPU each, "
                f"{'in the placement group of the models' if colocate_with else 'beside the models'}, within "
                f"{START_TIMEOUT:.0f} s",
                f"not ready; free in the cluster: {ray.available_resources()}",
                "lower --darling.num_partition_actors or --darling.gpus_per_partition_actor (0: on the CPU), or add "
                "resources; if it was loading, download the partition model before the run",
            ) from None

    def submit(self, generated: ray.ObjectRef, *, split: str, max_len: int) -> ray.ObjectRef:
        """A ref to the same list of response dicts that `generated` will hold, scored."""
        group = next(self._dispatched)
        return self._actors[group % len(self._actors)].score.remote(generated, group, split, max_len)


class Watchdog:
    """Ends this process when a batch of groups takes too long, and tells the next one, which Ray starts, about it.

    A thread that hangs cannot be ended, and one that holds Python's lock meanwhile, as a regular expression does,
    stops all others too. So the process goes, by faulthandler's timer, which needs no lock.

    Args:
        journal: file that outlives the process; holds the groups at hand and, after a hang, every thread's traceback.
        limit: seconds for a batch.
    """

    def __init__(self, journal: str, limit: float) -> None:
        self._journal, self._limit = Path(journal), limit
        self.hung: set[int] = set()  # groups that took longer alone, in an earlier process
        self.suspects: set[int] = set()  # groups that did in a batch, and were not measured alone since
        state, written, traceback = self._journal.read_text().partition("\n") if self._journal.exists() else ("",) * 3
        if written:  # else that process was killed as it began to write
            self.hung, self.suspects, batch = map(set, json.loads(state))
            if traceback:
                logger.error("The partition model hung on the groups %s:\n%s", sorted(batch), traceback)
                (self.hung if len(batch) == 1 else self.suspects).update(batch)

    @contextlib.contextmanager
    def over(self, groups: list[int]) -> Iterator[None]:
        with self._journal.open("w") as file:
            file.write(json.dumps([list(self.hung), list(self.suspects.difference(groups)), groups]) + "\n")
            file.flush()
            faulthandler.dump_traceback_later(self._limit, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        self._journal.unlink()
        self.suspects.difference_update(groups)


@dataclass
class Waiting:
    """A group until it is measured; `measured` gets its Measurement or what was raised, and the seconds it took."""

    number: int
    group: Group
    measured: asyncio.Future


class PartitionActor:
    """Holds one partition model.

    An idle actor's batch is what arrives within GATHER_SECONDS of its first group; groups that arrive while a batch is
    being scored make up the next, which begins at once.
    """

    def __init__(self, config: DarlingConfig, tokenizer: Any, quality_expected: bool, journal: str) -> None:
        # Whether Ray hides the other GPUs depends on its version and on RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES.
        gpus = ray.get_gpu_ids() if config.gpus_per_partition_actor else []
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        if config.import_path:
            import_user_code(config.import_path)
        self._config = config
        self._tokenizer = tokenizer
        self._quality_expected = quality_expected
        self._model = load_partition_model(
            config.partition_model, threshold=config.threshold, clustering=config.clustering
        )
        self._watchdog = Watchdog(journal, config.partition_timeout)
        self._waiting: list[Waiting] = []
        self._scoring: asyncio.Task | None = None
        self._warned = False

    async def describe(self) -> dict[str, Any]:
        """What was loaded, for run.json; its answer also says that the actor is ready."""
        return {
            "class": f"{type(self._model).__module__}.{type(self._model).__qualname__}",
            "threshold": getattr(self._model, "threshold", None),
            "clustering": getattr(self._model, "clustering", None),
        }

    async def score(self, responses: list[dict[str, Any]], group: int, split: str, max_len: int) -> list[dict]:
        """The response dicts with the keys above added to their `extra_logs`.

        Args:
            responses: one prompt's n response dicts, as OpenRLHF's rollout actor returns them.
            group: number of the group in this run, for errors and the regrouping check.
            split: "train" or "eval".
            max_len: tokens of prompt and response that OpenRLHF keeps.

        Raises DarlingError when a reward is missing or not finite, and, with --darling.on_error fail, when the group
        cannot be partitioned.
        """
        generated_at = time.time()
        # The end of the prompt, for chat templates begin them all alike.
        who = f"{split} prompt {group} of this run, which ends {responses[0]['prompt'][-80:]!r}"
        self._check_quality(responses, who)
        try:
            texts = [self._text(response, max_len) for response in responses]
            taking_part = [k for k, response in enumerate(responses) if self._takes_part(response)]
            measurement, seconds = await self._measure(group, responses[0]["prompt"], texts, taking_part)
        except Exception as error:
            measurement, seconds = self._not_partitioned(error, who, len(responses)), 0.0
            taking_part = []
        found = {
            LABEL: torch.full((len(responses),), -1),
            DIVERSITY: torch.zeros(len(responses)),
        }
        if taking_part:
            found[LABEL][taking_part] = measurement.labels
            found[DIVERSITY][taking_part] = measurement.diversity
        scored_at = time.time()
        for k, response in enumerate(responses):
            logs = {
                LABEL: int(found[LABEL][k]),
                DIVERSITY: float(found[DIVERSITY][k]),
                GROUP: group,
                QUALITY_ONLY: int(measurement is None),
                GENERATED_AT: int(generated_at * 1e6),
                SCORED_AT: int(scored_at * 1e6),
                SCORING_SECONDS: seconds,
            }
            response["extra_logs"] = {**(response.get("extra_logs") or {}), **logs}
        self._add_pair_decisions(responses, measurement, taking_part)
        return responses

    def _text(self, response: dict[str, Any], max_len: int) -> str:
        tokens = response["observation_tokens"][:max_len]
        spoken = [token for start, end in response["action_ranges"] for token in tokens[start:end]]
        return response_text(self._tokenizer, spoken)

    def _takes_part(self, response: dict[str, Any]) -> bool:
        return not self._config.correct_only or _quality(response) > 0

    def _check_quality(self, responses: list[dict[str, Any]], who: str) -> None:
        # Never covered by on_error: without its quality there is nothing a response could be trained on.
        for k, response in enumerate(responses):
            reward = _quality(response)
            if reward is None and not self._quality_expected:
                continue  # a reward model scores it later; the advantage hook checks that
            if reward is None or not math.isfinite(reward):
                cause = (
                    "no reward: OpenRLHF's fetch failed and only logged it" if reward is None else f"reward {reward}"
                )
                raise DarlingError(
                    "a finite reward for every response",
                    f"{cause}, response {k} of {who}",
                    "look for 'Failed to fetch reward' in the rollout actor's log and mend the reward function",
                )

    async def _measure(
        self, number: int, prompt: str, texts: list[str], taking_part: list[int]
    ) -> tuple[Measurement, float]:
        """The measurement of the responses that take part, and the seconds it took."""
        if not taking_part:
            nothing = torch.zeros(0)
            return Measurement(nothing.long(), nothing), 0.0
        if number in self._watchdog.hung:
            raise TimeoutError(
                f"no answer within --darling.partition_timeout {self._config.partition_timeout:g} s; this actor's log "
                "says where it hung"
            )
        waiting = Waiting(
            number, Group(prompt, [texts[k] for k in taking_part]), asyncio.get_running_loop().create_future()
        )
        self._waiting.append(waiting)
        if self._scoring is None or self._scoring.done():
            self._scoring = asyncio.create_task(self._score_waiting())
        outcome, seconds = await waiting.measured
        if isinstance(outcome, BaseException):
            # One that is no Exception, a SystemExit or a panic in a tokenizer, would end this process without a word.
            raise outcome if isinstance(outcome, Exception) else RuntimeError(repr(outcome))
        return outcome, seconds

    async def _score_waiting(self) -> None:
        if self._watchdog.hung:
            # Ray sends the groups at hand once more; those known to hang are to be answered before another one may.
            await asyncio.sleep(SETTLING)
        else:
            await asyncio.sleep(GATHER_SECONDS)
        while self._waiting:
            batch, self._waiting = self._waiting, []
            # Those that hung together are measured alone: the one that hangs again does so on its own account.
            alone = [[each] for each in batch if each.number in self._watchdog.suspects]
            together = [each for each in batch if each.number not in self._watchdog.suspects]
            for some in [together, *alone] if together else alone:
                started = time.perf_counter()
                try:
                    with self._watchdog.over([each.number for each in some]):
                        outcomes = await asyncio.to_thread(self._measure_batch, [each.group for each in some])
                except Exception as error:
                    outcomes = [error] * len(some)
                seconds = (time.perf_counter() - started) / len(some)
                for each, outcome in zip(some, outcomes, strict=True):
                    if not each.measured.done():  # OpenRLHF up to 0.11.0 cancels groups that it no longer needs
                        each.measured.set_result((outcome, seconds))

    def _measure_batch(self, groups: list[Group]) -> list[Measurement | BaseException]:
        try:
            return list(measure(self._model, groups))
        except BaseException as error:
            if len(groups) == 1:
                return [error]
            # One by one, so that only the groups that cause the failure suffer from it.
            return [self._measure_batch([group])[0] for group in groups]

    def _not_partitioned(self, error: Exception, who: str, n: int) -> None:
        cause = f"{type(error).__name__}: {error}"
        if self._config.on_error == "fail":
            raise DarlingError(
                f"a partition of {n} responses by {self._config.partition_model!r}",
                f"{cause}, for {who}",
                "mend the partition model, or pass --darling.on_error quality_only to train such groups on quality",
            ) from error
        if not self._warned:
            self._warned = True
            logger.warning("Trained on quality alone, as are later ones without a word: %s. %s", who, cause)

    def _add_pair_decisions(
        self, responses: list[dict], measurement: Measurement | None, taking_part: list[int]
    ) -> None:
        if not isinstance(self._model, SimilarityModel) or self._model.clustering != "pairwise":
            return
        # OpenRLHF needs the same keys on every sample, so a group without decisions carries a row of zeros.
        rows = torch.zeros(len(responses), len(responses))
        if measurement is not None and measurement.equivalent is not None:
            rows[torch.tensor(taking_part)[:, None], taking_part] = measurement.equivalent.float()
        for response, row in zip(responses, rows.tolist(), strict=True):
            response["extra_logs"][EQUIVALENT] = row
