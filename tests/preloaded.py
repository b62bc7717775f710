"""A Python that has the libraries already: each of a run's six processes would spend nine seconds of a core on them.

`python()` is an executable that takes what Python takes (`-m module`, `-c code`, a script) and has a process forked
for it, out of one that waits with the libraries imported. Ray starts its workers with it where a job's runtime_env
names it as `py_executable`, an option of Ray's own, and vLLM its engine. Each process still imports Ray, OpenRLHF and
this package by itself; shims and hooks of the libraries above come after these. The demo, the run that is killed and
the run on a cluster start as a user's do. A signal to the process that asks kills the one that it stands for.
"""

import atexit
import contextlib
import functools
import itertools
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

LIBRARIES = (
    "torch",
    "transformers.models.auto.auto_factory",
    "sklearn.metrics",
    "deepspeed",
    "vllm.engine.arg_utils",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "peft",
    "datasets",
    "aiohttp",
)


_starting = threading.Lock()


def python() -> str:
    with _starting:  # a cache computes twice for threads that ask at once
        return _python()


@functools.cache
def _python() -> str:
    from darling_plugin.openrlhf import cpu

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    executable, address = folder / "python", f"darling-tests-{os.getpid()}"
    executable.write_text(f"""#!{sys.executable} -IS
import sys

sys.path.append({str(Path(__file__).parent)!r})
import preloaded

preloaded.ask({address!r})
""")
    executable.chmod(0o755)
    environment = {**os.environ, **cpu.worker_environment()}  # some of it is read as a library is imported
    environment.pop("PYTHONPATH", None)  # of the test that asks first
    arguments = [sys.executable, __file__, address, executable]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # Out of reach of a Ctrl-C, for it ends by itself, and then those of whom nobody asks any more.
    server = subprocess.Popen(arguments, text=True, env=environment, start_new_session=True, **pipes)
    atexit.register(server.communicate)
    said = next((line for line in server.stdout if line == "ready\n"), None)
    assert said, "the process that imports the libraries has ended"
    return str(executable)


def runtime_env() -> dict[str, str]:
    """A Ray job's, whose workers start without importing the libraries."""
    return {"py_executable": python()}


def ask(address: str) -> None:
    """Stands for the process that it asks for: hands its files over, ends with its status; if killed, kills it."""
    files = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    assert len(files) <= 250, f"{len(files)} open files, of which a message holds 250"
    request = {"argv": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd(), "files": files}
    message = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{address}")
        socket.send_fds(connection, [len(message).to_bytes(8, "big")], files)
        connection.sendall(message)
        for file in files[3:]:
            os.close(file)
        status = connection.recv(1)
    os._exit(status[0] if status else 1)


def serve(address: str, executable: str) -> None:
    """Forks a keeper for each that asks, until standard input ends."""
    import gc
    import importlib

    gc.disable()
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):  # who needs it says so
            importlib.import_module(library)
    gc.freeze()  # or each process would look through all of it, and copy it: four seconds of a core
    gc.enable()
    assert "ray" not in sys.modules, "Ray keeps the environment that it was imported in: the job, the raylet"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{address}")
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                keep(connection, executable)
                return
            connection.close()


def keep(connection: socket.socket, executable: str) -> None:
    """Forks the process that `connection` asks for, kills it when nobody asks any more, and tells its status."""
    length, files, _, _ = socket.recv_fds(connection, 8, 250)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(length, "big")))
    if (child := os.fork()) == 0:
        connection.close()
        become(request, files, executable)
        return
    with contextlib.suppress(OSError):  # the child does it, too: whoever comes first
        os.setpgid(child, child)
    for file in {0, 1, 2, *files}:
        os.close(file)
    if connection in select.select([os.pidfd_open(child), connection], [], [])[0]:
        os.killpg(child, signal.SIGKILL)  # with those whom it has asked for
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def become(request: dict, files: list[int], executable: str) -> None:
    import fcntl
    import multiprocessing.spawn

    import numpy
    import torch._dynamo

    os.setpgid(0, 0)  # Ray ends a worker with its whole process group
    free = 1 + max(*files, *request["files"])  # above all numbers that are taken, and those that will be
    above = [fcntl.fcntl(file, fcntl.F_DUPFD, free) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(above, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    numpy.random.seed()  # as Python's own generator, it would go on alike in all
    # A variable that a library reads as it is imported and a run sets for some of its processes. Another is
    # OMP_NUM_THREADS, which the server has as CPU mode sets it.
    torch._dynamo.config.disable = os.environ.get("TORCH_COMPILE_DISABLE") == "1"
    multiprocessing.spawn.set_executable(executable)
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [folder for folder in folders if folder and folder not in sys.path]
    sys.modules.pop("sitecustomize", None)  # of the system's Python
    with contextlib.suppress(ModuleNotFoundError):
        import sitecustomize  # noqa: F401  (of that PYTHONPATH, as Python does)
    status: int | str | None = 0
    try:
        run(*itertools.dropwhile(lambda word: word in ("-B", "-u"), request["argv"]))
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    # Python's own end would look through what is frozen, and report of it what it finds alive.
    threading._shutdown()
    atexit._run_exitfuncs()
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if isinstance(status, str) else (status or 0) & 0xFF)


def run(kind: str, *rest: str) -> None:
    """`-c code`, `-m module` or a script, with the arguments that follow."""
    if kind == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    elif kind == "-m":
        sys.path[0], sys.argv = os.getcwd(), list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = os.path.dirname(kind), [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve(*sys.argv[1:])
