"""What a partition actor holds of a GPU: bounded, and given back while nothing comes. torch.cuda is played."""

import asyncio
import threading
import time

import pytest
import torch
from actor_groups import make_actor, responses
from tiny_classifiers import make_classifier

from darling_plugin import DarlingError, PartitionModel, register_partition_model
from darling_plugin.openrlhf import batching, gpu_memory
from darling_plugin.openrlhf.gpu_memory import GpuMemory
from darling_plugin.partition import Group, load_partition_model
from darling_plugin.partition.models.lexical import Lexical


@pytest.fixture
def gpu(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: calls.append(share))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    return calls


class Sleeper(Lexical):
    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def partition(self, groups):
        self.seen.append(groups[0].prompt)
        return super().partition(groups)

    def sleep(self):
        self.seen.append("sleep")

    def wake(self):
        self.seen.append("wake")


def test_what_is_cached_is_given_back(gpu):
    memory = GpuMemory(Lexical(), share=0.25, sleeps=False)
    assert memory.used and not gpu
    memory.give_back()
    assert gpu == ["empty_cache"]
    assert GpuMemory(Lexical(), share=1.0, sleeps=False).used


@pytest.mark.parametrize(("share", "bound"), [(0.25, [0.25]), (1.0, []), (0.0, [])])
def test_an_actor_is_bound_to_its_share_of_the_gpu_before_its_model_loads(configured, gpu, monkeypatch, share, bound):
    class Loads(PartitionModel):
        def __init__(self):
            gpu.append("loads")

        def partition(self, groups):
            raise NotImplementedError

    register_partition_model("loads")(Loads)
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [3])
    make_actor(configured, partition_model="loads", gpus_per_partition_actor=share)
    assert gpu == [*bound, "loads"], "a whole GPU is bound by itself, and without a share there is none"


class Tight(Sleeper):
    """Without room for its weights at first."""

    attempts = 3

    def wake(self):
        super().wake()
        if self.seen.count("wake") < self.attempts:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_model_waits_for_memory_to_wake_in_and_not_for_ever(gpu, monkeypatch):
    monkeypatch.setattr(gpu_memory, "WAKE_AGAIN", 0.01)
    model = Tight()
    memory = GpuMemory(model, share=0.2, sleeps=True)
    memory.give_back()
    assert memory.awake(len)("abc") == 3
    assert model.seen == ["sleep", "wake", "wake", "wake"] and gpu == ["empty_cache"] * 3
    monkeypatch.setattr(gpu_memory, "WAKE_WITHIN", 0.05)
    model.attempts = 10**6
    memory.give_back()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            memory.awake(len)("abc")
    model.attempts = 0
    assert memory.awake(len)("abc") == 3, "it still sleeps, and wakes when it can"


def test_an_actor_that_torch_finds_no_gpu_for_is_refused(configured, monkeypatch):
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [3])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DarlingError, match=r"(?s)a GPU that torch computes on.*torch .* where Ray lent\s+GPU 3"):
        make_actor(configured, partition_model="lexical", gpus_per_partition_actor=0.2)
    in_name = make_actor(configured, partition_model="lexical", gpus_per_partition_actor=0.2, cpu=True)
    assert asyncio.run(in_name.describe())["device"] == "a CPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda k: "H100")
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: None)
    there = make_actor(configured, partition_model="lexical", gpus_per_partition_actor=0.2)
    assert asyncio.run(there.describe())["device"] == "a GPU, H100"


def test_on_a_cpu_there_is_nothing_to_give_back():
    assert not GpuMemory(Lexical(), share=0.0, sleeps=False).used


def test_a_model_without_sleep_is_refused():
    with pytest.raises(DarlingError, match="Lexical, which has no method sleep"):
        GpuMemory(Lexical(), share=0.2, sleeps=True)


def test_a_model_sleeps_between_steps_and_wakes_before_the_next_group(configured, monkeypatch):
    monkeypatch.setattr(batching, "REST_AFTER", 0.2)
    register_partition_model("sleeper")(Sleeper)
    actor = make_actor(configured, partition_model="sleeper", partition_sleep=True)
    seen = actor._model.seen

    async def steps():
        for step in range(2):
            for k in range(3):  # groups of one step, one after the other
                await actor.score(responses("a", "b", prompt=f"{step}"), 10 * step + k, "train", 1000)
            end = time.monotonic() + 30
            while seen[-1] != "sleep" and time.monotonic() < end:
                await asyncio.sleep(0.02)

    asyncio.run(steps())
    assert seen == ["0", "0", "0", "sleep", "wake", "1", "1", "1", "sleep"]


def test_a_group_that_came_meanwhile_puts_the_rest_off(configured, monkeypatch):
    monkeypatch.setattr(batching, "REST_AFTER", 1000.0)
    register_partition_model("sleeper")(Sleeper)
    actor = make_actor(configured, partition_model="sleeper", partition_sleep=True)

    async def two_groups():
        for k in range(2):
            await actor.score(responses("a", "b", prompt=f"{k}"), k, "train", 1000)
            await actor._batcher._measuring
        batching.REST_AFTER = 0.0
        await actor._batcher._rest_after(1)  # the time of the first group is over
        assert actor._model.seen == ["0", "1"]
        await actor._batcher._rest_after(2)
        assert actor._model.seen == ["0", "1", "sleep"]

    asyncio.run(two_groups())


def test_a_group_that_comes_while_the_model_falls_asleep_waits_and_wakes_it(configured, monkeypatch):
    monkeypatch.setattr(batching, "REST_AFTER", 0.0)
    falling, go_on = threading.Event(), threading.Event()

    class Slow(Sleeper):
        def sleep(self):
            falling.set()
            assert go_on.wait(30)
            super().sleep()

    register_partition_model("slow sleeper")(Slow)
    actor = make_actor(configured, partition_model="slow sleeper", partition_sleep=True)

    async def step():
        await actor.score(responses("a", "b", prompt="first"), 0, "train", 1000)
        assert await asyncio.to_thread(falling.wait, 30)
        second = asyncio.create_task(actor.score(responses("a", "b", prompt="second"), 1, "train", 1000))
        await asyncio.sleep(0.1)
        assert not second.done()
        go_on.set()
        await asyncio.wait_for(second, 30)

    asyncio.run(step())
    assert actor._model.seen[:4] == ["first", "sleep", "wake", "second"]


@pytest.mark.parametrize(
    ("spec", "kind"),
    [("default", None), ("embedding", None), ("cross-encoder", "bert"), ("darling-modernbert", "modernbert")],
)
def test_the_built_in_models_leave_their_gpu_for_a_sleep_and_score_the_same_after_it(
    spec, kind, tmp_path, monkeypatch
):
    model = load_partition_model(f"{spec}:{make_classifier(tmp_path, kind)}" if kind else spec)
    group = Group("Where?", ["the cat sat on the mat and ran", "a dog ran under the tree and sat", "the cat sat"])
    before = model.similarities([group])[0]
    weights = [model.encoder.model, model.adapted.model] if spec == "default" else [model.model]
    where = {id(each): ["cuda:1"] for each in weights}
    with monkeypatch.context() as played:
        played.setattr(type(weights[0]), "device", property(lambda self: torch.device(where[id(self)][-1])))
        played.setattr(type(weights[0]), "to", lambda self, device: where[id(self)].append(str(device)))
        model.sleep()
        assert all(each == ["cuda:1", "cpu"] for each in where.values())
        model.wake()
        assert all(each == ["cuda:1", "cpu", "cuda:1"] for each in where.values())
    model.sleep()
    model.wake()
    assert torch.equal(model.similarities([group])[0], before)
