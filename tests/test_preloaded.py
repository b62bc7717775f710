"""The Python that has the libraries already behaves as Python does, where the runs of the other tests lean on it."""

import functools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import preloaded
import psutil
import pytest
import shared_ray

SAYS = """
import atexit, os, sys, threading
print(sys.argv[1:], os.getcwd(), os.environ["MINE"], sys.stdin.read(), "torch" in sys.modules)
print("wrong", file=sys.stderr)
atexit.register(print, "at the end")
threading.Timer(0.5, print, ["in a thread"]).start()
sys.exit(3)
"""


@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
def test_arguments_folder_environment_input_output_and_status(tmp_path, kind):
    (tmp_path / "says.py").write_text(SAYS)
    program = {
        "-c": ["-c", SAYS],
        "-m": ["-m", "says"],
        "script": [str(tmp_path / "says.py")],
    }
    done = subprocess.run(
        [preloaded.python(), *program[kind], "a", "--b"],
        input="given",
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MINE": "1"},
    )
    assert (done.returncode, done.stderr) == (3, "wrong\n")
    assert done.stdout == f"['a', '--b'] {tmp_path} 1 given True\nin a thread\nat the end\n"


def test_the_folders_of_pythonpath_and_their_sitecustomize(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.mine = 5\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [preloaded.python(), "-c", f"import sys; assert sys.mine == 5 and {str(tmp_path)!r} in sys.path"]
    assert subprocess.run(command, env=environment, check=False).returncode == 0


def test_a_signal_ends_both_and_is_the_status(tmp_path):
    child = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); "
    done = subprocess.run(
        [preloaded.python(), "-c", child + "os.kill(os.getpid(), 9)"], cwd=tmp_path, check=False, timeout=60
    )
    assert done.returncode == 128 + signal.SIGKILL
    (tmp_path / "pid").unlink()
    asking = subprocess.Popen([preloaded.python(), "-c", child + "time.sleep(600)"], cwd=tmp_path)
    end = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    sleeping = psutil.Process(int((tmp_path / "pid").read_text()))
    assert os.getsid(sleeping.ppid()) != os.getsid(0), "a Ctrl-C reaches us, and not the process that kills it then"
    asking.kill()
    asking.wait()
    psutil.wait_procs([sleeping], timeout=60)
    assert not psutil.pid_exists(sleeping.pid)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [("raise KeyError('here')", 1, "KeyError: 'here'\n"), ("import sys; sys.exit('why')", 1, "why\n"), ("", 0, "")],
)
def test_what_an_end_says(code, status, said):
    done = subprocess.run([preloaded.python(), "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status and done.stderr.endswith(said) and bool(done.stderr) == bool(said)


def test_threads_that_ask_at_once_get_one(monkeypatch):
    started = []

    @functools.cache
    def slow():
        started.append("one")
        time.sleep(0.2)
        return "python"

    monkeypatch.setattr(preloaded, "_python", slow)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: preloaded.python(), range(4))) == ["python"] * 4
    assert started == ["one"]


def test_it_is_this_python_with_these_packages():
    command = [preloaded.python(), "-c", "import sys; print(sys.prefix, sys.version)"]
    assert subprocess.check_output(command, text=True) == f"{sys.prefix} {sys.version}\n"


def test_the_shared_ray_starts_without_the_environment_of_the_test_that_asks_first(monkeypatch):
    for name in ("PYTHONPATH", "DARLING_TEST_SPY", "OPENRLHF_PLUGIN", "RAY_ADDRESS", "PYTHONPATH_OF_MINE"):
        monkeypatch.setenv(name, "x")
    assert set(os.environ) - set(shared_ray.environment()) >= {"PYTHONPATH", "DARLING_TEST_SPY", "OPENRLHF_PLUGIN"}
    assert "RAY_ADDRESS" not in shared_ray.environment() and "PYTHONPATH_OF_MINE" in shared_ray.environment()
