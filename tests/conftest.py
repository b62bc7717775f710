"""For all tests: nothing is downloaded, and what a test registers or spells is gone after it."""

import os
import sys

import hypothesis
import pytest

# Before anything imports transformers: the models of the tests are on disk, and nothing may look for them elsewhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import machine
from chat_servers import server, vllm_url  # noqa: F401  (fixtures)

from darling_plugin import errors
from darling_plugin.registry import advantages, partition_models, quality_gates, rewards

# The same examples in every run: `make test` says something of the code, not of the draw. Others: --hypothesis-seed=N
# with --hypothesis-profile=default.
hypothesis.settings.register_profile("same examples", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same examples")

REGISTRIES = (partition_models, rewards, advantages, quality_gates)


@pytest.fixture(autouse=True)
def registered_names_stay_as_they_were():
    """What a test registers is gone after it, and so are the files of user code that registered it."""
    before = [(registry, {name: registry.get(name) for name in registry.names()}) for registry in REGISTRIES]
    yield
    for registry, entries in before:
        registry._entries = entries
    for name in [name for name in sys.modules if name.startswith("darling_user_")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def options_are_spelled_as_before(monkeypatch):
    """An entry point says, for its whole process, how its options are written."""
    monkeypatch.setattr(errors, "_prefix", errors._prefix)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """The machine after all else, but for the closing line, which pytest writes itself."""
    yield
    for line in machine.lines():
        terminalreporter.write_line(line)
