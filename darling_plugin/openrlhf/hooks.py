"""The hooks: what stands around OpenRLHF's functions named in seams.py, in the processes that generate and train.

*start* and *dispatch* send every prompt's group to a partition actor as soon as it is generated. *advantages* hands
quality and diversity to `shaping.py`, and what comes out to OpenRLHF. *train_step*, *evaluation* and *evaluated* log
what was seen; *resume* takes back what a killed run logged after its last checkpoint.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import ModuleType
from typing import Any

import ray
import torch
from ray.util.queue import Empty, Queue

from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.example_groups import choose
from darling_plugin.evaluation.monitor import MonitorWatch
from darling_plugin.log import append_partitions, groups_with_text, rewind_partitions, write_run
from darling_plugin.metrics import Scoring, SignalWatch, evaluation_metrics, monitor_figures, training_metrics
from darling_plugin.openrlhf import contract, placement, responses
from darling_plugin.openrlhf.experiences import Places, as_groups, asked, records, take_measured
from darling_plugin.openrlhf.group_tables import is_due, log_groups
from darling_plugin.openrlhf.partition_actor import PartitionPool
from darling_plugin.openrlhf.scoring_time import Step
from darling_plugin.openrlhf.seams import installed_seam, installed_seams, is_hooked, wrap
from darling_plugin.partition.text import as_logged, read_partition_text
from darling_plugin.quality_gate import NONE
from darling_plugin.shaping import shape
from darling_plugin.user_code import import_user_code
from darling_plugin.weight import group_weights

logger = logging.getLogger(__name__)

FALLBACK_GROUPS = 64  # the last of a run that --darling.quality_only_limit looks at
# The texts of a step's log are decoded while the policy trains, when the trainer's process has nothing to do. Sent
# along by the partition actors they would cost it as much: OpenRLHF makes tensors of what they add, byte by byte.
_decoder = ThreadPoolExecutor(1, "darling-log")
EVALUATION_TIMEOUT = 60.0  # seconds for an evaluation's records, put before OpenRLHF sends its metrics, to be there


def install(module: ModuleType) -> None:
    """Wraps every seam that `module` defines. Called when OpenRLHF's module has been imported; again is harmless.

    Raises DarlingError, which fails the import and with it the worker, when a seam is not what its hook expects.
    """
    config = DarlingConfig.from_environment()
    if config.import_path:
        import_user_code(config.import_path)
    for seam in installed_seams():
        if seam.module != module.__name__:
            continue
        seam.check_function(seam.resolve())
        if not is_hooked(seam.resolve()):
            wrap(seam.owner(), seam.function, WRAPPERS[seam.role], hook=True)


def uninstall(module: ModuleType) -> None:
    """Puts OpenRLHF's own functions back into `module`."""
    for seam in installed_seams():
        if seam.module == module.__name__ and is_hooked(seam.resolve()):
            setattr(seam.owner(), seam.function, seam.resolve().darling_original)


# A hook gets the original with this call's arguments in it, the object whose method it is (None for a function), and
# the arguments by name.

# ── Start and dispatch: a group goes to a partition actor the moment it is generated ──


def _start(call_original: Callable, generator: Any, arguments: dict[str, Any]) -> None:
    """SamplesGenerator.__init__: the partition actors start, and fail, before the models to train load."""
    call_original()
    config = DarlingConfig.from_environment()
    args = generator.args
    group = placement.shared_group(args, config)
    if group is not None:  # vLLM measures what is free on the same GPUs while it starts
        ray.get([engine.__ray_ready__.remote() for engine in generator.vllm_engines])
    generator.darling_pool = PartitionPool(
        config,
        generator.tokenizer,
        quality_expected=contract.comes_with_quality(args),
        colocate_with=group,
        step=Step.of(args),
    )
    if config.log_dir:
        write_run(
            config.log_dir, darling=asdict(config), partition_model=generator.darling_pool.description, openrlhf=args
        )
    if config.log_dir and generator.eval_dataloader is not None:
        # Here and not only by its name: Ray ends an actor that nobody holds.
        generator.darling_evaluations = Queue(actor_options={"name": _evaluations_name(), "num_cpus": 0})


