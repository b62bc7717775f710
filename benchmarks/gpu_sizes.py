"""What gpu.py measures: on a GPU, and where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Work = tuple[int, int, int]  # prompts, responses of each, tokens of each


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Args:
        encoder: what of its shape is other than ModernBERT-base's.
        causal: Qwen3Config's arguments.
        limit, encoder_compiled, causal_compiled, batches: prompts, responses of each, tokens of each.
        budgets: tokens of a batch.
        libraries: tokens of a response at most -> groups.
        precision, groups: how many groups; precision_tokens: of a response at most.
    """

    encoder: dict[str, int]
    causal: dict[str, int]
    limit: Sequence[Work]
    encoder_compiled: Work
    causal_compiled: Work
    batches: Work
    budgets: Sequence[int]
    libraries: dict[int, int]
    precision: int
    precision_tokens: int
    groups: int


FULL = Sizes(
    encoder={},
    causal={  # Qwen3-Embedding-4B's
        "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    },
    limit=[(64, 8, 400), (64, 8, 75)],
    encoder_compiled=(16, 8, 400),
    causal_compiled=(2, 8, 1500),
    batches=(32, 8, 400),
    budgets=[16384, 32768, 65536, 131072, 262144],
    libraries={75: 32, 400: 8},
    precision=24,
    precision_tokens=200,
    groups=200,
)  # fmt: skip
TINY = Sizes(
    encoder={
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
        "local_attention": 16,
    },
    causal={
        "vocab_size": 30522, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    },
    limit=[(1, 3, 40)],
    encoder_compiled=(1, 3, 20),
    causal_compiled=(1, 3, 20),
    batches=(1, 3, 20),
    budgets=[64, 128],
    libraries={10: 1},
    precision=1,
    precision_tokens=10,
    groups=2,
)  # fmt: skip
