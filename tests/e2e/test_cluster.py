"""The launcher under `ray job submit`, on a Ray cluster that was there before."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import launching
import pytest
import recompute

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
PORTS = {"port": 26379, "dashboard-port": 28265, "dashboard-agent-listen-port": 28266, "ray-client-server-port": 28267}


@pytest.fixture
def cluster():
    """Address of the jobs of a one-node cluster with GPUs in name, as --darling.cpu needs them."""
    # A folder of its own: a plain ray.init() elsewhere on the machine does not find this cluster.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        start = [RAY, "start", "--head", "--block", *(f"--{name}={port}" for name, port in PORTS.items())]
        start += ["--num-gpus", "8", "--num-cpus", "16", "--temp-dir", folder, "--disable-usage-stats"]
        with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as head:
            try:
                said = ""
                for line in head.stdout:
                    said += line
                    if "Ray runtime started" in line:
                        break
                assert "Ray runtime started" in said, said
                yield f"http://127.0.0.1:{PORTS['dashboard-port']}"
            finally:
                head.terminate()


def test_the_pages_own_model_under_ray_job_submit_with_a_runtime_env(inputs, tied_model, cluster):
    example = REPOSITORY / "examples" / "own_partition_model.py"
    run = [sys.executable, "-m", "darling_plugin", *launching.command(inputs, tied_model, data__max_samples="4")]
    run += ["--darling.enable", "--darling.cpu", "--darling.log_dir", str(inputs / "log")]
    run += ["--darling.import_path", str(example), "--darling.partition_model", "opening"]
    submit = [RAY, "job", "submit", "--address", cluster, "--runtime-env-json", '{"env_vars": {"MINE": "1"}}', "--"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [*submit, *run], capture_output=True, text=True, timeout=400, env=environment, cwd=inputs, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    records = recompute.check(inputs / "log")
    assert [record["step"] for record in records] == [1] * 4
    for record in records:
        texts = [text.strip() for text in record["responses"]]
        first_words = [(text.split() or [""])[0].lower() for text in texts]
        for a, b in zip(first_words, record["labels"], strict=True):
            for c, d in zip(first_words, record["labels"], strict=True):
                assert (a == c) == (b == d)