def _dispatch(call_original: Callable, generator: Any, arguments: dict[str, Any]) -> list:
    """SamplesGenerator._dispatch_prompts_to_vllm: each ref is replaced by that of the same group, scored."""
    generate_kwargs = arguments["generate_kwargs"]
    split = contract.split(generate_kwargs, generator.args)
    max_len = contract.max_len(generate_kwargs)
    return [generator.darling_pool.submit(ref, split=split, max_len=max_len) for ref in call_original()]


# ── Advantages: quality and diversity -> reward -> advantage ──


def _advantages(call_original: Callable, maker: Any, arguments: dict[str, Any]) -> list[Any]:
    """RemoteExperienceMaker.compute_advantages_and_returns, given DARLING's rewards in place of the quality.

    Under dr_grpo DARLING's advantages replace those that it makes, too.
    """
    config = DarlingConfig.from_environment()
    experiences = arguments["experiences"]
    places = Places.of_training(experiences, maker.args.rollout.n_samples_per_prompt)
    measured = take_measured(experiences, places)
    gate_is_due = config.quality_gate != NONE and not contract.comes_with_quality(maker.args)
    groups = as_groups(experiences, places, measured, gate_is_due=gate_is_due)
    groups.weight = _weights(config, maker, experiences, places, len(groups.quality))
    _check_finite(groups.quality, measured[responses.GROUP])
    token_kl = [experience.kl for experience in experiences]  # the original clears it

    def penalize(reward: torch.Tensor) -> torch.Tensor:
        # The original changes the experiences in place: length penalties first, then its own advantages.
        for experience, rewards in zip(experiences, places.scatter(reward), strict=True):
            experience.rewards = rewards
        call_original()
        return places.gather([experience.rewards for experience in experiences])

    shaped = shape(groups, config, penalize)
    if shaped.advantage is not None:
        _replace_advantages(maker, experiences, places.scatter(shaped.advantage), token_kl)
    scoring = Scoring(
        generated_at=measured[responses.GENERATED_AT][:, 0],
        scored_at=measured[responses.SCORED_AT][:, 0],
        seconds=measured[responses.SCORING_SECONDS][:, 0],
    )
    maker.darling_metrics = training_metrics(shaped, scoring)
    maker.darling_quality_only = groups.quality_only.tolist()
    maker.darling_records = records(experiences, places, shaped.groups, shaped) if config.log_dir else []
    maker.darling_texts = _decoder.submit(_texts, maker.darling_records, maker.tokenizer, maker.darling_step, "train")
    maker.darling_examples = {}
    if config.log_groups_every:
        chosen = choose(shaped.reward, seed=int(measured[responses.GROUP][0, 0]))
        chosen_records = records(experiences, places, shaped.groups, shaped, chosen.values())
        maker.darling_examples = dict(zip(chosen, chosen_records, strict=True))
    return experiences


def _weights(config: DarlingConfig, maker: Any, experiences: list[Any], places: Places, groups: int) -> torch.Tensor:
    """(P,) float32, the weight of diversity in each of the groups."""
    if config.weight_schedule is None and config.prompt_weight is None:
        return torch.full((groups,), config.weight)
    weights = group_weights(
        *(config.weight, config.weight_schedule, config.prompt_weight),
        step=maker.darling_step,
        asked=asked(experiences, places),
    )
    config.check_largest_weight(max(weights))
    return torch.tensor(weights)


def _check_finite(quality: torch.Tensor, numbers: torch.Tensor) -> None:
    if not quality.isfinite().all():
        group = int((~quality.isfinite()).any(dim=-1).nonzero()[0])
        raise DarlingError(
            "a finite quality for every response",
            f"{quality[group].tolist()} for train prompt {int(numbers[group, 0])}",
            "look at what the reward model makes of that prompt's responses",
        )


