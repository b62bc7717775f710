"""The hooks: OpenRLHF's functions named in seams.py, each wrapped, in the processes that generate and train.

Seam 1 (START, DISPATCH) sends every prompt's group to a partition actor as soon as it is generated. Seam 2
(ADVANTAGES) turns quality and diversity into OpenRLHF's rewards and advantages. TRAIN_STEP, EVALUATION and EVALUATED
log what the two saw; RESUME takes back what a killed run logged after its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import ray
import torch

from darling_plugin.advantage import compute_advantage
from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.log import append_partitions, rewind_partitions, write_run
from darling_plugin.metrics import QUALITY_ONLY, group_metrics, step_metrics
from darling_plugin.openrlhf import partition_actor as carried
from darling_plugin.openrlhf.partition_actor import PartitionPool, response_text
from darling_plugin.openrlhf.seams import (
    ADVANTAGES,
    DISPATCH,
    EVALUATED,
    EVALUATION,
    RESUME,
    SEAMS,
    START,
    TRAIN_STEP,
    Seam,
    is_hooked,
    wrap,
)
from darling_plugin.openrlhf.worker import owner, resolve, shared_placement_group
from darling_plugin.reward import shape_reward
from darling_plugin.user_code import import_user_code

# Of this process's sample generator, for the log lines of an evaluation, whose seam is a plain function.
_tokenizer: Any = None


def install(module: ModuleType) -> None:
    """Wraps every seam that `module` defines. Called when OpenRLHF's module has been imported; again is harmless.

    Raises DarlingError, which fails the import and with it the worker, when a seam is not what its hook expects.
    """
    config = DarlingConfig.from_environment()
    if config.import_path:
        import_user_code(config.import_path)
    for seam in SEAMS:
        if seam.module != module.__name__:
            continue
        seam.check_function(resolve(seam))
        if not is_hooked(resolve(seam)):
            wrap(owner(seam), seam.function, WRAPPERS[seam], hook=True)


def uninstall(module: ModuleType) -> None:
    """Puts OpenRLHF's own functions back into `module`."""
    for seam in SEAMS:
        if seam.module == module.__name__ and is_hooked(resolve(seam)):
            setattr(owner(seam), seam.function, resolve(seam).darling_original)


# ── Seam 1: a group goes to a partition actor the moment it is generated ──


def _start(wrapped: Callable, generator: Any, args: tuple, kwargs: dict) -> None:
    """SamplesGenerator.__init__: the partition actors start, and fail, before the models to train load."""
    global _tokenizer
    wrapped(*args, **kwargs)
    config = DarlingConfig.from_environment()
    flags, _tokenizer = generator.args, generator.tokenizer
    colocated = flags.train.colocate_all and config.gpus_per_partition_actor
    generator.darling_pool = PartitionPool(
        config,
        generator.tokenizer,
        quality_expected=bool(flags.reward.remote_url or flags.train.agent_func_path),
        colocate_with=ray.util.get_placement_group(shared_placement_group()) if colocated else None,
    )
    if config.log_dir:
        write_run(
            config.log_dir,
            darling=asdict(config),
            partition_model=generator.darling_pool.description,
            openrlhf=flags,
        )


def _dispatch(wrapped: Callable, generator: Any, args: tuple, kwargs: dict) -> list:
    """SamplesGenerator._dispatch_prompts_to_vllm: each ref is replaced by that of the same group, scored."""
    refs = wrapped(*args, **kwargs)
    # Only evaluation says how many samples it wants; training takes the number from the arguments.
    split = "eval" if "n_samples_per_prompt" in kwargs else "train"
    return [generator.darling_pool.submit(ref, split=split, max_len=kwargs["max_len"]) for ref in refs]


# ── Seam 2: quality and diversity -> reward -> advantage ──


