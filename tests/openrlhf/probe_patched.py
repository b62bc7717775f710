"""Asks the OpenRLHF on the path what it does; run by test_patches.py, answers as JSON on the last line.

Its command line runs for real until it has a strategy: `ray.init` and what follows it are replaced.
"""

import importlib
import inspect
import json
import os
import pkgutil
import runpy
import sys

from darling_plugin.openrlhf import cpu

cpu.stand_in_for_flash_attn()

import openrlhf.utils  # noqa: E402
import ray  # noqa: E402


class HasStrategy(Exception):
    pass


class Strategy:
    def __init__(self, args):
        self.args = args

    def print(self, args):
        self.placement_group = sys.modules["__main__"].placement_group
        raise HasStrategy(self)


def flat(namespace, prefix=""):
    lines = []
    for name, value in vars(namespace).items():
        if hasattr(value, "__dict__"):
            lines += flat(value, f"{prefix}{name}.")
        elif "run_name" not in name:  # the time of day
            lines.append(f"{prefix}{name}: {value!r}".replace("'", ""))
    return sorted(lines)


def run(argv, plugin=""):
    answer = {}
    ray.init = lambda **kwargs: answer.update(init=kwargs)
    openrlhf.utils.get_strategy = Strategy
    sys.argv = ["train_ppo_ray", *argv]
    os.environ.pop("OPENRLHF_PLUGIN", None)
    if plugin:
        os.environ["OPENRLHF_PLUGIN"] = plugin
    try:
        runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)
    except HasStrategy as reached:
        strategy = reached.args[0]
        answer["args"] = flat(strategy.args)
        answer["placement_group"] = strategy.placement_group.__module__
        if hasattr(strategy, "darling_guard"):
            answer["guard"] = type(strategy.darling_guard).__name__
    except (Exception, SystemExit) as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    return answer


def call(plugin):
    from openrlhf.trainer.ppo_trainer import compute_eval_metrics

    os.environ["OPENRLHF_PLUGIN"] = plugin
    try:
        return compute_eval_metrics([], [], n_samples_per_prompt=2)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


questions = json.loads(sys.argv[1])
answers = {"openrlhf": openrlhf.__file__ or next(iter(openrlhf.__path__)) + "/__init__.py"}
answers["commands"] = {name: run(argv) for name, argv in questions["commands"].items()}
answers["seams"] = {}
if questions["by_environment"]:
    answers["by_environment"] = run(questions["commands"]["plain"], questions["by_environment"])
for seam in questions["seams"]:
    function = pkgutil.resolve_name(seam)
    assert function.plugin_seam == seam
    answers["seams"][seam] = [name for name in inspect.signature(function).parameters if name != "_ray_trace_ctx"]
if questions["seams"]:
    importlib.import_module("openrlhf.trainer.ppo_trainer")
    answers["calls"] = {"no plugin": call(""), "toy": call("toy"), "gone": call("gone")}
print("\n" + json.dumps(answers))
