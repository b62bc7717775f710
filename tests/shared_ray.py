"""One Ray instance for the tests of a process: each start costs seven seconds of a core, and more of waiting.

Each test is a job of its own there, as a run is on a cluster. Those that show a start, or count what is free, start
their own.
"""

import atexit
import functools
import os
import re
import subprocess
import sys

from darling_plugin.openrlhf import cpu

PROGRAM = """
import ray

context = ray.init(address="local", log_to_driver=False, **{resources})
print("address", context.address_info["gcs_address"], flush=True)
input()
"""


def environment() -> dict[str, str]:
    """Workers inherit the head's: without what the test that asks first has set for its own run."""
    own = re.compile("DARLING_|OPENRLHF_|PYTHONPATH$|RAY_")
    return {name: value for name, value in os.environ.items() if not own.match(name)}


@functools.cache
def address() -> str:
    """What RAY_ADDRESS is to name; it has GPUs in name, as CPU mode needs them."""
    program = PROGRAM.format(resources=cpu.LOGICAL_RESOURCES)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", program]
    head = subprocess.Popen(command, text=True, env=environment(), start_new_session=True, **pipes)
    atexit.register(head.communicate)
    said = next((line for line in head.stdout if line.startswith("address ")), None)
    assert said, "the process that starts Ray has ended"
    return said.split()[1]
