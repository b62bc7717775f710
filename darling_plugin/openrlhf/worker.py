"""What Ray runs first in every worker process of the job, and the guard that stops a run in which it did not run.

Cheap on purpose: it registers import hooks and returns, so that a process that never imports OpenRLHF's trainer (a
vLLM engine, a reward model) pays for nothing it does not use.
"""

import sys
from typing import Any

import wrapt

from darling_plugin.config import PREFIX, DarlingConfig
from darling_plugin.errors import DarlingError, options_begin_with
from darling_plugin.openrlhf.seams import installed_seams, is_hooked

SETUP_HOOK = f"{__name__}.setup"

_ran = False


def setup() -> None:
    """Ray's `worker_process_setup_hook`: arms the CPU shims and the hooks that this job's configuration asks for."""
    global _ran
    options_begin_with(PREFIX)
    config = DarlingConfig.from_environment()
    if config.cpu:
        from darling_plugin.openrlhf import cpu

        cpu.install()
    if config.enable:
        for module in dict.fromkeys(seam.module for seam in installed_seams()):
            # As a string: the hooks' own imports (torch) wait until OpenRLHF's module is really imported.
            wrapt.register_post_import_hook("darling_plugin.openrlhf.hooks:install", module)
    _ran = True


class RequiresHooks:
    """Rides on OpenRLHF's strategy object into every training process; unpickling it there checks the hooks.

    A run in which the setup hook was dropped on the way would train happily without DARLING. This makes it stop.
    """

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return require_hooks, ()


def require_hooks() -> RequiresHooks:
    """Raises DarlingError in a process where the setup hook did not run or a loaded seam is not hooked."""
    if not _ran:
        missing = "the worker's setup hook did not run in this process"
    else:
        missing = ", ".join(
            f"{seam.module}.{seam.name} is not hooked"
            for seam in installed_seams()
            if seam.module in sys.modules and not is_hooked(seam.resolve())
        )
    if missing:
        raise DarlingError(
            "DARLING's hooks in every process that trains",
            missing,
            "start the run with python3 -m darling_plugin and leave worker_process_setup_hook to it",
        )
    return RequiresHooks()
