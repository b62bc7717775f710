"""What a partition actor holds of a GPU: bounded, and given back while nothing comes. torch.cuda is played."""

import asyncio
import threading
import time

import pytest
import torch
from actor_groups import make_actor, responses

from darling_plugin import DarlingError, register_partition_model
from darling_plugin.openrlhf import batching
from darling_plugin.openrlhf.gpu_memory import GpuMemory
from darling_plugin.partition import load_partition_model
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


def test_the_process_is_bound_to_its_share_and_gives_back_what_is_cached(gpu):
    memory = GpuMemory(Lexical(), share=0.25, sleeps=False)
    assert gpu == [0.25] and memory.used
    memory.give_back()
    assert gpu == [0.25, "empty_cache"]
    assert GpuMemory(Lexical(), share=1.0, sleeps=False).used and gpu[2:] == [], "a whole GPU is bound by itself"


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


@pytest.mark.parametrize("spec", ["default", "embedding"])
def test_the_built_in_models_score_the_same_after_a_sleep(spec):
    model = load_partition_model(spec)
    (group,) = [responses_of("Paris is it.", "It is Paris.", "Rome")]
    before = model.similarities([group])[0]
    model.sleep()
    model.wake()
    assert torch.equal(model.similarities([group])[0], before)


def responses_of(*texts):
    from darling_plugin.partition import Group

    return Group("Name a city.", list(texts))
