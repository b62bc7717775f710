"""A run's kernels by kind, after torch.profiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from darling_plugin.partition.engine import attention

KINDS = ("matrix products", "attention, global", "attention, windowed", "copies", "the rest")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise", "mkl::_mkl_linear")


def kernels(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each of KINDS in one run, after torch.profiler: of GPU kernels; without a GPU of the operators.

    A kernel counts by the operator that started it. What attention copies beforehand counts as copies; what
    torch.compile made (norms, GeGLU, RoPE, sums) is the rest.
    """
    chosen = attention.choose_attention

    def choose_named(*arguments: Any, **options: Any) -> Any:
        attend = chosen(*arguments, **options) or attention.sdpa_by_piece

        def named(query: Any, key: Any, value: Any, pieces: Any, scaling: float, window: int | None) -> torch.Tensor:
            with torch.profiler.record_function(KINDS[1] if window is None else KINDS[2]):
                return attend(query, key, value, pieces, scaling, window)

        return named

    on_gpu = torch.cuda.is_available()
    devices = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with patch.object(attention, "choose_attention", choose_named), torch.profiler.profile(activities=devices) as seen:
        run()
    total, of_kind = 0.0, dict.fromkeys(KINDS, 0.0)
    for event in seen.events():
        if event.device_type != torch.autograd.DeviceType.CPU:
            total += 0 if event.is_user_annotation else event.time_range.elapsed_us() / 1e6
            continue
        own = sum(kernel.duration for kernel in event.kernels) if on_gpu else event.self_cpu_time_total
        of_kind[_kind(event)] += own / 1e6
        total += 0 if on_gpu else own / 1e6
    of_kind["the rest"] = total - sum(of_kind[kind] for kind in KINDS[:-1])
    return of_kind


def host_waits(run: Callable[[], Any]) -> int | None:
    """How often the host waits for the GPU in one run, as torch sees it; the result's way back is one of them."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen)


def _kind(event: Any) -> str:
    if event.name == "aten::copy_":
        return "copies"
    above = event
    while above is not None:
        if above.name in KINDS:
            return above.name
        above = above.cpu_parent
    return "matrix products" if event.name in PRODUCTS else "the rest"
