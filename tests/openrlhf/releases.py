"""OpenRLHF's releases as their wheels have them, in runs/wheels, for tests on the real source of each."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import contract_in_source

from darling_plugin.errors import DarlingError
from darling_plugin.openrlhf.seams import SUPPORTED_OPENRLHF

WHEELS = Path(__file__).parents[2] / "runs" / "wheels"
# `make test` runs code of the oldest and the newest, in a process each, and reads the source of the others.
# `make compat` runs them all.
OLDEST_AND_NEWEST = (SUPPORTED_OPENRLHF[0], SUPPORTED_OPENRLHF[-1])
RUN = SUPPORTED_OPENRLHF if os.environ.get("DARLING_TEST_ALL_RELEASES") else OLDEST_AND_NEWEST


class IndexUnreachable(DarlingError):
    """The package index could not be asked; says nothing about the release."""


def source(version: str) -> Path:
    """A folder with `openrlhf/` and its dist-info of that release, to be put on PYTHONPATH; downloaded once.

    Raises IndexUnreachable without the package index, DarlingError when it lacks the release.
    """
    folder = WHEELS / version
    if not folder.exists():
        WHEELS.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{version}-", dir=WHEELS))  # a killed download leaves no half a release
        try:
            _pip(
                "install", "--no-deps", "--only-binary=:all:", "--no-compile", "--target", part, f"openrlhf=={version}"
            )
            try:
                part.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def newest() -> str:
    """The newest release on the package index. Raises IndexUnreachable without it."""
    return _pip("index", "versions", "openrlhf").split("(", 1)[1].split(")", 1)[0]


def flags(version: str) -> dict[str, list[str]]:
    """The flags of that release's `train_ppo_ray`, each with its choices, if any. Read, not imported."""
    read = contract_in_source.flags(source(version) / "openrlhf")
    return {name: arguments.get("choices", []) for name, arguments in read.items()}


def _pip(*arguments: object) -> str:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--retries", "1", "--timeout", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip()
    # Pip says which versions it did find when the index answers but has no such release.
    answered = "(from versions:" in said and "(from versions: none)" not in said
    raise (DarlingError if answered else IndexUnreachable)(
        f"`pip {' '.join(command[3:-4])}` to work",
        said[-600:],
        "ask for a release that exists" if answered else "connect to a package index, or set pip's index-url",
    )
