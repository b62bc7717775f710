"""Against sentence_transformers.CrossEncoder.predict and a plain padded loop over transformers, batches of 32.

    python benchmarks/libraries.py

The same random weights and pairs; ours with its layers compiled, as in a long run. Both run in the dtype of ours,
predict in float32, its default, too. The loop takes the pairs as they come; predict sorts them by length. All are
scored, and all scores must agree within 0.03.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import all_pairs, console, make_groups, ratio, save, side_by_side, sizes
from cross_encoders import path_of

from darling_plugin.partition import Pair, load_partition_model

# Tokens a response, and groups of 8.
WORK = {
    "minilm-random": {8: 16, 32: 8, 100: 4, 200: 2},
    "modernbert-base": {8: 4, 32: 2, 100: 1, 200: 1},
}
BATCH, ROUNDS, AGREE = 32, 3, 0.03


class Loop:
    """What one writes first: tokenise 32 pairs, pad them to the longest, run the model."""

    def __init__(self, path: str, dtype: torch.dtype, device: str) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype).to(device).eval()

    @torch.inference_mode()
    def __call__(self, pairs: Sequence[Pair]) -> torch.Tensor:
        scores = []
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            texts = [pair.first for pair in batch], [pair.second for pair in batch]
            inputs = self.tokenizer(*texts, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
            scores.append(self.model(**inputs).logits.float().softmax(-1)[:, 1].cpu())
        return torch.cat(scores)


class Predict:
    def __init__(self, path: str, dtype: torch.dtype, device: str) -> None:
        from sentence_transformers import CrossEncoder

        self.model = CrossEncoder(path, device=device, model_kwargs={"dtype": dtype})

    def __call__(self, pairs: Sequence[Pair]) -> torch.Tensor:
        texts = [(pair.first, pair.second) for pair in pairs]
        options = {"batch_size": BATCH, "apply_softmax": True, "convert_to_tensor": True, "show_progress_bar": False}
        return self.model.predict(texts, **options)[:, 1].float().cpu()


def compare(contestants: dict[str, Any], name: str, tokens: int, groups: int) -> dict[str, Any]:
    pairs = all_pairs(make_groups(contestants["ours"].tokenizer, groups, sizes(tokens)))
    runs = {key: getattr(contestant, "similarity", contestant) for key, contestant in contestants.items()}
    scores = {key: run(pairs) for key, run in runs.items()}
    apart = max((each - scores["ours"]).abs().max().item() for each in scores.values())
    if apart > AGREE:
        raise SystemExit(f"{name}, {tokens} tokens: scores differ by {apart:.3f}")
    seconds = side_by_side({key: lambda run=run: run(pairs) for key, run in runs.items()}, ROUNDS)
    row = {"model": name, "tokens a response": f"≤ {tokens}", "pairs": len(pairs)}
    row |= {f"{key}, pairs/s": len(pairs) / median(times) for key, times in seconds.items()}
    row |= {f"over {key}": ratio(times, seconds["ours"]) for key, times in seconds.items() if key != "ours"}
    return row | {"largest score difference": apart}


def rows(work: dict[str, dict[int, int]], path_of: Callable[[str], Path] = path_of) -> Iterator[dict[str, Any]]:
    """A row for each model and size of `work`, as WORK has them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, sizes_of_model in work.items():
        path = str(path_of(name))
        contestants = {
            "ours": load_partition_model(f"cross-encoder:{path}", dtype="bfloat16", compile_after=0),
            "predict": Predict(path, torch.bfloat16, device),
            "loop": Loop(path, torch.bfloat16, device),
            "predict float32": Predict(path, torch.float32, device),
        }
        for tokens, groups in sizes_of_model.items():
            console.print(f"{name}, up to {tokens} tokens a response")
            yield compare(contestants, name, tokens, groups)


def main() -> None:
    goal = "ahead of both at every size"
    save("libraries", "Against CrossEncoder.predict and a padded loop", __doc__, rows(WORK), goal=goal)


if __name__ == "__main__":
    main()
