"""Samples of a model from files that other tools write, told apart by what is in them and not by their names.

NoveltyBench's generations, partitions and scores; lm-eval's samples; verl's, TRL's (parquet) and ms-swift's dumps;
this package's partitions.jsonl and what darling-partition writes. docs/evaluate.md has the fields of each.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import encodable
from darling_plugin.partition.groups import given_responses, lines_of

Report = Callable[[int, str], None]
ROW_RESPONSES = ("completion", "output", "response")  # of a line that is one response
ROW_PROMPTS = ("prompt", "input", "messages")
STEPS = ("step", "gen_step")
QUALITIES = ("score", "quality", "reward")  # of a line that is one response
REFERENCES = ("answers", "label", "gts", "answer", "solution", "target")  # what a correct answer is
SPLITS = {"train", "eval"}  # of a training log
LARGEST = 1e100  # of a quality: sums of larger ones may be no floats any more
NO_REWARD = {*STEPS, "global_step", "index", "doc_id", "uid"}  # numbers of a row that are no reward


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


class _Fault(ValueError):
    """What is wrong with a line."""


def read_samples(
    path: Path, report: Report, *, quality_key: str | None = None, split: str | None = None, step: int | None = None
) -> list[Samples]:
    """The prompts of a file with their responses, in the file's order.

    Args:
        report: gets the number of each line that cannot be read, and why; the others go on.
        quality_key: what the file calls a response's quality; default: what its tool does. Of a file with several
            rewards a response, the sum.
        split, step: of a training log; default: its evaluation if it has one, and the last step there. Other splits
            than SPLITS are no training log's, and read together.

    Raises DarlingError for a file that is not there, that holds no samples, or none with quality_key.
    """
    found = _of_step(_group_rows(_lines(path, report, quality_key)), split, step)
    if not found:
        raise DarlingError(
            "a file with prompts and responses",
            f"none that can be read in {path}",
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
        return made + f", {text}" * (text != "whole")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "as the file has them"


def _lines(path: Path, report: Report, quality_key: str | None) -> Iterator[tuple[Samples, bool]]:
    """What each line holds, and whether that is one response of a prompt whose others have lines of their own."""
    first_filter = None
    for number, record in _records(path, report):
        if "resps" in record:  # lm-eval writes each document again for each filter of its answers
            first_filter = first_filter or (record.get("filter"),)
            if record.get("filter") != first_filter[0]:
                continue
        try:
            yield from _parse(record, number, quality_key)
        except _Fault as fault:
            report(number, str(fault))


def _records(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DarlingError("a file with samples", f"{error}", "correct the path") from error
    if magic == b"PAR1":
        yield from enumerate(_parquet(path), start=1)
        return
    for number, line in _numbered_lines(path, gzip.open if magic[:2] == b"\x1f\x8b" else open):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            report(number, f"not JSON in UTF-8: {error}")
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            report(number, f"needs an object, found {type(record).__name__}")


def _numbered_lines(path: Path, opened: Callable) -> Iterator[tuple[int, bytes]]:
    try:
        with opened(path, "rb") as file:
            yield from enumerate(lines_of(file), start=1)
    except (OSError, EOFError, zlib.error) as error:
        raise DarlingError("a whole file with samples", f"{path}: {error}", "copy or compress it again") from error


def _parquet(path: Path) -> Iterable[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DarlingError(
            "pyarrow, to read parquet", f"{path}, and it is not installed", "pip install pyarrow"
        ) from error
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DarlingError("a parquet file that pyarrow can read", f"{path}: {error}", "copy it again") from error


def _parse(record: dict[str, Any], number: int, quality_key: str | None) -> Iterator[tuple[Samples, bool]]:
    """One line: a group; or one response, or (ms-swift) lists of a step's."""
    if given_responses(record) is not None:
        yield _of_group(record, number, quality_key), False
    elif "resps" in record:
        yield _of_lm_eval(record, number, quality_key), False
    else:
        prompt_key = next((key for key in ROW_PROMPTS if key in record), None)
        response_key = next((key for key in ROW_RESPONSES if key in record), None)
        if prompt_key is None or response_key is None:
            raise _Fault(f"needs a prompt and responses, found the keys {', '.join(list(record)[:12]) or 'none'}")
        if isinstance(record[response_key], list) and not _is_chat(record[response_key]):
            yield from _of_columns(record, number, prompt_key, response_key, quality_key)
        else:
            yield _of_row(record, number, prompt_key, response_key, quality_key), True


