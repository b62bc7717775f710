"""How good each built-in partition model is on human labels, and what it costs.

python benchmarks/partition_models.py

NoveltyBench's 1000 labelled pairs in the five folds of darling-train-partition (seed 0): each fold's threshold is
chosen on the others, for `default` and the cross-encoder the model is trained without it too. Intervals are 95 % of a
bootstrap over prompts. Milliseconds are those of a group of 8, in a burst of 4, after torch.compile; memory is what
loading and scoring added to the process.

The cross-encoder is measured where it has been trained, an hour on two cores:

    darling-train-partition ../shared/data/noveltybench/pairs_train.jsonl -o runs/minilm-cross-encoder \\
       --kind cross-encoder --base PATH_OF_ALL_MINILM_L6_V2 --max_length 256 --epochs 3 --learning_rate 5e-5 \\
       --test_folds 5
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import psutil
from common import NOVELTYBENCH, ROOT, console, make_groups, save
from cross_encoders import path_of

from darling_plugin.partition import Group, load_partition_model
from darling_plugin.training import report
from darling_plugin.training.head import HeadTrainer
from darling_plugin.training.pairs import LabelledPair, folds_by_prompt, read_pairs

CROSS_ENCODER = ROOT / "runs/minilm-cross-encoder"
FOLDS, SEED, GROUPS, ROUNDS = 5, 0, 4, 5
SIZES = {30: 40, 300: 400}  # words: tokens, about


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cost", metavar="SPEC", help="print milliseconds and memory of one model, as JSON")
    cost_of = parser.parse_args().cost
    if cost_of:
        print(json.dumps(cost(cost_of)))
        return
    if not NOVELTYBENCH.exists():
        sys.exit(f"needs NoveltyBench's pairs in {NOVELTYBENCH}")
    pairs = read_pairs(str(NOVELTYBENCH))
    folds = folds_by_prompt(pairs, FOLDS, SEED)
    rows = []
    for name, spec, scores in contestants(pairs, folds):
        console.print(name)
        probabilities, thresholds = scores()
        found = report.measures(pairs, probabilities, thresholds)
        cells = {key.replace("_", " "): f"{m.value:.3f} ({m.low:.3f}–{m.high:.3f})" for key, m in found.items()}
        rows.append({"model": name, **cells, **cost_elsewhere(spec)})
    save("partition_models", "Partition models on 1000 human-labelled pairs", __doc__, rows)


Scores = tuple[np.ndarray, np.ndarray]


def contestants(pairs: list[LabelledPair], folds: list[list[int]]) -> list[tuple[str, str, Callable[[], Scores]]]:
    labels = np.array([pair.similar for pair in pairs])
    everything = np.arange(len(pairs))

    def fixed(spec: str) -> Callable[[], Scores]:
        def scores() -> Scores:
            model = load_partition_model(spec)
            found = model.similarities([Group(pair.prompt, [pair.first, pair.second]) for pair in pairs])
            similarities = np.array([float(each[0, 1]) for each in found])
            thresholds = np.empty(len(pairs))
            for part in folds:
                others = np.setdiff1d(everything, part)
                thresholds[part] = report.best_threshold(labels[others], similarities[others])
            return similarities, thresholds

        return scores

    def default() -> Scores:
        trainer = HeadTrainer(pairs, None, folds=FOLDS, seed=SEED)
        probabilities, thresholds = np.empty(len(pairs)), np.empty(len(pairs))
        for part in folds:
            head = trainer.fit(np.setdiff1d(everything, part))
            probabilities[part], thresholds[part] = trainer.predict(head, part), head.threshold
        return probabilities, thresholds

    def cross_encoder() -> Scores:
        lines = (CROSS_ENCODER / "predictions.jsonl").read_text().splitlines()
        of_line = {row["line"]: row for row in map(json.loads, lines)}
        rows = [of_line[pair.line] for pair in pairs]
        return tuple(np.array([row[key] for row in rows]) for key in ("probability", "threshold"))

    rows: list[tuple[str, str, Callable[[], Scores]]] = [
        ("lexical", "lexical", fixed("lexical")),
        ("embedding", "embedding", fixed("embedding")),
        ("default", "default", default),
    ]
    if (CROSS_ENCODER / "predictions.jsonl").exists():
        # The cost is the architecture's: that of the MiniLM cross-encoder of the other benchmarks.
        spec = f"cross-encoder:{path_of('minilm')}?max_length=256"
        rows.append(("cross-encoder, MiniLM trained here", spec, cross_encoder))
    return rows


def cost_elsewhere(spec: str) -> dict[str, Any]:
    """In a process of its own, for its memory."""
    done = subprocess.run([sys.executable, __file__, "--cost", spec], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def cost(spec: str) -> dict[str, Any]:
    import time

    import torch
    from transformers import AutoTokenizer

    from darling_plugin.partition.models.embedding import _default_model_path

    tokenizer = AutoTokenizer.from_pretrained(_default_model_path())
    bursts = {words: make_groups(tokenizer, GROUPS, (tokens, tokens)) for words, tokens in SIZES.items()}
    process, torch_is_loaded = psutil.Process(), torch.zeros(1)
    before = process.memory_info().rss
    options = {} if spec == "lexical" else {"compile_after": 0}
    model = load_partition_model(spec, **options)
    row: dict[str, Any] = {}
    for words, groups in bursts.items():
        model.partition(groups)
        seconds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            model.partition(groups)
            seconds.append(time.perf_counter() - started)
        row[f"ms a group of 8, {words} words"] = 1000 * median(seconds) / GROUPS
    row["memory, MB"] = round((process.memory_info().rss - before) / 1e6) + 0 * len(torch_is_loaded)
    return row


if __name__ == "__main__":
    main()
