"""Fixtures of the tests of the hooks: this process with DARLING's flags, and with the hooks installed."""

import os

import pytest
import torch

from darling_plugin.maths import CORES
from darling_plugin.openrlhf import cpu

# OpenRLHF's modules import flash_attn; none of what these tests call needs it.
cpu.stand_in_for_flash_attn()


@pytest.fixture
def configured(monkeypatch):
    """Sets this process's DARLING flags, as the launcher does for the job's workers."""
    from darling_plugin.config import DarlingConfig

    # A partition actor sets these; this way they are put back.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("TORCHINDUCTOR_COMPILE_THREADS", "RAYON_NUM_THREADS", CORES):
        monkeypatch.setenv(name, str(os.cpu_count()))
    threads = torch.get_num_threads()

    def configure(**flags) -> DarlingConfig:
        config = DarlingConfig(enable=True, **{"advantage": "centered", **flags})
        for name, value in config.to_environment().items():
            monkeypatch.setenv(name, value)
        return config

    yield configure
    torch.set_num_threads(threads)


@pytest.fixture
def installed(configured):
    """The hooks of the trainer's modules, in this process."""
    from openrlhf.trainer import ppo_trainer
    from openrlhf.trainer.ppo_utils import experience_maker

    from darling_plugin.openrlhf import hooks

    configured()
    for module in (experience_maker, ppo_trainer):
        hooks.install(module)
    yield
    for module in (experience_maker, ppo_trainer):
        hooks.uninstall(module)


@pytest.fixture
def temporary_model():
    def register(name, partition):
        from darling_plugin import PartitionModel, register_partition_model

        register_partition_model(name)(type("Model", (PartitionModel,), {"partition": partition}))

    return register
