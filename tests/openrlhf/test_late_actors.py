"""Which of many partition actors were not ready in time, as the error says it. Ray is played."""

import itertools
from types import SimpleNamespace

import pytest
import ray

from darling_plugin import DarlingError
from darling_plugin.config import DarlingConfig
from darling_plugin.openrlhf import partition_actor, placement
from darling_plugin.openrlhf.partition_actor import PartitionPool


@pytest.fixture
def played(monkeypatch):
    """PartitionPool on a Ray whose actors are never ready where `late` has their number; what it did, in order."""
    done = []

    def of(late):
        numbers = itertools.count()

        def start(*arguments):
            number = next(numbers)
            done.append(("start", arguments[-1]))
            description = f"description of {number}"
            return SimpleNamespace(describe=SimpleNamespace(remote=lambda: description))

        def wait(refs, num_returns=1, timeout=None):
            done.append(("wait", timeout))
            late_ones = {f"description of {number}" for number in late}
            return [ref for ref in refs if ref not in late_ones], [ref for ref in refs if ref in late_ones]

        handle = SimpleNamespace(options=lambda **options: SimpleNamespace(remote=start))
        monkeypatch.setattr(ray, "put", lambda value: value)
        monkeypatch.setattr(ray, "remote", lambda **options: lambda actor: handle)
        monkeypatch.setattr(ray, "wait", wait)
        monkeypatch.setattr(ray, "get", lambda refs: [{}] * len(refs) if isinstance(refs, list) else {})
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
        return done

    return of


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ([1, 4, 11], "3 not ready, number 1, 4, 11;"),
        ([0], "1 not ready, number 0;"),
        (list(range(3, 11)), "8 not ready, number 3, 4, 5, 6, 7, 8, 9, 10;"),
        (list(range(12)), "12 not ready, number 0, 1, 2, 3, 4, 5, 6, 7, …;"),
    ],
)
def test_of_many_actors_those_that_are_late_are_named_and_no_others(played, late, said):
    played(late)
    config = DarlingConfig(enable=True, num_partition_actors=12, start_timeout=30)
    with pytest.raises(DarlingError) as caught:
        PartitionPool(config, "tokenizer", quality_expected=True)
    assert f"found: {said} free in the cluster: {{'CPU': 3.0}}" in " ".join(str(caught.value).split())
    assert "12 partition actor(s) with 0 GPU each, beside the models, within 30 s" in str(caught.value)
    assert str(placement.no_room(config, None, late)) == str(caught.value)


@pytest.mark.parametrize(("model", "one_by_one"), [("vllm:path", True), ("lexical", False)])
def test_engines_that_measure_what_is_free_start_one_by_one(played, model, one_by_one):
    done = played([])
    config = DarlingConfig(enable=True, partition_model=model, num_partition_actors=2)
    PartitionPool(config, "tokenizer", quality_expected=True)
    assert [what for what, _ in done] == (["start", "wait"] * 2 if one_by_one else ["start"] * 2) + ["wait"]
    journals = [journal for what, journal in done if what == "start"]
    assert len(set(journals)) == 2 and not any("/" in journal for journal in journals), "a path is the actor's node's"


def test_an_engine_that_is_late_stops_the_run_before_another_starts_and_all_have_one_deadline(played, monkeypatch):
    done, clock = played([1]), itertools.count(0, 10)
    monkeypatch.setattr(partition_actor, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    config = DarlingConfig(enable=True, partition_model="vllm:path", num_partition_actors=3, start_timeout=30)
    with pytest.raises(DarlingError, match="1 not ready, number 1;"):
        PartitionPool(config, "tokenizer", quality_expected=True)
    assert [what for what, _ in done] == ["start", "wait"] * 2
    assert [timeout for what, timeout in done if what == "wait"] == [20, 10]
