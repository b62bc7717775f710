"""What the watchdog writes down and what the next process reads of it; test_partition_faults.py has real hangs."""

import json
import subprocess
import sys
import tempfile

import pytest
from actor_groups import make_actor, responses, score

from darling_plugin.openrlhf.watchdog import Watchdog
from darling_plugin.partition.models.lexical import Lexical


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


def test_an_actors_journal_lies_in_the_temporary_folder_of_its_own_node(configured, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    def partition(self, groups):
        seen.extend(path.read_text() for path in tmp_path.iterdir())
        return real(self, groups)

    real = Lexical.partition
    monkeypatch.setattr(Lexical, "partition", partition)
    score(make_actor(configured), responses("a", "b"), number=7)
    assert seen == ["[[], [], [7]]\n"], "written before the model has the groups"
    assert not list(tmp_path.iterdir())


WORK = """
import contextvars, sys, time
from darling_plugin.openrlhf.watchdog import Watchdog
from darling_plugin.partition import alive

with Watchdog({journal!r}, 1.0).over([7, 8]):
    for _ in range(6):
        time.sleep(0.4)
        if sys.argv[1] == "slow":
            alive()
    begun_in_the_batch = contextvars.copy_context()
begun_in_the_batch.run(alive)  # a late answer, say: nobody waits for it any more
time.sleep(1.5)
print("lives")
"""


@pytest.mark.parametrize("kind", ["slow", "silent"])
def test_a_slow_model_lives_and_is_told_from_one_that_hangs(tmp_path, kind):
    journal = tmp_path / "journal"
    command = [sys.executable, "-c", WORK.format(journal=str(journal)), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if kind == "slow":
        assert done.returncode == 0 and done.stdout == "lives\n", done.stderr
        assert "it is slow, and does not hang" in done.stderr and not journal.exists()
    else:
        assert done.returncode != 0 and not done.stdout
        assert Watchdog(str(journal), 60).suspects == {7, 8}
