"""Samples of a model from files that other tools write, told apart by what is in them and not by their names.

NoveltyBench's generations, partitions and scores; lm-eval's samples; verl's, TRL's (parquet) and ms-swift's dumps;
this package's partitions.jsonl and what darling-partition writes. docs/evaluate.md has the fields of each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darling_plugin.errors import DarlingError
from darling_plugin.partition.groups import given_responses, lines_of

Report = Callable[[int, str], None]
ROW_RESPONSES = ("completion", "output", "response")  # of a line that is one response
ROW_PROMPTS = ("prompt", "input")
NO_REWARD = {"step", "advantage", "advantages", "index", "doc_id", "uid"}  # numbers of a row that are no reward


@dataclass
class Samples:
    """One prompt and its n >= 1 responses.

    Attributes:
        id: what the file calls the prompt, else its number.
        quality: (n,) of each response; None where the file has none, or not of each.
        labels: (n,) class of each response, as the file has it; None where it has none.
        reference: what a correct answer is, for reward functions.
        record: all else that its line held.
    """

    id: str
    prompt: str
    responses: list[str]
    quality: list[float] | None = None
    labels: list[int] | None = None
    reference: str | None = None
    record: dict[str, Any] = field(default_factory=dict)


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
        split, step: of a training log; default: its evaluation if it has one, and the last step there.

    Raises DarlingError for a file that is not there, or that holds no samples.
    """
    found = list(_group_rows(_rows(path, report, quality_key)))
    found = _of_step(found, split, step)
    if not found:
        raise DarlingError(
            "a file with prompts and responses",
            f"none that can be read in {path}",
            "docs/evaluate.md has the formats; a training log may have no such split or step",
        )
    return found


def _rows(path: Path, report: Report, quality_key: str | None) -> Iterator[Samples]:
    for number, record in _records(path, report):
        try:
            yield from _parse(record, number, quality_key)
        except _Fault as fault:
            report(number, str(fault))


