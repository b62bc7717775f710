"""Starts real runs (Ray, vLLM, DeepSpeed) of OpenRLHF in CPU mode, with a tiny model, and reads what they leave."""

import json
import os
import re
import subprocess
from pathlib import Path

import preloaded
import shared_ray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REWARD = """
import torch

def reward_func(queries, prompts, labels):
    vowels = [sum(letter in "aeiou" for letter in query[len(prompt):]) for query, prompt in zip(queries, prompts)]
    rewards = torch.tensor([(count % 4 + 1) / 4 for count in vowels])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}
"""


def write_inputs(folder: Path, prompts: int = 8) -> None:
    (folder / "reward.py").write_text(REWARD)
    rows = [{"input": f"name a bird {k}", "label": ""} for k in range(prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(folder: Path, model: Path, **changed: str | None) -> list[str]:
    """OpenRLHF's arguments for two steps of four prompts; `changed` overrides flags, their dots written as `__`."""
    flags = {
        "actor.model_name_or_path": str(model),
        "reward.remote_url": str(folder / "reward.py"),
        "data.prompt_dataset": str(folder / "prompts.jsonl"),
        "data.input_key": "input",
        "data.max_len": "64",
        "rollout.max_new_tokens": "12",
        "rollout.batch_size": "4",
        "rollout.n_samples_per_prompt": "4",
        "rollout.micro_batch_size": "3",
        "train.batch_size": "16",
        "train.micro_batch_size": "8",
        "actor.num_gpus_per_node": "1",
        "vllm.num_engines": "1",
        "algo.advantage.estimator": "dr_grpo",
        "algo.kl.init_coef": "0",
        "actor.adam.lr": "5e-3",  # so large that weights left behind by one sync would show
        "actor.lr_scheduler": "constant",
        "logger.tensorboard_dir": str(folder / "tensorboard"),
        "ckpt.output_dir": str(folder / "final"),
        "ckpt.path": str(folder / "checkpoints"),
        "data.apply_chat_template": "",
    }
    flags |= {name.replace("__", "."): value for name, value in changed.items()}
    words = []
    for name, value in flags.items():
        if value is not None:
            words += [f"--{name}", *value.split(" ")] if value else [f"--{name}"]
    return words


def preloaded_workers() -> dict[str, str]:
    """Environment of a run whose workers come out of preloaded.py, in the way of `ray job submit`."""
    from_test = {name: os.environ[name] for name in os.environ if re.match("PYTHONPATH$|DARLING_TEST_", name)}
    job = {"runtime_env": preloaded.runtime_env() | {"env_vars": from_test}}
    return {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}


def run(folder: Path, arguments: list[str], module: list[str] | None = None, own_ray: bool = False) -> tuple[int, str]:
    """(exit status, all output) of the launcher, or of another Python program, with `arguments`."""
    environment = {**os.environ, **preloaded_workers(), "RAY_ADDRESS": "" if own_ray else shared_ray.address()}
    program = module or ["-m", "darling_plugin"]
    with (folder / "output.log").open("w") as log:
        done = subprocess.run(
            [preloaded.python(), *program, *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            timeout=540,
            check=False,
        )
    return done.returncode, (folder / "output.log").read_text(errors="replace")


def sync_gaps(output: str) -> list[float]:
    """What each weight sync left between vLLM and the trainer, as a share of the log-probabilities' spread."""
    gaps = re.findall(r"log-probabilities of vLLM and the trainer differ by ([\d.]+)%", output)
    return [float(gap) / 100 for gap in gaps]


def tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar the run logged, by name and step."""
    (run,) = (folder / "tensorboard").iterdir()
    reader = EventAccumulator(str(run))
    reader.Reload()
    points = {name: reader.Scalars(name) for name in reader.Tags()["scalars"]}
    for name, found in points.items():
        assert len({point.step for point in found}) == len(found), f"a step of {name} twice"
    return {name: {point.step: point.value for point in found} for name, found in points.items()}
