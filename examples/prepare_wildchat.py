"""WildChat-1M to the prompts of recipes/wildchat_llama8b.sh: the first user turns of English, non-toxic conversations,
at most 512 tokens long, each once; a seeded sample of 10,000 as JSONL with the key `input`."""

import sys

from prompt_data import Rows, parser

from darling_plugin.errors import DarlingError

MAX_TOKENS = 512


def first_user_turn(conversation: list[dict]) -> str:
    """The text of the first turn, empty where a user did not write it."""
    first = conversation[0] if conversation else {"role": None}
    return first["content"] or "" if first["role"] == "user" else ""


def main(argv: list[str] | None = None) -> None:
    options = parser(
        __doc__,
        source="allenai/WildChat-1M",
        tokenizer="meta-llama/Llama-3.1-8B-Instruct",
        out="data/wildchat10k.jsonl",
    ).parse_args(argv)
    data = Rows(options.source, {"conversation", "language", "toxic"})
    data.keep("English", lambda language: language == "English", "language")
    data.keep("free of toxic turns", lambda toxic: not toxic, "toxic")
    data.rows = data.rows.map(
        lambda conversation: {"input": first_user_turn(conversation)},
        input_columns=["conversation"],
        remove_columns=data.rows.column_names,
        desc="first user turn",
    )
    data.keep("begun by a user with some text", lambda text: bool(text.strip()), "input")
    data.normalise("input")
    data.keep_first("input")
    data.keep_short("input", options.tokenizer, MAX_TOKENS)
    data.sample(options.count, options.seed)
    data.write(options.out, ["input"])


if __name__ == "__main__":
    try:
        main()
    except DarlingError as error:
        sys.exit(str(error))
