import os
import sys

import pytest

# Before anything imports transformers: the models of the tests are on disk, and nothing may look for them elsewhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from chat_servers import server, vllm_url  # noqa: F401  (fixtures)

from darling_plugin.registry import advantages, partition_models, rewards

REGISTRIES = (partition_models, rewards, advantages)


@pytest.fixture(autouse=True)
def registered_names_stay_as_they_were():
    """What a test registers is gone after it, and so are the files of user code that registered it."""
    before = [(registry, {name: registry.get(name) for name in registry.names()}) for registry in REGISTRIES]
    yield
    for registry, entries in before:
        registry._entries = entries
    for name in [name for name in sys.modules if name.startswith("darling_user_")]:
        del sys.modules[name]


def pytest_terminal_summary(terminalreporter):
    """What this machine computes with, for a failure elsewhere; pytest's own closing line comes after it."""
    import torch

    features = ("avx512", "avx512_bf16", "amx_tile", "amx_fp16")
    there = [name for name in features if getattr(torch.cpu, f"_is_{name}_supported")()]
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    words = [f"{os.cpu_count()} CPUs", torch.backends.cpu.get_cpu_capability(), *there, f"torch {torch.__version__}"]
    terminalreporter.write_line(f"ran on: {', '.join([*words, *settings])}")
