"""How many decisions another CPU's instructions turn, at one dtype, and how many bfloat16 turns.

python benchmarks/cpu_numerics.py

Real groups of NoveltyBench (every 17th of groups_odd.jsonl: 30, of ten sources and 18 prompts), each distinct response
once, no layer compiled. One CPU stands in for others: ATEN_CPU_CAPABILITY limits the instructions of PyTorch's own
kernels, ONEDNN_MAX_CPU_ISA those of the matrix products in bfloat16, MKL_CBWR those of the matrix products in float32.
Each setting runs in a process of its own and is compared with the same dtype where nothing is set; `bfloat16 for
float32` compares the two dtypes where nothing is set. Where no similarity differs, the setting changes nothing on this
CPU. The last column is how far from the threshold the furthest of the pairs lies whose decision turned.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import torch
from common import NOVELTYBENCH, classes, console, save

from darling_plugin.partition import Group, load_partition_model

GROUPS = NOVELTYBENCH.with_name("groups_odd.jsonl")
EVERY = 17
MODELS = ("default", "embedding")
NOTHING = "nothing"
# What has an effect on a dtype: oneDNN hardly takes part in float32, MKL hardly in bfloat16.
SETTINGS = {
    "float32": (
        NOTHING,
        "ATEN_CPU_CAPABILITY=avx2",
        "ATEN_CPU_CAPABILITY=default",
        "ONEDNN_MAX_CPU_ISA=AVX2",
        "MKL_CBWR=COMPATIBLE",  # SSE2
    ),
    "bfloat16": (
        NOTHING,
        "ATEN_CPU_CAPABILITY=avx2",
        "ATEN_CPU_CAPABILITY=default",
        "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16",  # without AMX and float16 instructions
        "ONEDNN_MAX_CPU_ISA=AVX512_CORE",  # without bfloat16 instructions
        "ONEDNN_MAX_CPU_ISA=AVX2",
    ),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--similarities", metavar="DTYPE", help="print those of all pairs, as JSON")
    dtype = parser.parse_args().similarities
    if not GROUPS.exists():
        sys.exit(f"needs NoveltyBench's groups in {GROUPS}")
    groups = read_groups()
    if dtype:
        print(json.dumps({spec: similarities(spec, dtype, groups) for spec in MODELS}))
        return
    found = {}
    for dtype, settings in SETTINGS.items():
        for setting in settings:
            console.print(dtype, setting)
            found[dtype, setting] = similarities_elsewhere(dtype, setting)
    rows = []
    for spec in MODELS:
        own = {key: found[key][spec] for key in found}
        rows.append(compare(spec, "bfloat16 for float32", NOTHING, groups, *(own[each, NOTHING] for each in SETTINGS)))
        for dtype, setting in own:
            if setting != NOTHING:
                rows.append(compare(spec, dtype, setting, groups, own[dtype, NOTHING], own[dtype, setting]))
    save("cpu_numerics", "What another CPU's instructions change", __doc__, rows)


def read_groups() -> list[Group]:
    """Each response once and none of them empty, as a similarity model is asked for them."""
    rows = [json.loads(line) for line in GROUPS.read_text(encoding="utf-8").splitlines()[::EVERY]]
    distinct = [list(dict.fromkeys(text.strip() for text in row["responses"] if text.strip())) for row in rows]
    return [Group(row["prompt"], texts) for row, texts in zip(rows, distinct, strict=True) if len(texts) > 1]


def similarities(spec: str, dtype: str, groups: list[Group]) -> dict[str, Any]:
    """The threshold, and the similarity of each i < j of each group in turn."""
    model = load_partition_model(spec, dtype=dtype, compile_after=float("inf"))
    found = [each[torch.triu_indices(*each.shape, offset=1).unbind()] for each in model.similarities(groups)]
    return {"threshold": model.threshold, "similarities": torch.cat(found).tolist()}


def similarities_elsewhere(dtype: str, setting: str) -> dict[str, Any]:
    """By model; in a process of its own, since these variables are read once."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if setting != NOTHING:
        name, _, value = setting.partition("=")
        environment[name] = value
    command = [sys.executable, __file__, "--similarities", dtype]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    spec: str, dtype: str, setting: str, groups: list[Group], reference: dict[str, Any], other: dict[str, Any]
) -> dict[str, Any]:
    threshold = reference["threshold"]
    before, after = (torch.tensor(each["similarities"]) for each in (reference, other))
    difference = (after - before).abs()
    turned = (before > threshold) != (after > threshold)
    partitions = zip(classes(before, threshold, groups), classes(after, threshold, groups), strict=True)
    return {
        "model": spec,
        "dtype": dtype,
        "set": setting,
        "pairs": len(before),
        "similarities that differ": f"{(difference > 0).float().mean():.0%}",
        "decisions that differ": int(turned.sum()),
        "groups whose classes differ": f"{sum(a != b for a, b in partitions)} of {len(groups)}",
        "largest difference": difference.max().item(),
        "99th percentile": difference.quantile(0.99).item(),
        "furthest turned pair": (before - threshold).abs()[turned].max().item() if turned.any() else None,
    }


if __name__ == "__main__":
    main()
