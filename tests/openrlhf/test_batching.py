"""Which groups a partition actor measures together, without Ray."""

import asyncio
import threading

import pytest
import torch
from actor_groups import broken, column, make_actor, responses, score

from darling_plugin import DarlingError
from darling_plugin.openrlhf import batching
from darling_plugin.openrlhf.batching import GATHER_SECONDS, SETTLING

PAUSE = asyncio.sleep  # the real one, where a test replaces the actor's


def test_groups_that_arrive_during_a_batch_make_up_the_next_and_one_bad_one_harms_no_other(
    configured, temporary_model
):
    batches, entered, go_on = [], threading.Event(), threading.Event()

    def slow(self, groups):
        batches.append([group.prompt for group in groups])
        entered.set()
        assert go_on.wait(timeout=30)
        return broken(self, groups)

    temporary_model("slow", slow)
    actor = make_actor(configured, partition_model="slow", on_error="quality_only")

    async def burst():
        first = asyncio.create_task(actor.score(responses("a", "b", prompt="first"), 0, "train", 1000))
        assert await asyncio.to_thread(entered.wait, 30)
        rest = [
            asyncio.create_task(actor.score(responses("a", "b", prompt=prompt), k, "train", 1000))
            for k, prompt in enumerate(["second", "bad", "third"], start=1)
        ]
        await asyncio.sleep(0)  # they arrive while the first batch is being scored
        go_on.set()
        return await asyncio.gather(first, *rest)

    scored = asyncio.run(burst())
    assert batches[:2] == [["first"], ["second", "bad", "third"]]
    assert [column(group, "darling_quality_only")[0] for group in scored] == [0, 0, 1, 0]
    assert [column(group, "darling_group")[0] for group in scored] == [0, 1, 2, 3]


class Windows:
    """Stands in for asyncio.sleep in the actor: how long each wait was to be; it lasts until `over` is set."""

    def __init__(self, monkeypatch):
        self.asked, self.over = [], asyncio.Event()
        monkeypatch.setattr(batching.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds):
        self.asked.append(seconds)
        await self.over.wait()


def keeps_batches(batches):
    """A partition that notes the prompts of each batch."""

    def partition(self, groups):
        batches.append([group.prompt for group in groups])
        return [[0] * len(group.responses) for group in groups]

    return partition


async def arrive(actor, *prompts):
    """A group a prompt, each having reached the actor before the next is sent."""
    tasks = []
    for k, prompt in enumerate(prompts):
        tasks.append(asyncio.create_task(actor.score(responses("a", "b", prompt=prompt), k, "train", 1000)))
        for _ in range(5):
            await PAUSE(0)
    return tasks


def test_a_burst_at_an_idle_actor_is_one_batch_and_does_not_prolong_the_wait(configured, temporary_model, monkeypatch):
    batches = []
    temporary_model("keeps", keeps_batches(batches))
    actor = make_actor(configured, partition_model="keeps")

    async def bursts():
        for prompts in (["first", "second", "third"], ["fourth"], ["fifth", "sixth"]):
            windows = Windows(monkeypatch)
            tasks = await arrive(actor, *prompts)
            assert windows.asked == [GATHER_SECONDS], "one wait, from the first group on"
            windows.over.set()
            await asyncio.wait_for(asyncio.gather(*tasks), 30)
            assert windows.asked == [GATHER_SECONDS], "and none after it"

    asyncio.run(bursts())
    assert batches == [["first", "second", "third"], ["fourth"], ["fifth", "sixth"]]


def test_a_group_alone_is_held_back_for_a_few_milliseconds_at_the_most(configured, temporary_model, monkeypatch):
    batches = []
    temporary_model("keeps", keeps_batches(batches))
    actor = make_actor(configured, partition_model="keeps")
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        await PAUSE(seconds)

    monkeypatch.setattr(batching.asyncio, "sleep", sleep)
    score(actor, responses("a", "b", prompt="alone"))
    assert batches == [["alone"]] and sum(waits) <= 0.01


def test_groups_that_arrive_during_a_batch_are_not_held_back(configured, temporary_model, monkeypatch):
    batches, entered, go_on = [], threading.Event(), threading.Event()
    keep = keeps_batches(batches)

    def slow(self, groups):
        entered.set()
        assert go_on.wait(timeout=30)
        return keep(self, groups)

    temporary_model("slow", slow)
    actor = make_actor(configured, partition_model="slow")

    async def burst():
        windows = Windows(monkeypatch)
        windows.over.set()
        tasks = await arrive(actor, "first")
        assert await asyncio.to_thread(entered.wait, 30)
        windows.over.clear()  # a further wait would not end
        tasks += await arrive(actor, "second", "third")
        go_on.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert windows.asked == [GATHER_SECONDS]

    asyncio.run(burst())
    assert batches == [["first"], ["second", "third"]]


