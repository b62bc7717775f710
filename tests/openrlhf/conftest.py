import pytest

from darling_plugin.openrlhf import cpu

# OpenRLHF's modules import flash_attn; none of what these tests call needs it.
cpu.stand_in_for_flash_attn()


@pytest.fixture
def configured(monkeypatch):
    """Sets this process's DARLING flags, as the launcher does for the job's workers."""
    from darling_plugin.config import DarlingConfig

    def configure(**flags) -> DarlingConfig:
        config = DarlingConfig(enable=True, **{"advantage": "centered", **flags})
        for name, value in config.to_environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a partition actor sets it; this way it is put back
        return config

    return configure
