"""Where partition actors run, and on what: which resources each takes, and what is refused before Ray starts.

Without --darling.gpus_per_partition_actor each takes one CPU of the cluster. With it, each takes that share of a GPU
that OpenRLHF leaves free; under --train.colocate_all OpenRLHF's placement group holds every GPU, and they live in it.
Ray is imported where it is needed: the launcher's refusals come before it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
from collections.abc import Callable
from typing import Any

from darling_plugin.config import AUTO, DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.maths import CORES

CPUS = 1  # that an actor reserves, and computes with


def job_name(purpose: str) -> str:
    """A name for something of this Ray job that its processes find each other by."""
    import ray

    return f"darling-{purpose}-{ray.get_runtime_context().get_job_id()}"


# ── In the launcher ──


def check_colocation(flags: argparse.Namespace, config: DarlingConfig) -> None:
    """Raises DarlingError for a GPU share that the models of --train.colocate_all, 0.2 of each GPU each, do not leave.

    Args:
        flags: OpenRLHF's, as the launcher parsed them.
    """
    if not (flags.colocate_all and config.gpus_per_partition_actor):
        return
    if config.partition_model.startswith("vllm:"):
        # Its engine keeps weights and cached keys beside the backward pass, and cannot be told to sleep here.
        raise DarlingError(
            "a partition model that shares its GPU under --train.colocate_all",
            f"--darling.partition_model {config.partition_model}, whose engine holds its memory throughout",
            f"use cross-encoder:{config.partition_model.removeprefix('vllm:')}, which scores the same, or leave it a "
            "GPU of its own without --train.colocate_all",
        )
    # With both flags OpenRLHF gives critic and reward model a placement group of their own, if there is a critic.
    apart = flags.estimator == "gae" and flags.critic_apart
    models = {
        "the policy": True,
        "the reference": flags.kl > 0,
        "vLLM": not flags.is_async,
        "the critic": flags.estimator == "gae" and not apart,
        "the reward model": not (flags.remote_url or flags.agent_func_path or apart),
    }
    colocated = [name for name, is_colocated in models.items() if is_colocated]
    gpus = flags.nodes * flags.gpus_per_node
    free = 1 - 0.2 * len(colocated)
    number = gpus if config.num_partition_actors == AUTO else config.num_partition_actors
    actors_per_gpu = -(-number // gpus)
    if actors_per_gpu * config.gpus_per_partition_actor > free + 1e-6:
        raise DarlingError(
            f"at most {max(free, 0):.1f} of each GPU for partition actors: under --train.colocate_all {gpus} GPU(s) "
            f"hold {', '.join(colocated)} at 0.2 each",
            f"{number} partition actor(s) of {config.gpus_per_partition_actor:g} GPU, {actors_per_gpu} on one GPU",
            "lower --darling.num_partition_actors or --darling.gpus_per_partition_actor (0 partitions on the CPU)",
        )


def check_auto(config: DarlingConfig, model: type) -> None:
    """Raises DarlingError where --darling.num_partition_actors auto has nothing to choose by, or no bound.

    Args:
        model: the partition model's class.
    """
    if config.num_partition_actors != AUTO:
        return
    if not getattr(model, "local", False):
        raise DarlingError(
            "a partition model that made-up groups may be timed with, for --darling.num_partition_actors auto",
            f"{config.partition_model}: it asks a server, or is yours and does not say `local = True`",
            "give a number",
        )
    if config.cpu and not config.gpus_per_partition_actor:
        raise DarlingError(
            "CPUs to count, for --darling.num_partition_actors auto",
            "--darling.cpu, under which Ray's CPUs are there in name only",
            "give a number",
        )


# ── In OpenRLHF's driver ──


def name_first(original: Callable) -> Callable:
    """Ray's `placement_group`, naming the first one made: under --train.colocate_all the one that all models share.

    By that name the partition actors find it, which OpenRLHF makes in its driver and hands to its own models only.
    """
    made = itertools.count()

    def placement_group(*args: Any, **kwargs: Any) -> Any:
        if next(made) == 0:
            kwargs.setdefault("name", job_name("models"))
        return original(*args, **kwargs)

    return placement_group


# ── In the process that samples ──


def shared_group(args: Any, config: DarlingConfig) -> Any:
    """The placement group in which the partition actors take their GPU share; None where they take a free one.

    Args:
        args: OpenRLHF's arguments.
    """
    if not (args.train.colocate_all and config.gpus_per_partition_actor):
        return None
    import ray

    return ray.util.get_placement_group(job_name("models"))


def actor_options(config: DarlingConfig, group: Any, k: int) -> dict[str, Any]:
    """Ray's options for the resources of partition actor `k`; in a placement group its bundles take turns."""
    gpus = {"num_gpus": config.gpus_per_partition_actor}
    if group is None:
        return {"num_cpus": CPUS, **gpus}
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    # OpenRLHF's models hold what there is of a bundle's one CPU.
    bundle = PlacementGroupSchedulingStrategy(group, k % group.bundle_count)
    return {"num_cpus": 0, "scheduling_strategy": bundle, **gpus}


