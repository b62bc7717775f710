"""Labelled pairs of responses: read, checked before any training, and split by prompt."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from darling_plugin.errors import DarlingError

LINES_NAMED = 10  # of each fault; the rest is counted


@dataclass(frozen=True)
class Columns:
    """What the input calls a pair's parts."""

    prompt: str = "prompt"
    first: str = "generation_0"
    second: str = "generation_1"
    label: str = "similar"


@dataclass(frozen=True)
class LabelledPair:
    """Two responses to a prompt; similar is 1 where they are equivalent, else 0. line: of the input, from 1."""

    prompt: str
    first: str
    second: str
    similar: int
    line: int


class _Fault(ValueError):
    """What is wrong with a line: a kind that is counted."""


def read_pairs(source: str, columns: Columns | None = None, split: str = "train") -> list[LabelledPair]:
    """Pairs from a JSONL file, or from a data set of the Hugging Face Hub or in a folder.

    A line is a pair, {"prompt", "generation_0", "generation_1", "similar": 0 or 1}, other names by `columns`; or a
    group, {"prompt", "responses": [...], "labels": [class of each, ...]}, which is all its pairs. A pair that comes
    again with the same label, in either order, is kept once.

    Raises:
        DarlingError: for anything that is not that, with the number of lines by kind of fault and their numbers:
            unreadable lines, missing or empty parts, labels that are neither 0 nor 1, a pair labelled both ways,
            identical responses labelled 0; and where all labels are the same.
    """
    columns = columns or Columns()
    faults: dict[str, list[int]] = defaultdict(list)
    seen: dict[tuple[str, frozenset[str]], LabelledPair] = {}
    for line, row in _rows(source, split):
        try:
            found = _pairs_of(row, columns, line)
        except _Fault as fault:
            faults[str(fault)].append(line)
            continue
        for pair in found:
            before = seen.setdefault((pair.prompt, frozenset((pair.first.strip(), pair.second.strip()))), pair)
            if before.similar != pair.similar:
                faults["the same pair labelled both ways"] += [before.line, line]
    pairs = list(seen.values())
    _check(source, pairs, faults)
    return pairs


def groups_of(pairs: Sequence[LabelledPair]) -> list[tuple[str, list[str], list[list[int]]]]:
    """Groups of three or more responses with all pairs labelled: prompt, responses, labels (n, n), diagonal 1."""
    of_prompt: dict[str, dict[frozenset[str], int]] = defaultdict(dict)
    for pair in pairs:
        of_prompt[pair.prompt][frozenset((pair.first, pair.second))] = pair.similar
    groups = []
    for prompt, labels in of_prompt.items():
        responses = list(dict.fromkeys(text for two in labels for text in sorted(two)))
        if len(responses) > 2 and all(frozenset(two) in labels for two in combinations(responses, 2)):
            table = [[1 if a == b else labels[frozenset((a, b))] for b in responses] for a in responses]
            groups.append((prompt, responses, table))
    return groups


def folds_by_prompt(pairs: Sequence[LabelledPair], folds: int, seed: int) -> list[list[int]]:
    """Indices of each fold's pairs. A prompt's pairs are in one fold; the folds have like shares of both labels."""
    from sklearn.model_selection import StratifiedGroupKFold

    if folds < 2:
        raise DarlingError("two folds or more", f"{folds}", "correct --folds")
    prompts = [pair.prompt for pair in pairs]
    distinct = len(set(prompts))
    if distinct < folds:
        needed = f"pairs of at least {folds} prompts, for pairs are split by prompt into {folds} folds"
        raise DarlingError(
            needed, f"{distinct} prompts in {len(pairs)} pairs", "label more, or pass a smaller --folds"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    labels = [pair.similar for pair in pairs]
    enough = min(Counter(labels)[0], Counter(labels)[1]) >= folds
    parts = [held_out.tolist() for _, held_out in splitter.split(prompts, labels, prompts)] if enough else []
    if not enough or any(len({labels[i] for i in part}) < 2 for part in parts):
        raise DarlingError(
            f"pairs of both labels in each of {folds} folds",
            f"{Counter(labels)[1]} similar pairs and {Counter(labels)[0]} others",
            "label more pairs, or pass a smaller --folds",
        )
    return parts


def _rows(source: str, split: str) -> Iterator[tuple[int, Any]]:
    """Line or row number from 1, and what is there; None where it cannot be read."""
    path = Path(source)
    if path.is_file():
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _json(line)
        return
    import datasets

    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(source)
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(source, split=split)
    except Exception as error:  # of a dozen kinds, from the hub, the file system or the data set's own code
        raise DarlingError(
            "a JSONL file, or a data set that Hugging Face's datasets can load",
            f"{source}, split {split}: {type(error).__name__}: {error}",
            "correct the path or name, or --split",
        ) from error
    yield from enumerate(data, start=1)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _pairs_of(row: Any, columns: Columns, line: int) -> list[LabelledPair]:
    if not isinstance(row, dict):
        raise _Fault("not a JSON object in UTF-8")
    if "responses" in row and "labels" in row:
        prompt, responses, labels = _text(row, columns.prompt), row["responses"], row["labels"]
        if not (isinstance(responses, list) and isinstance(labels, list) and len(responses) == len(labels)):
            raise _Fault("responses and labels that are no lists of one length")
        if not all(isinstance(text, str) and text.strip() for text in responses):
            raise _Fault("responses that are not all non-empty text")
        if not all(isinstance(label, int) and label >= 0 for label in labels):
            raise _Fault("labels that are not all whole numbers, a class each, from 0")
        both = zip(responses, labels, strict=True)
        return [
            LabelledPair(prompt, a, b, int(of_a == of_b), line)
            for (a, of_a), (b, of_b) in combinations(both, 2)
            if a.strip() != b.strip()
        ]
    prompt, first, second = (_text(row, name) for name in (columns.prompt, columns.first, columns.second))
    if not (first.strip() and second.strip()):
        raise _Fault("an empty response")
    if row.get(columns.label) is None:
        raise _Fault(f"no value of {columns.label}")
    label = row[columns.label]
    if isinstance(label, str) or label not in (0, 1):
        raise _Fault(f"{columns.label} neither 0 nor 1")
    if first.strip() == second.strip() and not label:
        raise _Fault(f"identical responses with {columns.label} 0")
    return [LabelledPair(prompt, first, second, int(label), line)]


def _text(row: dict[str, Any], name: str) -> str:
    if not isinstance(row.get(name), str):
        raise _Fault(f"{name} that is no text" if row.get(name) is not None else f"no value of {name}")
    return row[name]


def _check(source: str, pairs: list[LabelledPair], faults: dict[str, list[int]]) -> None:
    needed = "labelled pairs of responses, one a line"
    if faults:
        found = "; ".join(f"{_lines(lines)}: {fault}" for fault, lines in faults.items())
        raise DarlingError(needed, f"in {source} {found}", "correct or remove these lines")
    labels = Counter(pair.similar for pair in pairs)
    if len(labels) < 2:
        found = f"{len(pairs)} pairs in {source}, {labels[1]} of them similar"
        raise DarlingError("pairs of both labels", found, "add pairs of the other")


def _lines(numbers: Iterable[int]) -> str:
    numbers = list(dict.fromkeys(numbers))
    named = ", ".join(map(str, numbers[:LINES_NAMED])) + (", ..." if len(numbers) > LINES_NAMED else "")
    return f"{len(numbers)} line{'s' if len(numbers) > 1 else ''} ({named})"
