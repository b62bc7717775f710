"""The lines about the machine at the end of a test run, before pytest's closing line."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent


@pytest.mark.parametrize("options", [[], ["-n", "1"]], ids=["plain", "as make test"])
def test_a_run_ends_with_the_machine_and_then_with_pytests_closing_line(tmp_path, options):
    if options:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", f"--basetemp={tmp_path}", "test_log.py"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    *_, machine, releases, last = done.stdout.splitlines()
    assert re.fullmatch(r"=+ \d+ passed.* in .*=+", last)
    assert machine.startswith("machine: ") and releases.startswith("releases: ")
    assert f"{len(os.sched_getaffinity(0))} cores" in machine
    assert "torch's kernels DEFAULT" in machine and "ATEN_CPU_CAPABILITY=default" in machine
    assert ("no avx512_bf16" in machine) is not torch.cpu._is_avx512_bf16_supported()
    assert f"torch {version('torch')}" in releases
