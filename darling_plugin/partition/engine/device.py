"""Where a partition model computes, in which precision, and from when on compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.errors import DarlingError

if TYPE_CHECKING:
    import torch

# Tokens that take at least about as long to score as the layers to compile: no run is held up for longer than it has
# run. That of "cuda" is an estimate, no GPU was at hand.
COMPILE_AFTER = {"cuda": 30_000_000, "cpu": 300_000}


def device_and_dtype(dtype: str | None) -> tuple[str, torch.dtype]:
    """The GPU where there is one, else the CPU; `dtype` by its name in torch, or the fastest that is native there.

    That is bfloat16 where the GPU or the CPU computes in it, else float16 on a GPU and float32 on a CPU.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = _native_dtype(device) if dtype is None else getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise DarlingError("a floating-point dtype of torch, such as bfloat16 or float32", repr(dtype), "correct it")
    return device, kind


def _native_dtype(device: str) -> torch.dtype:
    import torch

    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Other CPUs compute in bfloat16 by way of float32, and are slower than in float32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def check_compile_after(tokens: float | None, device: str) -> float:
    """How many tokens are scored before torch.compile is used: `tokens` itself, or by default COMPILE_AFTER."""
    if tokens is None:
        return COMPILE_AFTER[device]
    if isinstance(tokens, bool) or not isinstance(tokens, int | float) or not tokens >= 0:
        raise DarlingError("a number of tokens from 0 to Infinity as compile_after", repr(tokens), "correct it")
    return tokens
