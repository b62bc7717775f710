"""The partition actor's own code, without Ray: what it adds, how it batches, what it does when things go wrong."""

import asyncio
import json
import logging
import tempfile
import threading

import pytest
import torch

from darling_plugin import DarlingError, PartitionModel, register_partition_model
from darling_plugin.openrlhf import partition_actor
from darling_plugin.openrlhf.partition_actor import (
    GATHER_SECONDS,
    SETTLING,
    PartitionActor,
    Watchdog,
    response_text,
)

PAUSE = asyncio.sleep  # the real one, where a test replaces the actor's


class Letters:
    """A tokenizer whose tokens are code points; 0 is special."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(token) for token in ids if token or not skip_special_tokens)


def responses(*texts, rewards=None, prompt="? "):
    rewards = [1.0] * len(texts) if rewards is None else rewards
    start = len(prompt)
    return [
        {
            "prompt": prompt,
            "observation_tokens": [ord(c) for c in prompt + text] + [0],
            "action_ranges": [(start, start + len(text) + 1)],
            "reward": reward,
            "extra_logs": {"theirs": 1.0},
        }
        for text, reward in zip(texts, rewards, strict=True)
    ]


def make_actor(configured, *, quality_expected=True, **flags):
    with tempfile.TemporaryDirectory() as folder:
        journal = f"{folder}-journal"  # beside it: gone with each batch
    return PartitionActor(configured(**{"partition_model": "lexical", **flags}), Letters(), quality_expected, journal)


def score(actor, group, number=7, split="train", max_len=1000):
    return asyncio.run(actor.score(group, number, split, max_len))


def column(scored, key):
    return [response["extra_logs"][key] for response in scored]


@pytest.fixture
def temporary_model():
    def register(name, partition):
        register_partition_model(name)(type("Model", (PartitionModel,), {"partition": partition}))

    return register


def test_labels_and_diversity_ride_in_extra_logs(configured):
    scored = score(make_actor(configured), responses("an apple", "a pear", "an apple"))
    assert column(scored, "darling_label") == [0, 1, 0]
    assert column(scored, "darling_diversity") == pytest.approx([0.5, 1.0, 0.5])
    assert column(scored, "darling_group") == [7, 7, 7]
    assert column(scored, "darling_quality_only") == [0, 0, 0]
    assert column(scored, "theirs") == [1.0, 1.0, 1.0]
    assert "darling_equivalent" not in scored[0]["extra_logs"]
    for response in scored:
        logs = response["extra_logs"]
        assert 0 <= logs["darling_scored_at"] - logs["darling_generated_at"] < 60e6
        assert torch.tensor([logs["darling_scored_at"]]).dtype == torch.int64, "float32 would round it to minutes"


def test_only_the_responses_own_tokens_are_partitioned_as_far_as_openrlhf_keeps_them(configured):
    group = responses("same", "same but longer")
    assert column(score(make_actor(configured), group, max_len=6), "darling_label") == [0, 0]
    # Two turns: what the environment said in between is not the model's.
    turns = responses("ab-env-cd", "abcd")
    turns[0]["action_ranges"] = [(2, 4), (9, 11)]
    assert column(score(make_actor(configured), turns), "darling_label") == [0, 0]


def test_empty_responses_are_one_class(configured):
    scored = score(make_actor(configured), responses("", " ", "an apple", ""))
    assert column(scored, "darling_label") == [0, 0, 1, 0]


def test_a_group_of_one(configured):
    scored = score(make_actor(configured), responses("an apple"), split="eval")
    assert column(scored, "darling_label") == [0]
    assert column(scored, "darling_diversity") == [1.0]


def test_correct_only(configured):
    group = responses("an apple", "an apple", "a pear", "an apple", rewards=[1.0, 0.0, 1.0, 1.0])
    scored = score(make_actor(configured, correct_only=True), group)
    assert column(scored, "darling_label") == [0, -1, 1, 0]
    assert column(scored, "darling_diversity") == pytest.approx([0.5, 0.0, 1.0, 0.5])
    none_correct = score(make_actor(configured, correct_only=True), responses("a", "b", rewards=[0.0, 0.0]))
    assert column(none_correct, "darling_label") == [-1, -1]
    assert column(none_correct, "darling_quality_only") == [0, 0], "that is a result, not a failure"


def test_pairwise_decisions_ride_along(configured, temporary_model):
    scored = score(make_actor(configured, clustering="pairwise"), responses("an apple", "a pear", "an apple"))
    assert column(scored, "darling_equivalent") == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert column(scored, "darling_diversity") == [0.5, 1.0, 0.5]


@pytest.mark.parametrize("on_error", ["fail", "quality_only"])
@pytest.mark.parametrize(
    ("reward", "cause"), [(None, "no reward"), (float("nan"), "reward nan"), (float("inf"), "reward inf")]
)
def test_a_missing_or_infinite_reward_always_stops(configured, on_error, reward, cause):
    group = responses("a", "b", rewards=[1.0, reward])
    with pytest.raises(DarlingError, match=f"(?s){cause}.*response 1 of train prompt 7.*'\\? '"):
        score(make_actor(configured, on_error=on_error), group)


@pytest.mark.parametrize("reward", [[0.5], torch.tensor([0.5]), torch.tensor(0.5), 0.5])
def test_every_form_of_reward_that_openrlhf_takes(configured, reward):
    # A list of one is what OpenRLHF's own reward server answers with.
    scored = score(make_actor(configured, correct_only=True), responses("a", "b", rewards=[reward, [0.0]]))
    assert column(scored, "darling_label") == [0, -1]
    with pytest.raises(DarlingError, match="reward nan"):
        score(make_actor(configured), responses("a", "b", rewards=[reward, [float("nan")]]))


def test_a_reward_model_scores_later(configured):
    scored = score(make_actor(configured, quality_expected=False), responses("a", "b", rewards=[None, None]))
    assert column(scored, "darling_label") == [0, 1]


def broken(self, groups):
    if any("bad" in group.prompt for group in groups):
        raise ZeroDivisionError("a bug of the model's")
    return [torch.zeros(len(group.responses), dtype=torch.long) for group in groups]


def test_a_model_that_raises_stops_the_run_with_the_group_and_the_cause(configured, temporary_model):
    temporary_model("broken", broken)
    actor = make_actor(configured, partition_model="broken")
    with pytest.raises(
        DarlingError,
        match="(?s)ZeroDivisionError: a bug of the model's, for train prompt 7 of this run, which ends .bad.",
    ):
        score(actor, responses("a", "b", prompt="bad"))


@pytest.mark.parametrize("raised", [StopIteration(), SystemExit(3), KeyboardInterrupt(), ZeroDivisionError()])
def test_whatever_a_model_raises_is_a_failure_of_its_group_and_not_a_hang(configured, temporary_model, raised):
    def partition(self, groups):
        if any("bad" in group.prompt for group in groups):
            raise raised
        return [[0] * len(group.responses) for group in groups]

    temporary_model("raises", partition)
    actor = make_actor(configured, partition_model="raises", on_error="quality_only")

    async def burst():
        prompts = ["good", "bad", "fine"]
        scores = [actor.score(responses("a", "b", prompt=p), k, "train", 1000) for k, p in enumerate(prompts)]
        return await asyncio.wait_for(asyncio.gather(*scores), 30)

    assert [column(scored, "darling_quality_only")[0] for scored in asyncio.run(burst())] == [0, 1, 0]


def test_quality_only_marks_the_group_and_warns_once(configured, temporary_model, caplog):
    temporary_model("broken", broken)
    actor = make_actor(configured, partition_model="broken", on_error="quality_only")
    with caplog.at_level(logging.WARNING):
        for number in (1, 2):
            scored = score(actor, responses("a", "b", prompt="bad"), number)
            assert column(scored, "darling_quality_only") == [1, 1]
            assert column(scored, "darling_label") == [-1, -1]
            assert column(scored, "darling_diversity") == [0.0, 0.0]
    (warning,) = caplog.records
    assert "train prompt 1" in warning.message and "a bug of the model's" in warning.message
    assert column(score(actor, responses("a", "b")), "darling_quality_only") == [0, 0]


@pytest.mark.parametrize(
    "result", [lambda n: [0] * (n - 1), lambda n: [float("nan")] * n, lambda n: [-1] * n, lambda n: None]
)
def test_a_result_that_is_no_partition_is_a_failure(configured, temporary_model, result):
    temporary_model("odd", lambda self, groups: [result(len(group.responses)) for group in groups])
    with pytest.raises(DarlingError, match="a partition of 3 responses by 'odd'"):
        score(make_actor(configured, partition_model="odd"), responses("a", "b", "c"))


def test_a_response_that_is_not_text_is_a_failure(configured):
    actor = make_actor(configured)
    actor._tokenizer.decode = lambda ids, skip_special_tokens: b"bytes"
    with pytest.raises(DarlingError, match="(?s)bytes.*train prompt 7"):
        score(actor, responses("a", "b"))


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
        monkeypatch.setattr(partition_actor.asyncio, "sleep", self.sleep)

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

    monkeypatch.setattr(partition_actor.asyncio, "sleep", sleep)
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
    actor._watchdog.hung.add(99)

    async def burst():
        windows = Windows(monkeypatch)
        tasks = await arrive(actor, "first", "second")
        assert windows.asked == [SETTLING]
        windows.over.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert windows.asked == [SETTLING]

    asyncio.run(burst())
    assert batches == [["first", "second"]]


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


def test_what_a_process_learns_of_the_one_before(tmp_path):
    journal = tmp_path / "journal"

    def after(text):
        journal.write_text(text)
        watchdog = Watchdog(str(journal), 60)
        return watchdog.hung, watchdog.suspects

    assert after("") == after("[[1], [") == (set(), set()), "killed as it began to write"
    assert after("[[1], [2], [3, 4]]\n") == ({1}, {2}), "killed"
    assert after("[[1], [2], [3, 4]]\nTimeout (0:00:03)!\n") == ({1}, {2, 3, 4}), "a batch that hung"
    assert after("[[1], [2], [3]]\nTimeout (0:00:03)!\n") == ({1, 3}, {2}), "a group that hung alone"
    watchdog = Watchdog(str(journal), 60)
    with watchdog.over([2]):
        assert json.loads(journal.read_text()) == [[1, 3], [], [2]]
    assert watchdog.suspects == set() and not journal.exists()


def test_what_was_loaded_is_described(configured):
    described = asyncio.run(make_actor(configured, threshold=0.4, clustering="greedy").describe())
    assert described == {
        "class": "darling_plugin.partition.models.lexical.Lexical",
        "threshold": 0.4,
        "clustering": "greedy",
    }
    json.dumps(described)


def test_special_tokens_are_not_text():
    assert response_text(Letters(), [ord("a"), 0]) == "a"


def test_users_code_is_imported_first(configured, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "from darling_plugin import PartitionModel, register_partition_model\n"
        "@register_partition_model('from-a-file')\n"
        "class Mine(PartitionModel):\n"
        "    def partition(self, groups):\n"
        "        return [[0] * len(group.responses) for group in groups]\n"
    )
    actor = make_actor(configured, partition_model="from-a-file", import_path=str(file))
    assert column(score(actor, responses("a", "b")), "darling_label") == [0, 0]