def _replace_advantages(
    maker: Any, experiences: list[Any], advantages: tuple[torch.Tensor, ...], token_kl: list[torch.Tensor]
) -> None:
    """Spreads an advantage per response over its tokens with OpenRLHF's own functions, as dr_grpo does its own."""
    from openrlhf.models.utils import compute_reward

    for experience, advantage, kl in zip(experiences, advantages, token_kl, strict=True):
        token_reward = compute_reward(
            advantage,
            maker.kl_ctl.value,
            kl,
            action_mask=experience.action_mask,
            reward_clip_range=maker.args.reward.clip_range,
        )
        experience.returns = maker.get_cumulative_returns(token_reward, experience.action_mask, 1.0)
        experience.advantages = experience.returns.clone()
        experience.info["return"] = token_reward.sum(dim=-1)


# ── Logging ──


def _train_step(call_original: Callable, trainer: Any, arguments: dict[str, Any]) -> tuple[dict, int]:
    """BasePPOTrainer.train_step: the step's metrics join OpenRLHF's, and its groups go to partitions.jsonl."""
    maker = trainer.experience_maker
    maker.darling_step = arguments["global_step"] + 1  # OpenRLHF counts it once it has ended; so it is logged
    status, step = call_original()
    status.update(maker.darling_metrics)
    _append(maker.darling_records, maker.darling_texts.result(), step, "train")
    if is_due(step, DarlingConfig.from_environment().log_groups_every):
        log_groups(trainer, maker.darling_examples, step)
    _warn(trainer, maker.darling_metrics)
    _stop_where_most_fell_back(trainer, maker.darling_quality_only)
    return status, step


def _evaluation(call_original: Callable, _: None, arguments: dict[str, Any]) -> dict[str, float]:
    """compute_eval_metrics: evaluation keeps its raw rewards; its diversity is logged beside them."""
    metrics, samples = call_original(), arguments["samples_list"]
    if not samples:
        return metrics
    places = Places.of_evaluation(samples, arguments["n_samples_per_prompt"])
    measured = take_measured(samples, places)
    groups = as_groups(samples, places, measured)
    if DarlingConfig.from_environment().log_dir:
        # OpenRLHF hands its metrics to the trainer, which alone knows the step, and to loggers, which take numbers.
        queue = ray.get_actor(_evaluations_name())
        ray.get(queue.put.remote(records(samples, places, groups, None)))
    return metrics | evaluation_metrics(groups)


def _evaluated(call_original: Callable, trainer: Any, arguments: dict[str, Any]) -> None:
    """BasePPOTrainer.save_best_checkpoint, called after each evaluation: its groups go to partitions.jsonl."""
    if DarlingConfig.from_environment().log_dir and arguments["eval_metrics"]:
        queue = ray.get_actor(_evaluations_name())
        try:
            evaluated = ray.get(queue.get.remote(timeout=EVALUATION_TIMEOUT))
        except Empty as error:
            raise DarlingError(
                "the groups of this evaluation, for partitions.jsonl",
                f"none within {EVALUATION_TIMEOUT:g} s of its metrics",
                "report this with the OpenRLHF flags in use, or drop --darling.log_dir",
            ) from error
        step = arguments["global_step"]
        _append(evaluated, _texts(evaluated, trainer.tokenizer, step, "eval"), step, "eval")
    call_original()