def room(config: DarlingConfig, group: Any) -> int:
    """For how many actors there is room, for --darling.num_partition_actors auto: at most one on each shared GPU.

    Half of the free CPUs are left to reward functions and to what else the run will start.

    Raises DarlingError where nothing is free.
    """
    if group is not None:
        return group.bundle_count
    import ray

    free, share = ray.available_resources(), config.gpus_per_partition_actor
    most = int(free.get("CPU", 0) / 2)
    if share:
        gpus = free.get("GPU", 0)
        most = min(int(free.get("CPU", 0)), int(gpus) * int(1 / share) if share <= 1 else int(gpus / share))
    if most < 1:
        raise DarlingError(
            f"room for a partition actor of {share:g} GPU, for --darling.num_partition_actors auto: with CPUs alone "
            "half of the free ones are left to others",
            f"free in the cluster: {free}",
            "give a number, or add resources",
        )
    return most


def no_room(config: DarlingConfig, group: Any, late: list[int]) -> DarlingError:
    """The error for the actors with these numbers, which were not ready within --darling.start_timeout."""
    import ray

    where = "beside the models" if group is None else "in the placement group of the models"
    numbers = ", ".join(map(str, late[:8])) + ", …" * (len(late) > 8)
    return DarlingError(
        f"{config.num_partition_actors} partition actor(s) with {config.gpus_per_partition_actor:g} GPU each, "
        f"{where}, within {config.start_timeout:g} s",
        f"{len(late)} not ready, number {numbers}; free in the cluster: {ray.available_resources()}",
        "lower --darling.num_partition_actors or --darling.gpus_per_partition_actor (0: on the CPU), or add "
        "resources; if they were loading, download the partition model before the run, or raise "
        "--darling.start_timeout",
    )


# ── In the partition actor ──


def with_own_cores(compute: Callable) -> Callable:
    """`compute`, with as many of torch's threads as the actor reserved CPUs, whatever the job's OMP_NUM_THREADS."""
    import torch

    def computed(*args: Any) -> Any:
        torch.set_num_threads(CPUS)  # in this thread: from another it would miss the first operation
        return compute(*args)

    return computed


def stay_within_own_cores(config: DarlingConfig) -> None:
    """Bounds what else starts in this process: threads of tokenizers, processes of `answer` and of torch.compile.

    All actors of a node begin to compile at about the same step, by default with 32 processes each, or as many as
    there are cores. RAYON_NUM_THREADS (tokenizers) and TORCHINDUCTOR_COMPILE_THREADS, where set, stay.
    """
    os.environ[CORES] = str(CPUS)
    os.environ.setdefault("RAYON_NUM_THREADS", str(CPUS))
    cores = max(1, len(os.sched_getaffinity(0)) // config.num_partition_actors)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(cores, 32)))


def see_own_gpus_alone(config: DarlingConfig) -> None:
    """Hides the other GPUs from this process, before CUDA starts in it."""
    import ray

    # Whether Ray does so depends on its version and on RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES.
    gpus = ray.get_gpu_ids() if config.gpus_per_partition_actor else []
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))


def check_gpu(config: DarlingConfig) -> None:
    """Raises DarlingError in an actor whose GPU torch cannot use: it would hold its share and compute on a core.

    With --darling.cpu Ray's GPUs are there in name only.
    """
    import torch

    share = config.gpus_per_partition_actor
    if share and not config.cpu and not torch.cuda.is_available():
        raise DarlingError(
            f"a GPU that torch computes on, for --darling.gpus_per_partition_actor {share:g}",
            f"none on {platform.node()} for torch {torch.__version__} (CUDA {torch.version.cuda}), where Ray lent "
            f"GPU {os.environ['CUDA_VISIBLE_DEVICES'] or 'none'}",
            "see there what python3 -c 'import torch; torch.zeros(1).cuda()' says: a torch without CUDA, or a driver "
            "older than its CUDA; or pass --darling.gpus_per_partition_actor 0",
        )


def device(config: DarlingConfig) -> str:
    """What a partition model of its own computes on here, for people."""
    import torch

    if config.gpus_per_partition_actor and torch.cuda.is_available():
        return f"a GPU, {torch.cuda.get_device_name(0)}"
    return "a CPU"