def _of_group(record: dict[str, Any], number: int, quality_key: str | None) -> Samples:
    responses = [_text(each) for each in _list(given_responses(record), "responses")]
    if not responses:
        raise _Fault("needs at least one response, found none")
    labels = _labels(record.get("labels", record.get("partition")), len(responses))
    quality_from = quality_key or "quality"
    if quality_key is None and "partition_scores" in record and not isinstance(record.get("quality"), list):
        quality, quality_from = _of_scores(record, labels, len(responses)), "partition_scores"
    else:
        quality = record.get(quality_from)
    return Samples(
        id_of(record, number),
        _text(record.get("prompt")),
        responses,
        _numbers(quality, len(responses)),
        labels,
        _reference(record),
        _step(record.get("step")),
        record["split"] if isinstance(record.get("split"), str) else None,
        quality_from,
    )


def _of_scores(record: dict[str, Any], labels: list[int] | None, n: int) -> list[Any]:
    """NoveltyBench's scores of n responses: one that is in a class that came before has its class's.

    Its own is 0 there; DARLING's copy keeps it, and has its mean as `quality`.
    """
    own, of_classes = record.get("generation_scores"), record["partition_scores"]
    if labels is None or not isinstance(of_classes, list) or max(labels) >= len(of_classes):
        raise _Fault("needs a partition, and a score for each class, beside partition_scores")
    if isinstance(own, list) and len(own) == n and own.count(0) < n - len(of_classes):
        return own
    return [of_classes[label] for label in labels]


def _of_lm_eval(record: dict[str, Any], number: int, quality_key: str | None) -> Samples:
    prompt = record.get("arguments")  # [[prompt, settings]], or {"gen_args_0": {"arg_0": prompt, ...}}
    while isinstance(prompt, list | dict) and prompt and not _is_chat(prompt):
        prompt = prompt[0] if isinstance(prompt, list) else next(iter(prompt.values()))
    resps = [each for request in _list(record["resps"], "resps") for each in _list(request, "resps")]
    if not all(isinstance(each, str) or _is_chat(each) for each in resps):
        raise _Fault("needs texts as resps, found a loglikelihood task's, as multiple choice: it samples nothing")
    responses = [_text(each) for each in resps]
    if not responses:
        raise _Fault("needs at least one response, found none")
    metrics = [name for name in _list(record.get("metrics") or [], "metrics") if isinstance(name, str)]
    names = [quality_key] if quality_key else [name for name in metrics if isinstance(record.get(name), int | float)]
    # A metric is of the whole document: a response's own quality it is where there is one.
    value = record.get(names[0]) if names else None
    quality = [value] if len(responses) == 1 else value if isinstance(value, list) else None
    target = record.get("target")
    return Samples(
        id_of(record, number, "doc_id"),
        _text(prompt),
        responses,
        _numbers(quality, len(responses)),
        reference=None if target is None else str(target),
        quality_from=names[0] if names else None,
    )


def _of_columns(
    record: dict[str, Any], number: int, prompt_key: str, response_key: str, quality_key: str | None
) -> Iterator[tuple[Samples, bool]]:
    length = len(record[response_key])
    if not length:
        raise _Fault("needs at least one response, found none")
    columns = {key: value for key, value in record.items() if isinstance(value, list) and len(value) == length}
    if prompt_key not in columns:
        raise _Fault(f"needs {length} prompts for {length} responses")
    constant = {key: value for key, value in record.items() if key not in columns}
    for k in range(length):
        row = constant | {key: value[k] for key, value in columns.items()}
        yield _of_row(row, number, prompt_key, response_key, quality_key, of_columns=True), True


def _of_row(
    record: dict[str, Any],
    number: int,
    prompt_key: str,
    response_key: str,
    quality_key: str | None,
    of_columns: bool = False,
) -> Samples:
    names = [quality_key] if quality_key else _reward_columns(record, of_columns)
    values = [record.get(name) for name in names]
    # A reward function that has nothing to say of a response gives None: the others count.
    numbers = [_in_range(value) for value in values if _is_number(value)]
    quality = math.fsum(numbers) if numbers else None
    return Samples(
        str(number),
        _text(record[prompt_key]),
        [_text(record[response_key])],
        _numbers(None if quality is None else [quality], 1),
        reference=_reference(record),
        step=next((_step(record[key]) for key in STEPS if key in record), None),
        quality_from=" + ".join(names) or None,
    )


