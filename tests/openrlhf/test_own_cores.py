"""A job that is bound to some of the machine's cores starts threads and processes for these alone."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
COUNTS = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
from darling_plugin import maths
from darling_plugin.openrlhf import cpu
import reward_math
print(cpu.worker_environment()["OMP_NUM_THREADS"], maths.own_cores(4), reward_math.WORKERS)
"""


def test_a_job_bound_to_one_core_has_one_thread_and_one_process():
    ours = ("OMP_NUM_THREADS", "DARLING_PLUGIN_CORES")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    path = os.pathsep.join([str(EXAMPLES), environment.get("PYTHONPATH", "")])
    one = str(min(os.sched_getaffinity(0)))
    command = [sys.executable, "-c", COUNTS, one]
    assert subprocess.check_output(command, env=environment | {"PYTHONPATH": path}, text=True).split() == [
        "1",
        "1",
        "1",
    ]
