"""One GPU in under four minutes: compiling, the limit, kernels, batches, libraries, precision, whole groups.

    python benchmarks/gpu.py [section ...]

Each section is a table results/gpu_<section>.json, written row by row; report.py puts it on the page, with the card's
name. Without sections all are measured. Weights are random wherever only time counts; `precision` counts decisions,
for which MiniLM is fine-tuned once. A machine without a GPU computes everything with tiny shapes, to show that it
runs; those tables go to runs/benchmarks/gpu, for they say nothing.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import libraries
import limit
import precision
import torch
from common import NOVELTYBENCH, RESULTS, ROOT, all_pairs, console, make_groups, save
from cross_encoders import make_modernbert, path_of, tokenizer
from gpu_sizes import FULL, TINY, Sizes, Work
from kernel_times import host_waits, kernels
from transformers import AutoModelForSequenceClassification, Qwen3Config

from darling_plugin.partition import Group, load_partition_model, measure
from darling_plugin.partition.engine import attention
from darling_plugin.partition.engine.compiling import COMPILE_AFTER, compile_layers, linear_weights
from darling_plugin.partition.engine.device import device_and_dtype
from darling_plugin.partition.engine.kernels import choose, try_out
from darling_plugin.partition.models import cross_encoder
from darling_plugin.partition.models.cross_encoder import CrossEncoder

ENCODER = "modernbert-base"
REAL = NOVELTYBENCH.with_name("groups_odd.jsonl")


@contextmanager
def encoder_folder(sizes: Sizes) -> Iterator[Path]:
    """An encoder of ModernBERT-base's shape, or what `sizes` makes of it."""
    if not sizes.encoder:
        yield path_of(ENCODER)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_modernbert(Path(folder), **sizes.encoder)
        yield Path(folder)


def causal_classifier(sizes: Sizes) -> CrossEncoder:
    """Its weights are made where they are used: a 4B model of random ones need not go through a disk."""
    device, dtype = device_and_dtype("bfloat16")
    words = tokenizer()
    words.model_max_length = 8192
    config = Qwen3Config(**sizes.causal, num_labels=2, pad_token_id=words.pad_token_id, max_position_embeddings=40960)
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype).eval()
    with patch.object(cross_encoder, "load_classifier", lambda *arguments: (words, model)):
        return CrossEncoder("random", threshold=1.0, max_length=4096, compile_after=float("inf"))


def inputs_of(model: CrossEncoder, work: Work) -> tuple[list[Any], int]:
    """What the model reads of random groups, every pair of them; how many tokens that are, what is shared once."""
    inputs = model._pair_tokens(all_pairs(limit.make_exact_groups(model.tokenizer, *work)))
    forward = model._forward
    return inputs, int(forward._token_counts([inputs[k] for k in forward._order(inputs)])[-1])


def seconds(run: Callable[[], Any], times: int = 3) -> float:
    """The median. What is timed ends with its result on the CPU, after all kernels."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return median(taken)


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> float | None:
    """GiB of GPU memory that torch held at the most since `reset_peak`."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def compiling(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """When torch.compile pays

    All pairs of random groups, forward pass alone, bfloat16, random weights: an encoder of ModernBERT-base's shape,
    and a causal classifier of a 4B model's, which reads what pairs share once. `compiling` is the first call with
    compiled layers, without a cache, less one without. `work` is tokens times weights of the linear layers, of what
    is scored without compiled layers in that time: the package compiles after `waits for`, whatever the model. The
    share counts the linear layers' FLOPs against a large matrix product's rate.
    """
    rate = limit.matmul_rate(device_and_dtype(None)[0])
    models = {
        "encoder": (sizes.encoder_compiled, _plain_encoder),
        "causal": (sizes.causal_compiled, causal_classifier),
    }
    for name, (work, make) in models.items():
        reset_peak()
        with fresh_compiler():
            model = make(sizes)
            inputs, tokens = inputs_of(model, work)
            base, run = model.model.base_model, lambda model=model, inputs=inputs: model._forward(inputs)
            run()
            plain = seconds(run)
            compile_layers(base)
            took = seconds(run, 1) - plain
            fast = seconds(run)
        weights = linear_weights(base)
        yield {
            "model": name,
            "weights of the linear layers": f"{weights:.3g}",
            "tokens": tokens,
            "plain, tokens/s": tokens / plain,
            "compiled, tokens/s": tokens / fast,
            "compiling, s": took,
            "work meanwhile": f"{took / plain * tokens * weights:.2g}",
            "waits for": f"{COMPILE_AFTER[base.device.type]:.2g}",
            "paid back after, tokens": took / (plain - fast) * tokens if fast < plain else None,
            "share of the limit, plain": 2 * weights * tokens / rate / plain,
            "share of the limit, compiled": 2 * weights * tokens / rate / fast,
            "GiB at the peak": peak(),
        }
        del model, inputs, base, run
        free()


def _plain_encoder(sizes: Sizes) -> CrossEncoder:
    with encoder_folder(sizes) as folder:
        return CrossEncoder(str(folder), threshold=1.0, dtype="bfloat16", compile_after=float("inf"))


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Nothing is known of earlier models, in this process or on the disk."""
    torch._dynamo.reset()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": folder}),
    ):
        yield


