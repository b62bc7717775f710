"""In training: the demo's step with and without DARLING, and how much of the scoring generation hid.

    python benchmarks/training.py

examples/demo_cpu.sh with SmolLM2-135M-Instruct, 8 prompts x 8 responses a step, partition model `embedding`, one
partition actor on the same CPU cores as all else. Medians over the steps but the first; a step is OpenRLHF's
timing/step_total. The runs sample different responses. `scoring` is what the partition actor spent on a step's
groups, `waited` the time from the end of the last group's generation to the end of the last scoring; the rest of the
scoring went on while other groups were generated. `added` compares medians, and is known no better than the steps of
one run are alike; `scoring / step` is the most that the partition can have added.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from common import ROOT, console, save
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

MODEL = ROOT / "models/SmolLM2-135M-Instruct"
OUT = ROOT / "runs/benchmarks/training"
STEPS = 6


def train(darling: bool) -> Path:
    """Runs the demo; returns the folder of its TensorBoard files."""
    out = OUT / ("with" if darling else "without")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    own = {"PYTHON": sys.executable, "MODEL": str(MODEL), "OUT": str(out), "STEPS": str(STEPS)}
    own |= {"DARLING": "1" if darling else "0", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (out / "train.log").open("w") as log:
        subprocess.run(
            ["bash", str(ROOT / "examples/demo_cpu.sh")], env=os.environ | own, stdout=log, stderr=log, check=True
        )
    return out / "tensorboard"


def values(folder: Path, tag: str) -> list[float]:
    """A metric's value at each step but the first."""
    (run,) = {path.parent for path in folder.rglob("events.out.*")}
    events = EventAccumulator(str(run)).Reload()
    return [event.value for event in events.Scalars(f"train/{tag}")][1:]


def spread(seconds: list[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f} s"


def main() -> None:
    if not MODEL.exists():
        raise SystemExit("needs the demo's model: make models/SmolLM2-135M-Instruct/config.json")
    folders = {}
    for name, darling in (("without", False), ("with", True)):
        console.print(f"{STEPS} steps {name} DARLING")
        folders[name] = train(darling)
    steps = {name: values(folder, "timing/step_total") for name, folder in folders.items()}
    step = {name: median(seconds) for name, seconds in steps.items()}
    scoring = values(folders["with"], "darling/scoring_seconds")
    waited = values(folders["with"], "darling/scoring_wait_seconds")
    row = {
        "steps": len(scoring),
        "without, s a step": step["without"],
        "with, s a step": step["with"],
        "added": f"{step['with'] / step['without'] - 1:+.1%}",
        "spread of the steps": f"{spread(steps['without'])} without, {spread(steps['with'])} with",
        "scoring, s a step": median(scoring),
        "scoring / step": f"{median(scoring) / step['with']:.1%}",
        "waited, s a step": median(waited),
        "waited / step": f"{median(waited) / step['with']:.1%}",
        "scoring that generation hid": f"{max(0.0, 1 - sum(waited) / sum(scoring)):.0%}",
    }
    save(
        "training",
        "In training: the demo with and without DARLING",
        __doc__,
        [row],
        goal="under 3 % added to a step",
        steps=steps,
    )


if __name__ == "__main__":
    main()
