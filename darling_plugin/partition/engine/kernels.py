"""CUDA's attention kernels: which are installed, which are exact, and which of those is the fastest here.

All of them take the pieces of a row in one call. How they compare depends on the GPU, the release and the shape: on an
H200 torch's own (FlashAttention 2) took as long for a window of 128 tokens as for all 803. So each is tried on the GPU
that it will run on, once a process and shape.

Not among them: FlexAttention, which needs a mask made for each batch, and a compilation; and blocks of queries as
pieces of their own, whose keys would be copied and whose window would still be the kernel's to compute.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from darling_plugin.errors import DarlingError
from darling_plugin.partition.engine.attention import Attention, Pieces, Shape, sdpa_by_piece
from darling_plugin.partition.engine.device import breaks_accelerator

logger = logging.getLogger(__name__)

EXACT = 0.03  # largest difference from the float32 formula, on values near 1; bfloat16 on a CPU has 0.007
FASTER = 0.9  # of the time of one that comes before it: what is as fast shall not change with each process
ROUNDS, CALLS = 5, 4  # the least of so many rounds, of so many calls each: others may use the GPU meanwhile
# Queries of each piece of the sample, and how many they see: enough for a GPU to be busy, and no two neighbours alike,
# so that the reference computes one by one and takes little memory.
ENCODED = [803, 700] * 6 + [130, 12], [803, 700] * 6 + [130, 12]
SHARED = [400, 400, 300, 400, 12], [400, 800, 700, 800, 12]


@dataclass(frozen=True)
class Choice:
    """Attributes: name, attend: of the fastest exact kernel; None where there is none. tried: what came of each."""

    name: str | None
    attend: Attention | None
    tried: dict[str, str]

    def __str__(self) -> str:
        return f"{self.name or 'none'} ({', '.join(f'{name}: {came}' for name, came in self.tried.items())})"


@cache
def choose(shape: Shape) -> Choice:
    """The kernel for that shape on this GPU, tried out once a process."""
    choice = try_out(shape, candidates(shape, torch.cuda.get_device_capability()), "cuda")
    torch.cuda.empty_cache()  # of the sample: an actor has little
    logger.info("attention, %s: %s", shape, choice)
    return choice


def candidates(shape: Shape, capability: tuple[int, int]) -> dict[str, Callable[[], Attention]]:
    """Name -> what loads it, of the kernels that may be installed. Of two that are as fast the first is taken."""
    found: dict[str, Callable[[], Attention]] = {"torch's": partial(_torch_varlen, shape)}
    if importlib.util.find_spec("flash_attn"):
        found["flash-attn 2"] = partial(_flash_varlen, "flash_attn")
    if capability[0] == 9:  # FlashAttention 3 is written for Hopper; what it does elsewhere may end the process
        if importlib.util.find_spec("flash_attn_interface"):
            found["flash-attn 3"] = partial(_flash_varlen, "flash_attn_interface")
        elif importlib.util.find_spec("vllm"):  # the same kernels
            found["vLLM's flash-attn 3"] = _vllm_varlen
    return found


def try_out(shape: Shape, kernels: dict[str, Callable[[], Attention]], device: str) -> Choice:
    """Each kernel on a sample of that shape: what raises is passed over, what is not exact refused, with a warning.

    Raises DarlingError, which names the kernel, for one after which the accelerator does not work any more.
    """
    sample = _sample(shape, device)
    query, key, value, *how = sample
    exact = sdpa_by_piece(query.float(), key.float(), value.float(), *how)
    attends: dict[str, Attention] = {}
    tried: dict[str, str] = {}
    for name, load in kernels.items():
        try:
            attend = load()
            error = (attend(*sample).float() - exact).abs().max().item()
        except Exception as raised:  # whatever a library of another release, or another GPU, makes of the call
            tried[name] = _unusable(name, shape, raised)
            continue
        if error <= EXACT:  # NaN is not
            attends[name] = attend
        else:
            tried[name] = f"refused ({error:.3g} from float32)"
            logger.warning("attention: %s is %.3g from float32 on %s, and not used", name, error, shape)
    taken = dict.fromkeys(attends, math.inf)
    for _ in range(ROUNDS):
        for name in list(taken):
            try:
                taken[name] = min(taken[name], _seconds(lambda name=name: attends[name](*sample), device))
            except Exception as raised:  # once more: some errors come when a kernel's memory is used again
                tried[name] = _unusable(name, shape, raised)
                del taken[name]
    best = None
    for name, own in taken.items():
        tried[name] = f"{1000 * own:.3g} ms"
        if best is None or own < FASTER * taken[best]:
            best = name
    choice = Choice(best, attends.get(best), tried)
    if best is None:
        logger.warning("attention: no kernel for packed rows, so batches are padded, which is slower: %s", choice)
    return choice


def _unusable(name: str, shape: Shape, raised: Exception) -> str:
    """What came of a kernel that raised; DarlingError where nothing computes on the accelerator any more."""
    if breaks_accelerator(raised):
        raise DarlingError(
            f"an attention kernel that this GPU takes, for {shape}",
            f"{name}, tried on a sample, after which nothing computes on the GPU in this process: "
            f"{type(raised).__name__}: {raised}",
            "install another release of the library that brings it, or none",
        ) from raised
    return f"cannot be used ({type(raised).__name__}: {str(raised)[:120]})"


def _sample(shape: Shape, device: str) -> tuple[Any, ...]:
    """An Attention's arguments, of that shape; random values, as large as a model's after its norms."""
    queries, keys = SHARED if shape.causal else ENCODED
    generator = torch.Generator().manual_seed(0)

    def rows(count: int, heads: int) -> torch.Tensor:
        return torch.randn(count, heads, shape.head_size, generator=generator).to(device, shape.dtype)

    pieces = Pieces(queries, keys, [0] * len(queries), torch.device(device), causal=shape.causal)
    key = rows(sum(keys), shape.key_heads)
    # As ModernBERT's linear layer for all three leaves it: every row is contiguous, the rows lie apart.
    value = rows(sum(keys), 3 * shape.key_heads)[:, 2 * shape.key_heads :]
    return rows(sum(queries), shape.heads), key, value, pieces, shape.head_size**-0.5, shape.window


def _seconds(run: Callable[[], Any], device: str) -> float:
    """Of CALLS calls one after the other, as a batch's layers make them: the mean."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(CALLS):
        run()
    wait()
    return (time.perf_counter() - began) / CALLS


