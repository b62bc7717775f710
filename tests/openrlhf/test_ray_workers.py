"""The setup hook and the guard in worker processes of a real, local Ray, which import the real OpenRLHF."""

import contextlib
import os
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import preloaded
import pytest
import ray
import shared_ray

from darling_plugin.config import DarlingConfig
from darling_plugin.openrlhf import launch, worker
from darling_plugin.openrlhf.partition_actor import PartitionPool
from darling_plugin.openrlhf.seams import FIRST

# Workers cannot import this file: it travels with what it defines.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Toy:
    """Stands where OpenRLHF's trainer would: its process imports the trainer's modules, then is asked what it sees."""

    def __init__(self, passenger=None):
        import openrlhf.trainer.ppo_trainer  # noqa: F401

        self.passenger = passenger

    def wrapped(self):
        from darling_plugin.openrlhf.seams import installed_seams, is_hooked

        return {seam.name: is_hooked(seam.resolve()) for seam in installed_seams()}

    def install_again_then_uninstall(self):
        import sys

        from darling_plugin.openrlhf import hooks
        from darling_plugin.openrlhf.seams import installed_seams, is_hooked

        seams = installed_seams()
        before = [seam.resolve() for seam in seams]
        for seam in seams:
            hooks.install(sys.modules[seam.module])
        unchanged = all(a is b for a, b in zip(before, (seam.resolve() for seam in seams), strict=True))
        for seam in seams:
            hooks.uninstall(sys.modules[seam.module])
        return unchanged, [is_hooked(seam.resolve()) for seam in seams]


@contextlib.contextmanager
def local_ray(config: DarlingConfig | None, **kwargs):
    """Ray as the launcher joins it with `config`, or plain."""
    kwargs["runtime_env"] = {**preloaded.runtime_env(), **kwargs.get("runtime_env", {})}
    with mock.patch.dict(os.environ, {"RAY_ADDRESS": shared_ray.address()}):
        ray.init(**(launch.with_setup_hook(kwargs, config) if config else kwargs))
    try:
        yield
    finally:
        ray.shutdown()


def start_toy(*args):
    return ray.remote(num_cpus=0)(Toy).remote(*args)


def test_a_worker_sees_the_patched_classes_in_its_own_process():
    with local_ray(DarlingConfig(enable=True, cpu=True)):
        toy = start_toy(worker.RequiresHooks())
        seen = ray.get(toy.wrapped.remote())
        assert len(seen) == len(FIRST) and all(seen.values()), seen
        unchanged, still_wrapped = ray.get(toy.install_again_then_uninstall.remote())
        assert unchanged, "installing twice wraps once"
        assert not any(still_wrapped)


def test_without_the_flag_a_worker_is_as_openrlhf_made_it():
    with local_ray(DarlingConfig(cpu=True)):
        seen = ray.get(start_toy().wrapped.remote())
        assert len(seen) == len(FIRST) and not any(seen.values()), seen


def train(strategy=None):
    return "trained"


def test_the_guard_stops_a_worker_in_which_the_setup_hook_did_not_run():
    strategy = SimpleNamespace(darling_guard=worker.RequiresHooks())
    with local_ray(None), pytest.raises(Exception, match="the worker's setup hook did not run"):
        ray.get(ray.remote(train).remote(strategy))


def test_a_wrong_signature_kills_the_worker(tmp_path):
    installed = Path(next(iter(find_spec("openrlhf").submodule_search_locations)))
    shutil.copytree(installed, tmp_path / "openrlhf", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "openrlhf" / "trainer" / "ppo_utils" / "samples_generator.py"
    text = source.read_text()
    assert text.count("self, prompts: List[str], labels: List[str], *, images") == 1
    source.write_text(text.replace("self, prompts: List[str], labels", "self, prompts: List[str], targets"))
    changed = {"runtime_env": {"env_vars": {"PYTHONPATH": str(tmp_path)}}}
    with (
        local_ray(DarlingConfig(enable=True, cpu=True), **changed),
        pytest.raises(ray.exceptions.RayActorError, match=r"(?s)needed: .*prompts, labels.*prompts, targets"),
    ):
        ray.get(start_toy().wrapped.remote())


class Letters:
    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


def generate(text, seconds):
    """One prompt's two responses, as the rollout actor returns them, after `seconds`."""
    time.sleep(seconds)
    tokens = list(map(ord, text))
    response = {"prompt": "p", "observation_tokens": tokens, "action_ranges": [(0, len(tokens))], "reward": 1.0}
    return [dict(response), dict(response)]


def test_a_group_is_scored_while_another_is_still_generated():
    config = DarlingConfig(enable=True, partition_model="lexical", num_partition_actors=2)
    with local_ray(config):
        pool = PartitionPool(config, Letters(), quality_expected=True)
        refs = [
            pool.submit(ray.remote(generate).remote(text, seconds), split="train", max_len=100)
            for text, seconds in (("slow", 20), ("fast", 0))
        ]
        done, pending = ray.wait(refs, timeout=15)
        assert (done, pending) == ([refs[1]], [refs[0]])
        assert [response["extra_logs"]["darling_label"] for response in ray.get(refs[1])] == [0, 0]
        first, second = (ray.get(ref)[0]["extra_logs"] for ref in refs)
        assert second["darling_scored_at"] < first["darling_generated_at"]
        assert (first["darling_group"], second["darling_group"]) == (0, 1)
