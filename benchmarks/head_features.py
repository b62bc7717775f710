"""The head's features without its encoder: seconds for a group, by the length of its responses.

    python benchmarks/head_features.py [OLD_FEATURES.py]

With the path of an earlier features.py both compute in turn, in one process on one thread. Texts are drawn words, the
chunks' vectors random ones of length 1: what they say makes no difference to the time. Prints medians of the rounds.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from statistics import median
from types import ModuleType

import numpy as np
import torch
from transformers import AutoTokenizer

from darling_plugin.partition.models.embedding import _default_model_path
from darling_plugin.partition.models.head import features
from darling_plugin.partition.models.head.model import SHIPPED, read_head

RESPONSES, TOKENS, ROUNDS = 8, (30, 400, 8000), 7
WIDTH = 384  # of all-MiniLM-L6-v2's vectors
WORDS = "harbour ferry morning seven Captain the a of Saturn's 12:30 river; fox **Title:** and, not London".split()


def text_of(tokenizer: AutoTokenizer, tokens: int, seed: int) -> tuple[str, np.ndarray]:
    """Words, and made-up ones as rare as those of long responses."""
    random = np.random.default_rng(seed)
    made_up = ["".join(random.choice(list("aeioulnrst"), 6)) for _ in range(tokens // 4)]
    text = " ".join(random.choice([*WORDS, *made_up], tokens))
    ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:tokens], np.int64)
    return tokenizer.decode(ids), ids


def encoded(module: ModuleType, text: str, ids: np.ndarray, seed: int):
    count = -(-len(ids) // features.CHUNK_TOKENS)
    vectors = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return module.Encoded(text, ids, torch.nn.functional.normalize(vectors, dim=-1), torch.full((count,), 48.0))


def seconds(module: ModuleType, texts: list[tuple[str, np.ndarray]], idf: torch.Tensor) -> float:
    prompt, *responses = (encoded(module, *each, seed) for seed, each in enumerate(texts))
    started = time.perf_counter()
    module.pair_features(prompt, responses, idf)
    return time.perf_counter() - started


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