def _torch_varlen(shape: Shape) -> Attention:
    from torch.nn.attention.varlen import varlen_attn

    # Up to torch 2.10 it had no windows, up to 2.11 no shared key heads, which encoders do not have either.
    gqa = {"enable_gqa": True} if shape.heads != shape.key_heads else {}
    missing = {"scale", "window_size", *gqa} - inspect.signature(varlen_attn).parameters.keys()
    if missing:
        raise NotImplementedError(f"torch {torch.__version__} has it without {', '.join(sorted(missing))}")

    def torch_varlen(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: Pieces, scaling: float, window: int | None
    ) -> torch.Tensor:
        return varlen_attn(
            query,
            key,
            value,
            pieces.query_starts,
            pieces.key_starts,
            max(pieces.queries),
            max(pieces.keys),
            scale=scaling,
            window_size=_window_sides(pieces.causal, window),
            **gqa,
        )

    return torch_varlen


def _flash_varlen(module: str, **options: Any) -> Attention:
    """flash_attn_varlen_func of flash-attn 2, 3 or vLLM's copy, which call their arguments alike."""
    flash_attn_varlen_func = importlib.import_module(module).flash_attn_varlen_func

    def flash_varlen(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: Pieces, scaling: float, window: int | None
    ) -> torch.Tensor:
        out = flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=pieces.query_starts,
            cu_seqlens_k=pieces.key_starts,
            max_seqlen_q=max(pieces.queries),
            max_seqlen_k=max(pieces.keys),
            softmax_scale=scaling,
            causal=pieces.causal,
            window_size=_window_sides(pieces.causal, window),
            **options,
        )
        return out[0] if isinstance(out, tuple) else out  # early releases of flash-attn 3 give the logsumexp, too

    return flash_varlen


def _vllm_varlen() -> Attention:
    importlib.import_module("torch._inductor.config")  # first: vLLM would have it compile in one process alone
    return _flash_varlen("vllm.vllm_flash_attn", fa_version=3)


def _window_sides(causal: bool, window: int | None) -> tuple[int, int]:
    """How far to the left and to the right a token sees; -1: all the way."""
    side = -1 if window is None else window
    return (side, 0) if causal else (side, side)
