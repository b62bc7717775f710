"""Against the official protocol: one POST per pair to a vLLM classify server on this machine, all at once.

    python benchmarks/official_protocol.py

The same weights, pairs, input and dtype (bfloat16) on both sides. The official client writes a pair as one text, CLS
first SEP second SEP, white space collapsed, each response cut after 1022 words, to which the server's tokenizer adds
its own CLS and SEP (?input=official of the released classifiers), and sends all requests without waiting; class 1 is
equivalent. Ours runs in this process, its layers
compiled as vLLM compiles its own: `all pairs` scores the same pairs, `as used` is measure(), which skips those that
cannot change the classes. `embedding` has the same encoder as minilm. A third of the pairs of a group are equivalent,
as in NoveltyBench's labels. The server is stopped by a signal while ours runs, so that it uses no CPU. `bound` is what
the machine's rate of a large matrix product allows for the FLOPs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import ROOT, all_pairs, console, make_groups, ratio, save, side_by_side, sizes
from cross_encoders import path_of
from limit import flops_of_pairs, matmul_rate

from darling_plugin.partition import Pair, load_partition_model, measure
from darling_plugin.partition.engine.pair_tokens import WrittenOutPairs
from darling_plugin.partition.models.cross_encoder import CrossEncoder

CLASSES = (4, 3, 1)
# Groups for each model and length: enough for seconds of work on two cores.
GROUPS = {"minilm": {32: 16, 200: 8}, "modernbert-base": {32: 8, 200: 2}}
ROUNDS = 3
WORDS = 1022  # of a response
# vLLM's defaults, as the official code starts it; of the ways to bind threads, "auto" and "nobind", the faster one.
FLAGS: list[str] = []
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
LOG = ROOT / "runs" / "benchmarks" / "server.log"


class AsOfficial(CrossEncoder):
    """Pairs as the official client sends them."""

    def _make_pair_tokens(self, max_response_length, special_tokens):
        return WrittenOutPairs(self.tokenizer, self.max_length, WORDS, special_tokens)


class Server:
    """A vLLM classify server for the model in `path`, ready when made."""

    def __init__(self, path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        LOG.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(path)]
        command += ["--served-model-name", "classifier", "--dtype", "bfloat16", "--runner", "pooling"]
        command += ["--convert", "classify", "--port", self.url.rpartition(":")[2], *FLAGS]
        with LOG.open("w") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log, start_new_session=True
            )
        self._wait()

    def _wait(self, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.5)
        self.end()
        raise SystemExit(f"the server did not start: see {LOG}")

    @contextmanager
    def asleep(self):
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)


def official(server: Server, tokenizer: Any, pairs: Sequence[Pair]) -> torch.Tensor:
    """(M,) P(equivalent), as the official client asks for it."""
    import aiohttp

    async def ask(session: aiohttp.ClientSession, pair: Pair) -> float:
        first, second = (" ".join(text.split()[:WORDS]) for text in (pair.first, pair.second))
        text = f"{tokenizer.cls_token} {first} {tokenizer.sep_token} {second} {tokenizer.sep_token}"
        body = {"model": "classifier", "input": [text]}
        async with session.post(f"{server.url}/classify", json=body) as reply:
            reply.raise_for_status()
            return (await reply.json())["data"][0]["probs"][1]

    async def ask_all() -> list[float]:
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            return await asyncio.gather(*(ask(session, pair) for pair in pairs))

    return torch.tensor(asyncio.run(ask_all()))


def compare(name: str, tokens: int, server: Server, rate: float) -> dict[str, Any]:
    path = path_of(name)
    # Random weights call every pair the same: a threshold that nothing exceeds keeps all of them.
    threshold = None if name == "minilm" else 1.0
    model = AsOfficial(str(path), dtype="bfloat16", threshold=threshold, compile_after=0)
    groups = make_groups(model.tokenizer, GROUPS[name][tokens], sizes(tokens), CLASSES)
    pairs = all_pairs(groups)
    contestants = {
        "official": lambda: official(server, model.tokenizer, pairs),
        "all pairs": lambda: model.similarity(pairs),
        "as used": lambda: measure(model, groups),
    }
    if name == "minilm":
        embedding = load_partition_model("embedding", compile_after=0)
        contestants["embedding"] = lambda: measure(embedding, groups)

    def while_it_sleeps(run):
        def wrapped():
            with server.asleep():
                run()

        return wrapped

    seconds = side_by_side(
        {key: run if key == "official" else while_it_sleeps(run) for key, run in contestants.items()}, ROUNDS
    )
    theirs, ours = official(server, model.tokenizer, pairs), model.similarity(pairs)
    exact = AsOfficial(str(path), dtype="float32").similarity(pairs)
    official_seconds = seconds["official"]
    flops = flops_of_pairs(model.model, [len(ids) for ids in model._pair_tokens(pairs)])

    def pairs_per_second(key: str) -> float:
        return len(pairs) / median(seconds[key])

    def unlike_float32(scores: torch.Tensor) -> int | None:
        return int(((scores > 0.5) != (exact > 0.5)).sum()) if name == "minilm" else None

    row = {
        "model": name,
        "tokens a response": f"≤ {tokens}",
        "pairs": len(pairs),
        "official, pairs/s": pairs_per_second("official"),
        "ours, all pairs, pairs/s": pairs_per_second("all pairs"),
        "bound, pairs/s": rate / (flops / len(pairs)),
        "ratio, all pairs": ratio(official_seconds, seconds["all pairs"]),
        "official, groups/s": len(groups) / median(official_seconds),
        "ours as used, groups/s": len(groups) / median(seconds["as used"]),
        "ratio as used": ratio(official_seconds, seconds["as used"]),
        "embedding, groups/s": None,
        "bound of embedding, groups/s": None,
        "ratio, embedding": None,
        "decisions official ≠ ours": int(((theirs > 0.5) != (ours > 0.5)).sum()) if name == "minilm" else None,
        "official ≠ float32": unlike_float32(theirs),
        "ours ≠ float32": unlike_float32(ours),
        "largest score difference": (theirs - ours).abs().max().item(),
    }
    if "embedding" in seconds:
        row["embedding, groups/s"] = len(groups) / median(seconds["embedding"])
        row["ratio, embedding"] = ratio(official_seconds, seconds["embedding"])
        texts = [response for group in groups for response in dict.fromkeys(group.responses)]
        lengths = [len(ids) for ids in embedding.model.tokenizer(texts, truncation=True)["input_ids"]]
        row["bound of embedding, groups/s"] = rate * len(groups) / flops_of_pairs(model.model, lengths)
    return row


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends with this
    rate, rows = matmul_rate("cpu"), []
    for name, lengths in GROUPS.items():
        console.print(f"starting a vLLM server for {name}")
        server = Server(path_of(name))
        try:
            for tokens in lengths:
                console.print(f"{name}, up to {tokens} tokens a response")
                rows.append(compare(name, tokens, server, rate))
        finally:
            server.end()
    save(
        "official_protocol",
        "Against the official protocol: one POST a pair to a vLLM server",
        __doc__,
        rows,
        server={"flags": FLAGS, "environment": ENVIRONMENT},
        goal="ratio of all pairs ≥ 10 at ≤ 32 tokens and ≥ 2.5 at ≤ 200; ratio of embedding ≥ 30 at ≤ 200",
    )


if __name__ == "__main__":
    main()
