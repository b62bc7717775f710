"""`make demo`: runs demo_cpu.sh, shows how far it is, and then what it did. Its whole output is in OUT/train.log."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from darling_plugin.commands.report import report
from darling_plugin.commands.show import show

# What OpenRLHF prints when a phase begins, in order.
PHASES = (
    ("Started a local Ray instance", "starting vLLM and DeepSpeed"),
    ("Loading extension module cpu_adam", "loading the model"),
    ("weights synced", "step 1: generating, partitioning, training"),
)
STEP = re.compile(r"Global step (\d+)")


def run(model: Path, out: Path, steps: int, console: Console) -> int:
    """The exit status of the training run; progress on the console, all it prints in out/train.log."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "MODEL": str(model.resolve()),
        "OUT": str(out.resolve()),
        "STEPS": str(steps),
    }
    script = Path(__file__).with_name("demo_cpu.sh")
    log = out / "train.log"
    console.print(f"{script.name}: {steps} steps of 8 prompts x 8 responses; everything it prints is in {log}")
    return follow(["bash", str(script)], environment, log, "starting Ray", steps, _update, console)


def follow(
    argv: list[str],
    environment: dict[str, str],
    log: Path,
    description: str,
    steps: int,
    update: Callable[[Progress, TaskID, str], None],
    console: Console,
) -> int:
    """The exit status of a run; what it prints goes to `log`, and `update` moves the bar by what is there so far."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    with (
        log.open("wb") as sink,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        subprocess.Popen(argv, stdout=sink, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        task = progress.add_task(description, total=steps)
        try:
            while process.poll() is None:
                update(progress, task, log.read_text(errors="replace"))
                time.sleep(1)
        except BaseException:
            process.terminate()
            raise
        update(progress, task, log.read_text(errors="replace"))
    return process.returncode


def _update(progress: Progress, task: TaskID, output: str) -> None:
    done = max((int(step) for step in STEP.findall(output)), default=0)
    phase = next((description for mark, description in reversed(PHASES) if mark in output), "starting Ray")
    description = f"step {done} done" if done else phase
    if not progress.console.is_terminal and description != progress.tasks[task].description:
        # Where no bar is drawn, as in a file, a line a step: several may have ended since the last look.
        for step in range(int(progress.tasks[task].completed) + 1, done):
            progress.console.print(f"step {step} done")
        progress.console.print(description)
    progress.update(task, completed=done, description=description)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    console = Console()
    status = run(arguments.model, arguments.out, arguments.steps, console)
    if status:
        tail = "".join((arguments.out / "train.log").read_text(errors="replace").splitlines(keepends=True)[-60:])
        console.print(tail, markup=False, highlight=False)
        sys.exit(f"the run ended with status {status}; all of its output is in {arguments.out / 'train.log'}")
    show(arguments.out, 3, console)
    page = arguments.out / "report.html"
    report([arguments.out], page, console)
    made_by = f"made by darling-report {arguments.out} -o {page}"
    console.print(made_by, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{arguments.out}/ holds partitions.jsonl, run.json, tensorboard/, the trained model/ and train.log")


if __name__ == "__main__":
    main()
