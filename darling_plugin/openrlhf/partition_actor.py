"""Seam 1's other end: Ray actors that hold the partition model and score a group as soon as it is generated.

A group's generation ref goes straight into `PartitionActor.score`; Ray starts that call when the generation ends, so
scoring overlaps the generation of every other group. What an actor finds out rides to the training step in each
response's `extra_logs`, which OpenRLHF turns into `experience.info`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import time
from typing import Any

import ray
import torch

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


def response_text(tokenizer: Any, token_ids: list[int]) -> str:
    """The text that is partitioned and logged: the response's own tokens, special ones left out."""
    return tokenizer.decode(token_ids, skip_special_tokens=True)


def _quality(response: dict[str, Any]) -> float | None:
    """The response's reward; OpenRLHF takes a number, a tensor, or a list of one, as its reward server sends it."""
    reward = response.get("reward")
    return None if reward is None else torch.as_tensor(reward).item()


class PartitionPool:
    """The run's partition actors, as the sample generator sees them."""

    def __init__(self, config: DarlingConfig, tokenizer: Any, *, quality_expected: bool) -> None:
        """Starts the actors and waits until each has loaded its model.

        Raises DarlingError when they cannot be placed or started within START_TIMEOUT.
        """
        self._dispatched = itertools.count()
        options = {"num_cpus": 1, "num_gpus": config.gpus_per_partition_actor}
        actor_class = ray.remote(PartitionActor).options(**options)
        self._actors = [
            actor_class.remote(config, tokenizer, quality_expected) for _ in range(config.num_partition_actors)
        ]
        try:
            self.description = ray.get([actor.describe.remote() for actor in self._actors], timeout=START_TIMEOUT)[0]
        except ray.exceptions.GetTimeoutError:
            raise DarlingError(
                f"{config.num_partition_actors} partition actor(s) with {options} each within {START_TIMEOUT:.0f} s",
                f"not ready; free in the cluster: {ray.available_resources()}",
                "lower --darling.num_partition_actors or --darling.gpus_per_partition_actor, or add resources",
            ) from None

    def submit(self, generated: ray.ObjectRef, *, split: str, max_len: int) -> ray.ObjectRef:
        """A ref to the same list of response dicts that `generated` will hold, scored."""
        group = next(self._dispatched)
        return self._actors[group % len(self._actors)].score.remote(generated, group, split, max_len)


class PartitionActor:
    """Holds one partition model; groups that arrive while a batch is being scored make up the next batch."""

    def __init__(self, config: DarlingConfig, tokenizer: Any, quality_expected: bool) -> None:
        if not config.gpus_per_partition_actor:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whether Ray hides the GPUs then depends on its version
        if config.import_path:
            import_user_code(config.import_path)
        self._config = config
        self._tokenizer = tokenizer
        self._quality_expected = quality_expected
        self._model = load_partition_model(
            config.partition_model, threshold=config.threshold, clustering=config.clustering
        )
        self._waiting: list[tuple[Group, asyncio.Future]] = []
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
            measurement, seconds = await self._measure(responses[0]["prompt"], texts, taking_part)
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

    async def _measure(self, prompt: str, texts: list[str], taking_part: list[int]) -> tuple[Measurement, float]:
        """The measurement of the responses that take part, and the seconds it took."""
        if not taking_part:
            nothing = torch.zeros(0)
            return Measurement(nothing.long(), nothing), 0.0
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((Group(prompt, [texts[k] for k in taking_part]), future))
        if self._scoring is None or self._scoring.done():
            self._scoring = asyncio.create_task(self._score_waiting())
        return await future

    async def _score_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            started = time.perf_counter()
            outcomes = await asyncio.to_thread(self._measure_batch, [group for group, _ in batch])
            seconds = (time.perf_counter() - started) / len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result((outcome, seconds))

    def _measure_batch(self, groups: list[Group]) -> list[Measurement | Exception]:
        try:
            return list(measure(self._model, groups))
        except Exception as error:
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
