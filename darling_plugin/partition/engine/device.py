"""Where a partition model computes, in which precision, and after which errors nothing computes there any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import out_of_memory

if TYPE_CHECKING:
    import numpy as np
    import torch

# What CUDA's runtime, its driver and Triton begin with what CUDA says.
OF_CUDA = ("CUDA error:", "CUDA driver error:", "Triton Error [CUDA]:")
# CUDA's words for a kernel that it did not even start: built for other GPUs or drivers, or asking for more than this
# GPU has. Later calls work as before.
NOT_STARTED = (
    "no kernel image is available",
    "device kernel image is invalid",
    "invalid device function",
    "unsupported toolchain",
    "invalid configuration argument",
    "invalid argument",
    "too many resources requested",
)


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


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on that device; nobody waits for a GPU.

    From memory that is not pinned, CUDA may begin to copy only when all is computed that was queued before, and the
    caller waits with it.
    """
    import torch

    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def breaks_accelerator(error: BaseException) -> bool:
    """Whether after this error no call of the accelerator works any more in this process."""
    import torch

    if isinstance(error, DarlingError):  # which may quote such a text, of a server say; else it wraps the error itself
        return error.__cause__ is not None and breaks_accelerator(error.__cause__)
    kinds = getattr(torch, "AcceleratorError", ())  # from torch 2.8; before, a RuntimeError with such a text
    text = str(error)
    of_accelerator = isinstance(error, kinds) or any(each in text for each in OF_CUDA)
    return of_accelerator and not (out_of_memory(error) or any(each in text for each in NOT_STARTED))


def _native_dtype(device: str) -> torch.dtype:
    import torch

    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Other CPUs compute in bfloat16 by way of float32, and are slower than in float32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
