"""What the sampler says of scoring's time before the first step, and the number of actors that it takes for `auto`."""

import asyncio
import logging
import re
from types import SimpleNamespace

import preloaded
import psutil
import pytest
import ray
import torch
from actor_groups import make_actor, responses, score

from darling_plugin import DarlingError
from darling_plugin.config import DarlingConfig
from darling_plugin.openrlhf import placement
from darling_plugin.openrlhf.partition_actor import PartitionPool
from darling_plugin.openrlhf.scoring_time import Step, Timed, choose, made_up, said, time_group
from darling_plugin.partition.cuts import Cuts
from darling_plugin.partition.models.lexical import Lexical

STEP = Step(prompts=32, responses=8, tokens=1024)  # generated in 10.24 s at the least


def timed(seconds, tokens=1024):
    return Timed(seconds, tokens, "node7")


@pytest.mark.parametrize(
    ("seconds", "actors"),
    # 102, 10, 5 and 1 groups fit behind generation; of 10.3 s none does.
    [(0.1, 1), (1.0, 4), (2.0, 7), (10.2, 32), (10.3, 32), (0.0, 1)],
)
def test_the_fewest_actors_that_hide_scoring(seconds, actors):
    assert STEP.actors(seconds) == actors
    if 0 < seconds <= 10.24:
        assert STEP.scoring_seconds(seconds, actors) <= STEP.generation_seconds
        assert actors == 1 or STEP.scoring_seconds(seconds, actors - 1) > STEP.generation_seconds


@pytest.mark.parametrize(
    ("seconds", "actors", "expected"),
    [
        (
            1.0,
            1,
            "32 s a step with 1 .*32 x 8 .*1024 tokens: 1 s a group.* on node7. .*hides 10.2 s of it: 4 a",
        ),
        (1.0, 4, "8 s a step with 4 .*that is all"),
        (11.0, 16, "22 s a step .*less than one group takes: more actors are not enough"),
    ],
)
def test_what_is_said(seconds, actors, expected):
    line = said(STEP, timed(seconds), actors)
    assert re.search(expected, line), line
    assert "extrapolated" not in line
    assert "at 128 tokens and extrapolated" in said(STEP, timed(seconds, 128), actors)


def test_of_short_responses_half_a_second_is_not_worth_an_actor():
    assert "that is all" in said(Step(8, 8, 12), timed(0.06, 12), 1), "as in the demo"
    assert Step(8, 8, 12).actors(0.06) == 1 and Step(100, 8, 12).actors(0.06) == 7


def test_auto_takes_no_more_than_there_is_room_for():
    number, why = choose(STEP, timed(1.0), 64)
    assert number == 4 and "takes 4: as many as hide" in why
    number, why = choose(STEP, timed(1.0), 3)
    assert number == 3 and "takes 3: for no more is there room, though 4 are wanted" in why


def of_length(seconds_a_token, lengths):
    async def measure(number, group):
        assert number == -1
        tokens = max(map(len, group.responses)) // 4
        lengths.append(tokens)
        return None, tokens * seconds_a_token

    return measure


def test_groups_grow_to_the_full_length_or_until_they_take_long():
    lengths = []
    found = asyncio.run(time_group(Lexical(), of_length(1e-4, lengths), STEP))
    assert lengths == [32] + [32] * 3 + [128] * 3 + [512] * 3 + [1024] * 3 and found.tokens == 1024
    assert found.seconds == pytest.approx(0.1024)
    lengths.clear()
    found = asyncio.run(time_group(Lexical(), of_length(0.02, lengths), STEP))
    assert lengths == [32, 32, 32, 32, 128, 128] and found.tokens == 128
    assert found.seconds == pytest.approx(0.02 * 1024), "what 128 tokens take, times eight"
    lengths.clear()
    asyncio.run(time_group(Lexical(), of_length(1e-4, lengths), Step(1, 2, 12)))
    assert lengths == [12] * 4


def test_a_measurement_that_waits_for_torch_compile_does_not_count():
    calls = []

    async def measure(number, group):
        calls.append(number)
        tokens = max(map(len, group.responses)) // 4
        return None, tokens * 0.001 + 5.0 * (len(calls) == 8)  # the first of 512 tokens

    found = asyncio.run(time_group(Lexical(), measure, Step(1, 8, 512)))
    assert found.seconds == pytest.approx(0.512)


