"""`darling-partition`: classes and diversity of groups in a file, by the same engine as in training."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from tqdm import tqdm

from darling_plugin.commands.ending import exit_status
from darling_plugin.config import DarlingConfig, add_flag
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.agreement import Agreement
from darling_plugin.partition import (
    Group,
    Measurement,
    PartitionModel,
    check_diversity,
    check_partition_spec,
    load_partition_model,
    measure_each,
)
from darling_plugin.partition.base import DECIMALS
from darling_plugin.partition.groups import GroupLine, given_responses, lines_of, read_groups
from darling_plugin.partition.text import as_logged, read_partition_text
from darling_plugin.user_code import import_user_code

# Held at a time, so that input without end needs no more memory. A fixed number: where lower precision makes a
# result depend on the batch, two runs over one file still agree.
GROUPS_AT_ONCE = 64

# Of DarlingConfig, with its defaults and help.
FLAGS = ("partition_model", "threshold", "clustering", "diversity", "partition_text", "import_path")

EXAMPLE = """\
a line in:   {"prompt": "Name a colour", "responses": ["Red!", "red", "I say blue"], "id": 7}
a line out:  {"prompt": ..., "responses": ..., "id": 7, "labels": [0, 0, 1], "diversity": [0.5, 0.5, 1.0]}

  darling-partition responses.jsonl -o partitions.jsonl --partition_model lexical
  zcat responses.jsonl.gz | darling-partition --threshold 0.7 | jq .diversity

labels: the class of each response; diversity: the share of the other responses that lie in other classes, or what
--diversity says. Where all pairs had to be scored, "similarity" is added, and with --partition_text what of each
response was "compared", null where all of it was. Other keys stay as they are.

--report is for lines that have true labels, as {"prompt": ..., "responses": ..., "labels": [0, 0, 1]}. They go out as
"true_labels", and at the end a table says how the three kinds of diversity compare with theirs, as deviations from
the group's mean: push is how much of a true difference arrives, noise what else does, for a unit of push.

Lines go out in the order in which they came in, 64 groups at a time. A line that is no group, or on which the
partition model fails, is named on stderr and left out.