def _resume(call_original: Callable, trainer: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """BasePPOTrainer.init_checkpoint_states: what a killed run logged after this checkpoint is logged only once."""
    states = call_original()
    log_dir, args = DarlingConfig.from_environment().log_dir, trainer.args
    if args.ckpt.load_enable:
        if log_dir:
            rewind_partitions(log_dir, states["global_step"], evaluates_again=args.train.async_enable)
        if trainer.tensorboard_logger is not None:
            _rewind_tensorboard(trainer.tensorboard_logger.writer, states["global_step"])
    return states


def _rewind_tensorboard(writer: Any, step: int) -> None:
    """Makes TensorBoard drop the steps after `step` that an earlier run wrote into the same folder."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step + 1)


def _evaluations_name() -> str:
    return placement.job_name("evaluations")


def _warn(trainer: Any, metrics: dict[str, float]) -> None:
    if not hasattr(trainer, "darling_watch"):
        config = DarlingConfig.from_environment()
        trainer.darling_watch = SignalWatch(gated=config.quality_gate != NONE, silent=not config.goes_by_diversity())
        trainer.darling_monitor = MonitorWatch()
    warning = trainer.darling_watch.see(metrics)
    if warning:
        logger.warning(warning)
    for moved in trainer.darling_monitor.see(monitor_figures(metrics)).values():
        logger.warning("Diversity may be gamed: %s. Look at groups: darling-report.", moved)


def _stop_where_most_fell_back(trainer: Any, quality_only: list[bool]) -> None:
    if not hasattr(trainer, "darling_fell_back"):
        trainer.darling_fell_back = deque(maxlen=FALLBACK_GROUPS)
    last = trainer.darling_fell_back
    last += quality_only
    limit = DarlingConfig.from_environment().quality_only_limit
    if len(last) == FALLBACK_GROUPS and sum(last) > limit * FALLBACK_GROUPS:
        raise DarlingError(
            f"a partition of at least {1 - limit:.0%} of the last {FALLBACK_GROUPS} groups",
            f"{sum(last)} of them could not be partitioned, and were trained on their quality alone",
            "read why in the partition actors' logs; --darling.quality_only_limit 1 goes on all the same",
        )


def _texts(group_records: list[dict[str, Any]], tokenizer: Any, step: int, split: str) -> list[list[str] | list[None]]:
    """Each group's responses as text; None for those of a group that --darling.log_responses leaves out."""
    if not group_records:
        return []
    kept = DarlingConfig.from_environment().log_responses if split == "train" else "all"
    wanted = groups_with_text(kept, step, len(group_records))
    # All together: in a step of maths these are millions of tokens.
    decoded = iter(
        responses.decode_all(tokenizer, [ids for k in sorted(wanted) for ids in group_records[k]["responses"]])
    )
    return [
        [next(decoded) if k in wanted else None for _ in record["responses"]] for k, record in enumerate(group_records)
    ]


def _append(group_records: list[dict[str, Any]], texts: list[list], step: int, split: str) -> None:
    if not group_records:
        return
    config = DarlingConfig.from_environment()
    lines = []
    for record, of_group in zip(group_records, texts, strict=True):
        line = {"step": step, "split": split, **record, "responses": of_group}
        if config.partition_text != "whole":
            line["compared"] = None if None in of_group else _compared(config, record, of_group)
        lines.append(line)
    append_partitions(config.log_dir, lines)


def _compared(config: DarlingConfig, record: dict[str, Any], texts: list[str]) -> list[str | None] | None:
    """What of each response was compared; None where that is all of it, or the group could not be partitioned."""
    if record["labels"] is None:  # the user's function may be what failed
        return None
    part = read_partition_text(config.partition_text)
    try:
        compared = [part(record["prompt"], text) or "" for text in texts]
    except Exception as error:  # of a function of the user's that gives another result this time: only the log
        logger.warning("what was compared is not in the log: %s failed there: %r", config.partition_text, error)
        return None
    return as_logged(compared, texts)


HOOKS: dict[str, Callable] = {
    "start": _start,
    "dispatch": _dispatch,
    "advantages": _advantages,
    "train_step": _train_step,
    "evaluation": _evaluation,
    "evaluated": _evaluated,
    "resume": _resume,
}


def _as_wrapper(role: str, hook: Callable) -> Callable:
    def wrapper(wrapped: Callable, instance: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        arguments = installed_seam(role).arguments(wrapped, args, kwargs)
        return hook(functools.partial(wrapped, *args, **kwargs), instance, arguments)

    return wrapper


# The hooks in the form in which `seams.wrap` and patches/ call them.
WRAPPERS: dict[str, Callable] = {role: _as_wrapper(role, hook) for role, hook in HOOKS.items()}
