"""Against the limit: the FLOPs of the pairs' tokens over the rate of a large matrix product, measured in the same run.

    python benchmarks/limit.py

The whole of measure() from text to classes, by ModernBERT-base and MiniLM with random weights, in bfloat16, layers
compiled as in a long run. Nothing is skipped: every response differs and every pair is scored. The limit counts the
encoder's linear layers and attention alone. gpu.py has the same of a GPU, with more and longer pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import console, ratio, save, side_by_side
from cross_encoders import path_of

from darling_plugin.partition import Group, load_partition_model, measure
from darling_plugin.partition.models.cross_encoder import CrossEncoder

# (model, groups, responses a group, tokens a response); a pair has three special tokens more than two responses.
WORK = [("minilm-random", 4, 8, 200), ("modernbert-base", 4, 8, 32), ("modernbert-base", 2, 4, 400)]
MATRIX = {"cpu": 4096, "cuda": 8192}
ROUNDS = 3


def flops_of_pairs(model: Any, lengths: Sequence[int]) -> float:
    """FLOPs of a classifier's encoder for pairs of these lengths in tokens, a multiply and an add being two.

    Linear layers: 2 x inputs x outputs a token. Attention: 4 x hidden size a token and key, in a sliding-window layer
    at most window + 1 keys. Embeddings, norms, activations and the classification head are left out.
    """
    config = model.config
    head = {name for name, _ in model.named_children() if name != model.base_model_prefix}
    linear = sum(
        2 * layer.in_features * layer.out_features
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.split(".")[0] not in head and "pooler" not in name
    )
    windows = [config.local_attention + 1 if kind == "sliding_attention" else None for kind in layer_kinds(config)]
    attention = sum(
        4 * config.hidden_size * length * min(length, window or length) for length in lengths for window in windows
    )
    return float(linear * sum(lengths) + attention)


def layer_kinds(config: Any) -> list[str]:
    return getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers


def matmul(device: str):
    """A function that multiplies two large square bfloat16 matrices, and its FLOPs."""
    size = MATRIX[device]
    a, b = torch.randn(2, size, size, device=device).bfloat16()
    repeats = 20 if device == "cuda" else 1

    def run() -> None:
        for _ in range(repeats):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()

    return run, repeats * 2 * size**3


def matmul_rate(device: str) -> float:
    """FLOP/s of the product of two large bfloat16 matrices."""
    run, flops = matmul(device)
    return flops / median(side_by_side({"product": run}, ROUNDS)["product"])


def make_exact_groups(tokenizer: Any, count: int, n: int, tokens: int) -> list[Group]:
    """Random words, each one token: responses of exactly `tokens` tokens."""
    words = [word for word in sorted(tokenizer.get_vocab()) if word.isascii() and word.isalpha() and word.islower()]
    rng = random.Random(0)
    return [Group(f"prompt {k}", [" ".join(rng.choices(words, k=tokens)) for _ in range(n)]) for k in range(count)]


def against_limit(model: CrossEncoder, name: str, count: int, n: int, tokens: int) -> dict[str, Any]:
    device = model.model.device.type
    groups = make_exact_groups(model.tokenizer, count, n, tokens)
    pairs, length = count * n * (n - 1) // 2, 2 * tokens + 3
    product, product_flops = matmul(device)
    seconds = side_by_side({"product": product, "ours": lambda: measure(model, groups)}, ROUNDS)
    flops = flops_of_pairs(model.model, [length] * pairs)
    limits = [once * flops / product_flops for once in seconds["product"]]
    ours = median(seconds["ours"])
    return {
        "model": name,
        "prompts": count,
        "responses": n,
        "pairs": pairs,
        "tokens a pair": length,
        "MFLOP a token": flops / pairs / length / 1e6,
        "matrix product, TFLOP/s": product_flops / median(seconds["product"]) / 1e12,
        "limit, s": median(limits),
        "ours, s": ours,
        "pairs/s": pairs / ours,
        "share of the limit": ratio(limits, seconds["ours"]),
    }


def compiled(path: Path) -> CrossEncoder:
    """In bfloat16, its layers compiled at once. No random score exceeds the threshold: every pair is scored."""
    return load_partition_model(f"cross-encoder:{path}", dtype="bfloat16", threshold=1.0, compile_after=0)


def rows() -> Iterator[dict[str, Any]]:
    for name, *work in WORK:
        console.print(f"{name}: {work}")
        yield against_limit(compiled(path_of(name)), name, *work)


def main() -> None:
    save("limit_cpu", "Against the limit, CPU", __doc__, rows())


if __name__ == "__main__":
    main()