def _records(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DarlingError("a file with samples", f"{error}", "correct the path") from error
    with file:
        if file.read(4) == b"PAR1":
            yield from enumerate(_parquet(path), start=1)
            return
        file.seek(0)
        for number, line in enumerate(lines_of(file), start=1):
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


def _parquet(path: Path) -> Iterable[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DarlingError(
            "pyarrow, to read parquet", f"{path}, and it is not installed", "pip install pyarrow"
        ) from error
    return pyarrow.parquet.read_table(path).to_pylist()


def _parse(record: dict[str, Any], number: int, quality_key: str | None) -> Iterator[Samples]:
    """One line: a group; or one response, or (ms-swift) lists of a step's."""
    if given_responses(record) is not None:
        yield _of_group(record, number, quality_key)
    elif "resps" in record:
        yield _of_lm_eval(record, number, quality_key)
    else:
        prompt_key = next((key for key in ROW_PROMPTS if key in record), None)
        response_key = next((key for key in ROW_RESPONSES if key in record), None)
        if prompt_key is None or response_key is None:
            raise _Fault(f"needs a prompt and responses, found the keys {', '.join(list(record)[:12]) or 'none'}")
        if isinstance(record[response_key], list) and not _is_chat(record[response_key]):
            yield from _of_columns(record, number, prompt_key, response_key, quality_key)
        else:
            yield _of_row(record, number, prompt_key, response_key, quality_key)


def _of_group(record: dict[str, Any], number: int, quality_key: str | None) -> Samples:
    responses = [_text(each) for each in _list(given_responses(record), "responses")]
    if not responses:
        raise _Fault("needs at least one response, found none")
    labels = record.get("labels", record.get("partition"))
    quality = record.get(quality_key or "quality")
    if quality is None and quality_key is None and "partition_scores" in record and labels is not None:
        # NoveltyBench's scores: one a class, and 0 for the responses of a class that came before.
        quality = [record["partition_scores"][label] for label in labels]
    return Samples(
        str(record.get("id", number)),
        _text(record.get("prompt")),
        responses,
        _numbers(quality, len(responses)),
        _labels(labels, len(responses)),
        _reference(record),
        {key: value for key, value in record.items() if key not in ("responses", "generations")},
    )


def _of_lm_eval(record: dict[str, Any], number: int, quality_key: str | None) -> Samples:
    prompt = record.get("arguments")  # [[prompt, settings]], or {"gen_args_0": {"arg_0": prompt, ...}}
    while isinstance(prompt, list | dict) and prompt and not _is_chat(prompt):
        prompt = prompt[0] if isinstance(prompt, list) else next(iter(prompt.values()))
    responses = [_text(each) for request in _list(record["resps"], "resps") for each in _list(request, "resps")]
    metrics = record.get("metrics") or []
    names = [quality_key] if quality_key else [name for name in metrics if isinstance(record.get(name), int | float)]
    # A metric is of the whole document: a response's own quality it is where there is one.
    value = record.get(names[0]) if names else None
    quality = [value] if len(responses) == 1 else value if isinstance(value, list) else None
    target = record.get("target")
    return Samples(
        str(record.get("doc_id", number)),
        _text(prompt),
        responses,
        _numbers(quality, len(responses)),
        reference=None if target is None else str(target),
    )


def _of_columns(
    record: dict[str, Any], number: int, prompt_key: str, response_key: str, quality_key: str | None
) -> Iterator[Samples]:
    length = len(record[response_key])
    columns = {key: value for key, value in record.items() if isinstance(value, list) and len(value) == length}
    if prompt_key not in columns:
        raise _Fault(f"needs {length} prompts for {length} responses")
    constant = {key: value for key, value in record.items() if key not in columns}
    for k in range(length):
        row = constant | {key: value[k] for key, value in columns.items()}
        yield _of_row(row, number, prompt_key, response_key, quality_key)


def _of_row(
    record: dict[str, Any], number: int, prompt_key: str, response_key: str, quality_key: str | None
) -> Samples:
    if quality_key:
        quality = record.get(quality_key)
    elif _is_number(record.get("score")):  # verl; its extras may be numbers too
        quality = record["score"]
    else:
        rewards = [
            value
            for key, value in record.items()
            if _is_number(value) and key not in NO_REWARD and key not in (prompt_key, response_key)
        ]
        quality = math.fsum(rewards) if rewards else None
    return Samples(
        str(number),
        _text(record[prompt_key]),
        [_text(record[response_key])],
        _numbers(None if quality is None else [quality], 1),
        reference=_reference(record),
        record={"row": True, **({"step": record["step"]} if "step" in record else {})},
    )


def _group_rows(found: Iterable[Samples]) -> Iterator[Samples]:
    """Rows of one response become groups of one prompt (and step); what is a group already stays one."""
    groups: dict[Any, Samples] = {}
    for each in found:
        if not each.record.get("row"):
            groups[object()] = each
            continue
        group = groups.setdefault((each.record.get("step"), each.prompt), each)
        if group is not each:
            group.responses += each.responses
            both = group.quality is not None and each.quality is not None
            group.quality = [*group.quality, *each.quality] if both else None
    yield from groups.values()


def _of_step(found: list[Samples], split: str | None, step: int | None) -> list[Samples]:
    splits = {each.record["split"] for each in found if "split" in each.record}
    wanted = split or ("eval" if "eval" in splits else next(iter(splits), None))
    if wanted is not None:
        found = [each for each in found if each.record.get("split") == wanted]
    steps = {each.record["step"] for each in found if "step" in each.record}
    if step is None and (wanted is not None or len(steps) > 1):
        step = max(steps, default=None)
    return found if step is None else [each for each in found if each.record.get("step") == step]


def _text(value: Any) -> str:
    """A text, or the contents of a chat's messages, one below the other."""
    if _is_chat(value):
        return "\n".join(str(message.get("content", "")) for message in value)
    if not isinstance(value, str):
        raise _Fault(f"needs texts as prompt and responses, found {type(value).__name__}")
    return value


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Fault(f"needs a list as {name}, found {type(value).__name__}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(values: Any, n: int) -> list[float] | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != n:
        raise _Fault(f"needs a quality for each of {n} responses, found {values!r:.80}")
    if not all(_is_number(value) or isinstance(value, bool) for value in values):
        return None  # one of them has none: a mean over the others would be of other responses
    return [float(value) for value in values]


def _labels(values: Any, n: int) -> list[int] | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != n or not all(isinstance(value, int) for value in values):
        raise _Fault(f"needs a class for each of {n} responses, found {values!r:.80}")
    return values


def _reference(record: dict[str, Any]) -> str | None:
    for key in ("answers", "label", "gts", "answer", "solution", "target"):
        if record.get(key) is not None:
            return record[key] if isinstance(record[key], str) else json.dumps(record[key])
    return None
