"""CPU mode's proof of the weight sync stands around the seam "resume", whatever a release calls it."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from darling_plugin.openrlhf import cpu, weight_sync
from darling_plugin.openrlhf.seams import Seam


# With partial rollout the engines are paused while weights are sent: the log-probabilities wait for their resuming.
@pytest.mark.parametrize(("pauses", "checks"), [(False, [True]), (True, [False, True])])
def test_the_first_sync_is_checked_under_the_name_that_the_release_has(monkeypatch, pauses, checks):
    class Trainer:
        args = SimpleNamespace(train=SimpleNamespace(partial_rollout_enable=pauses))

        def set_up(self):
            return {"global_step": 3}

        def broadcast_to_vllm(self):
            pass

    module = ModuleType("made_up_release")
    module.BasePPOTrainer, module.logger = Trainer, None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    seam = Seam("resume", module.__name__, "BasePPOTrainer.set_up", ("self",))
    monkeypatch.setattr(cpu, "installed_seam", {"resume": seam}.get)
    found = []
    monkeypatch.setattr(
        weight_sync, "check", lambda trainer, logger, *, log_probabilities: found.append(log_probabilities)
    )
    cpu._trainer(module)
    assert Trainer().set_up() == {"global_step": 3} and found == checks
