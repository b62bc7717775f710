"""Partition actors under faults, on a real Ray: killed, hanging, without room. Real signals, real processes."""

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import preloaded
import pytest
import ray
import shared_ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tiny_classifiers import make_classifier

from darling_plugin import DarlingError
from darling_plugin.config import DarlingConfig
from darling_plugin.openrlhf import launch, placement
from darling_plugin.openrlhf.partition_actor import PartitionPool

# Workers cannot import this file: it travels with what it defines.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

MODEL = """
import os, re, time
import ray
import torch
from darling_plugin import PartitionModel
from darling_plugin.partition import alive

with open({starts!r}, "a") as file:
    file.write(f"{{os.getpid()}} {{ray.get_gpu_ids()}}\\n")

class Model(PartitionModel):
    def partition(self, groups):
        for group in groups:
            for _ in range(12 if "slow" in group.prompt else 0):  # half as long again as the deadline below
                time.sleep(0.5)
                alive()
            if "hang" in group.prompt:
                time.sleep(600)
            if "illegal" in group.prompt:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            if "regex" in group.prompt:
                re.match(r"(a|a)+$", "a" * 60 + "b")  # holds Python's lock for longer than anyone waits
            time.sleep({seconds})
        return [[ord(text[:1]) for text in group.responses] for group in groups]
"""


class Letters:
    """As large as a real tokenizer: Ray keeps such arguments in its object store, and forgets what nobody holds."""

    def __init__(self):
        self.vocabulary = bytes(2_000_000)

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


def generate(prompt, texts, seconds=0.0):
    """What a rollout actor returns for one prompt, after `seconds`."""
    time.sleep(seconds)
    return [
        {
            "prompt": prompt,
            "observation_tokens": list(map(ord, text)),
            "action_ranges": [(0, len(text))],
            "reward": 1.0,
        }
        for text in texts
    ]


class Rollouts:
    """Generates all prompts at once in one process, where a task each would take one each."""

    def generate(self, *args):
        return generate(*args)


def write_model(tmp_path, seconds=0.0):
    (tmp_path / "model.py").write_text(MODEL.format(starts=str(tmp_path / "starts"), seconds=seconds))
    return f"{tmp_path / 'model.py'}:Model"


def starts(tmp_path):
    """Process id and GPUs of each partition actor's process so far."""
    return [line.split(" ", 1) for line in (tmp_path / "starts").read_text().splitlines()]


@contextlib.contextmanager
def local_ray(config, **kwargs):
    own = {"num_cpus": 4, "include_dashboard": False, **kwargs} if kwargs else {}
    with mock.patch.dict(os.environ, {"RAY_ADDRESS": "" if own else shared_ray.address()}):
        ray.init(**launch.with_setup_hook({"runtime_env": preloaded.runtime_env(), **own}, config))
    try:
        yield
    finally:
        ray.shutdown()


def submit(pool, prompt, texts):
    return pool.submit(ray.remote(num_cpus=0)(generate).remote(prompt, texts), split="train", max_len=100)


def said_by_workers():
    """What the job's processes have written so far."""
    session = ray._private.worker._global_node.get_session_dir_path()
    files = Path(session, "logs").glob(f"worker-*-{ray.get_runtime_context().get_job_id()}-*.err")
    return "".join(path.read_text(errors="replace") for path in files)


def labels(scored):
    return [response["extra_logs"]["darling_label"] for response in scored]


def test_killed_five_times_no_group_is_lost_scored_twice_or_wrong(tmp_path):
    config = DarlingConfig(enable=True, partition_model=write_model(tmp_path, seconds=0.3), num_partition_actors=1)
    with local_ray(config):
        pool = PartitionPool(config, Letters(), quality_expected=True)
        texts = [["ab", "ac", "b"], ["x", "y", "z"], ["q", "q", "q"]] * 8
        # Generation goes on all the while: a new group every second.
        rollouts = ray.remote(num_cpus=0, max_concurrency=len(texts))(Rollouts).remote()
        generated = [rollouts.generate.remote(f"prompt {k}", each, 1.0 * k) for k, each in enumerate(texts)]
        refs = [pool.submit(ref, split="train", max_len=100) for ref in generated]
        for kills in range(1, 6):
            end = time.monotonic() + 120
            while len(starts(tmp_path)) < kills:
                assert time.monotonic() < end, f"not started again after {kills - 1} kills"
                time.sleep(0.05)
            ray.wait(refs, num_returns=min(len(refs), 2 * kills), timeout=120)
            os.kill(int(starts(tmp_path)[-1][0]), signal.SIGKILL)
        scored = ray.get(refs, timeout=180)
        assert len(starts(tmp_path)) == 6 and len({pid for pid, _ in starts(tmp_path)}) == 6
    for k, (each, group) in enumerate(zip(texts, scored, strict=True)):
        assert [response["extra_logs"]["darling_group"] for response in group] == [k] * 3
        assert group[0]["prompt"] == f"prompt {k}"
        letters = [text[0] for text in each]
        assert labels(group) == [list(dict.fromkeys(letters)).index(letter) for letter in letters]


