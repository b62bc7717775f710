"""`darling-show`: a table per training step and a few groups with their classes, from a run's `--darling.log_dir`."""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from darling_plugin.commands.ending import exit_status
from darling_plugin.errors import DarlingError
from darling_plugin.log import read_logged_groups
from darling_plugin.partition.base import encodable
from darling_plugin.queries import asked

CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")

TITLE_WIDTH = 60
EXAMPLE = """\
  darling-show runs/demo --groups 5

DIR holds the run's partitions.jsonl. Means leave out the groups that could not be partitioned; those of diversity and
of classes also the responses that a quality gate left out.

exit status: 0; 2 where there is nothing to show
"""


def steps_table(records: list[dict[str, Any]]) -> Table:
    """One row a training step: the means over those of its groups that could be partitioned."""
    steps = defaultdict(list)
    for record in records:
        if record["labels"] is not None:
            steps[record["step"]].append(record)
    table = Table(title="per training step")
    for column in ("step", "quality", "diversity", "classes per group", "reward"):
        table.add_column(column, justify="right")
    for step, groups in sorted(steps.items()):
        quality, reward = (
            f"{fmean(value for group in groups for value in group[key]):.3f}" for key in ("quality", "reward")
        )
        table.add_row(str(step), quality, *_diversity_and_classes(groups), reward)
    return table


def _diversity_and_classes(groups: list[dict[str, Any]]) -> tuple[str, str]:
    """As `diversity` and `classes_per_group` of metrics.py have them, without its torch: of those who take part."""
    labels = [[label for label in group["labels"] if label >= 0] for group in groups]
    if not any(labels):
        return "–", "–"
    diversity = fmean(
        each for group in groups for label, each in zip(group["labels"], group["diversity"], strict=True) if label >= 0
    )
    return f"{diversity:.3f}", f"{fmean(len(set(of_group)) for of_group in labels if of_group):.2f}"


def printable(text: str) -> str:
    """The text on one line, without what a terminal would obey, or no encoding holds."""
    return CONTROLS.sub("\ufffd", encodable(" ".join(text.split())))


def shortened(text: str, width: int) -> str:
    """The text on one line, cut before the word with which it would be longer than `width`."""
    text = printable(text)
    if len(text) <= width:
        return text
    words = text[: width - 1].rpartition(" ")[0]
    # A script without spaces, or a long formula, has no word's end nearby.
    return f"{words} …" if 2 * len(words) >= width else f"{text[: width - 1]}…"


def group_table(record: dict[str, Any]) -> Table:
    """The responses of one group, class by class, under what was asked."""
    title = f"step {record['step']}: {shortened(asked(record['prompt']), TITLE_WIDTH)}"
    table = Table(title=Text(title), title_justify="left")
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
        text = Text(printable(record["responses"][k]) or "(empty)")
        table.add_row(str(label), text, *(f"{record[key][k]:.2f}" for key in ("quality", "diversity", "reward")))
    return table


def show(log_dir: Path, groups: int, console: Console) -> None:
    """Prints the table of the steps, and the first `groups` groups of the last one.

    Raises DarlingError where there is nothing to show.
    """
    trained = [record for record in read_logged_groups(log_dir) if record["split"] == "train"]
    if not trained:
        raise DarlingError("groups of a training step", f"none yet in {log_dir}", "wait for the first step")
    console.print(steps_table(trained))
    last = max(record["step"] for record in trained)
    ended = [record for record in trained if record["step"] == last and record["labels"] is not None]
    for record in ended[:groups]:
        console.print(group_table(record))


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="darling-show",
        description="Shows what a run did: means of each training step, then groups of the last one class by class.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("log_dir", metavar="DIR", type=Path, help="--darling.log_dir of a run, finished or not")
    parser.add_argument("--groups", type=int, default=3, help="how many groups of the last step; default: 3")
    arguments = parser.parse_args(argv)
    console = Console()

    def run() -> None:
        show(arguments.log_dir, arguments.groups, console)
        console.print(f"darling-report {arguments.log_dir} makes a page of all of it", markup=False, highlight=False)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
