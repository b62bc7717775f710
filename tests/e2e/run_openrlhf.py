"""OpenRLHF itself, without the launcher: only the CPU shims and their setup hook, which nothing runs without here."""

import runpy
import sys

import ray

from darling_plugin.config import DarlingConfig
from darling_plugin.openrlhf import cpu, worker

original = ray.init


def init(runtime_env, **kwargs):
    runtime_env["worker_process_setup_hook"] = worker.SETUP_HOOK
    runtime_env["env_vars"].update(DarlingConfig(cpu=True).to_environment() | cpu.worker_environment())
    return original(runtime_env=runtime_env, **cpu.logical_resources(), **kwargs)


ray.init = init
cpu.prepare_driver()
sys.argv = ["train_ppo_ray", *cpu.adapt_flags(sys.argv[1:])]
runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)
