"""Imports a user's code, named by a file's path or by a module's dotted name."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from darling_plugin.errors import DarlingError


def import_user_code(path_or_module: str) -> ModuleType:
    """The module at a path (ending in .py) or of a dotted name; raises DarlingError when there is no such thing.

    Errors that the code itself raises pass through unchanged. A file is imported once a process, under a name made of
    its stem and a hash of its absolute path: a process that imported it can unpickle what another one pickled.
    """
    if path_or_module.endswith(".py"):
        return _import_file(Path(path_or_module).expanduser().resolve())
    try:
        return importlib.import_module(path_or_module)
    except ModuleNotFoundError as error:
        # `error.name` is the module that is missing: one that the user's code imports is the user's own error.
        if error.name is None or not f"{path_or_module}.".startswith(f"{error.name}."):
            raise
        raise DarlingError(
            f"a module {path_or_module!r} that can be imported",
            f"no module named {error.name!r}",
            "install it, put its folder on PYTHONPATH, or give the path of a .py file",
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        folder = next(parent for parent in path.parents if parent.is_dir())
        there = sorted(file.name for file in folder.glob("*.py"))
        raise DarlingError(
            f"a Python file {path}",
            f"no such file; {folder} holds {', '.join(there) if there else 'no .py file'}",
            "correct the path (a relative one starts at the current folder)",
        )
    name = f"darling_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
