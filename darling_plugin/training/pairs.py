"""Labelled pairs and groups of responses: read, checked before any training, and split by prompt."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.partition.base import encodable
from darling_plugin.partition.groups import lines_of

NEEDED = "labelled pairs of responses, one a line"
LINES_NAMED = 10  # of each fault; the rest is counted


@dataclass(frozen=True)
class Columns:
    """What the input calls a pair's parts."""

    prompt: str = "prompt"
    first: str = "generation_0"
    second: str = "generation_1"
    label: str = "similar"
    source: str = "source"


@dataclass(frozen=True)
class Input:
    """A file or data set of labelled pairs or groups, and how much each of its pairs weighs in training."""

    data: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Input:
        """`DATA` or `DATA:WEIGHT`, such as groups.jsonl:0.1. DarlingError for a weight that is not above 0."""
        data, colon, end = text.rpartition(":")
        try:
            weight = float(end)
        except ValueError:
            return cls(text)
        if not (colon and data) or Path(text).exists():
            return cls(text)
        if not (math.isfinite(weight) and weight > 0):
            raise DarlingError("a weight above 0 behind the colon", text, "correct it, or leave the file out")
        return cls(data, weight)


@dataclass(frozen=True)
class LabelledPair:
    """Two responses to a prompt; similar is 1 where they are equivalent, else 0.

    line: of the input, from 1. source: what the row says of its origin, else its input. weight: in training.
    group: of several, which group of the input; None for a pair by itself.
    """

    prompt: str
    first: str
    second: str
    similar: int
    line: int
    source: str = ""
    weight: float = 1.0
    group: int | None = None


@dataclass(frozen=True)
class LabelledGroup:
    """n responses to a prompt with the class of each; number: the `group` of its pairs."""

    prompt: str
    responses: tuple[str, ...]
    labels: tuple[int, ...]
    source: str
    number: int


class _Fault(ValueError):
    """What is wrong with a line: a kind that is counted."""


def read_pairs(source: str, columns: Columns | None = None, split: str = "train") -> list[LabelledPair]:
    """The pairs of one file or data set, those of its groups included; :func:`read_inputs` has what is refused."""
    return read_inputs([Input(source)], columns, split)[0]


def read_inputs(
    inputs: Sequence[Input], columns: Columns | None = None, split: str = "train"
) -> tuple[list[LabelledPair], list[LabelledGroup]]:
    """Pairs and groups from JSONL files, and from data sets of the Hugging Face Hub or in a folder.

    A line is a pair, {"prompt", "generation_0", "generation_1", "similar": 0 or 1}, other names by `columns`; or a
    group, {"prompt", "responses": [...], "labels": [class of each, ...]}, which is all its pairs too. A pair that
    comes again in one input with the same label, in either order, is kept once; those of a group are the group's own,
    for the same two responses may be one class among some responses and two among others. Inputs are not compared: two
    people's labels of one pair both count.

    Raises:
        DarlingError: for anything that is not that, with the number of lines by kind of fault and their numbers:
            unreadable lines, missing or empty parts, labels that are neither 0 nor 1, a pair that one input labels
            both ways, identical responses labelled 0; and where all labels are the same.
    """
    columns = columns or Columns()
    pairs: list[LabelledPair] = []
    groups: list[LabelledGroup] = []
    for given in inputs:
        faults: dict[str, list[int]] = defaultdict(list)
        seen: dict[tuple[str, frozenset[str], int | None], LabelledPair] = {}
        for line, row in _rows(given.data, split):
            try:
                found = _pairs_of(row, columns, line, given, len(groups))
            except _Fault as fault:
                faults[str(fault)].append(line)
                continue
            for pair in found:
                texts = frozenset((pair.first.strip(), pair.second.strip()))
                before = seen.setdefault((pair.prompt, texts, pair.group), pair)
                if before.similar != pair.similar:
                    faults["the same pair labelled both ways"] += [before.line, line]
            if _is_group(row):
                source = _source(row, columns, given)
                responses = tuple(map(encodable, row["responses"]))
                group = LabelledGroup(_text(row, columns.prompt), responses, tuple(row["labels"]), source, len(groups))
                groups.append(group)
        _check_lines(given.data, faults)
        pairs += seen.values()
    _check_labels(", ".join(given.data for given in inputs), pairs)
    return pairs, groups


def groups_of(pairs: Sequence[LabelledPair]) -> list[tuple[str, list[str], list[list[int]]]]:
    """Groups of three or more responses with all pairs labelled: prompt, responses, labels (n, n), diagonal 1."""
    of_prompt: dict[tuple[str, int | None], dict[frozenset[str], int]] = defaultdict(dict)
    for pair in pairs:
        of_prompt[pair.prompt, pair.group][frozenset((pair.first, pair.second))] = pair.similar
    groups = []
    for (prompt, _), labels in of_prompt.items():
        responses = list(dict.fromkeys(text for two in labels for text in sorted(two)))
        if len(responses) > 2 and all(frozenset(two) in labels for two in combinations(responses, 2)):
            table = [[1 if a == b else labels[frozenset((a, b))] for b in responses] for a in responses]
            groups.append((prompt, responses, table))
    return groups


