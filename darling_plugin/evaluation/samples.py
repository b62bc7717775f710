"""Samples of a model from files that other tools write, told apart by what is in them and not by their names.

NoveltyBench's generations, partitions and scores; lm-eval's samples; verl's, TRL's (parquet) and ms-swift's dumps;
this package's partitions.jsonl and what darling-partition writes. docs/evaluate.md has the fields of each.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.fields import (
    Fault,
    id_of,
    is_chat,
    labels_of,
    list_of,
    qualities_of,
    reference_of,
    step_of,
    text_of,
)
from darling_plugin.evaluation.rows import Row, reward_columns, rows_of
from darling_plugin.partition.groups import given_responses, lines_of

Report = Callable[[int, str], None]
SPLITS = {"train", "eval"}  # of a training log
FAULTS_NAMED = 10  # where a file has nothing else


@dataclass
class Samples:
    """One prompt and its n >= 1 responses.

    Attributes:
        id: what the file calls the prompt, else its number.
        quality: (n,) of each response; None where the file has none, or not of each.
        labels: (n,) class of each response, as the file has it; None where it has none, or not of each.
        quality_from: what the quality was read from, or who gave it.
        reference: what a correct answer is, for reward functions.
        step: of a training log; split: of that, or of a data set.
    """

    id: str
    prompt: str
    responses: list[str]
    quality: list[float] | None = None
    labels: list[int] | None = None
    reference: str | None = None
    step: int | None = None
    split: str | None = None
    quality_from: str | None = None


def read_samples(
    path: Path, report: Report, *, quality_key: str | None = None, split: str | None = None, step: int | None = None
) -> list[Samples]:
    """The prompts of a file with their responses, in the file's order.

    Args:
        report: gets the number of each line that cannot be read, and why; the others go on. Of a training log's lines
            those alone that are of the split and step that are read.
        quality_key: what the file calls a response's quality; default: what its tool does. Of a file with several
            rewards a response, the sum.
        split, step: of a training log; default: its evaluation if it has one, and the last step there. Other splits
            than SPLITS are no training log's, and read together.

    Raises DarlingError for a file that is not there, that holds no samples, or none with quality_key.
    """
    faults: list[Faulty] = []
    lines = list(_lines(path, faults, quality_key))
    columns = [quality_key] if quality_key else reward_columns([line for line in lines if isinstance(line, Row)])
    found, split, step = _of_step(_group_rows(lines, columns, faults), faults, split, step)
    of_these = [each for each in faults if each.split in (None, split) and (step is None or each.step in (None, step))]
    for fault in sorted(of_these, key=lambda each: each.number)[: None if found else FAULTS_NAMED]:
        report(fault.number, fault.said)
    if not found:
        raise DarlingError(
            "a file with prompts and responses",
            f"none that can be read in {path}, {len(of_these)} lines that cannot",
            "docs/evaluate.md has the formats; a training log may have no such split or step",
        )
    if quality_key and all(each.quality is None for each in found):
        raise DarlingError(
            f"numbers as {quality_key}, of each response", f"none in {path}", "name another quality_key"
        )
    return found


def classes_of(path: Path, samples: list[Samples]) -> str:
    """What made the classes in a file, as far as it is known: a run's run.json, beside its log, says so."""
    try:
        if samples[0].split not in SPLITS:
            raise LookupError  # no run's log
        run = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))
        model, text = run["partition_model"], run["darling"].get("partition_text", "whole")
        made = f"as the file has them, by {model['class'].rpartition('.')[2]}, {model['clustering'] or 'its own'}"
        threshold = model.get("threshold")
        made += f", threshold {threshold:g}" if isinstance(threshold, int | float) else ""
        return made + f", {text}" * (text != "whole")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "as the file has them"


@dataclass
class Faulty:
    """What is wrong with a line; of which step and split of a training log it is, where that is known."""

    number: int
    said: str
    split: str | None = None
    step: int | None = None


def _lines(path: Path, faults: list[Faulty], quality_key: str | None) -> Iterator[Samples | Row]:
    """What each line holds."""
    first_filter = None
    for number, record in _records(path, faults):
        if "resps" in record:  # lm-eval writes each document again for each filter of its answers
            first_filter = first_filter or (record.get("filter"),)
            if record.get("filter") != first_filter[0]:
                continue
        try:
            yield from _parse(record, number, quality_key)
        except Fault as fault:
            split = record.get("split")
            of_log = split in SPLITS if isinstance(split, str) else False
            faults.append(Faulty(number, str(fault), *((split, step_of(record.get("step"))) if of_log else ())))


def _records(path: Path, faults: list[Faulty]) -> Iterator[tuple[int, dict[str, Any]]]:
    with _opened(path) as file:
        yield from _records_of(file, path, faults)


def _opened(path: Path) -> BinaryIO:
    """The file; of a pipe, which cannot be read twice, what it holds."""
    try:
        file = path.open("rb")
        if file.seekable():
            return file
        with file:
            return io.BytesIO(file.read())
    except OSError as error:
        raise DarlingError("a file with samples", f"{error}", "correct the path") from error


def _records_of(file: BinaryIO, path: Path, faults: list[Faulty]) -> Iterator[tuple[int, dict[str, Any]]]:
    magic = file.read(4)
    file.seek(0)
    if magic == b"PAR1":
        yield from enumerate(_parquet(file, path), start=1)
        return
    for number, line in _numbered_lines(gzip.GzipFile(fileobj=file) if magic[:2] == b"\x1f\x8b" else file, path):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            faults.append(Faulty(number, f"not JSON in UTF-8: {error}"))
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            faults.append(Faulty(number, f"needs an object, found {type(record).__name__}"))