def test_after_a_hang_the_wait_is_the_longer_one_alone(configured, temporary_model, monkeypatch):
    batches = []
    temporary_model("keeps", keeps_batches(batches))
    actor = make_actor(configured, partition_model="keeps", on_error="quality_only")
    actor._batcher._watchdog.hung.add(99)

    async def burst():
        windows = Windows(monkeypatch)
        tasks = await arrive(actor, "first", "second")
        assert windows.asked == [SETTLING]
        windows.over.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert windows.asked == [SETTLING]

    asyncio.run(burst())
    assert batches == [["first", "second"]]


def test_groups_that_hung_together_are_measured_alone_after_the_others(configured, temporary_model, monkeypatch):
    batches = []
    temporary_model("keeps", keeps_batches(batches))
    actor = make_actor(configured, partition_model="keeps")
    actor._batcher._watchdog.suspects.update({1, 2})

    async def burst():
        windows = Windows(monkeypatch)
        tasks = await arrive(actor, "new", "suspect", "another", "also new")
        windows.over.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)

    asyncio.run(burst())
    assert batches == [["new", "also new"], ["suspect"], ["another"]]


def test_a_group_that_is_cancelled_meanwhile_harms_no_other(configured, temporary_model):
    entered, go_on = threading.Event(), threading.Event()

    def slow(self, groups):
        entered.set()
        assert go_on.wait(timeout=30)
        return broken(self, groups)

    temporary_model("slow", slow)
    actor = make_actor(configured, partition_model="slow")

    async def burst():
        scores = [asyncio.create_task(actor.score(responses("a", "b"), k, "train", 1000)) for k in range(3)]
        assert await asyncio.to_thread(entered.wait, 30)
        scores[1].cancel()
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.wait_for(asyncio.gather(scores[0], scores[2]), 30)

    assert [column(group, "darling_group")[0] for group in asyncio.run(burst())] == [0, 2]


def test_a_batch_has_a_million_characters_at_most_and_a_longer_group_is_one_by_itself(
    configured, temporary_model, monkeypatch
):
    monkeypatch.setattr(batching, "BATCH_CHARACTERS", 10)
    batches = []
    temporary_model("keeps", keeps_batches(batches))
    actor = make_actor(configured, partition_model="keeps")

    async def burst():
        texts = [("abc", "de"), ("ab", "cde"), ("a", "b"), ("a" * 20, "b"), ("x", "y")]
        return await asyncio.gather(
            *(actor.score(responses(*each, prompt=str(k)), k, "train", 1000) for k, each in enumerate(texts))
        )

    scored = asyncio.run(burst())
    assert batches == [["0", "1"], ["2"], ["3"], ["4"]]
    assert [column(group, "darling_group")[0] for group in scored] == [0, 1, 2, 3, 4]


class Ended(BaseException):
    """In place of the process's end."""


@pytest.mark.parametrize("wraps", [False, True])
def test_an_error_that_broke_the_accelerator_ends_the_process_with_the_whole_batch(
    configured, temporary_model, monkeypatch, wraps
):
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    calls, ended = [], []

    def illegal(self, groups):
        calls.append(len(groups))
        if wraps:
            raise DarlingError("a similarity", "none", "mend the model") from error
        raise error

    def end(groups, error):
        ended.append((groups, error.__cause__ if wraps else error))
        raise Ended

    temporary_model("illegal", illegal)
    actor = make_actor(configured, partition_model="illegal", on_error="quality_only")
    monkeypatch.setattr(actor._batcher._watchdog, "end", end)

    async def burst():
        scores = [asyncio.create_task(actor.score(responses("a", "b"), k, "train", 1000)) for k in range(3)]
        while actor._batcher._measuring is None:
            await PAUSE(0)
        with pytest.raises(Ended):
            await actor._batcher._measuring
        assert not any(each.done() for each in scores), "no group is answered: Ray sends them to the next process"
        for each in scores:
            each.cancel()

    asyncio.run(burst())
    assert ended == [([0, 1, 2], error)] and calls == [3], "and the groups are not tried one by one before"


def test_one_thread_measures_all_batches(configured, temporary_model):
    threads = []

    def notes(self, groups):
        threads.append(threading.get_ident())
        return broken(self, groups)

    temporary_model("notes", notes)
    actor = make_actor(configured, partition_model="notes")

    async def one_after_the_other():
        for k in range(20):
            await asyncio.gather(
                actor.score(responses("a", "b"), k, "train", 1000), asyncio.to_thread(threading.get_ident)
            )

    asyncio.run(one_after_the_other())
    assert len(threads) == 20 and len(set(threads)) == 1
