"""`--plugin darling_plugin`: the entry point for an OpenRLHF that has `patches/` and calls the hooks itself.

The configuration, its checks, the hooks and the guard are the launcher's; only how they get into OpenRLHF differs.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from typing import Any

from darling_plugin.config import PREFIX, DarlingConfig, add_flags
from darling_plugin.errors import DarlingError, options_begin_with
from darling_plugin.openrlhf import launch, placement
from darling_plugin.openrlhf.seams import installed_seams


class Plugin:
    """What OpenRLHF asks of a plugin; `patches/README.md` says when it calls which."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_flags(parser, dest="darling.")  # OpenRLHF makes `args.darling` of the dots

    def configure(self, args: Any) -> None:
        options_begin_with(PREFIX)
        config = DarlingConfig(**{flag.name: getattr(args.darling, flag.name) for flag in fields(DarlingConfig)})
        if not config.enable:
            raise DarlingError(
                f"{PREFIX}enable beside --plugin darling_plugin",
                "none: the run would train without DARLING",
                f"add {PREFIX}enable or drop --plugin; python3 -m darling_plugin works without --plugin",
            )
        self._config = launch.check(config.with_absolute_paths(), sys.argv[1:])

    def ray_init(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        # train_ppo_ray is __main__, and took these two names before it could know of any plugin.
        main: Any = sys.modules["__main__"]
        main.get_strategy = launch.with_guard(main.get_strategy)
        main.placement_group = placement.name_first(main.placement_group)
        return launch.with_setup_hook(kwargs, self._config)

    @cached_property
    def wrappers(self) -> dict[str, Callable]:
        from darling_plugin.openrlhf.hooks import WRAPPERS  # imports torch

        return {f"{seam.module}:{seam.name}": WRAPPERS[seam.role] for seam in installed_seams()}


plugin = Plugin()
