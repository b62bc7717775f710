"""CPU mode does not wait without end for a lock that a killed process has left."""

import os
import time
from types import SimpleNamespace

import pytest
from torch.utils import file_baton

from darling_plugin import DarlingError
from darling_plugin.openrlhf import cpu


@pytest.fixture
def baton(tmp_path):
    module = SimpleNamespace(FileBaton=type("FileBaton", (), dict(vars(file_baton.FileBaton))))
    cpu._file_baton(module)
    return module.FileBaton(str(tmp_path / "lock"), wait_seconds=0.01)


def test_a_lock_that_is_older_than_any_compilation_stops_the_run(baton, tmp_path, monkeypatch):
    monkeypatch.setattr(file_baton.time, "sleep", lambda seconds: pytest.fail("it is waited for"))
    (tmp_path / "lock").touch()
    os.utime(tmp_path / "lock", (0, time.time() - 25 * 60))
    with pytest.raises(DarlingError, match=f"25 minutes old(.|\n)*rm {tmp_path}/lock"):
        baton.wait()
    assert (tmp_path / "lock").exists(), "it may be another's all the same"


def test_a_younger_one_is_waited_for_and_named(baton, tmp_path, capsys, monkeypatch):
    (tmp_path / "lock").touch()
    monkeypatch.setattr(file_baton.time, "sleep", lambda seconds: (tmp_path / "lock").unlink())
    baton.wait()
    assert f"rm {tmp_path}/lock" in capsys.readouterr().err


def test_one_that_has_just_gone_is_not_waited_for(baton, capsys):
    baton.wait()
    assert not capsys.readouterr().err
