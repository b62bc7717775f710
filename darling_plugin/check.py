"""`python3 -m darling_plugin.check`: a line for each thing that a run with DARLING needs of this machine or cluster.

On a cluster it joins the Ray that RAY_ADDRESS names, as the launcher does, and loads the partition model where Ray
puts it; kernels, speed and memory are those of the machine it is called on, which should be one with GPUs. Each line
is ok, slow or wrong, with what to do, or says that it needs a GPU or weights that are not here. The exit status is 1
where a line is wrong, 2 for a partition model that there is not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from darling_plugin.config import PREFIX, DarlingConfig
from darling_plugin.errors import DarlingError, options_begin_with
from darling_plugin.log import installed_versions
from darling_plugin.partition import check_partition_spec

OK, SLOW, WRONG, NEEDS_GPU, NOT_HERE = "ok", "slow", "wrong", "needs a GPU", "not here"
COLOURS = {OK: "green", SLOW: "yellow", WRONG: "red", NEEDS_GPU: "dim", NOT_HERE: "dim"}

PROBABILITY_ERROR = 0.05  # of small random classifiers in bfloat16, packed, from float32; measured on a CPU: 0.013
# Of the rate of a large matrix product, in the linear layers alone. Measured: 0.19 on an H200 before layers are
# compiled, about a half on two CPU cores.
LEAST_SHARE = 0.08
SLOW_START = 30.0  # seconds for an actor to load its model; as late as in a run is wrong
LEAST_FREE = 2 * 2**30  # bytes of a GPU


@dataclass(frozen=True)
class Line:
    """What was looked at, how it is, what was found, and what to do where it is not ok."""

    check: str
    verdict: str
    found: str
    do: str = ""


def versions(config: DarlingConfig) -> Iterator[Line]:
    """What is installed, and whether OpenRLHF's functions are those that the hooks are written for."""
    found = ", ".join(f"{name} {number}" for name, number in installed_versions().items())
    yield Line("versions", OK, found)
    from darling_plugin.openrlhf.seams import SUPPORTED_OPENRLHF, check_installed_openrlhf, installed_release

    check_installed_openrlhf()
    yield Line("OpenRLHF's functions", OK, f"OpenRLHF {installed_release()}, one of {', '.join(SUPPORTED_OPENRLHF)}")


def memory(config: DarlingConfig) -> Iterator[Line]:
    """GPUs that torch sees on this machine, and what is free on each."""
    import torch

    if not torch.cuda.is_available():
        yield Line("GPUs", NEEDS_GPU, "torch sees none on this machine: everything below is said of its CPU")
        return
    for k in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(k)
        name = f"GPU {k}, {torch.cuda.get_device_name(k)}"
        found = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        if free < LEAST_FREE:
            yield Line(name, WRONG, found, "see with nvidia-smi who holds it, and end that")
        else:
            yield Line(name, OK, found)


def kernels(config: DarlingConfig) -> Iterator[Line]:
    """Each attention kernel in use against the float32 formula, and packed batches against padded float32 ones."""
    from darling_plugin.partition.engine.device import device_and_dtype
    from darling_plugin.partition.engine.kernels import EXACT
    from darling_plugin.partition.engine.selftest import kernel_errors, packed_errors

    device, dtype = device_and_dtype(None)
    if device != "cuda":
        yield Line("CUDA's attention kernels", NEEDS_GPU, "not tried; what stands in for them on this CPU follows")
    kind = str(dtype).removeprefix("torch.")
    for name, (kernel, error) in kernel_errors().items():
        if error is None:
            yield Line(
                f"attention, {name}",
                SLOW,
                f"no kernel for packed rows on {device} in {kind}: {kernel}",
                "install flash-attn, or a newer torch; batches are padded without it (GPUs before Ampere: always)",
            )
        else:
            yield _within(f"attention, {name}", error, EXACT, f"{device}, {kind}, {kernel}")
    for name, (forward, error) in packed_errors().items():
        yield _within(f"a batch of {name}", error, PROBABILITY_ERROR, f"{forward}, {kind}")


def speed(config: DarlingConfig) -> Iterator[Line]:
    """Pairs a second, and the share of a matrix product's rate."""
    import torch

    from darling_plugin.partition.engine.selftest import rate

    found = rate()
    text = f"{found.pairs:.0f} pairs of {found.tokens} tokens a second, {found.shape}'s shape: {found.share:.0%} of "
    text += f"a matrix product's {found.flops / 1e12:.3g} TFLOP/s"
    text += f"; {found.peak / 2**30:.1f} GiB at the peak" if found.peak else ""
    slow = found.share < LEAST_SHARE
    do = "see what else uses this device (nvidia-smi, top), or whether it is throttled" if slow else ""
    name = "speed" if torch.cuda.is_available() else "speed of this CPU"
    yield Line(name, SLOW if slow else OK, text, do)


