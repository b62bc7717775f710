"""`darling-compare-methods`: what other methods would have made of a logged run's groups, as tables and a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from darling_plugin.commands.ending import exit_status
from darling_plugin.commands.show import TITLE_WIDTH, asked, shortened
from darling_plugin.evaluation.methods import ComparedGroup, Comparison, compare_methods, shown
from darling_plugin.log import read_logged_groups, read_run
from darling_plugin.reward import QUALITY_TRANSFORMS

RESPONSE_WIDTH = 120
EXAMPLE = """\
  darling-compare-methods runs/demo/partitions.jsonl --groups 5 --picture methods.png

Rank correlation is Spearman's of the advantages within a group, its mean over the groups. Each method is at weight 1,
with the quality_transform and the diversity_floor of the run.json beside the log, before OpenRLHF's length penalties.

exit status: 0; 2 where there is nothing to compare
"""


def correlation_table(comparison: Comparison) -> Table:
    """A row a method: its correlation with those above it, and in how many groups it has no say."""
    names = list(comparison.silent)
    caption = f"{len(comparison.groups)} groups"
    if not comparison.of_similarities:
        caption += "; no similarities in this log: 1 within a class, 0 between"
    title = "rank correlation of the advantages within a group"
    table = Table(title=title, caption=caption, box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for number in range(1, len(names)):
        table.add_column(f"{number}", justify="right")
    table.add_column("silent", justify="right")
    for row, name in enumerate(names):
        cells = [shown(comparison.rank_correlation[row, column]) for column in range(row)]
        table.add_row(f"{row + 1} {name}", *cells, *[""] * (len(names) - 1 - row), str(comparison.silent[name]))
    return table


def group_tables(group: ComparedGroup) -> tuple[Table, Table, Table]:
    """The responses of a group, by number, and each method's rewards and advantages of them."""
    record = group.record
    title = f"step {record['step']}, agreement {shown(group.agreement)}: "
    said = Table(title=Text(title + shortened(asked(record["prompt"]), TITLE_WIDTH)), title_justify="left")
    for column in ("", "class", "quality"):
        said.add_column(column, justify="right", min_width=len(column))
    said.add_column("response")
    for k, response in enumerate(record["responses"]):
        text = Text(shortened(response, RESPONSE_WIDTH) or "(empty)")
        said.add_row(f"{k + 1}", f"{record['labels'][k]}", f"{record['quality'][k]:.2f}", text)
    return said, _by_method("reward", group.reward, ".2f"), _by_method("advantage", group.advantage, "+.2f")


def _by_method(title: str, by_method: dict[str, list[float]], form: str) -> Table:
    table = Table(title, box=None, padding=(0, 1, 0, 0))
    for k in range(len(next(iter(by_method.values())))):
        table.add_column(f"{k + 1}", justify="right", min_width=5)
    for name, values in by_method.items():
        table.add_row(name, *(f"{value + 0.0:{form}}" for value in values))
    return table


def compare(log: Path, groups: int, picture: Path | None, flags: dict[str, Any], console: Console) -> None:
    """Prints the tables, and writes the picture. Raises DarlingError where there is nothing to compare."""
    records = read_logged_groups(log)
    log_dir = log.parent if log.is_file() else log
    comparison = compare_methods(records, {**read_run(log_dir).get("darling", {}), **flags})
    console.print(correlation_table(comparison))
    for group in comparison.groups[:groups]:
        console.print(*group_tables(group), sep="\n")
    if picture is not None:
        from darling_plugin.evaluation.pictures import draw_correlations

        draw_correlations(picture, comparison)
        console.print(f"{picture}: the same as a picture", highlight=False, markup=False)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="darling-compare-methods",
        description="What each group-diversity method would have made of a logged run's groups: how alike the methods "
        "rank a group's responses, and the groups on which they disagree most.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("log", metavar="FILE", type=Path, help="partitions.jsonl of a run, or the folder it is in")
    parser.add_argument("--groups", type=int, default=3, help="how many groups to show; default: 3")
    parser.add_argument("--picture", metavar="PNG", type=Path, help="writes the correlations as a picture")
    parser.add_argument(
        "--quality_transform",
        choices=tuple(QUALITY_TRANSFORMS),
        help="in place of the run's own; needed where that has none and qualities are negative",
    )
    arguments = parser.parse_args(argv)
    flags = {} if arguments.quality_transform is None else {"quality_transform": arguments.quality_transform}
    groups = max(0, arguments.groups)
    return exit_status(lambda: compare(arguments.log, groups, arguments.picture, flags, Console()))


if __name__ == "__main__":
    sys.exit(main())
