"""`darling-label-pairs`: a judge says which sampled responses are equivalent, for darling-train-partition to read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from darling_plugin.commands.ending import exit_status
from darling_plugin.errors import DarlingError
from darling_plugin.partition import Pair
from darling_plugin.partition.models.judge import ANSWER_TOKENS, CONCURRENCY, QUESTIONS, Judge, messages_for
from darling_plugin.training.label import (
    Files,
    check_goes_on,
    label_pairs,
    labelled_before,
    pair_key,
    read_responses,
)

CHARS_A_TOKEN = 4  # of English, for the estimate
MAX_CHARS = 8000  # the judge's own default

EXAMPLE = """\
a line in:  {"prompt": "Name a fruit", "responses": ["Apple!", "An apple", "Kiwi"]}
a line out: {"prompt": "Name a fruit", "generation_0": "Apple!", "generation_1": "An apple", "task": "open",
             "model": NAME, "similar": 1, "p": [0.9, 0.8]}

  darling-label-pairs responses.jsonl -o pairs.jsonl --url http://localhost:8000 --estimate_only
  darling-label-pairs responses.jsonl -o pairs.jsonl --url http://localhost:8000 --task maths --pairs_per_prompt 4

Every pair is asked about in both orders; "yes" means the same. A pair goes to OUT.jsonl where both answers agree, with
the probability of "yes" in each order (p). Where they disagree it goes to OUT.disagreed.jsonl, without an answer of
yes or no to OUT.unanswered.jsonl.

After a stop, give the same command again: it goes on. Another task or model for the same OUT is refused. If the server
wants a key, set OPENAI_API_KEY.

exit status: 0; 1 if pairs were left unanswered; 2 for input, usage or a server that was wrong; 130 after Ctrl-C
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return exit_status(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darling-label-pairs",
        description="Asks a chat model which responses of a prompt say the same.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="RESPONSES.jsonl", type=Path, help="groups to label: a prompt and its responses a line")
    add("-o", "--output", metavar="OUT.jsonl", type=Path, required=True, help="file for the labelled pairs")
    add("--url", required=True, help="where an OpenAI-compatible server listens, with or without /v1")
    add("--model", help="the chat model; not needed where the server has one only")
    add("--task", choices=tuple(QUESTIONS), default="open", help="what counts as the same; default: open. maths: "
        "whether two solutions take the same approach")  # fmt: skip
    add("--pairs_per_prompt", type=int, help="how many pairs of each line, drawn at random; default: all")
    add("--seed", type=int, default=0, help="seed of that draw; default: 0")
    add(
        "--max_chars",
        type=int,
        default=MAX_CHARS,
        help=f"of a longer text the middle is left out; default: {MAX_CHARS}",
    )
    add("--concurrency", type=int, default=CONCURRENCY, help=f"pairs asked about at a time; default: {CONCURRENCY}")
    add("--input_price", type=float, help="price of a million tokens in, for the estimate; with --output_price")
    add("--output_price", type=float, help="price of a million tokens out")
    add("--estimate_only", action="store_true", help="say what it would cost, and stop: nothing is asked")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    pairs = read_responses(arguments.file, arguments.pairs_per_prompt, arguments.seed)
    out = arguments.output
    files = Files(out, *(out.with_name(f"{out.stem}.{name}{out.suffix}") for name in Files._fields[1:]))
    if arguments.concurrency < 1:
        raise DarlingError("--concurrency of 1 or more", f"{arguments.concurrency}", "raise it")
    if (arguments.input_price is None) != (arguments.output_price is None):
        raise DarlingError("--input_price and --output_price", "one of them", "add the other, or leave out both")
    done = labelled_before(files)
    check_goes_on(done, out, "task", arguments.task)
    if arguments.model:
        check_goes_on(done, out, "model", arguments.model)
    left = [pair for pair in pairs if pair_key(pair) not in done]
    print(f"{len(pairs)} pairs, {len(pairs) - len(left)} of them labelled before; {_estimate(left, arguments)}")
    if arguments.estimate_only:
        print("the server was not asked whether it is there")
        return 0
    if not left:
        return 1 if files.unanswered.exists() else 0
    out.parent.mkdir(parents=True, exist_ok=True)
    judge = Judge(arguments.url, model=arguments.model, task=arguments.task, max_chars=arguments.max_chars)
    check_goes_on(done, out, "model", judge.model)
    counts = label_pairs(judge, arguments.task, left, files, arguments.concurrency)
    print(
        f"asked now: {counts['similar']} similar, {counts['different']} different, {counts['disagreed']} with two "
        f"answers that disagree ({counts['disagreed'] / len(left):.1%}), {counts['unanswered']} without an answer"
    )
    return 1 if files.unanswered.exists() else 0


def _estimate(pairs: list[Pair], arguments: argparse.Namespace) -> str:
    question = QUESTIONS[arguments.task]
    chars = sum(len(messages_for(pair, question, arguments.max_chars)[0]["content"]) for pair in pairs)
    tokens_in, tokens_out = 2 * chars / CHARS_A_TOKEN, 2 * len(pairs) * ANSWER_TOKENS
    text = f"{2 * len(pairs)} requests to go, about {tokens_in:.3g} tokens in and at most {tokens_out} out"
    if arguments.input_price is not None:
        cost = (tokens_in * arguments.input_price + tokens_out * arguments.output_price) / 1e6
        text += f", about {cost:.2f} by your prices"
    return text


if __name__ == "__main__":
    sys.exit(main())
