"""Partition models of your own: labelled pairs in, a folder that load_partition_model opens out.

label.py asks a judge for labels, pairs.py reads and checks pairs, head.py and cross_encoder.py train, report.py says
how good the result is. The commands are darling-label-pairs (label.py) and darling-train-partition (train.py).
"""

import importlib.util
import sys

from darling_plugin.errors import DarlingError

EXTRA = ("accelerate", "datasets", "matplotlib", "peft", "sklearn")  # modules of the extra `train`


def train_partition() -> int:
    """The command darling-train-partition, where what it needs is installed."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        needed = "the packages that train a partition model"
        error = DarlingError(needed, f"no module {', '.join(missing)}", "pip install 'darling-plugin[train]'")
        print(f"\n{error}\n", file=sys.stderr)
        return 2
    from darling_plugin.training.train import main

    return main()
