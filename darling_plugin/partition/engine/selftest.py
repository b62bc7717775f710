"""The engine on the machine at hand: its kernels and batches against the same in float32, and its rate.

For `python3 -m darling_plugin.check`. Models are small and random, so that nothing is downloaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from darling_plugin.partition.engine.attention import Pieces, Shape, can_pack, choose_attention, sdpa_by_piece
from darling_plugin.partition.engine.compiling import linear_weights
from darling_plugin.partition.engine.device import device_and_dtype
from darling_plugin.partition.engine.forward import Forward, PaddedForward, choose_forward
from darling_plugin.partition.engine.inputs import ModelInput
from darling_plugin.partition.engine.kernels import choose

VOCABULARY = 1000
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "ModernBERT": lambda: transformers.ModernBertConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        initializer_range=0.1, **TOKENS,
    ),
    "Qwen3": lambda: transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, initializer_range=0.1, pad_token_id=0,
    ),
}  # fmt: skip
# name -> lengths of the queries and of what they see, whether causal, window, key heads of 8
KERNELS: dict[str, tuple[list[int], list[int], bool, int | None, int]] = {
    "global": ([700, 803, 12], [700, 803, 12], False, None, 8),
    "windowed": ([700, 803, 12], [700, 803, 12], False, 64, 8),
    "causal, shared heads and beginnings": ([400, 100, 90], [400, 500, 490], True, None, 2),
}
# What the rate is measured on: layers, hidden, intermediate, heads; pairs and tokens of each.
SHAPES = {"cuda": ("ModernBERT-base", 512, 803), "cpu": ("MiniLM", 48, 200)}
MATRIX = {"cuda": 8192, "cpu": 2048}


def kernel_errors() -> dict[str, tuple[str, float | None]]:
    """Of each of KERNELS which attention is in use, with what else was tried, and its largest difference from the
    float32 formula, on values near 1; None where rows cannot be packed: batches are padded there.
    """
    device, dtype = device_and_dtype(None)
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for name, (queries, keys, causal, window, key_heads) in KERNELS.items():
        shape = Shape(8, key_heads, 64, window, causal, dtype)
        attend, error = choose_attention(device, shape), None
        if attend is not None:
            query = torch.randn(sum(queries), 8, 64, generator=generator).to(device, dtype)
            key, value = torch.randn(2, sum(keys), key_heads, 64, generator=generator).to(device, dtype)
            pieces = [Pieces(queries, keys, [0] * len(queries), torch.device(device), causal=causal) for _ in range(2)]
            exact = sdpa_by_piece(query.float(), key.float(), value.float(), pieces[0], 0.125, window)
            error = (attend(query, key, value, pieces[1], 0.125, window).float() - exact).abs().max().item()
        errors[name] = _in_use(device, shape), error
    return errors


def _in_use(device: str, shape: Shape) -> str:
    if device != "cuda":
        return "torch's SDPA, piece by piece"
    return str(choose(shape)) if can_pack(shape.dtype) else "none for this GPU and dtype"


def packed_errors() -> dict[str, tuple[str, float]]:
    """Of each kind of classifier the forward pass in use, and the largest difference of its probabilities from the
    same weights' in float32, padded.
    """
    device, dtype = device_and_dtype(None)
    rng = np.random.default_rng(0)
    inputs = [ModelInput(rng.integers(1, VOCABULARY, size=length)) for length in (300, 7, 120, 121, 64, 250, 33, 200)]
    errors = {}
    for name, config in CONFIGS.items():
        exact = _classifier(config(), device, torch.float32)
        expected = _probabilities(PaddedForward(exact.run, exact.base, 0), inputs)
        used = _classifier(config(), device, dtype)
        forward = choose_forward(used.run, used.base, 0, compile_after=float("inf"))
        errors[name] = type(forward).__name__, (_probabilities(forward, inputs) - expected).abs().max().item()
    return errors


@dataclass
class Rate:
    """How fast the engine scores.

    Attributes:
        pairs: a second. share: of the FLOPs that a large matrix product does in that time, counted in the linear
            layers alone, before layers are compiled.
        peak: bytes of GPU memory that torch held at the most; 0 on a CPU.
    """

    shape: str
    tokens: int
    pairs: float
    flops: float
    share: float
    peak: int


def rate() -> Rate:
    """Of a classifier of ModernBERT-base's shape on a GPU, of MiniLM's on a CPU; random weights."""
    device, dtype = device_and_dtype(None)
    shape, count, tokens = SHAPES[device]
    if device == "cuda":
        config = transformers.ModernBertConfig(vocab_size=VOCABULARY, **TOKENS)
        torch.cuda.reset_peak_memory_stats()
    else:
        config = transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=6, intermediate_size=1536
        )
    model = _classifier(config, device, dtype)
    forward = choose_forward(model.run, model.base, 0, compile_after=float("inf"))
    rng = np.random.default_rng(0)
    inputs = [ModelInput(rng.integers(1, VOCABULARY, size=tokens)) for _ in range(count)]
    seconds = _seconds(lambda: forward(inputs))
    product = torch.randn(MATRIX[device], MATRIX[device], device=device).to(dtype)
    flops = 2 * MATRIX[device] ** 3 / _seconds(lambda: product @ product)
    share = 2 * linear_weights(model.base) * count * tokens / seconds / flops
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return Rate(shape, tokens, count / seconds, flops, share, peak)


@dataclass
class _Classifier:
    model: Any

    @property
    def base(self) -> Any:
        return self.model.base_model

    def run(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**inputs).logits


def _classifier(config: Any, device: str, dtype: torch.dtype) -> _Classifier:
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they would have been
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    return _Classifier(model.to(device, dtype).eval())


def _probabilities(forward: Forward, inputs: list[ModelInput]) -> torch.Tensor:
    return forward(inputs).softmax(-1)[:, 1]


def _seconds(work: Callable[[], Any]) -> float:
    """The least of three, after one to warm up."""
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])