def ray_and_model(config: DarlingConfig) -> Iterator[Line]:
    """The GPUs that Ray sees, and the partition model, loaded and asked where the run's actors will be."""
    import ray
    import torch

    from darling_plugin.openrlhf.actor_trial import loaded_where_actors_run

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="ERROR", **_own_cluster())
    alive = [node for node in ray.nodes() if node["Alive"]]
    gpus = int(ray.cluster_resources().get("GPU", 0))
    found = f"{len(alive)} node(s), {int(ray.cluster_resources().get('CPU', 0))} CPUs, {gpus} GPUs"
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus < here:
        yield Line("Ray", WRONG, f"{found}; torch sees {here} here", "start Ray with --num-gpus on each node")
    else:
        yield Line("Ray", OK if gpus else NEEDS_GPU, found)
    if config.gpus_per_partition_actor > gpus:
        needed = f"{config.gpus_per_partition_actor:g} GPU for an actor"
        yield Line("partition model", NEEDS_GPU, f"{needed}, {gpus} in the cluster", "drop --gpus, or add GPUs")
        return
    loaded = loaded_where_actors_run(config)
    found = f"{config.partition_model} on {loaded.device} of {loaded.node}: ready after {loaded.start_seconds:.1f} s, "
    found += f"{loaded.group_seconds:.3f} s for a group of {loaded.responses} short responses"
    if loaded.start_seconds > SLOW_START:
        yield Line("partition model", SLOW, found, "copy the model to a local disk; see --darling.start_timeout")
    else:
        yield Line("partition model", OK, found)


def log_folder(config: DarlingConfig) -> Iterator[Line]:
    """Whether the log folder can be written."""
    folder = Path(config.log_dir or ".").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(b"darling")
    yield Line("log folder", OK, f"{folder} can be written")


def hub(config: DarlingConfig) -> Iterator[Line]:
    """Whether the weights of the released classifiers are here, or can be had."""
    from darling_plugin.partition.models.released import Released
    from darling_plugin.registry import partition_models

    for name in partition_models.names():
        model = partition_models.get(name)
        if not (isinstance(model, type) and issubclass(model, Released)):
            continue
        for path in dict.fromkeys((model.path, model.tokenizer_path)):
            where = _available(path)
            needed = config.partition_model.partition("?")[0] == name
            if where:
                yield Line(name, OK, f"{path}: {where}")
            else:
                do = f"hf download {path}, on each node, or name a copy: {name}:/path"
                yield Line(
                    name, WRONG if needed else NOT_HERE, f"{path} is neither here nor can the Hub be reached", do
                )


CHECKS: tuple[Callable[[DarlingConfig], Iterator[Line]], ...] = (
    *(versions, memory, log_folder, hub),
    *(kernels, speed, ray_and_model),
)


def lines(config: DarlingConfig) -> Iterator[Line]:
    """The lines of all checks, as they come. One that raises is wrong, with what it raised, and the others go on."""
    for check in CHECKS:
        try:
            yield from check(config)
        except Exception as error:
            needed, found, do = error.args if isinstance(error, DarlingError) else ("", repr(error), "")
            shown = f"needed: {needed}; found: {found}" if needed else found
            yield Line(check.__name__.replace("_", " "), WRONG, shown, do or "mend it, and run this again")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 -m darling_plugin.check",
        description="Says whether this machine or cluster can run DARLING: one line a check, in a minute or two. With "
        "RAY_ADDRESS set the partition model is loaded on the cluster; kernels, speed and memory are of the machine "
        "that this is called on: call it on a node with GPUs.",
        allow_abbrev=False,
    )
    parser.add_argument("--partition_model", default="default", help="to load; default: default")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPU share of its actor, as for the run; default: 0")
    parser.add_argument("--log_dir", help="folder that the run will log to; default: this one")
    parser.add_argument("--json", action="store_true", help="a JSON object a line, for other programs")
    arguments = parser.parse_args(argv)
    options_begin_with(PREFIX)
    config = DarlingConfig(
        enable=True,
        partition_model=arguments.partition_model,
        gpus_per_partition_actor=arguments.gpus,
        log_dir=arguments.log_dir,
    ).with_absolute_paths()
    try:
        check_partition_spec(config.partition_model)
    except DarlingError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 2
    began, verdicts = time.monotonic(), []
    for line in lines(config):
        verdicts.append(line.verdict)
        _print(line, arguments.json)
    if not arguments.json:
        counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in COLOURS if kind in verdicts)
        print(f"{counts}; {time.monotonic() - began:.0f} s")
    return int(WRONG in verdicts)


def _print(line: Line, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(line), ensure_ascii=False), flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble((f"{line.verdict:<12}", COLOURS[line.verdict]), (f"{line.check}: ", "bold"), line.found)
    Console(soft_wrap=True).print(text)
    if line.do:
        Console(soft_wrap=True).print(f"{'':<12}do: {line.do}", markup=False)


def _available(path: str) -> str | None:
    """Where a model of the Hugging Face Hub can be had: "in the cache", "on the Hub", None."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(path, file), str) for file in ("config.json", "tokenizer_config.json")):
        return "in the cache"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return None
    try:
        HfApi().model_info(path, timeout=10)
    except Exception:  # no network, no such model, no right to it: all the same to a run that starts now
        return None
    return "on the Hub, not yet here"


def _within(check: str, error: float, limit: float, where: str) -> Line:
    found = f"{error:.4f} from float32 at the most ({where})"
    if error <= limit:
        return Line(check, OK, found)
    do = "do not train on it: update torch, flash-attn or the driver, or use ?dtype=float32, and report this"
    return Line(check, WRONG, f"{found}, where {limit:g} is allowed", do)


def _own_cluster() -> dict[str, Any]:
    """Ray's arguments where it starts one here, and none where RAY_ADDRESS names a running one."""
    return {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}


if __name__ == "__main__":
    sys.exit(main())
