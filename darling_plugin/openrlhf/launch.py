"""The launcher: takes our flags out of the command, checks them, and runs OpenRLHF's own `train_ppo_ray`."""

import argparse
import importlib
import importlib.metadata
import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from packaging.version import Version

from darling_plugin.config import PREFIX, TAKES_A_PATH, DarlingConfig, build_parser, parse
from darling_plugin.errors import DarlingError, options_begin_with
from darling_plugin.openrlhf import contract, placement, worker
from darling_plugin.openrlhf.seams import check_installed_openrlhf

TRAINER = "openrlhf.cli.train_ppo_ray"


def main(argv: list[str]) -> None:
    """Runs OpenRLHF with `argv`; with `--darling.enable` in it, trains with DARLING.

    Everything that can be refused is refused here, with a DarlingError, before torch is imported or Ray starts.
    """
    options_begin_with(PREFIX)
    config, rest = parse(argv)
    if {"-h", "--help"} & set(rest):
        return _help(rest)
    config = config.with_absolute_paths()  # a worker's current folder may be another
    if config.enable or config.cpu:
        config = check(config, rest)
    if config.cpu:
        from darling_plugin.openrlhf import cpu

        rest = cpu.adapt_flags(rest)
        cpu.prepare_driver()
    with _patched_driver(config):
        _run_openrlhf(rest)


def check(config: DarlingConfig, openrlhf_argv: list[str]) -> DarlingConfig:
    """The configuration with its advantage resolved.

    Raises DarlingError for anything in the configuration or the environment that cannot work.
    """
    check_installed_openrlhf()
    if config.enable:
        config = _check_openrlhf_flags(config, openrlhf_argv)
        from darling_plugin.partition import check_diversity, check_partition_spec
        from darling_plugin.user_code import import_user_code

        if config.import_path:
            import_user_code(config.import_path)
        config.check()
        model = check_partition_spec(config.partition_model, threshold=config.threshold, clustering=config.clustering)
        check_diversity(model, config.diversity)
        _check_path(config)
        placement.check_auto(config, model)
        _say_what_partitions(config)
    _refuse_foreign_setup_hook(_job_runtime_env(), "the job's runtime_env")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        raise DarlingError(
            "to start Ray itself, so that every worker gets the hooks",
            "Ray is already initialised in this process",
            "do not call ray.init() before the launcher; a running cluster is joined through RAY_ADDRESS",
        )
    return config


def _check_openrlhf_flags(config: DarlingConfig, openrlhf_argv: list[str]) -> DarlingConfig:
    # Only what decides whether DARLING can work; OpenRLHF's own parser, seconds away, checks the rest.
    parser = argparse.ArgumentParser(add_help=False)
    for name, (flag, default) in contract.COMMAND_LINE.items():
        value = {"action": "store_true"} if default is False else {"type": str if default is None else type(default)}
        parser.add_argument(f"--{flag}", dest=name, default=default, **value)
    flags, _ = parser.parse_known_args(openrlhf_argv)
    if flags.n_samples < 2:
        raise DarlingError(
            "two or more responses a prompt: diversity is measured within a group",
            f"--rollout.n_samples_per_prompt {flags.n_samples}",
            "pass --rollout.n_samples_per_prompt 8 (the paper's number)",
        )
    if flags.estimator == "dr_grpo":
        config = replace(config, advantage=config.advantage or "centered")
    elif config.advantage is not None:
        raise DarlingError(
            f"--algo.advantage.estimator dr_grpo with --darling.advantage {config.advantage}",
            f"--algo.advantage.estimator {flags.estimator}",
            "pass dr_grpo, or leave the advantage to OpenRLHF's estimator by dropping --darling.advantage",
        )
    else:
        print(
            f"[darling] --algo.advantage.estimator {flags.estimator} makes the advantages out of DARLING's rewards. "
            "The paper's advantage, the group's mean subtracted and no std, is dr_grpo.",
            file=sys.stderr,
        )
    _warn_of_std(flags, config)
    if config.prompt_weight and ":" not in config.prompt_weight and not flags.label_key:
        raise DarlingError(
            f"labels, for {PREFIX}prompt_weight {config.prompt_weight} is a key of them",
            "no --data.label_key",
            "pass the data set's column of labels, JSON objects with that key, or name a file.py:function",
        )
    names = (f"{config.log_dir}/partitions.jsonl{suffix}" for suffix in ("", ".gz"))
    left = next(filter(os.path.exists, names), None)
    if config.log_dir and not flags.resumes and left:
        raise DarlingError(
            "a --darling.log_dir without the partitions of another run",
            left,
            "name another folder, move that file away, or resume its run with --ckpt.load_enable",
        )
    placement.check_colocation(flags, config)
    _check_ray(flags.tensor_parallel)
    return config