exit status: 0; 1 if lines were left out; 2 for wrong usage, or where a GPU breaks on the way; 130 after Ctrl-C
"""


class ReaderGone(Exception):
    """Nobody reads stdout any more, as after `| head`."""


@dataclass
class Totals:
    """Sums over the lines so far."""

    groups: int = 0
    responses: int = 0
    pairs: int = 0
    classes: int = 0
    diversity: float = 0.0
    compared: int = 0  # responses with others in their group: the mean diversity is theirs
    missing: int = 0  # responses without the text that is compared
    bad_lines: int = 0

    def add(self, labels: list[int], diversity: list[float]) -> None:
        n = len(labels)
        self.groups += 1
        self.responses += n
        self.pairs += n * (n - 1) // 2
        self.classes += len(set(labels))
        if n > 1:
            self.compared += n
            self.diversity += sum(diversity)

    def report(self, line: int, fault: str) -> None:
        self.bad_lines += 1
        tqdm.write(f"line {line}: {fault}", file=sys.stderr)

    def __str__(self) -> str:
        parts = [f"{self.groups} groups", f"{self.responses} responses", f"{self.pairs} pairs"]
        if self.compared:
            parts.append(f"mean diversity {self.diversity / self.compared:.3f}")
        if self.groups:
            parts.append(f"{self.classes / self.groups:.2f} classes a group")
        if self.missing:
            parts.append(f"{self.missing} responses lack the text that is compared")
        return ", ".join([*parts, f"{self.bad_lines} bad lines"])


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        return exit_status(lambda: _run(_parser().parse_args(argv)))
    except ReaderGone:
        return 128 + signal.SIGPIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darling-partition",
        description="Sorts each prompt's responses into classes that say the same, and measures their diversity.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "file", metavar="FILE.jsonl", nargs="?", default="-", help="groups to read, one a line; default: stdin"
    )
    parser.add_argument("-o", "--output", metavar="OUT.jsonl", default="-", help="file to write; default: stdout")
    parser.add_argument("--report", action="store_true", help="compare with the labels that the lines have")
    for flag in fields(DarlingConfig):
        if flag.name in FLAGS:
            add_flag(parser, flag, f"--{flag.name}", flag.name)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    config = DarlingConfig(**{name: getattr(arguments, name) for name in FLAGS})
    options = {"threshold": config.threshold, "clustering": config.clustering}
    if config.import_path:
        import_user_code(config.import_path)
    config.check()
    check_diversity(check_partition_spec(config.partition_model, **options), config.diversity)
    with _source(arguments.file) as source, _results(arguments.output, source) as results:
        model = _load(config.partition_model, options)
        if arguments.output != "-" and Path(arguments.output).is_file():
            results.truncate(0)  # an older output, not before there is a model to make a new one
        totals = Totals()
        agreement = Agreement(getattr(model, "threshold", None)) if arguments.report else None
        try:
            _partition(model, config, source, results, totals, agreement)
        except KeyboardInterrupt:
            print(f"interrupted after {totals}", file=sys.stderr)
            raise
    print(totals, file=sys.stderr)
    if agreement is not None:
        Console(stderr=True).print(agreement.table())
    return 1 if totals.bad_lines else 0


def _load(spec: str, options: dict[str, Any]) -> PartitionModel:
    try:
        return load_partition_model(spec, **options)
    except OSError as error:  # what transformers raises for weights that are not there
        raise DarlingError(f"the partition model {spec!r}", f"{error}", "correct what follows the colon") from error


def _partition(
    model: PartitionModel,
    config: DarlingConfig,
    source: BinaryIO,
    results: BinaryIO,
    totals: Totals,
    agreement: Agreement | None,
) -> None:
    """Reads groups from `source` and writes them to `results`, measured; sums them up in `totals`, and `agreement`."""
    group_lines = _comparable(read_groups(source, totals.report), config, totals, labelled=agreement is not None)
    # None: no bar where stderr is no terminal.
    with tqdm(unit=" groups", disable=None, dynamic_ncols=True) as bar:
        if not bar.disable and source.seekable():
            bar.total = _count_lines(source)
        while batch := list(islice(group_lines, GROUPS_AT_ONCE)):
            groups = [line.group for line in batch]
            try:
                outcomes = measure_each(model, groups, config.diversity, with_similarity=agreement is not None)
            except Exception as error:  # all others are given back
                raise DarlingError(
                    "an accelerator that goes on working",
                    f"{_describe(error)}, on the lines {batch[0].number} to {batch[-1].number}; before: {totals}",
                    f"start again with the lines from {batch[0].number} on: what came before is written",
                ) from error
            lines = []
            for line, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Measurement):
                    if agreement is not None:
                        agreement.add(line.record["true_labels"], outcome)
                    lines.append(_result(line, outcome, totals))
                else:
                    totals.report(line.number, f"the partition model failed: {_describe(outcome)}")
            _write(results, "".join(lines))
            bar.update(len(batch))


def _comparable(
    lines: Iterator[GroupLine], config: DarlingConfig, totals: Totals, *, labelled: bool
) -> Iterator[GroupLine]:
    """The lines with what of their responses is compared; with their true labels where they need them."""
    part = read_partition_text(config.partition_text)
    for line in lines:
        # As they came: Group has U+FFFD for what has no UTF-8 form.
        prompt, responses = line.record["prompt"], given_responses(line.record)
        # Of an earlier call's, what this one may not write anew.
        record = {key: value for key, value in line.record.items() if key not in ("similarity", "compared")}
        if labelled:
            true = record.pop("labels", None)
            numbers = isinstance(true, list) and all(type(each) is int and each >= 0 for each in true)
            if not (numbers and len(true) == len(responses)):
                needed = "needs a class number, from 0 on, for each response as labels"
                totals.report(line.number, f"{needed}, found {true!r:.80}")
                continue
            record["true_labels"] = true
        try:
            found = [part(prompt, response) for response in responses]
        except Exception as error:
            totals.report(line.number, f"--partition_text failed: {_describe(error)}")
            continue
        compared = [text or "" for text in found]
        totals.missing += found.count(None)
        if config.partition_text != "whole":
            record["compared"] = as_logged(compared, responses)
        yield GroupLine(line.number, record, Group(prompt, compared))


def _describe(error: BaseException) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, DarlingError):
        return text
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return f"{text} ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"


def _result(line: GroupLine, measurement: Measurement, totals: Totals) -> str:
    labels, diversity = measurement.labels.tolist(), measurement.diversity.tolist()
    totals.add(labels, diversity)
    record = {**line.record, "labels": labels, "diversity": diversity}
    if measurement.similarity is not None:
        record["similarity"] = [[round(each, DECIMALS) for each in row] for row in measurement.similarity.tolist()]
    return json.dumps(record, ensure_ascii=False) + "\n"


def _write(results: BinaryIO, text: str) -> None:
    """Writes whole lines: Ctrl-C waits for their end."""
    # A lone surrogate, which no encoding holds, becomes its JSON escape.
    rest = memoryview(text.encode("utf-8", errors="backslashreplace"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with tqdm.external_write_mode():  # the bar is taken off a terminal that shows both, and put back
            while rest:
                rest = rest[results.write(rest) :]
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        raise DarlingError("to write the results", f"{error}", "make room, or name another OUT.jsonl") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _count_lines(source: BinaryIO) -> int:
    start = source.tell()
    lines = sum(1 for line in lines_of(source) if line.strip())
    source.seek(start)
    return lines


def _source(path: str) -> BinaryIO:
    return _open(0, "rb", closefd=False) if path == "-" else _open(path, "rb")


@contextmanager
def _results(path: str, source: BinaryIO) -> Iterator[BinaryIO]:
    """The file to write to, unbuffered. While stdout is that file, what else is printed there goes to stderr."""
    if path != "-":
        if Path(path).is_file() and os.path.samestat(os.fstat(source.fileno()), os.stat(path)):
            raise DarlingError("an output apart from the input", f"{path} as both", "name another OUT.jsonl")
        with _open(path, "ab", buffering=0) as results:
            yield results
        return
    sys.stdout.flush()
    with open(os.dup(1), "wb", buffering=0) as results:
        os.dup2(2, 1)  # not only print(): vLLM's engine process logs to the stdout that it inherits
        try:
            yield results
        finally:
            sys.stdout.flush()
            os.dup2(results.fileno(), 1)


def _open(path: str | int, mode: str, **options: Any) -> BinaryIO:
    try:
        return open(path, mode, **options)
    except OSError as error:
        use = "read" if mode == "rb" else "written"
        raise DarlingError(f"a file that can be {use}", f"{error}", "correct the path") from error


if __name__ == "__main__":
    sys.exit(main())