def test_a_model_that_hangs_costs_its_own_groups_alone(tmp_path):
    model = write_model(tmp_path, seconds=0.3)
    config = DarlingConfig(enable=True, partition_model=model, partition_timeout=4.0, on_error="quality_only")
    with local_ray(config):
        pool = PartitionPool(config, Letters(), quality_expected=True)
        refs = [submit(pool, prompt, ["a", "b"]) for prompt in ("first", "hang", "third", "regex", "fifth")]
        scored = ray.get(refs, timeout=120)
        assert [group[0]["extra_logs"]["darling_quality_only"] for group in scored] == [0, 1, 0, 1, 0]
        assert [labels(group) for group in scored] == [[0, 1], [-1, -1], [0, 1], [-1, -1], [0, 1]]
        assert labels(ray.get(submit(pool, "later", ["a", "a"]), timeout=30)) == [0, 0]
        said = said_by_workers()
    assert 3 <= len(starts(tmp_path)) <= 6, "each hang ends a process: that of a batch, those alone"
    assert re.search(r"on the groups.*Timeout.*model.py.* in partition", said, re.S), "it says where"


def test_a_slow_model_is_let_work_and_one_that_falls_silent_after_it_is_not(tmp_path):
    config = DarlingConfig(
        enable=True, partition_model=write_model(tmp_path), partition_timeout=4.0, on_error="quality_only"
    )
    with local_ray(config):
        pool = PartitionPool(config, Letters(), quality_expected=True)
        began = time.monotonic()
        assert labels(ray.get(submit(pool, "slow", ["a", "b"]), timeout=60)) == [0, 1]
        assert time.monotonic() - began >= 6 and len(starts(tmp_path)) == 1, "the process that began it ended it"
        assert labels(ray.get(submit(pool, "slow, then hang", ["a", "b"]), timeout=120)) == [-1, -1]
        said = said_by_workers()
    assert len(starts(tmp_path)) == 2
    assert "it is slow, and does not hang" in said


def test_a_broken_accelerator_costs_its_own_group_alone(tmp_path):
    model = write_model(tmp_path, seconds=0.3)
    config = DarlingConfig(enable=True, partition_model=model, on_error="quality_only")
    with local_ray(config):
        pool = PartitionPool(config, Letters(), quality_expected=True)
        refs = [submit(pool, prompt, ["a", "b"]) for prompt in ("first", "illegal", "third", "fourth")]
        scored = ray.get(refs, timeout=120)
        assert [group[0]["extra_logs"]["darling_quality_only"] for group in scored] == [0, 1, 0, 0]
        assert labels(ray.get(submit(pool, "later", ["a", "a"]), timeout=30)) == [0, 0]
        said = said_by_workers()
    assert 2 <= len(starts(tmp_path)) <= 4, "a process ends with its batch, and one with the group alone"
    assert re.search(r"This process ends.*an illegal memory access was encountered", said, re.S)


def test_a_model_that_hangs_stops_the_run_by_default(tmp_path):
    config = DarlingConfig(enable=True, partition_model=write_model(tmp_path), partition_timeout=2.0)
    with local_ray(config):
        pool = PartitionPool(config, Letters(), quality_expected=True)
        began = time.monotonic()
        refs = [submit(pool, f"regex {k}", ["a", "b"]) for k in range(6)]
        with pytest.raises(
            DarlingError, match=r"(?s)no answer within --darling.partition_timeout 2 s.*train prompt \d"
        ):
            ready, _ = ray.wait(refs, timeout=100)
            ray.get(ready)
        assert time.monotonic() - began < 60, "the first one that hangs alone decides"


