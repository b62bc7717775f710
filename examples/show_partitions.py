"""A table per training step and a few groups with their classes, from a run's `--darling.log_dir`.

python3 examples/show_partitions.py runs/demo
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

CHAT_TOKEN = re.compile(r"<\|[^|>]*\|>")


def read(log_dir: Path) -> list[dict]:
    # Not splitlines(): a response may hold one of the other characters that Unicode calls a line's end.
    lines = (log_dir / "partitions.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def steps_table(records: list[dict]) -> Table:
    """One row a training step: the means over its groups."""
    steps = defaultdict(list)
    for record in records:
        if record["split"] == "train" and record["labels"] is not None:
            steps[record["step"]].append(record)
    table = Table(title="per training step")
    for column in ("step", "quality", "diversity", "classes per group", "reward"):
        table.add_column(column, justify="right")
    for step, groups in sorted(steps.items()):
        means = [
            fmean(value for group in groups for value in group[key]) for key in ("quality", "diversity", "reward")
        ]
        classes = fmean(len(set(group["labels"]) - {-1}) for group in groups)
        table.add_row(str(step), f"{means[0]:.3f}", f"{means[1]:.3f}", f"{classes:.2f}", f"{means[2]:.3f}")
    return table


def group_table(record: dict) -> Table:
    """The responses of one group, class by class."""
    prompt = " ".join(CHAT_TOKEN.sub(" ", record["prompt"]).split())
    table = Table(title=Text(f"step {record['step']}: …{prompt[-60:]}"), title_justify="left")
    table.add_column("class", justify="right", min_width=5)
    table.add_column("response", overflow="fold")
    for column in ("quality", "diversity", "reward"):
        table.add_column(column, justify="right", min_width=len(column))
    previous = None
    for k in sorted(range(len(record["labels"])), key=lambda k: record["labels"][k]):
        label = record["labels"][k]
        if previous not in (None, label):
            table.add_section()
        previous = label
        text = Text(" ".join(record["responses"][k].split()) or "(empty)")
        table.add_row(str(label), text, *(f"{record[key][k]:.2f}" for key in ("quality", "diversity", "reward")))
    return table


def show(log_dir: Path, groups: int, console: Console) -> None:
    records = read(log_dir)
    console.print(steps_table(records))
    last = max(record["step"] for record in records if record["split"] == "train")
    ended = [r for r in records if (r["split"], r["step"]) == ("train", last) and r["labels"] is not None]
    for record in ended[:groups]:
        console.print(group_table(record))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log_dir", type=Path)
    parser.add_argument("--groups", type=int, default=3, help="groups of the last step to show")
    arguments = parser.parse_args()
    show(arguments.log_dir, arguments.groups, Console())
