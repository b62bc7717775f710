"""What the watchdog writes down and what the next process reads of it; test_partition_faults.py has real hangs."""

import json

from darling_plugin.openrlhf.watchdog import Watchdog


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