def _reward_columns(record: dict[str, Any], all_numbers: bool) -> list[str]:
    """Which columns of a response's line make its quality.

    TRL and ms-swift write a column a reward function before the advantage, and what else there is (entropy) after it.
    A user's own may stand among them: where any is named reward, only those count.

    Args:
        all_numbers: whether the line is known to be of such a tool.
    """
    known = next((name for name in QUALITIES if _is_number(record.get(name))), None)
    if known is not None:  # verl's score; its extras may be numbers too
        return [known]
    before = itertools.takewhile(lambda key: key not in ("advantage", "advantages"), record)
    numbers = [key for key in before if _is_number(record[key]) and key not in NO_REWARD | set(REFERENCES)]
    all_numbers |= not {"advantage", "advantages"}.isdisjoint(record)
    return [name for name in numbers if "reward" in name.lower()] or (numbers if all_numbers else [])


def _group_rows(lines: Iterable[tuple[Samples, bool]]) -> list[Samples]:
    """Rows of one response become groups of one prompt (and step); what is a group already stays one."""
    groups: dict[Any, Samples] = {}
    for each, is_row in lines:
        if not is_row:
            groups[object()] = each
            continue
        group = groups.setdefault((each.step, each.prompt), each)
        if group is not each:
            group.responses += each.responses
            both = group.quality is not None and each.quality is not None
            group.quality = [*group.quality, *each.quality] if both else None
    return list(groups.values())


def _of_step(found: list[Samples], split: str | None, step: int | None) -> list[Samples]:
    splits = {each.split for each in found if each.split is not None}
    if split:
        found = [each for each in found if each.split == split]
    elif splits <= SPLITS:  # else a column of a data set's
        wanted = "eval" if "eval" in splits else "train"
        found = [each for each in found if each.split in (None, wanted)]
    if step is None:
        step = max((each.step for each in found if each.step is not None), default=None)
    # A line without a step among others with one is of no other step.
    return found if step is None else [each for each in found if each.step in (None, step)]


def id_of(record: dict[str, Any], number: int, key: str = "id") -> str:
    """What a record calls itself, else its number; data sets have null in a column that a row lacks."""
    return str(number if record.get(key) is None else record[key])


def _step(value: Any) -> int | None:
    """ms-swift's are texts."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    return int(value) if _is_number(value) else None


def _text(value: Any) -> str:
    """A text, or the contents of a chat's messages, one below the other."""
    if _is_chat(value):
        value = "\n".join(_content(message) for message in value)
    if not isinstance(value, str):
        raise _Fault(f"needs texts as prompt and responses, found {type(value).__name__}")
    return encodable(value)


def _content(message: dict[str, Any]) -> str:
    """A message's, of which a call of a tool may have none, or the texts among its parts."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(text for text in texts if isinstance(text, str))
    return "" if content is None else str(content)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Fault(f"needs a list as {name}, found {type(value).__name__}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf  # NaN is not


def _in_range(value: float) -> float:
    if abs(value) > LARGEST:
        raise _Fault(f"needs a quality from {-LARGEST:g} to {LARGEST:g}, found {value!r:.40}")
    return float(value)


def _numbers(values: Any, n: int) -> list[float] | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != n:
        raise _Fault(f"needs a quality for each of {n} responses, found {values!r:.80}")
    if not all(_is_number(value) or isinstance(value, bool) for value in values):
        return None  # one of them has none: a mean over the others would be of other responses
    return [_in_range(value) for value in values]


def _labels(values: Any, n: int) -> list[int] | None:
    if values is None:
        return None
    whole = isinstance(values, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in values)
    if not whole or len(values) != n:
        raise _Fault(f"needs a class for each of {n} responses, found {values!r:.80}")
    return values if min(values) >= 0 else None  # -1: the quality gate left it out of the partition


def _reference(record: dict[str, Any]) -> str | None:
    for key in REFERENCES:
        if record.get(key) is not None:
            return record[key] if isinstance(record[key], str) else json.dumps(record[key], default=str)
    return None
