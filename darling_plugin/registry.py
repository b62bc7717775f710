"""Names for partition models, rewards, advantages and quality gates; built-in ones are registered as a user's are."""

import difflib
import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from darling_plugin.errors import DarlingError, spelled

ENTRY_POINT_GROUP = "darling_plugin.plugins"
BUILT_IN_MODULES = (
    "darling_plugin.partition.models",
    "darling_plugin.reward",
    "darling_plugin.advantage",
    "darling_plugin.quality_gate",
)


def nearest(name: str, known: list[str]) -> str:
    """A hint that names the known spelling nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


class Registry:
    """Names of one kind of thing. A name is registered once; asking for an unknown one lists those that are known."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that files a class or function under `name`; raises DarlingError when the name is taken."""

        def add(entry: Any) -> Any:
            taken = self._entries.get(name)
            # A file imported twice (once by path, once by name) registers the same definition again: not a clash.
            if taken is not None and (taken.__qualname__, _source(taken)) != (entry.__qualname__, _source(entry)):
                raise DarlingError(
                    f"a {self.kind} name that is not in use",
                    f"{name!r} is already {taken.__module__}.{taken.__qualname__}",
                    "register yours under another name",
                )
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        _load_registrations()
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def get(self, name: str) -> Any:
        """The entry filed under `name`; raises DarlingError that lists the known names."""
        known = self.names()
        if name not in known:
            raise DarlingError(
                f"a registered {self.kind}",
                f"{name!r}",
                f"{nearest(name, known)}known: {', '.join(known)}; {spelled('import_path')} names code of your own",
            )
        return self._entries[name]


def _source(entry: Any) -> str:
    file = getattr(sys.modules.get(entry.__module__), "__file__", None)
    return os.path.realpath(file) if file else entry.__module__


_loaded = False


def _load_registrations() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True
    for module in BUILT_IN_MODULES:
        import_module(module)
    for plugin in entry_points(group=ENTRY_POINT_GROUP):
        plugin.load()


partition_models = Registry("partition model")
rewards = Registry("reward")
advantages = Registry("advantage")
quality_gates = Registry("quality gate")

register_partition_model = partition_models.register
register_reward = rewards.register
register_advantage = advantages.register
register_quality_gate = quality_gates.register
