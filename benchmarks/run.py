"""Runs every benchmark, each in a process of its own, then the report.

python benchmarks/run.py
"""

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "limit",
    "libraries",
    "precision",
    "cpu_numerics",
    "growth",
    "official_protocol",
    "training",
    "partition_models",
    "scoring_time",
    "report_page",
    "report",
)


def main() -> None:
    for script in SCRIPTS:
        subprocess.run([sys.executable, Path(__file__).with_name(f"{script}.py")], check=True)


if __name__ == "__main__":
    main()
