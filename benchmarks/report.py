"""Renders every benchmarks/results/*.json into benchmarks/README.md.

python benchmarks/report.py
"""

import json
from pathlib import Path
from typing import Any

from common import RESULTS, shown

README = RESULTS.parent / "README.md"
ORDER = (
    "official_protocol",
    "libraries",
    "gpu_limit",
    "gpu_attention",
    "gpu_compiling",
    "gpu_batches",
    "gpu_libraries",
    "gpu_precision",
    "gpu_groups",
    "limit_cpu",
    "precision",
    "cpu_numerics",
    "sync_healthy",
    "sync_faults",
    "growth",
    "pairs_saved",
    "training",
    "partition_models",
    "readings",
    "readings_of_pairs",
    "scoring_time",
    "report_page",
)
HEAD = """# Benchmarks

What partitioning costs, and what the engine gains. Made by `python benchmarks/report.py` from `results/*.json`;
`make bench` runs everything and writes this page. Contestants of a table ran in turn in one run; numbers are medians
of three rounds, ratios the median of the rounds' ratios. A `+` after the commit: tracked files differed from it.

`make bench-gpu` makes the tables of a GPU in under four minutes, with the python3 that trains there, and tiny shapes
where there is none. {gpu}The figures of one H200 on other pages (3bf20c8, 2026-11-26) were measured by hand before.
"""


def render(results: dict[str, dict[str, Any]]) -> str:
    """The page of results by name: those in ORDER first, then the others by name."""
    names = [name for name in ORDER if name in results] + sorted(results.keys() - set(ORDER))
    none_yet = "" if any(name.startswith("gpu_") for name in results) else "No GPU has run it yet. "
    return "\n".join([HEAD.format(gpu=none_yet), *(section(results[name]) for name in names)])


def section(result: dict[str, Any]) -> str:
    columns = list(result["rows"][0])
    lines = [f"## {result['title']}", "", result["about"], ""]
    if "goal" in result:
        lines += [f"Goal: {result['goal']}.", ""]
    lines += [
        line(columns),
        line(["---:"] * len(columns)),
        *(line(map(shown, row.values())) for row in result["rows"]),
    ]
    if result.get("unfinished"):
        lines += ["", "Unfinished: the run was stopped before its last row."]
    if "picture" in result:
        lines += ["", f"![{result['title']}](results/{result['picture']})"]
    if "server" in result:
        lines += ["", f"Server: `{' '.join([*(f'{k}={v}' for k, v in result['server']['environment'].items())])}`"]
        lines[-1] += f", flags `{' '.join(result['server']['flags']) or 'none'}`."
    versions = ", ".join(f"{name} {found}" for name, found in result["versions"].items())
    lines += [
        "",
        f"`{result['command']}`, {result['date']}, commit {result['commit']}. {result['machine']}; "
        f"{result['threads']} threads. Python {result['python']}, {versions}.",
        "",
    ]
    return "\n".join(lines)


def line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    README.write_text(render(results), encoding="utf-8")
    print(f"wrote {Path(README).name} with {len(results)} tables")


if __name__ == "__main__":
    main()
