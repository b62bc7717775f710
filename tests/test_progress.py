"""Signs of life: what a watchdog hears of the bundled models while they work."""

import pytest

from darling_plugin.partition import Group, Pair, alive, load_partition_model
from darling_plugin.partition.progress import heard_by

GROUPS = [Group(f"Name fruit {k}.", [f"apple {k}", f"a fig {k}", f"pear {k}"]) for k in range(3)]


def signs(work) -> int:
    """How many signs of life it gave, and none after it."""
    heard = []
    with heard_by(lambda: heard.append(None)):
        work()
    count = len(heard)
    alive()
    assert len(heard) == count
    return count


@pytest.mark.parametrize(("spec", "least"), [("default", 3), ("embedding?token_budget=4", 9)])
def test_each_part_of_the_bundled_models_work_is_a_sign_of_life(spec, least):
    model = load_partition_model(spec)
    assert signs(lambda: model.partition(GROUPS)) >= least, "a group's features; a batch of one text"


def test_each_answer_of_a_judge_is_a_sign_of_life(server, monkeypatch):
    server.reset()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model = load_partition_model(f"judge:{server.url}")
    pairs = [Pair("Name a fruit.", "An apple.", f"Fig {k}") for k in range(5)]
    assert signs(lambda: model.similarity(pairs)) == 5 * (2 if model.both_orders else 1)
