"""The launcher under `ray job submit`, on a Ray cluster that was there before."""

import os
import shutil
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


def test_files_named_relative_to_the_working_dir_of_a_ray_job(inputs, tied_model, cluster):
    job = inputs / "job"
    job.mkdir()
    shutil.copy(REPOSITORY / "examples" / "own_partition_model.py", job)
    (job / "compared.py").write_text("def lower(prompt, response):\n    return response.strip().lower()\n")
    run = [sys.executable, "-m", "darling_plugin", *launching.command(inputs, tied_model, data__max_samples="4")]
    run += ["--darling.enable", "--darling.cpu", "--darling.log_dir", str(inputs / "log")]
    run += ["--darling.import_path", "own_partition_model.py"]
    run += [
        "--darling.partition_model",
        "own_partition_model.py:Opening",
        "--darling.partition_text",
        "compared.py:lower",
    ]
    submit = [RAY, "job", "submit", "--address", cluster, "--runtime-env-json", '{"env_vars": {"MINE": "1"}}']
    submit += ["--working-dir", str(job), "--"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # From another folder: what is not in the job's own is nowhere.
    done = subprocess.run(
        [*submit, *run], capture_output=True, text=True, timeout=400, env=environment, cwd=inputs, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    records = recompute.check(inputs / "log")
    assert [record["step"] for record in records] == [1] * 4
    for record in records:
        lowered = [text.strip().lower() for text in record["responses"]]
        assert record["compared"] == [
            None if low == text else low for low, text in zip(lowered, record["responses"], strict=True)
        ]
        first_words = [(text.split() or [""])[0] for text in lowered]
        for a, b in zip(first_words, record["labels"], strict=True):
            for c, d in zip(first_words, record["labels"], strict=True):
                assert (a == c) == (b == d)