def against_limit(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Against the limit, and kernels by kind

    The whole of measure() from text to classes, ModernBERT-base's shape with random weights in bfloat16, compiled;
    every response differs and every pair is scored. The limit counts the FLOPs of linear layers and attention over
    the rate of a large matrix product in the same run. The last columns are of one forward pass, its kernels by the
    operator that started them (torch.profiler): query, key or value made contiguous are copies, what torch.compile
    made is the rest. In it the host should wait for the GPU once, for the result. Goal of 64 x 28 pairs of 803 tokens
    on an H200: under 0.9 s, then 0.75.
    """
    with encoder_folder(sizes) as folder:
        model = limit.compiled(folder)
        for count, n, tokens in sizes.limit:
            row = limit.against_limit(model, ENCODER, count, n, tokens)
            inputs, _ = inputs_of(model, (count, n, tokens))
            forward = seconds(lambda inputs=inputs: model._forward(inputs))
            of_kind = kernels(lambda inputs=inputs: model._forward(inputs))
            row |= {"forward pass, s": forward, "its kernels, s": sum(of_kind.values())}
            row |= {f"{kind}, s": taken for kind, taken in of_kind.items()}
            yield row | {"waits of the host": host_waits(lambda inputs=inputs: model._forward(inputs))}


def attention_kernels(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Attention kernels

    Each that may be installed, on the sample that the package tries them on when a model is loaded: milliseconds a
    call, or why it is not used. The fastest exact one is chosen.
    """
    device, dtype = device_and_dtype("bfloat16")
    causal = [sizes.causal[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")]
    for model, shape in {
        "encoder, global": attention.Shape(12, 12, 64, None, False, dtype),
        "encoder, window of 128": attention.Shape(12, 12, 64, 64, False, dtype),
        "causal": attention.Shape(*causal, None, True, dtype),
    }.items():
        if device == "cuda":
            choice = choose(shape)
        else:
            choice = try_out(shape, {"torch's SDPA": lambda: attention.sdpa_by_piece}, device)
        yield {"layers": model, "chosen (tried)": str(choice)}


def batches(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Tokens of a batch

    ModernBERT-base's shape with random weights in bfloat16, compiled: the forward pass of all pairs with
    `?token_budget=` of so many tokens, and the GPU memory that torch holds at the most.
    """
    with encoder_folder(sizes) as folder:
        model = limit.compiled(folder)
        inputs, tokens = inputs_of(model, sizes.batches)
        for budget in sizes.budgets:
            model._forward.token_budget = model._forward.full_budget = budget
            model._forward(inputs)
            reset_peak()
            taken = seconds(lambda: model._forward(inputs))
            yield {"tokens at once": budget, "tokens": tokens, "s": taken, "GiB at the peak": peak()}


def against_libraries(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Against CrossEncoder.predict and a padded loop, on the GPU

    As on the CPU: the same random weights and pairs, batches of 32, ours compiled; predict in float32, its default,
    too. All scores must agree within 0.03.
    """
    with encoder_folder(sizes) as folder:
        yield from libraries.rows({ENCODER: sizes.libraries}, lambda name: folder)


def precise(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """What bfloat16, packing and torch.compile change, on the GPU

    As on the CPU: decisions and partitions against one pair (one text) alone in float32, eager, on the same GPU;
    responses of up to 200 tokens in classes of 4, 3 and 1. `close pairs` are within 0.02 of the threshold.
    """
    tokens = (max(1, sizes.precision_tokens // 4), sizes.precision_tokens)
    groups = make_groups(tokenizer(), sizes.precision, tokens, precision.CLASSES)
    if sizes.encoder:  # fine-tuning MiniLM takes longer than all that is tiny
        with encoder_folder(sizes) as folder:
            yield from precision.rows(groups, str(folder))
    else:
        yield from precision.rows(groups, str(path_of("minilm")))


def whole_groups(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Whole groups, as the models without pairs take them

    NoveltyBench's groups where ../shared/data has them, else made-up ones: groups a second of measure(), in the
    dtype that the card computes in; how much of the time is not the encoder's (tokenising, features, clustering);
    and how many partitions differ from those in float32.
    """
    groups = real_groups(sizes.groups)
    for name in ("default", "embedding"):
        model = load_partition_model(name)
        exact = [each.labels.tolist() for each in measure(load_partition_model(name, dtype="float32"), groups)]
        found = [each.labels.tolist() for each in measure(model, groups)]
        forward = getattr(model, "encoder", model)._forward
        of_encoder, call = [], forward._next_batch

        def timed(waiting: Any, call: Any = call, of_encoder: list[float] = of_encoder) -> torch.Tensor:
            started = time.perf_counter()
            rows = call(waiting)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            of_encoder.append(time.perf_counter() - started)
            return rows

        taken = seconds(lambda model=model: measure(model, groups))
        with patch.object(forward, "_next_batch", timed):
            whole = seconds(lambda model=model: measure(model, groups), 1)
        yield {
            "model": name,
            "groups": len(groups),
            "responses": sum(len(group.responses) for group in groups),
            "groups/s": len(groups) / taken,
            "ms a group": 1000 * taken / len(groups),
            "outside of the encoder": f"{1 - sum(of_encoder) / whole:.0%}",
            "partitions that differ from float32": sum(a != b for a, b in zip(exact, found, strict=True)),
        }


def real_groups(count: int) -> list[Group]:
    if not REAL.exists():
        return make_groups(tokenizer(), count, (50, 200), (4, 3, 1))
    rows = map(json.loads, REAL.read_text(encoding="utf-8").splitlines()[:count])
    return [Group(row["prompt"], row["responses"]) for row in rows]


SECTIONS: dict[str, Callable[[Sizes], Iterator[dict[str, Any]]]] = {
    "compiling": compiling,  # first: it would find the compiler's processes started
    "limit": against_limit,
    "attention": attention_kernels,
    "batches": batches,
    "libraries": against_libraries,
    "precision": precise,
    "groups": whole_groups,
}


def free() -> None:
    gc.collect()
    torch._dynamo.reset()  # a layer's code is compiled for eight models at most
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run(names: Sequence[str], sizes: Sizes, folder: Path) -> list[str]:
    """Makes the tables of these sections; returns the names of those that failed. Their rows until then are kept."""
    failed = []
    for name in names:
        section, started = SECTIONS[name], time.monotonic()
        title, about = inspect.getdoc(section).split("\n\n")
        try:
            doc = f"{title}\n\npython benchmarks/gpu.py {name}\n\n{about}"
            save(f"gpu_{name}", title, doc, told(section(sizes)), folder=folder)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        free()
        console.print(f"{name}: {time.monotonic() - started:.0f} s")
    return failed


def told(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, each printed as it comes: what a log shows of a machine whose files are gone."""
    for row in rows:
        print(json.dumps(row, ensure_ascii=False), flush=True)
        yield row


def main() -> None:
    names = sys.argv[1:] or list(SECTIONS)
    if unknown := set(names) - SECTIONS.keys():
        raise SystemExit(f"no section {', '.join(unknown)}: there are {', '.join(SECTIONS)}")
    started, on_gpu = time.monotonic(), torch.cuda.is_available()
    if not on_gpu:
        console.print("[yellow]no GPU: tiny shapes on the CPU, whose figures say nothing[/]")
    failed = run(names, FULL if on_gpu else TINY, RESULTS if on_gpu else ROOT / "runs/benchmarks/gpu")
    console.print(f"{time.monotonic() - started:.0f} s in all")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
