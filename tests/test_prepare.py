"""The data preparation on small files with the fields of the real data sets."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from darling_plugin import DarlingError

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))  # the scripts import what lies beside them


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A token a character, and four for the chat template."""
    backend = Tokenizer(models.WordLevel({"?": 0, "U": 1, "A": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    made.chat_template = (
        "{% for m in messages %}U:{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    return folder


def turn(content, role="user", toxic=False):
    return {
        "content": content,
        "country": None,
        "language": "English",
        "redacted": False,
        "role": role,
        "toxic": toxic,
        "turn_identifier": 1,
    }


def wildchat_row(*turns, language="English", toxic=False):
    return {
        "conversation_hash": "0",
        "model": "gpt-4",
        "conversation": list(turns),
        "turn": len(turns) // 2,
        "language": language,
        "toxic": toxic,
        "redacted": False,
    }


WILDCHAT = [
    *(wildchat_row(turn(f"question {k}?"), turn("answer", "assistant"), turn("and then?")) for k in range(6)),
    wildchat_row(turn("une question ?"), language="French"),
    wildchat_row(turn("insult"), turn("worse", "assistant"), toxic=True),
    wildchat_row(turn("Hello, I am the assistant", "assistant"), turn("hi")),
    wildchat_row(turn("  \n")),
    wildchat_row(turn(None)),
    wildchat_row(turn("Question  0?\n")),
    wildchat_row(turn("Caf\xe9?")),
    wildchat_row(turn("Cafe\u0301?")),
    wildchat_row(turn("A cafe\u0301 in A\u030a?")),
    wildchat_row(turn("x" * 509)),
    wildchat_row(turn("y" * 508)),
]

DEEPSCALER = [
    *({"problem": f" What is {k} + {k}? ", "answer": f"{2 * k}", "solution": "Add."} for k in range(6)),
    {"problem": "What is 1 + 1?", "answer": "2", "solution": ""},
    {"problem": "Prove it.", "answer": "", "solution": "By induction."},
    {"problem": "Prove it again.", "answer": None, "solution": "By induction."},
    {"problem": " ", "answer": "1", "solution": ""},
    {"problem": "x" * 1100, "answer": "3", "solution": ""},
    {"problem": "Is it so?", "answer": "\\frac{", "solution": ""},
]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepare(script: str, source: Path, tokenizer: Path, out: Path, count: int, *more: str) -> None:
    importlib.import_module(script).main(
        [*f"--source {source} --tokenizer {tokenizer} --out {out} --count {count}".split(), *more]
    )


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_wildchat(tmp_path, tokenizer, capsys, suffix):
    out = tmp_path / "new" / "wildchat.jsonl"
    source = write(tmp_path / f"source{suffix}", WILDCHAT)
    prepare("prepare_wildchat", source, tokenizer, out, 9)
    said = capsys.readouterr().out
    expected = [*(f"question {k}?" for k in range(6)), "y" * 508, "Caf\xe9?", "A caf\xe9 in \xc5?"]
    assert sorted(row["input"] for row in read(out)) == sorted(expected)
    assert all(set(row) == {"input"} for row in read(out))
    for line in (
        "17 rows in",
        "1 dropped: not English",
        "1 dropped: not free of toxic turns",
        "3 dropped: not begun by a user with some text",
        "2 normalised to NFC",
        "2 dropped: not the first with its input",
        "1 dropped: not at most 512 tokens",
        "9 written to",
    ):
        assert line in said


def test_the_length_is_that_of_the_prompt_as_the_recipe_formats_it(tokenizer):
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    text = loaded.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False, add_generation_prompt=True)
    assert text == "U:abcA:"
    assert len(loaded(text)["input_ids"]) == 7


def test_deepscaler(tmp_path, tokenizer, capsys):
    out = tmp_path / "deepscaler.jsonl"
    source = write(tmp_path / "source.jsonl", DEEPSCALER)
    prepare("prepare_deepscaler", source, tokenizer, out, 6)
    said = capsys.readouterr().out
    instruction = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    expected = [{"input": f"What is {k} + {k}?{instruction}", "answer": str(2 * k)} for k in range(6)]
    assert sorted(read(out), key=lambda row: row["input"]) == expected
    for line in (
        "12 rows in",
        "1 dropped: not a problem with text",
        "2 dropped: not a problem with an answer",
        "1 dropped: not the first with its problem",
        "1 dropped: not a problem whose answer Math-Verify can read",
        "1 dropped: not at most 1024 tokens",
        "6 written to",
    ):
        assert line in said


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("answers", "kept"),
    [([0, 7, None], ["0", "7"]), ([0.5, 0.00001, None], ["0.5", "0.00001"]), ([True, False, None], [])],
)
def test_answers_that_are_no_text(tmp_path, tokenizer, capsys, suffix, answers, kept):
    rows = [{"problem": f"What is {k}?", "answer": answer} for k, answer in enumerate(answers)]
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / f"s{suffix}", rows)
    if not kept:
        with pytest.raises(DarlingError, match="0 after the filters"):
            prepare("prepare_deepscaler", source, tokenizer, out, 1)
        return
    prepare("prepare_deepscaler", source, tokenizer, out, len(kept))
    assert f"{len(answers) - len(kept)} dropped: not a problem with an answer" in capsys.readouterr().out
    assert sorted(float(row["answer"]) for row in read(out)) == sorted(map(float, kept))
    assert all(isinstance(row["answer"], str) and "e" not in row["answer"] for row in read(out))


def test_a_file_that_cannot_be_read_is_named(tmp_path, tokenizer):
    source = tmp_path / "source.parquet"
    source.write_text("no parquet")
    with pytest.raises(DarlingError, match="correct --source"):
        prepare("prepare_deepscaler", source, tokenizer, tmp_path / "out.jsonl", 1)


def test_the_sample_is_seeded(tmp_path, tokenizer):
    source = write(tmp_path / "source.jsonl", DEEPSCALER)
    samples = []
    for k, seed in enumerate((0, 0, 1, 2, 3)):
        out = tmp_path / f"{k}.jsonl"
        prepare("prepare_deepscaler", source, tokenizer, out, 3, "--seed", str(seed))
        samples.append(out.read_text())
    assert samples[0] == samples[1]
    assert len(set(samples)) > 1


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [
        ([{"problem": "p", "result": "1"}], 1, r"answer in .*found:  only problem, result"),
        (DEEPSCALER, 7, r"--count 7 .*found:  6 after the filters"),
        (None, 1, "no file"),
    ],
)
def test_refused_with_what_to_do(tmp_path, tokenizer, rows, count, expected):
    source = tmp_path / "source.jsonl"
    if rows is not None:
        write(source, rows)
    with pytest.raises(DarlingError, match=f"(?s){expected}"):
        prepare("prepare_deepscaler", source, tokenizer, tmp_path / "out.jsonl", count)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path, tokenizer):
    bare = AutoTokenizer.from_pretrained(tokenizer)
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "bare")
    source = write(tmp_path / "source.jsonl", DEEPSCALER)
    with pytest.raises(DarlingError, match="chat template"):
        prepare("prepare_deepscaler", source, tmp_path / "bare", tmp_path / "out.jsonl", 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("8", True), (r"\frac{1}{2}", True), ("$-3$", True), ("(1, 2)", True), ("1/0", False), (r"\frac{", False)],
)
def test_an_answer_is_kept_if_giving_it_earns_the_reward(answer, expected):
    assert importlib.import_module("prepare_deepscaler").is_checkable(answer) is expected


def test_the_command_line_ends_with_status_1_and_the_message(tmp_path):
    command = [sys.executable, EXAMPLES / "prepare_wildchat.py", "--source", tmp_path / "none.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "correct --source" in done.stderr
    assert "Traceback" not in done.stderr
