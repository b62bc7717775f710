"""Names for partition models, rewards, advantages and quality gates; built-in ones are registered as a user's are."""

import difflib
import inspect
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
    "darling_plugin.methods",
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


class FunctionRegistry(Registry):
    """Functions of a group's numbers, of the two that all know or of those that their parameters name.

    Args:
        first: "quality" or "reward". A function takes this and the diversity in their order, whatever it calls them;
            or, where it names similarity or labels, or one of these two in the other's place, those that it names of
            `first`, diversity, similarity and labels.
    """

    def __init__(self, kind: str, first: str) -> None:
        super().__init__(kind)
        self.inputs = (first, "diversity", "similarity", "labels")

    def register(self, name: str) -> Callable[[Any], Any]:
        """As for all registries; raises DarlingError for a function with other parameters, too."""
        add = super().register(name)

        def checked(function: Any) -> Any:
            self._named(function)
            return add(function)

        return checked

    def reads(self, name: str, one_of: str) -> bool:
        """Whether the function filed under `name` names that one of the inputs."""
        return one_of in self._named(self.get(name))

    def call(self, name: str, inputs: dict[str, Any]) -> Any:
        """What the function filed under `name` makes of copies of those of the inputs, tensors, that it takes.

        Copies, for it may work in place, and what it gets is logged.
        """
        function = self.get(name)
        named = self._named(function)
        missing = [each for each in named if inputs[each] is None]
        if missing:
            raise DarlingError(f"{missing[0]}, for the {self.kind} {name!r}", "none", "pass it beside the others")
        if named:
            return function(**{each: inputs[each].clone() for each in named})
        return function(*(inputs[each].clone() for each in self.inputs[:2]))

    def _named(self, function: Any) -> tuple[str, ...]:
        """The inputs that the function takes by name; none where it takes the first two in their order."""
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some that are written in C
            return ()
        names = list(signature.parameters)
        first, second = self.inputs[:2]
        try:
            if {"similarity", "labels"} & set(names) or second in names[:1] or first in names[1:]:
                named = tuple(name for name in names if name in self.inputs)
                signature.bind(**dict.fromkeys(named))
                return named
            for name in names:
                if difflib.get_close_matches(name, ["similarity", "labels"], cutoff=0.8):
                    raise TypeError(f"{name!r} is none of these")
            signature.bind(None, None)
        except TypeError as error:
            raise DarlingError(
                f"a {self.kind} of {self.inputs[0]} and diversity, or one whose parameters are named as those that it "
                f"takes of {', '.join(self.inputs)}",
                f"{function.__qualname__}({', '.join(names)}): {error}",
                "name its parameters so, or give those that are its own a default",
            ) from error
        return ()


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
rewards = FunctionRegistry("reward", "quality")
advantages = FunctionRegistry("advantage", "reward")
quality_gates = Registry("quality gate")

register_partition_model = partition_models.register
register_reward = rewards.register
register_advantage = advantages.register
register_quality_gate = quality_gates.register
