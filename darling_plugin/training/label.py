"""Labels from a judge: which sampled responses are equivalent, for training to read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import combinations, islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.partition import Pair
from darling_plugin.partition.groups import BadLine, parse_group
from darling_plugin.partition.models.judge import Judge, NoAnswer


class Files(NamedTuple):
    """Where each pair goes: exactly one of these."""

    agreed: Path
    disagreed: Path
    unanswered: Path


def read_responses(path: Path, pairs_per_prompt: int | None, seed: int) -> list[Pair]:
    """Pairs of distinct, non-empty responses, in the order of the file; of each line at most pairs_per_prompt."""
    if pairs_per_prompt is not None and pairs_per_prompt < 1:
        raise DarlingError(
            f"{spelled('pairs_per_prompt')} of 1 or more", f"{pairs_per_prompt}", "raise it, or leave it out"
        )
    generator = random.Random(seed)
    pairs: dict[PairKey, Pair] = {}
    faults = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DarlingError("a file with prompts and responses", f"{error}", "correct the path") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            _, group = parse_group(line)
        except BadLine as fault:
            faults.append(f"line {number}: {fault}")
            continue
        texts = dict.fromkeys(text.strip() for text in group.responses if text.strip())
        own = [Pair(group.prompt, *two) for two in combinations(texts, 2)]
        if pairs_per_prompt is not None and len(own) > pairs_per_prompt:
            own = generator.sample(own, pairs_per_prompt)
        for pair in own:
            pairs.setdefault(pair_key(pair), pair)
    if faults:
        found = f"{len(faults)} bad lines in {path}: " + "; ".join(faults[:10]) + ("; ..." if faults[10:] else "")
        raise DarlingError('lines of {"prompt": ..., "responses": [...]}', found, "correct or remove them")
    if not pairs:
        raise DarlingError("prompts with two distinct responses or more", f"none in {path}", "sample more responses")
    return list(pairs.values())


PairKey = tuple[str, frozenset[str]]


def pair_key(pair: Pair) -> PairKey:
    return pair.prompt, frozenset((pair.first, pair.second))  # a pair in either order is one


def labelled_before(files: Files) -> dict[PairKey, dict[str, Any]]:
    """The lines that an earlier run wrote, but for a last one that it could not finish."""
    done = {}
    for path in files:
        if not path.exists():
            continue
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if content and not whole:
            needed = "a new file, or an output of darling-label-pairs to go on with"
            raise DarlingError(needed, f"{path} without a whole line", "remove it, or name another output")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                done[pair_key(Pair(row["prompt"], row["generation_0"], row["generation_1"]))] = row
            except (ValueError, KeyError, TypeError) as error:
                needed = "an output of darling-label-pairs to go on with"
                raise DarlingError(needed, f"{path}, line {number}: {error!r}", "name another output") from error
    return done


def check_goes_on(done: dict[PairKey, dict[str, Any]], out: Path, key: str, value: str) -> None:
    """Labels of two questions or two judges must not end up in one file."""
    others = sorted({str(row.get(key)) for row in done.values()} - {value})
    if others:
        needed, found = f"labels of the {key} {value} alone in {out}", f"some of {', '.join(others)}"
        raise DarlingError(needed, found, "name another output, or go on with the same command")


def label_pairs(judge: Judge, task: str, pairs: list[Pair], files: Files, concurrency: int) -> dict[str, int]:
    """Asks about every pair in both orders and writes each as soon as it is answered."""
    counts = dict.fromkeys(("similar", "different", "disagreed", "unanswered"), 0)
    for path in files:  # an earlier run's last line that it could not finish is cut off
        content = path.read_bytes() if path.exists() else b""
        if not content.endswith(b"\n") and content:
            path.write_bytes(content[: content.rfind(b"\n") + 1])
    left = iter(pairs)
    threads = ThreadPoolExecutor(concurrency)
    handles = Files(*(open(path, "a", encoding="utf-8") for path in files))  # noqa: SIM115  (closed below)
    try:
        with tqdm(total=len(pairs), unit=" pairs", dynamic_ncols=True) as bar:
            asked: set[Future[Any]] = set()
            while True:
                # Only as many as run at a time are handed over: an error or Ctrl-C leaves none behind.
                asked |= {threads.submit(_ask, judge, task, pair) for pair in islice(left, concurrency - len(asked))}
                if not asked:
                    return counts
                answered, asked = wait(asked, return_when=FIRST_COMPLETED)
                # An error is raised once what was answered beside it, and paid for, is written.
                for each in sorted(answered, key=lambda each: each.exception() is not None):
                    kind, where, row = each.result()
                    counts[kind] += 1
                    handle = getattr(handles, where)
                    handle.write(json.dumps(row) + "\n")
                    handle.flush()
                    bar.update()
                bar.set_postfix(counts)
    finally:
        threads.shutdown(cancel_futures=True)
        _close(handles, files)


def _ask(judge: Judge, task: str, pair: Pair) -> tuple[str, str, dict[str, Any]]:
    """What was said of the pair, the file that it goes to, and its line."""
    prompt, first, second = pair
    row: dict[str, Any] = {"prompt": prompt, "generation_0": first, "generation_1": second}
    row |= {"task": task, "model": judge.model}
    try:
        p = [judge.probability_same(pair), judge.probability_same(Pair(prompt, second, first))]
    except NoAnswer as error:
        return "unanswered", "unanswered", {**row, "error": str(error)}
    yes = [each > 0.5 for each in p]
    if yes[0] != yes[1]:
        return "disagreed", "disagreed", {**row, "p": p}
    return "similar" if yes[0] else "different", "agreed", {**row, "similar": int(yes[0]), "p": p}


def _close(handles: Iterable[Any], files: Files) -> None:
    for handle, path in zip(handles, files, strict=True):
        handle.close()
        if not path.stat().st_size:
            path.unlink()