def _check_path(config: DarlingConfig) -> None:
    """Raises DarlingError for a partition model in a folder that is not here, where no cluster has others."""
    running = os.path.join(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # `ray start` leaves it
    kind, _, argument = config.partition_model.partition("?")[0].partition(":")
    named = argument.startswith(("/", "./", "../", "~")) or (kind == "head" and argument)  # others may be on the Hub
    elsewhere = "RAY_ADDRESS" in os.environ or os.path.exists(running)
    if kind in TAKES_A_PATH and named and not (elsewhere or os.path.exists(argument)):
        raise DarlingError(f"a folder for --darling.partition_model {kind}:", f"no {argument}", "correct the path")


def _check_ray(tensor_parallel: int) -> None:
    """Raises DarlingError for engines of several GPUs in a Ray before 2.55, the one of OpenRLHF 0.10.2.

    Their workers get the actor's runtime_env with what the setup hook left in it, and that Ray refuses it there.
    """
    found = importlib.metadata.version("ray")
    if tensor_parallel > 1 and Version(found) < Version("2.55"):
        raise DarlingError(
            f"Ray 2.55 or newer, for --vllm.tensor_parallel_size {tensor_parallel} beside Ray's setup hook",
            f"ray {found}",
            "install OpenRLHF 0.10.3 or newer, or pass --vllm.tensor_parallel_size 1",
        )


def _warn_of_std(flags: argparse.Namespace, config: DarlingConfig) -> None:
    whitens = flags.estimator in ("gae", "reinforce", "reinforce_baseline") and not flags.no_std_norm
    if not (whitens or flags.estimator == "group_norm" or config.advantage == "centered_std"):
        return
    where, instead = "each group's", "--algo.advantage.estimator dr_grpo with --darling.advantage centered"
    if whitens:
        where, instead = "the batch's", "--algo.advantage.no_std_norm, or --algo.advantage.estimator dr_grpo"
    print(
        f"[darling] WARNING: this run divides its advantages by {where} standard deviation, which undoes part of "
        "DARLING: in the ablation of arXiv 2509.02534 (Llama-3.1-8B-Instruct, NoveltyBench) dividing left 3.35 "
        f"distinct answers of 10 where not dividing gave 5.49. Without it: {instead}.",
        file=sys.stderr,
    )


def _say_what_partitions(config: DarlingConfig) -> None:
    """On GPUs, where the paper's classifier can run, nobody shall use the small default without knowing it."""
    if not config.cpu and config.partition_model == "default" and config.gpus_per_partition_actor == 0:
        print(
            "[darling] Groups are partitioned by `default`, a small model, on the CPU. The paper used a classifier: "
            "--darling.partition_model darling-modernbert --darling.gpus_per_partition_actor 0.2 (for maths "
            "darling-qwen3-math).",
            file=sys.stderr,
        )


def _job_runtime_env() -> dict[str, Any]:
    """The runtime_env of the surrounding `ray job submit`, as Ray hands it to the job's driver."""
    return json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}


def _refuse_foreign_setup_hook(runtime_env: dict[str, Any], where: str) -> None:
    hook = runtime_env.get("worker_process_setup_hook")
    if hook is not None:
        raise DarlingError(
            "the one worker_process_setup_hook that Ray allows a job",
            f"{hook!r} in {where}",
            f"call {worker.SETUP_HOOK} from yours and run OpenRLHF without it, or drop yours",
        )


@contextmanager
def _patched_driver(config: DarlingConfig) -> Iterator[None]:
    """Adds the setup hook to OpenRLHF's `ray.init`, the guard to its strategy, a name to its first placement group.

    Takes all of it away again.
    """
    if not (config.enable or config.cpu):
        yield
        return
    import openrlhf.utils
    import ray

    placing = importlib.import_module("ray.util.placement_group")  # ray.util has a function of that name
    original_init, original_get_strategy = ray.init, openrlhf.utils.get_strategy
    original_placement_group = placing.placement_group
    ray.init = lambda *args, **kwargs: original_init(*args, **with_setup_hook(kwargs, config))
    if config.enable:
        openrlhf.utils.get_strategy = with_guard(original_get_strategy)
        placing.placement_group = placement.name_first(original_placement_group)
    try:
        yield
    finally:
        ray.init, openrlhf.utils.get_strategy = original_init, original_get_strategy
        placing.placement_group = original_placement_group


def with_setup_hook(init_kwargs: dict[str, Any], config: DarlingConfig) -> dict[str, Any]:
    """`ray.init`'s keyword arguments, with the setup hook and its configuration added to the runtime_env.

    Raises DarlingError when they name a setup hook of their own.
    """
    runtime_env = dict(init_kwargs.get("runtime_env") or {})
    _refuse_foreign_setup_hook(runtime_env, "ray.init's runtime_env")
    runtime_env["worker_process_setup_hook"] = worker.SETUP_HOOK
    runtime_env["env_vars"] = {**runtime_env.get("env_vars", {}), **config.to_environment()}
    resources = {}
    if config.cpu:
        from darling_plugin.openrlhf import cpu

        runtime_env["env_vars"].update(cpu.worker_environment())
        resources = cpu.logical_resources()
    return {**resources, **init_kwargs, "runtime_env": runtime_env}


def with_guard(original: Callable) -> Callable:
    """OpenRLHF's `get_strategy`, putting the guard on the strategy that it makes."""

    def get_strategy(args: Any) -> Any:
        strategy = original(args)
        strategy.darling_guard = worker.RequiresHooks()
        return strategy

    return get_strategy


def _run_openrlhf(argv: list[str]) -> None:
    sys.argv = [TRAINER, *argv]
    runpy.run_module(TRAINER, run_name="__main__", alter_sys=True)


def _help(rest: list[str]) -> None:
    from darling_plugin.openrlhf import cpu

    build_parser().print_help()
    print("\nOpenRLHF:\n", flush=True)
    # Printing help trains nothing, so OpenRLHF's parser is shown where its CUDA dependencies are absent, too.
    cpu.stand_in_for_flash_attn()
    _run_openrlhf(rest)
