"""`darling-show`: the tables of a run's partitions.jsonl."""

import json

import pytest

from darling_plugin import metrics
from darling_plugin.commands.show import asked, main, shortened
from darling_plugin.evaluation.report.runs import as_groups


@pytest.fixture
def log_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def write(*records, end="\n"):
        (tmp_path / "partitions.jsonl").write_text("\n".join(map(json.dumps, records)) + end, encoding="utf-8")
        return str(tmp_path)

    return write


def group(step, labels, quality, split="train"):
    diversity = [sum(other != label for other in labels) / (len(labels) - 1) for label in labels]
    responses = [f"answer {label}\u2028of {k}" for k, label in enumerate(labels)]  # as Unicode ends a line
    reward = [q * d for q, d in zip(quality, diversity, strict=True)]
    return {
        "step": step,
        "split": split,
        "prompt": f"<|user|>Question of step {step}<|end|>",
        "responses": responses,
        "labels": labels,
        "quality": quality,
        "diversity": diversity,
        "reward": reward,
    }


FAILED = {**group(2, [0, 1], [1.0, 1.0]), "labels": None, "diversity": None}


def test_a_row_a_step_and_the_last_steps_groups_class_by_class(log_dir, capsys):
    records = [
        group(1, [0, 1], [1.0, 0.0]),
        group(2, [0, 1, 0], [0.5] * 3),
        FAILED,
        group(9, [0, 0], [9.0] * 2, "eval"),
    ]
    assert main([log_dir(*records)]) == 0
    said = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in said.splitlines()]
    assert ["1", "0.500", "1.000", "2.00", "0.500"] in rows
    assert ["2", "0.500", "0.667", "2.00", "0.333"] in rows
    assert "step 2: Question of step 2" in [line.strip() for line in said.splitlines()]
    assert "step 1: " not in said and "9.000" not in said
    assert "darling-report " in said
    assert said.index("answer 0 of 0") < said.index("answer 0 of 2") < said.index("answer 1 of 1")


def test_what_a_terminal_would_obey_and_what_no_encoding_holds_is_not_printed(log_dir, capsys):
    record = group(1, [0, 1], [1.0, 0.0])
    record["responses"] = ["\x1b]0;OWNED\x07 \x1b[31m red \x9b31m", "a \ud800 lone one"]
    record["prompt"] = "\x1b[2J a question"
    assert main([log_dir(record)]) == 0
    said = capsys.readouterr().out
    assert not set("\x1b\x07\x9b\ud800") & set(said) and "\ufffd[31m red" in said and "a \ufffd lone one" in said


def test_means_are_of_those_who_take_part_as_the_metrics_of_training_are(log_dir, capsys):
    # A quality gate left out one response of the first group, and all of the second.
    some = {**group(1, [0, 1, -1], [1.0, 0.5, 0.0]), "diversity": [1.0, 0.5, 0.0]}
    none = {**group(1, [-1] * 3, [0.0] * 3), "diversity": [0.0] * 3}
    assert main([log_dir(some, none, {**none, "step": 2})]) == 0
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    groups, _ = as_groups([some, none])
    assert (metrics.diversity(groups), metrics.classes_per_group(groups)) == (0.75, 2.0)
    assert [row[2:4] for row in rows if row[:1] == ["1"] and len(row) == 5] == [["0.750", "2.00"]]
    assert [row[1:4] for row in rows if row[:1] == ["2"] and len(row) == 5] == [["0.000", "–", "–"]]


def test_no_more_groups_than_asked_for(log_dir, capsys):
    assert main([log_dir(*[group(1, [0, 1], [1.0, 1.0])] * 5), "--groups", "2"]) == 0
    assert capsys.readouterr().out.count("step 1: ") == 2


def test_a_line_that_is_being_written_is_left_out(log_dir, capsys):
    assert main([log_dir(group(1, [0, 1], [1.0, 1.0]), end='\n{"step": 2, "spl')]) == 0
    assert "step 1: " in capsys.readouterr().out


def test_a_folder_without_partitions_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_run_before_its_first_step_has_nothing_to_show(log_dir, capsys):
    assert main([log_dir(group(0, [0, 1], [1.0, 1.0], "eval"))]) == 2
    assert "wait for the first step" in capsys.readouterr().err


def test_a_broken_line_is_not_passed_over(log_dir, capsys):
    assert main([log_dir(group(1, [0, 1], [1.0, 1.0]), end="\nnonsense\n")]) == 2
    assert "as --darling.log_dir writes it" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["[1]", "3", "null", '{"prompt": "p", "responses": ["a"], "labels": [0]}'])
def test_a_line_of_another_kind_is_named(log_dir, capsys, line):
    assert main([log_dir(group(1, [0, 1], [1.0, 1.0]), end=f"\n{line}\n")]) == 2
    assert "line 2, without step" in capsys.readouterr().err


def test_an_empty_file_has_nothing_to_show(tmp_path, capsys):
    (tmp_path / "partitions.jsonl").write_bytes(b"")
    assert main([str(tmp_path)]) == 2
    assert "wait for the first step" in capsys.readouterr().err


QUESTION = "Name a fruit.\nAny fruit, e.g. <b>apple</b>"


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s>[INST] {} [/INST]",
        "<s>[INST] <<SYS>>\nBe\nbrief.\n<</SYS>>\n\n{} [/INST] Sure:",
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hello[/INST]Hi</s>[INST]{}[/INST]",
        "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
        "<|user|>\n{}<|end|>\n<|assistant|>\n",
        "<|system|>\n</s>\n<|user|>\n{}</s>\n<|assistant|>\n",
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>{}<｜Assistant｜><think>\n",
        "<|start|>system<|message|>Be brief.<|end|><|start|>user<|message|>{}<|end|><|start|>assistant",
        "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "{}",
    ],
)
def test_what_the_user_asked_is_shown_without_the_chat_template(prompt):
    assert asked(prompt.format(QUESTION)) == QUESTION


@pytest.mark.parametrize(
    "prompt", ["", "  user: f <| x |> g </s>\n", "<s>Once upon a time", "<|im_start|>system\nOnly"]
)
def test_a_prompt_without_a_users_turn_stays_as_it_is(prompt):
    assert asked(prompt) == prompt


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short enough", "short enough"),
        ("twelve  chars\n", "twelve chars"),
        ("one two three four", "one two …"),
        ("one two thr four", "one two …"),
        ("我喜欢吃苹果和香蕉还有其他的水果", "我喜欢吃苹果和香蕉还有…"),
        ("x = sqrt(2)+sqrt(3)", "x = sqrt(2)…"),
    ],
)
def test_a_title_is_cut_at_a_word(text, shown):
    assert shortened(text, 12) == shown and len(shown) <= 12
