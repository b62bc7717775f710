"""`darling-report`: one HTML page of runs, from their `--darling.log_dir`s: curves, signs of gaming, every group."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

from darling_plugin.commands.ending import exit_status
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.report.page import render
from darling_plugin.evaluation.report.runs import read_runs

EXAMPLE = """\
  darling-report runs/demo -o report.html
  darling-report runs/quality runs/darling -o both.html

RUN is the --darling.log_dir of a run, finished or not. The page needs no network and opens from disk.

exit status: 0; 2 where there is nothing to show
"""


def _check_output(output: Path) -> None:
    """A log named as output by mistake is not written over."""
    if output.is_file() and output.stat().st_size and output.read_bytes()[:15].lower() != b"<!doctype html>":
        raise DarlingError("a page to write", f"{output}, which is a file of another kind", "name another with -o")


def report(runs: list[Path], output: Path, console: Console) -> None:
    """Writes the page. Raises DarlingError where there is nothing to show, or it cannot be written."""

    def shown(steps: list) -> object:
        return track(steps, description="reading", console=console, transient=True)

    _check_output(output)
    page = render(read_runs(runs, shown))
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DarlingError("a file to write the page to", f"{error}", "name another with -o") from error
    console.print(
        f"{output}: {len(page) / 1e6:.1f} MB; open it in a browser", highlight=False, markup=False, soft_wrap=True
    )


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="darling-report",
        description="Writes one HTML page of one run or several: curves, signs that diversity is gamed, every group.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="--darling.log_dir of a run")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=Path("report.html"), help="default: report.html"
    )
    arguments = parser.parse_args(argv)
    return exit_status(lambda: report(arguments.runs, arguments.output, Console()))


if __name__ == "__main__":
    sys.exit(main())
