"""The head's features without its encoder: seconds for a group, by the length of its responses.

    python benchmarks/head_features.py [OLD_FEATURES.py]

With the path of an earlier features.py both compute in turn, in one process on one thread, on texts that they have not
seen. The chunks' vectors are random ones of length 1: what they say makes no difference to the time. Prints medians of
the rounds, in time of the processor, which other work on the machine lengthens less.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from statistics import median
from types import ModuleType

import numpy as np
import torch
from transformers import AutoTokenizer

from darling_plugin.partition.models.embedding import _default_model_path
from darling_plugin.partition.models.head import features
from darling_plugin.partition.models.head.model import SHIPPED, read_head
from darling_plugin.partition.models.head.spelling import plain

RESPONSES, TOKENS, ROUNDS = 8, (30, 400, 8000), 7
WIDTH = 384  # of all-MiniLM-L6-v2's vectors
DOCUMENTS = sorted((Path(__file__).resolve().parents[1] / "docs").glob("*.md"))


def text_of(tokenizer: AutoTokenizer, tokens: int, seed: int) -> tuple[str, np.ndarray]:
    """Lines of this project's documents, drawn at random, up to so many tokens."""
    lines = [line for file in DOCUMENTS for line in file.read_text(encoding="utf-8").split("\n")]
    drawn = "\n".join(np.random.default_rng(seed).choice(lines, tokens))
    read = tokenizer(drawn, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return drawn[: read["offset_mapping"][tokens - 1][1]], np.array(read["input_ids"][:tokens], np.int64)


def encoded(module: ModuleType, text: str, ids: np.ndarray, seed: int):
    count = -(-len(ids) // features.CHUNK_TOKENS)
    vectors = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return module.Encoded(text, ids, torch.nn.functional.normalize(vectors, dim=-1), torch.full((count,), 48.0))


def seconds(module: ModuleType, texts: list[tuple[str, np.ndarray]], idf: torch.Tensor) -> float:
    prompt, *responses = (encoded(module, *each, seed) for seed, each in enumerate(texts))
    plain.cache_clear()
    started = time.process_time()
    module.pair_features(prompt, responses, idf)
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    modules = {"now": features}
    if sys.argv[1:]:
        spec = importlib.util.spec_from_file_location("old_features", sys.argv[1])
        modules["before"] = sys.modules["old_features"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules["before"])
    tokenizer = AutoTokenizer.from_pretrained(_default_model_path())
    idf = read_head(SHIPPED)[0]["idf"].float()
    for tokens in TOKENS:
        texts = [text_of(tokenizer, 12, 99), *(text_of(tokenizer, tokens, seed) for seed in range(RESPONSES))]
        taken: dict[str, list[float]] = {name: [] for name in modules}
        for _ in range(ROUNDS + 1):
            for name, module in modules.items():
                taken[name].append(seconds(module, texts, idf))
        said = ", ".join(f"{name} {1000 * median(own[1:]):.1f} ms" for name, own in taken.items())
        print(f"{RESPONSES} responses of {tokens} tokens: {said}")


if __name__ == "__main__":
    main()