def test_what_a_model_does_not_read_costs_nothing_more():
    model, lengths = Lexical(), []
    model.cuts = Cuts()

    async def measure(number, group):
        lengths.append(max(map(len, group.responses)) // 4)
        model.cuts.count(8, 8 * (lengths[-1] >= 512), "it reads 500 tokens")
        return None, min(lengths[-1], 500) * 1e-3

    found = asyncio.run(time_group(model, measure, Step(1, 8, 8192)))
    assert max(lengths) == 512 and found.seconds == pytest.approx(0.5)
    assert "extrapolated" not in said(Step(1, 8, 8192), found, 1)


def test_the_slowest_length_counts():
    async def measure(number, group):
        tokens = max(map(len, group.responses)) // 4
        return None, tokens * (2e-3 if tokens <= 160 else 1e-3)

    assert asyncio.run(time_group(Lexical(), measure, Step(1, 8, 200))).seconds == pytest.approx(0.256)


def test_made_up_responses_differ_and_have_the_asked_length():
    group = made_up(8, 500)
    assert len(set(group.responses)) == 8
    assert {len(text) for text in group.responses} == {2000}


def test_made_up_groups_are_no_cut_responses(caplog):
    model = Lexical()
    model.cuts = Cuts()

    async def measure(number, group):
        model.cuts.count(8, 8, "it reads little")
        return None, 9.0

    with caplog.at_level(logging.WARNING):
        asyncio.run(time_group(model, measure, STEP))
        assert (model.cuts.read, caplog.text) == (0, "")
        model.cuts.count(2, 1, "it reads little")
    assert model.cuts.cut == 1 and "1 of 2" in caplog.text


def test_the_run_that_openrlhf_was_asked_for():
    rollout = SimpleNamespace(batch_size=64, n_samples_per_prompt=4, max_new_tokens=None)
    args = SimpleNamespace(rollout=rollout, data=SimpleNamespace(max_len=2048))
    assert Step.of(args) == Step(64, 4, 2048)
    rollout.max_new_tokens = 512
    assert Step.of(args) == Step(64, 4, 512)


@pytest.mark.parametrize(
    ("free", "share", "most"),
    [({"CPU": 9.0}, 0, 4), ({"CPU": 9.0, "GPU": 2.0}, 0.3, 6), ({"CPU": 1.0, "GPU": 2.0}, 0.3, 1), ({"GPU": 1}, 0, 0)],
)
def test_room_is_what_ray_has_free(monkeypatch, free, share, most):
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    config = DarlingConfig(enable=True, gpus_per_partition_actor=share)
    if most:
        assert placement.room(config, None) == most
    else:
        with pytest.raises(DarlingError, match="half of the free ones are left"):
            placement.room(config, None)
    assert placement.room(config, SimpleNamespace(bundle_count=8)) == 8, "one on each GPU that the models share"


def test_an_actor_computes_with_the_core_that_it_reserved(configured, temporary_model):
    torch.set_num_threads(2)  # as OMP_NUM_THREADS has it in CPU mode, or in a user's job
    seen = []

    def partition(self, groups):  # in a thread of the actor's
        before = {thread.id for thread in psutil.Process().threads()}
        torch.randn(1500, 1500) @ torch.randn(1500, 1500)
        torch.randn(2_000_000).exp().softmax(-1)
        seen.append({thread.id for thread in psutil.Process().threads()} - before)
        return [[0, 1] for _ in groups]

    temporary_model("busy", partition)
    score(make_actor(configured, partition_model="busy"), responses("a", "b"))
    assert seen == [set()]


def test_a_pool_chooses_says_so_and_says_how_long_scoring_takes(capfd):
    config = DarlingConfig(enable=True, partition_model="lexical", num_partition_actors="auto")
    local = {"address": "local", "num_cpus": 4, "include_dashboard": False, "log_to_driver": False}
    ray.init(**local, runtime_env=preloaded.runtime_env())
    try:
        # In a second, that is; half of the CPUs are left to others.
        pool = PartitionPool(config, None, quality_expected=True, step=Step(100_000, 8, 32))
        assert pool.description["actors"] == len(pool._actors) == 2
    finally:
        ray.shutdown()
    printed = capfd.readouterr().err
    assert "auto takes 2: for no more is there room" in printed
    assert re.search(r"\[darling\] Scoring takes .* with 2 partition actor.* actors would hide it", printed)


def test_a_model_that_may_cost_is_not_timed_and_one_that_fails_says_so(configured, temporary_model):
    temporary_model("broken", lambda self, groups: 1 / 0)
    actor = make_actor(configured, partition_model="broken")
    assert asyncio.run(actor.time_group(STEP)) is None
    actor._model.local = True
    with pytest.raises(ZeroDivisionError):
        asyncio.run(actor.time_group(STEP))
