"""What a partition costs: milliseconds a group of 8 for each built-in model that needs no weights of your own.

    python3 benchmarks/partition_models.py

Both models score the same groups in turn, round by round, so that the ratio holds when the machine's speed drifts.
"""

import json
import platform
import random
import subprocess
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from darling_plugin.partition import Group, load_partition_model, measure

HERE = Path(__file__).parent
WORDS = (HERE.parent / "examples/data/many_answers.jsonl").read_text(encoding="utf-8").replace("|", " ").split()
MODELS = ("lexical", "embedding")
GROUPS, RESPONSES, ROUNDS = 8, 8, 5


def groups_of(words: int, rng: random.Random) -> list[Group]:
    return [
        Group(f"prompt {k}", [" ".join(rng.choices(WORDS, k=words)) for _ in range(RESPONSES)]) for k in range(GROUPS)
    ]


def main() -> None:
    rng = random.Random(0)
    models = {name: load_partition_model(name) for name in MODELS}
    results = []
    for words in track((12, 30, 300), description="words a response"):
        warm_up = groups_of(words, rng)
        for model in models.values():
            measure(model, warm_up)
        seconds: dict[str, list[float]] = {name: [] for name in MODELS}
        for _ in range(ROUNDS):
            groups = groups_of(words, rng)
            for name, model in models.items():
                started = time.perf_counter()
                measure(model, groups)
                seconds[name].append(time.perf_counter() - started)
        each = {name: median(times) / GROUPS * 1000 for name, times in seconds.items()}
        ratio = median(b / a for a, b in zip(*seconds.values(), strict=True))
        results.append({"words": words, "ms_per_group": each, "embedding_over_lexical": ratio})

    table = Table(title=f"milliseconds a group of {RESPONSES}, median of {ROUNDS}")
    for column in ("words a response", *MODELS, "ratio"):
        table.add_column(column, justify="right")
    for row in results:
        cells = [f"{row['ms_per_group'][name]:.1f}" for name in MODELS]
        table.add_row(str(row["words"]), *cells, f"{row['embedding_over_lexical']:.1f}")
    Console().print(table)

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout
    about = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "commit": commit.strip(),
    }
    out = HERE / "results" / "partition_models.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