@pytest.mark.parametrize("gpus", [1, 2])
def test_colocated_actors_get_their_share_of_the_placement_group_that_holds_every_gpu(tmp_path, gpus):
    config = DarlingConfig(
        enable=True,
        partition_model=write_model(tmp_path),
        num_partition_actors=2,
        gpus_per_partition_actor=0.2,
        cpu=True,  # GPUs in name only
    )
    with local_ray(config, num_gpus=gpus):
        shared = placement.name_first(placement_group)([{"GPU": 1, "CPU": 1}] * gpus, strategy="PACK")
        ray.get(shared.ready(), timeout=30)
        placed = [PlacementGroupSchedulingStrategy(shared, bundle) for bundle in range(gpus)]

        @ray.remote(num_gpus=0.2, num_cpus=0.2)
        class Model:
            def gpu(self):
                return ray.get_gpu_ids()

        models = [Model.options(scheduling_strategy=place).remote() for place in placed for _ in range(3)]
        ray.get([model.gpu.remote() for model in models], timeout=60)
        assert ray.available_resources().get("GPU", 0) == 0, "nothing is left outside of the group"
        found = ray.get(ray.remote(num_cpus=0)(find_shared).remote(), timeout=60)
        assert found.id == shared.id, "a worker of the job finds it"
        pool = PartitionPool(config, Letters(), quality_expected=True, colocate_with=found)
        assert labels(ray.get(submit(pool, "p", ["a", "b"]), timeout=60)) == [0, 1]
        assert sorted(gpu for _, gpu in starts(tmp_path)) == sorted(f"[{k % gpus}]" for k in range(2))


def find_shared():
    return ray.util.get_placement_group(placement.job_name("models"))


def test_an_actor_that_finds_no_room_is_waited_for_and_named_not_for_ever(tmp_path):
    config = DarlingConfig(
        enable=True, partition_model=write_model(tmp_path), gpus_per_partition_actor=0.5, start_timeout=5
    )
    with local_ray(config, num_gpus=1):
        group = placement_group([{"GPU": 1, "CPU": 1}])
        ray.get(group.ready(), timeout=30)
        with pytest.raises(DarlingError, match="(?s)0.5 GPU each, beside the models.*1 not ready, number 0; free in"):
            PartitionPool(config, Letters(), quality_expected=True)
        full = ray.remote(num_gpus=0.8, num_cpus=0)(Full)
        placed = PlacementGroupSchedulingStrategy(group, 0)
        holder = full.options(scheduling_strategy=placed).remote()
        ray.get(holder.ready.remote(), timeout=60)
        with pytest.raises(DarlingError, match="(?s)0.5 GPU each, in the placement group of the models.*not ready"):
            PartitionPool(config, Letters(), quality_expected=True, colocate_with=group)


ONE_FAILS = """
import os, time
from pathlib import Path
from darling_plugin import PartitionModel

class Model(PartitionModel):
    def __init__(self):
        try:
            os.mkdir({lock!r})
        except FileExistsError:
            time.sleep(600)
        raise ValueError("no weights here")

    def partition(self, groups):
        return [[0] * len(group.responses) for group in groups]
"""


def test_of_actors_that_are_late_and_one_that_failed_the_failure_is_told(tmp_path):
    (tmp_path / "model.py").write_text(ONE_FAILS.format(lock=str(tmp_path / "lock")))
    model = f"{tmp_path / 'model.py'}:Model"
    config = DarlingConfig(enable=True, partition_model=model, num_partition_actors=2, start_timeout=20)
    with local_ray(config), pytest.raises(ray.exceptions.RayError, match="no weights here"):
        PartitionPool(config, Letters(), quality_expected=True)


NO_MEMORY_LEFT = """
import os, sys
from types import SimpleNamespace
from darling_plugin.partition.models.vllm_classifier import VLLMClassifier

def load(path, **options):
    # As vLLM (0.29) says it; what has taken the memory is training, or the process that ended a moment ago.
    raise ValueError("Free memory on device cuda:0 (1.5/79.2 GiB) on startup is less than desired (0.2, 15.8 GiB)")

class Model(VLLMClassifier):
    def __init__(self):
        try:
            os.mkdir({lock!r})
        except FileExistsError:
            sys.modules["vllm"] = SimpleNamespace(LLM=load)
            super().__init__({path!r})

    def partition(self, groups):
        os._exit(1)
"""


def test_a_restart_that_finds_its_gpu_memory_taken_says_so_where_the_run_stops(tmp_path):
    path = make_classifier(tmp_path / "weights", "llama")
    (tmp_path / "model.py").write_text(NO_MEMORY_LEFT.format(lock=str(tmp_path / "lock"), path=path))
    config = DarlingConfig(enable=True, partition_model=f"{tmp_path / 'model.py'}:Model")
    with local_ray(config):
        pool = PartitionPool(config, Letters(), quality_expected=True)
        with pytest.raises(ray.exceptions.RayError) as caught:
            ray.get(submit(pool, "p", ["a", "b"]), timeout=120)
    said = " ".join(str(caught.value).split())
    assert "needed: a classifier that vLLM loads" in said and "free memory on that GPU or set gpu_memory_util" in said
    assert "found: ValueError: Free memory on device cuda:0 (1.5/79.2 GiB) on startup is less than desired" in said


class Full:
    def ready(self):
        return True