@dataclass
class Rollout:
    """A batch of experiences as groups. `order` is each sample's place, in the order the experiences hold them."""

    order: torch.LongTensor  # (P·n,)
    sizes: list[int]  # samples an experience
    n: int

    @classmethod
    def of(cls, experiences: list[Any], n: int) -> Rollout:
        order = torch.tensor([index for experience in experiences for index in experience.index])
        if len(order) % n or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise DarlingError(
                f"whole groups of {n} responses, numbered from 0",
                f"{len(order)} samples with indices {order.tolist()[:20]}",
                "report this with the OpenRLHF flags in use",
            )
        return cls(order, [len(experience.index) for experience in experiences], n)

    def gather(self, values: list[torch.Tensor]) -> torch.Tensor:
        """One tensor (samples, …) an experience -> (P, n, …)."""
        together = torch.cat(values)
        sorted_ = torch.empty_like(together)
        sorted_[self.order] = together
        return sorted_.reshape(-1, self.n, *together.shape[1:])

    def scatter(self, groups: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(P, n) -> one tensor (samples,) an experience."""
        return groups.reshape(-1)[self.order].split(self.sizes)


def _take_carried(experiences: list[Any], gather: Callable[[list[torch.Tensor]], torch.Tensor]) -> dict[str, Any]:
    """Takes the partition actors' findings out of `experience.info`, as (P, n) tensors by key."""
    missing = [key for key in carried.CARRIED if any(key not in experience.info for experience in experiences)]
    if missing:
        raise DarlingError(
            "every sample to come from a partition actor",
            f"samples without {', '.join(missing)}",
            "the hooks are not installed where the samples are generated: start with python3 -m darling_plugin",
        )
    keys = [*carried.CARRIED, *([carried.EQUIVALENT] if carried.EQUIVALENT in experiences[0].info else [])]
    found = {key: gather([experience.info.pop(key) for experience in experiences]) for key in keys}
    groups = found[carried.GROUP]
    if not (groups == groups[:, :1]).all():
        raise DarlingError(
            "the responses of one prompt in each group",
            f"groups made of {groups.tolist()[:8]}",
            "report this with the OpenRLHF flags in use",
        )
    return found


def _compute_advantages(wrapped: Callable, maker: Any, args: tuple, kwargs: dict) -> list[Any]:
    """RemoteExperienceMaker.compute_advantages_and_returns, given DARLING's rewards in place of the quality."""
    config = DarlingConfig.from_environment()
    experiences = _first_argument(*args, **kwargs)
    rollout = Rollout.of(experiences, maker.args.rollout.n_samples_per_prompt)
    found = _take_carried(experiences, rollout.gather)
    labels, diversity = found[carried.LABEL], found[carried.DIVERSITY]
    quality_only = found[carried.QUALITY_ONLY][:, 0].bool()

    quality = rollout.gather([experience.rewards.flatten() for experience in experiences]).float()
    if not quality.isfinite().all():
        group = int((~quality.isfinite()).any(dim=-1).nonzero()[0])
        raise DarlingError(
            "a finite quality for every response",
            f"{quality[group].tolist()} for train prompt {int(found[carried.GROUP][group, 0])}",
            "look at what the reward model makes of that prompt's responses",
        )
    # Diversity 1 is neutral: what cannot be partitioned is rewarded, and weighted, by its quality alone.
    seen_diversity = diversity.masked_fill(quality_only[:, None], 1.0)
    reward = shape_reward(
        quality,
        seen_diversity,
        reward=config.reward,
        quality_transform=config.quality_transform,
        diversity_floor=config.diversity_floor,
    )

    token_kl = [experience.kl for experience in experiences]  # the original clears it
    for experience, part in zip(experiences, rollout.scatter(reward), strict=True):
        experience.rewards = part
    experiences = wrapped(experiences)

    # OpenRLHF's length penalties, if asked for, have changed the rewards since.
    unpenalized, reward = reward, rollout.gather([experience.rewards for experience in experiences])
    advantage = None
    if config.advantage is not None:  # else OpenRLHF's estimator, which is not dr_grpo, makes the advantages
        floored = seen_diversity.clamp(min=config.diversity_floor)
        advantage = compute_advantage(reward, floored, advantage=config.advantage)
        if config.advantage != "centered":  # dr_grpo itself is "centered"
            _replace_advantages(maker, experiences, rollout.scatter(advantage), token_kl)

    metrics = step_metrics(
        labels,
        diversity,
        quality,
        reward,
        floor=config.diversity_floor,
        quality_only=quality_only,
        generated_at=found[carried.GENERATED_AT][:, 0],
        scored_at=found[carried.SCORED_AT][:, 0],
        scoring_seconds=found[carried.SCORING_SECONDS][:, 0],
    )
    records = []
    if config.log_dir:
        spoken = _prompts_and_texts(experiences, maker.tokenizer)
        by_place = [spoken[k] for k in rollout.order.argsort().tolist()]
        records = _records(by_place, found, quality, reward, advantage)
        lengths = rollout.gather([experience.response_length for experience in experiences])
        truncated = rollout.gather([experience.truncated for experience in experiences]).bool()
        for group, record in enumerate(records):
            record["length_penalty"] = (reward - unpenalized)[group].tolist()
            record["response_length"] = lengths[group].tolist()
            record["truncated"] = truncated[group].tolist()
    maker.darling_step = (metrics, records)
    return experiences


def _replace_advantages(
    maker: Any, experiences: list[Any], values: tuple[torch.Tensor, ...], token_kl: list[torch.Tensor]
) -> None:
    """Spreads an advantage per response over its tokens with OpenRLHF's own functions, as dr_grpo does its own."""
    from openrlhf.models.utils import compute_reward

    for experience, value, kl in zip(experiences, values, token_kl, strict=True):
        token_reward = compute_reward(
            value,
            maker.kl_ctl.value,
            kl,
            action_mask=experience.action_mask,
            reward_clip_range=maker.args.reward.clip_range,
        )
        experience.returns = maker.get_cumulative_returns(token_reward, experience.action_mask, 1.0)
        experience.advantages = experience.returns.clone()
        experience.info["return"] = token_reward.sum(dim=-1)


# ── Logging ──


def _train_step(wrapped: Callable, trainer: Any, args: tuple, kwargs: dict) -> tuple[dict, int]:
    """BasePPOTrainer.train_step: the step's metrics join OpenRLHF's, and its groups go to partitions.jsonl."""
    status, step = wrapped(*args, **kwargs)
    metrics, records = trainer.experience_maker.darling_step
    status.update(metrics)
    _append(records, step, "train")
    return status, step


class EvaluationLogs(dict):
    """OpenRLHF's metrics of one evaluation, and its groups on their way to the trainer, which knows the step."""

    records: list[dict[str, Any]]


def _evaluation(wrapped: Callable, instance: None, args: tuple, kwargs: dict) -> EvaluationLogs:
    """compute_eval_metrics: evaluation keeps its raw rewards; its diversity is logged beside them."""
    logs = EvaluationLogs(wrapped(*args, **kwargs))
    logs.records = []
    _, samples, n = _evaluation_arguments(*args, **kwargs)
    if not samples:
        return logs
    config = DarlingConfig.from_environment()

    def gather(values: list[torch.Tensor]) -> torch.Tensor:
        together = torch.cat(values)
        return together.reshape(-1, n, *together.shape[1:])

    found = _take_carried(samples, gather)
    quality = gather([sample.rewards.flatten() for sample in samples]).float()
    if n > 1:  # a group of one has no others to differ from
        logs.update(group_metrics(found[carried.LABEL], found[carried.DIVERSITY], quality))
        logs[QUALITY_ONLY] = found[carried.QUALITY_ONLY][:, 0].sum().item()
    if config.log_dir:
        logs.records = _records(_prompts_and_texts(samples, _tokenizer), found, quality, quality, None)
    return logs


def _evaluated(wrapped: Callable, trainer: Any, args: tuple, kwargs: dict) -> None:
    """BasePPOTrainer.save_best_checkpoint, called after each evaluation: its groups go to partitions.jsonl."""
    logs, step = _evaluated_arguments(*args, **kwargs)
    _append(getattr(logs, "records", []), step, "eval")
    wrapped(*args, **kwargs)


def _resume(wrapped: Callable, trainer: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """BasePPOTrainer.init_checkpoint_states: what a killed run logged after this checkpoint is logged only once."""
    states = wrapped(*args, **kwargs)
    log_dir, tensorboard = DarlingConfig.from_environment().log_dir, trainer.tensorboard_logger
    if trainer.args.ckpt.load_enable:
        if log_dir:
            rewind_partitions(log_dir, states["global_step"], evaluates_again=trainer.args.train.async_enable)
        if tensorboard is not None:
            _rewind_tensorboard(tensorboard.writer, states["global_step"])
    return states


def _rewind_tensorboard(writer: Any, step: int) -> None:
    """Makes TensorBoard drop the steps after `step` that an earlier run wrote into the same folder."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step + 1)


def _prompts_and_texts(experiences: list[Any], tokenizer: Any) -> list[tuple[str, str]]:
    """(prompt, response) of every sample, in the order the experiences hold them; the text the partition model saw."""
    return [
        (prompt, response_text(tokenizer, tokens[1:][mask.bool()].tolist()))
        for experience in experiences
        for prompt, tokens, mask in zip(experience.prompts, experience.sequences, experience.action_mask, strict=True)
    ]


def _records(
    spoken: list[tuple[str, str]],
    found: dict[str, torch.Tensor],
    quality: torch.Tensor,
    reward: torch.Tensor,
    advantage: torch.Tensor | None,
) -> list[dict[str, Any]]:
    """One dict a group, for partitions.jsonl. A group that could not be partitioned has neither labels nor diversity.

    `advantage` is None where OpenRLHF's estimator, and not --darling.advantage, makes it.
    """
    records = []
    n = quality.shape[1]
    for group, quality_only in enumerate(found[carried.QUALITY_ONLY][:, 0].tolist()):
        mine, partitioned = spoken[group * n : (group + 1) * n], not quality_only
        record = {
            "prompt": mine[0][0],
            "responses": [text for _, text in mine],
            "labels": found[carried.LABEL][group].tolist() if partitioned else None,
            "quality": quality[group].tolist(),
            "diversity": found[carried.DIVERSITY][group].tolist() if partitioned else None,
            "reward": reward[group].tolist(),
            "advantage": None if advantage is None else advantage[group].tolist(),
        }
        if carried.EQUIVALENT in found:
            record["equivalent"] = found[carried.EQUIVALENT][group].bool().tolist() if partitioned else None
        records.append(record)
    return records


def _append(records: list[dict[str, Any]], step: int, split: str) -> None:
    if records:
        log_dir = DarlingConfig.from_environment().log_dir
        append_partitions(log_dir, [{"step": step, "split": split, **record} for record in records])


# OpenRLHF may pass its arguments by position or by name; Python sorts that out.
def _first_argument(experiences: list[Any]) -> list[Any]:
    return experiences


def _evaluation_arguments(eval_dataloader: Any, samples_list: list[Any], n_samples_per_prompt: int) -> tuple:
    return eval_dataloader, samples_list, n_samples_per_prompt


def _evaluated_arguments(eval_metrics: dict, global_step: int, client_states: dict | None = None) -> tuple[dict, int]:
    return eval_metrics, global_step


WRAPPERS: dict[Seam, Callable] = {
    START: _start,
    DISPATCH: _dispatch,
    ADVANTAGES: _compute_advantages,
    TRAIN_STEP: _train_step,
    EVALUATION: _evaluation,
    EVALUATED: _evaluated,
    RESUME: _resume,
}