def folds_by_prompt(pairs: Sequence[LabelledPair], folds: int, seed: int) -> list[list[int]]:
    """Indices of each fold's pairs. A prompt's pairs are in one fold; the folds have like shares of both labels.

    Prompts that have groups are split by themselves, where they are enough for it, so that each fold gets its share:
    one of them counts hundreds of pairs.
    """
    if folds < 2:
        raise DarlingError("two folds or more", f"{folds}", f"correct {spelled('folds')}")
    grouped = {pair.prompt for pair in pairs if pair.group is not None}
    parts = [[k for k, pair in enumerate(pairs) if (pair.prompt in grouped) == which] for which in (True, False)]
    if all(parts):
        try:
            apart = [_split([pairs[k] for k in part], folds, seed) for part in parts]
        except DarlingError:
            pass
        else:
            return [
                [part[k] for part, own in zip(parts, both, strict=True) for k in own]
                for both in zip(*apart, strict=True)
            ]
    return _split(pairs, folds, seed)


def _split(pairs: Sequence[LabelledPair], folds: int, seed: int) -> list[list[int]]:
    from sklearn.model_selection import StratifiedGroupKFold

    prompts = [pair.prompt for pair in pairs]
    distinct = len(set(prompts))
    if distinct < folds:
        needed = f"pairs of at least {folds} prompts, for pairs are split by prompt into {folds} folds"
        raise DarlingError(
            needed,
            f"{distinct} prompts in {len(pairs)} pairs",
            f"label more, or pass a smaller {spelled('folds')}",
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    labels = [pair.similar for pair in pairs]
    enough = min(Counter(labels)[0], Counter(labels)[1]) >= folds
    parts = [held_out.tolist() for _, held_out in splitter.split(prompts, labels, prompts)] if enough else []
    if not enough or any(len({labels[i] for i in part}) < 2 for part in parts):
        raise DarlingError(
            f"pairs of both labels in each of {folds} folds",
            f"{Counter(labels)[1]} similar pairs and {Counter(labels)[0]} others",
            f"label more pairs, or pass a smaller {spelled('folds')}",
        )
    return parts


def _rows(source: str, split: str) -> Iterator[tuple[int, Any]]:
    """Line or row number from 1, and what is there; None where it cannot be read."""
    path = Path(source)
    if path.is_file():
        with open(path, "rb") as file:
            for number, line in enumerate(lines_of(file), start=1):
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
            f"correct the path or name, or {spelled('split')}",
        ) from error
    yield from enumerate(data, start=1)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _is_group(row: dict[str, Any]) -> bool:
    """Data sets of both kinds have null in the columns of the other."""
    return row.get("responses") is not None and row.get("labels") is not None


def _pairs_of(row: Any, columns: Columns, line: int, given: Input, group: int) -> list[LabelledPair]:
    if not isinstance(row, dict):
        raise _Fault("not a JSON object in UTF-8")
    if _is_group(row):
        prompt, responses, labels = _text(row, columns.prompt), row["responses"], row["labels"]
        if not (isinstance(responses, list) and isinstance(labels, list) and len(responses) == len(labels)):
            raise _Fault("responses and labels that are no lists of one length")
        if not all(isinstance(text, str) and text.strip() for text in responses):
            raise _Fault("responses that are not all non-empty text")
        if not all(isinstance(label, int) and label >= 0 for label in labels):
            raise _Fault("labels that are not all whole numbers, a class each, from 0")
        responses = list(map(encodable, responses))
        both, more = zip(responses, labels, strict=True), (_source(row, columns, given), given.weight, group)
        return [
            LabelledPair(prompt, a, b, int(of_a == of_b), line, *more)
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
    return [LabelledPair(prompt, first, second, int(label), line, _source(row, columns, given), given.weight)]


def _source(row: dict[str, Any], columns: Columns, given: Input) -> str:
    named = row.get(columns.source)
    return named if isinstance(named, str) and named else Path(given.data).name


def _text(row: dict[str, Any], name: str) -> str:
    if not isinstance(row.get(name), str):
        raise _Fault(f"{name} that is no text" if row.get(name) is not None else f"no value of {name}")
    return encodable(row[name])


def _check_lines(source: str, faults: dict[str, list[int]]) -> None:
    if faults:
        found = "; ".join(f"{_lines(lines)}: {fault}" for fault, lines in faults.items())
        raise DarlingError(NEEDED, f"in {source} {found}", "correct or remove these lines")


def _check_labels(source: str, pairs: list[LabelledPair]) -> None:
    labels = Counter(pair.similar for pair in pairs)
    if len(labels) < 2:
        found = f"{len(pairs)} pairs in {source}, {labels[1]} of them similar"
        raise DarlingError("pairs of both labels", found, "add pairs of the other")


def _lines(numbers: Iterable[int]) -> str:
    numbers = list(dict.fromkeys(numbers))
    named = ", ".join(map(str, numbers[:LINES_NAMED])) + (", ..." if len(numbers) > LINES_NAMED else "")
    return f"{len(numbers)} line{'s' if len(numbers) > 1 else ''} ({named})"