def _numbered_lines(file: Iterable[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        yield from enumerate(lines_of(file), start=1)
    except (OSError, EOFError, zlib.error) as error:
        raise DarlingError("a whole file with samples", f"{path}: {error}", "copy or compress it again") from error


def _parquet(file: BinaryIO, path: Path) -> Iterable[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DarlingError(
            "pyarrow, to read parquet", f"{path}, and it is not installed", "pip install pyarrow"
        ) from error
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DarlingError("a parquet file that pyarrow can read", f"{path}: {error}", "copy it again") from error


def _parse(record: dict[str, Any], number: int, quality_key: str | None) -> Iterator[Samples | Row]:
    if given_responses(record) is not None:
        yield _of_group(record, number, quality_key)
    elif "resps" in record:
        yield _of_lm_eval(record, number, quality_key)
    else:
        yield from rows_of(record, number)


def _of_group(record: dict[str, Any], number: int, quality_key: str | None) -> Samples:
    given = list_of(given_responses(record), "responses")
    if not given:
        raise Fault("needs at least one response, found none")
    if all(each is None for each in given):
        raise Fault("its responses were not logged, by --darling.log_responses")
    responses = [text_of(each) for each in given]
    labels = labels_of(record.get("labels", record.get("partition")), len(responses))
    quality_from = quality_key or "quality"
    if quality_key is None and "partition_scores" in record and not isinstance(record.get("quality"), list):
        quality, quality_from = _of_scores(record, labels, len(responses)), "partition_scores"
    else:
        quality = record.get(quality_from)
    return Samples(
        id_of(record, number),
        text_of(record.get("prompt")),
        responses,
        qualities_of(quality, len(responses)),
        labels,
        reference_of(record),
        step_of(record.get("step")),
        record["split"] if isinstance(record.get("split"), str) else None,
        quality_from,
    )


def _of_scores(record: dict[str, Any], labels: list[int] | None, n: int) -> list[Any]:
    """NoveltyBench's scores of n responses: one that is in a class that came before has its class's.

    Its own is 0 there; DARLING's copy keeps it, and has its mean as `quality`.
    """
    own, of_classes = record.get("generation_scores"), record["partition_scores"]
    if labels is None or not isinstance(of_classes, list) or max(labels) >= len(of_classes):
        raise Fault("needs a partition, and a score for each class, beside partition_scores")
    if isinstance(own, list) and len(own) == n:
        came_before = [label in labels[:k] for k, label in enumerate(labels)]
        if any(score for score, repeats in zip(own, came_before, strict=True) if repeats):
            return own
    return [of_classes[label] for label in labels]


def _of_lm_eval(record: dict[str, Any], number: int, quality_key: str | None) -> Samples:
    prompt = record.get("arguments")  # [[prompt, settings]], or {"gen_args_0": {"arg_0": prompt, ...}}
    while isinstance(prompt, list | dict) and prompt and not is_chat(prompt):
        prompt = prompt[0] if isinstance(prompt, list) else next(iter(prompt.values()))
    resps = [each for request in list_of(record["resps"], "resps") for each in list_of(request, "resps")]
    if not all(isinstance(each, str) or is_chat(each) for each in resps):
        raise Fault("needs texts as resps, found a loglikelihood task's, as multiple choice: it samples nothing")
    responses = [text_of(each) for each in resps]
    if not responses:
        raise Fault("needs at least one response, found none")
    metrics = [name for name in list_of(record.get("metrics") or [], "metrics") if isinstance(name, str)]
    names = [quality_key] if quality_key else [name for name in metrics if isinstance(record.get(name), int | float)]
    # A metric is of the whole document: a response's own quality it is where there is one.
    value = record.get(names[0]) if names else None
    quality = [value] if len(responses) == 1 else value if isinstance(value, list) else None
    target = record.get("target")
    return Samples(
        id_of(record, number, "doc_id"),
        text_of(prompt),
        responses,
        qualities_of(quality, len(responses)),
        reference=None if target is None else str(target),
        quality_from=names[0] if names else None,
    )


def _group_rows(lines: Iterable[Samples | Row], columns: list[str], faults: list[Faulty]) -> list[Samples]:
    """Rows of one response become groups of one prompt (and step); what is a group already stays one."""
    groups: dict[Any, Samples] = {}
    for line in lines:
        if isinstance(line, Samples):
            groups[object()] = line
            continue
        try:
            quality = line.quality(columns)
        except Fault as fault:
            faults.append(Faulty(line.number, str(fault), step=line.step))
            continue
        group = groups.get((line.step, line.prompt))
        if group is None:
            groups[line.step, line.prompt] = Samples(
                str(line.number),
                line.prompt,
                [line.response],
                None if quality is None else [quality],
                reference=reference_of(line.record),
                step=line.step,
                quality_from=" + ".join(columns) or None,
            )
            continue
        group.responses.append(line.response)
        both = group.quality is not None and quality is not None
        group.quality = [*group.quality, quality] if both else None
    return list(groups.values())


def _of_step(
    found: list[Samples], faults: list[Faulty], split: str | None, step: int | None
) -> tuple[list[Samples], str | None, int | None]:
    """Those of the split and step; which these are, where none were asked for too: lines at fault have a say in it."""
    lines = [*found, *faults]
    splits = {each.split for each in lines if each.split is not None}
    if split:
        lines = [each for each in lines if each.split == split]
    elif splits <= SPLITS:  # else a column of a data set's
        split = "eval" if "eval" in splits else "train"
        lines = [each for each in lines if each.split in (None, split)]
    steps = {each.step for each in lines} - {None}
    if step is None:
        step = max(steps, default=None)
    elif step not in steps:
        return [], split, step
    # A line without a step among others with one is of no other step.
    kept = [each for each in lines if step is None or each.step in (None, step)]
    return [each for each in kept if isinstance(each, Samples)], split, step
