"""`darling-label-pairs`: a judge says which sampled responses are equivalent, for darling-train-partition to read."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import combinations, islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Pair
from darling_plugin.partition.groups import BadLine, parse_group
from darling_plugin.partition.models.judge import ANSWER_TOKENS, CONCURRENCY, QUESTIONS, Judge, NoAnswer, messages_for

CHARS_A_TOKEN = 4  # of English, for the estimate
MAX_CHARS = 8000  # the judge's own default

EXAMPLE = """\
a line in:  {"prompt": "Name a fruit", "responses": ["Apple!", "An apple", "Kiwi"]}
a line out: {"prompt": "Name a fruit", "generation_0": "Apple!", "generation_1": "An apple", "task": "open",
             "model": NAME, "similar": 1, "p": [0.9, 0.8]}

  darling-label-pairs responses.jsonl -o pairs.jsonl --url http://localhost:8000 --estimate_only
  darling-label-pairs responses.jsonl -o pairs.jsonl --url http://localhost:8000 --task maths --pairs_per_prompt 4

Every pair is asked about in both orders; "yes" means the same. It is written where both answers agree, with the
probabilities p of "yes". Pairs on which they disagree go to OUT.disagreed.jsonl, pairs without an answer of yes or
no to OUT.unanswered.jsonl. A run that was stopped goes on when the same command is given again; with another task or
model it is refused. The key is OPENAI_API_KEY.

exit status: 0; 1 if pairs were left unanswered; 2 for input, usage or a server that was wrong; 130 after Ctrl-C
"""


class Files(NamedTuple):
    """Where each pair goes: exactly one of these."""

    agreed: Path
    disagreed: Path
    unanswered: Path


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except DarlingError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darling-label-pairs",
        description="Asks a chat model which responses of a prompt say the same.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="RESPONSES.jsonl", type=Path, help="a prompt and its responses a line")
    add("-o", "--output", metavar="OUT.jsonl", type=Path, required=True)
    add("--url", required=True, help="of an OpenAI-compatible server, with or without /v1")
    add("--model", help="its name there; not needed where the server has one only")
    add("--task", choices=tuple(QUESTIONS), default="open", help="what counts as the same; default: open. maths: "
        "whether two solutions take the same approach")  # fmt: skip
    add("--pairs_per_prompt", type=int, help="of each line, drawn at random; default: all")
    add("--seed", type=int, default=0, help="of that draw")
    add("--max_chars", type=int, default=MAX_CHARS, help=f"of each text, the middle is left out; default: {MAX_CHARS}")
    add("--concurrency", type=int, default=CONCURRENCY, help=f"pairs at a time; default: {CONCURRENCY}")
    add("--input_price", type=float, help="of a million tokens; with --output_price, for the estimate")
    add("--output_price", type=float, help="of a million tokens")
    add("--estimate_only", action="store_true", help="say what it would cost, and stop")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    pairs = _read(arguments.file, arguments.pairs_per_prompt, arguments.seed)
    out = arguments.output
    files = Files(out, *(out.with_name(f"{out.stem}.{name}{out.suffix}") for name in Files._fields[1:]))
    if arguments.concurrency < 1:
        raise DarlingError("--concurrency of 1 or more", f"{arguments.concurrency}", "raise it")
    if (arguments.input_price is None) != (arguments.output_price is None):
        raise DarlingError("--input_price and --output_price", "one of them", "add the other, or leave out both")
    done = _done(files)
    _check_goes_on(done, out, "task", arguments.task)
    if arguments.model:
        _check_goes_on(done, out, "model", arguments.model)
    left = [pair for pair in pairs if _key(pair) not in done]
    print(f"{len(pairs)} pairs, {len(pairs) - len(left)} of them labelled before; {_estimate(left, arguments)}")
    if arguments.estimate_only:
        print("the server was not asked whether it is there")
        return 0
    if not left:
        return 1 if files.unanswered.exists() else 0
    out.parent.mkdir(parents=True, exist_ok=True)
    judge = Judge(arguments.url, model=arguments.model, task=arguments.task, max_chars=arguments.max_chars)
    _check_goes_on(done, out, "model", judge.model)
    counts = _label(judge, arguments.task, left, files, arguments.concurrency)
    print(
        f"asked now: {counts['similar']} similar, {counts['different']} different, {counts['disagreed']} with two "
        f"answers that disagree ({counts['disagreed'] / len(left):.1%}), {counts['unanswered']} without an answer"
    )
    return 1 if files.unanswered.exists() else 0


def _read(path: Path, pairs_per_prompt: int | None, seed: int) -> list[Pair]:
    """Pairs of distinct, non-empty responses, in the order of the file; of each line at most pairs_per_prompt."""
    if pairs_per_prompt is not None and pairs_per_prompt < 1:
        raise DarlingError("--pairs_per_prompt of 1 or more", f"{pairs_per_prompt}", "raise it, or leave it out")
    generator = random.Random(seed)
    pairs: dict[_Key, Pair] = {}
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
            pairs.setdefault(_key(pair), pair)
    if faults:
        found = f"{len(faults)} bad lines in {path}: " + "; ".join(faults[:10]) + ("; ..." if faults[10:] else "")
        raise DarlingError('lines of {"prompt": ..., "responses": [...]}', found, "correct or remove them")
    if not pairs:
        raise DarlingError("prompts with two distinct responses or more", f"none in {path}", "sample more responses")
    return list(pairs.values())


_Key = tuple[str, frozenset[str]]


def _key(pair: Pair) -> _Key:
    return pair.prompt, frozenset((pair.first, pair.second))  # a pair in either order is one


def _done(files: Files) -> dict[_Key, dict[str, Any]]:
    """The lines that an earlier run wrote, but for a last one that it could not finish."""
    done = {}
    for path in files:
        if not path.exists():
            continue
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if content and not whole:
            needed = "a new file, or an output of darling-label-pairs to go on with"
            raise DarlingError(needed, f"{path} without a whole line", "remove it, or name another -o")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                done[_key(Pair(row["prompt"], row["generation_0"], row["generation_1"]))] = row
            except (ValueError, KeyError, TypeError) as error:
                needed = "an output of darling-label-pairs to go on with"
                raise DarlingError(needed, f"{path}, line {number}: {error!r}", "name another -o") from error
    return done


def _check_goes_on(done: dict[_Key, dict[str, Any]], out: Path, key: str, value: str) -> None:
    """Labels of two questions or two judges must not end up in one file."""
    others = sorted({str(row.get(key)) for row in done.values()} - {value})
    if others:
        needed, found = f"labels of the {key} {value} alone in {out}", f"some of {', '.join(others)}"
        raise DarlingError(needed, found, "name another -o, or go on with the same command")


def _estimate(pairs: list[Pair], arguments: argparse.Namespace) -> str:
    question = QUESTIONS[arguments.task]
    chars = sum(len(messages_for(pair, question, arguments.max_chars)[0]["content"]) for pair in pairs)
    tokens_in, tokens_out = 2 * chars / CHARS_A_TOKEN, 2 * len(pairs) * ANSWER_TOKENS
    text = f"{2 * len(pairs)} requests to go, about {tokens_in:.3g} tokens in and at most {tokens_out} out"
    if arguments.input_price is not None:
        cost = (tokens_in * arguments.input_price + tokens_out * arguments.output_price) / 1e6
        text += f", about {cost:.2f} by your prices"
    return text


def _label(judge: Judge, task: str, pairs: list[Pair], files: Files, concurrency: int) -> dict[str, int]:
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


if __name__ == "__main__":
    sys.exit(main())
