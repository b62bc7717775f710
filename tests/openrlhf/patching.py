"""A patched OpenRLHF, for the tests of patches/."""

import shutil
import subprocess
from pathlib import Path

import releases

PATCH = Path(__file__).parents[2] / "patches" / "openrlhf-plugins.patch"


def patched_copy(version: str, target: Path) -> Path:
    """Copies that release to `target` and patches it there; returns the folder of the original.

    No fuzz: what `patch` cannot exactly fails. Raises releases.IndexUnreachable without the package index.
    """
    original = releases.source(version)
    shutil.copytree(original, target, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["patch", "--strip=1", "--fuzz=0", "--force", f"--input={PATCH}"]
    done = subprocess.run(command, cwd=target, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return original
