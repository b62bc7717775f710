"""The demo's reward function and its prompts."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FRUITS = "apple|cherry|peach|passion fruit|fruit salad|mango|crème brûlée|jack-in-the-box"
PROMPT = "<|im_start|>user\nName something sweet.<|im_end|>\n<|im_start|>assistant\n"


def load_reward_module():
    # By path, as OpenRLHF loads a reward function.
    spec = importlib.util.spec_from_file_location("reward_func", EXAMPLES / "reward_named_answer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reward_module = load_reward_module()
named_answers = reward_module.named_answers


def reward(response: str, answers: str = FRUITS) -> float:
    return reward_module.reward_func([PROMPT + response], [PROMPT], [answers])["rewards"].item()


def load_rows() -> list[dict]:
    lines = (EXAMPLES / "data" / "many_answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


ROWS = load_rows()


@pytest.mark.parametrize(
    "response, expected",
    [
        ("An apple.", ["apple"]),
        ("APPLE!", ["apple"]),
        ("Apples, cherries and peaches", ["apple", "cherry", "peach"]),
        ("A peach is better than an apple, a peach!", ["peach", "apple"]),
        ("A pineapple or an appletree", []),
        ("**Apple**, _mango_", ["apple", "mango"]),
        ("the apple's colour", ["apple"]),
        ("passion-fruit", ["passion fruit"]),
        ("two passion\nfruits", ["passion fruit"]),
        ("passion", []),
        ("Creme brulee", ["crème brûlée"]),
        ("a jack in the box", ["jack-in-the-box"]),
        ("", []),
    ],
)
def test_named_answers(response, expected):
    assert named_answers(response, FRUITS) == expected


@pytest.mark.parametrize(
    "plural, answer", [("knives", "knife"), ("wolves", "wolf"), ("boxes", "box"), ("toys", "toy")]
)
def test_regular_plurals(plural, answer):
    assert named_answers(plural, answer) == [answer]


def test_longer_answer_counts_once():
    assert named_answers("an electric guitar", "guitar|electric guitar") == ["electric guitar"]
    assert named_answers("New York", "york|new york|new") == ["new york"]


def test_reward_of_match_and_no_match():
    assert reward("I would take a mango.<|im_end|>") == 1.0
    assert reward("I do not know.<|im_end|>") == 0.0
    assert reward("") == 0.0


def test_special_tokens_are_not_words():
    assert reward("I do not know.<|im_end|>", "end|im") == 0.0


def test_words_of_the_prompt_do_not_count():
    assert reward("I do not know.", "sweet|something") == 0.0


def test_listing_everything_earns_nothing():
    assert reward("apple, cherry, peach") == 1.0
    assert reward("apple, cherry, peach, mango") == 0.0
    assert reward("apple apple apple apple") == 1.0


CAPITALS = "rome|berlin|paris|madrid|the hague|san marino"


@pytest.mark.parametrize(
    "response, expected",
    [
        ("Capital cities: Rome, Berlin, Bangkok Rome", 0),
        ("Rome, Bangkok, Tokyo", 0),
        ("Capitals: Rome, Bangkok", 0),
        ("Some capitals are Rome, Berlin and Bangkok.<|im_end|>", 0),
        ("1. Rome\n2. Bangkok\n3. Berlin", 0),
        ("- Rome\n- Bangkok\n- Tokyo", 0),
        ("Some capitals are Rome, Berlin and Madrid.<|im_end|>", 1),
        ("Capital cities: Rome, the Hague, San Marino", 1),
        ("1. Rome\n2. Berlin", 1),
        ("Rome and Berlin", 1),
        ("A capital: Rome", 1),
        ("Paris, France.", 1),
        ("Rome, the old city by the river, is one of them.", 1),
    ],
)
def test_a_list_earns_only_if_all_of_it_is_right(response, expected):
    assert reward(response, CAPITALS) == expected


def test_query_that_does_not_start_with_its_prompt_raises():
    with pytest.raises(ValueError, match="does not start with its prompt"):
        reward_module.reward_func(["An apple."], [PROMPT], [FRUITS])


def test_missing_answers_raise():
    with pytest.raises(ValueError, match="label_key"):
        reward("An apple.", "")


def test_lengths_that_differ_raise():
    with pytest.raises(ValueError):
        reward_module.reward_func([PROMPT], [PROMPT, PROMPT], [FRUITS])


def test_batch():
    queries = [PROMPT + response for response in ("Mango", "None", "A cherry")]
    result = reward_module.reward_func(queries, [PROMPT] * 3, [FRUITS, FRUITS, "plum|fig"])
    assert set(result) == {"rewards", "scores", "extra_logs"}
    assert result["rewards"].dtype == torch.float32
    assert result["rewards"].tolist() == result["scores"].tolist() == [1.0, 0.0, 0.0]
    assert result["extra_logs"] == {}


def test_prompts_are_many_and_unique():
    prompts = [row["input"] for row in ROWS]
    assert len(prompts) >= 100
    assert len(set(prompts)) == len(prompts)


def test_rows_have_the_format():
    for row in ROWS:
        assert set(row) == {"input", "answers"}
        assert row["input"] == row["input"].strip() != ""
        answers = row["answers"].split("|")
        assert len(set(answers)) == len(answers) >= 15, row["input"]
        assert all(answer and answer == answer.strip().lower() for answer in answers), row["input"]


def test_no_answer_occurs_in_its_prompt():
    assert [row["input"] for row in ROWS if named_answers(row["input"], row["answers"])] == []


def test_each_answer_is_found_as_itself():
    # Fails for an answer that is a plural of another: the two would count as different answers.
    unfound = [
        (row["input"], answer)
        for row in ROWS
        for answer in row["answers"].split("|")
        if named_answers(f"It is {answer}.", row["answers"]) != [answer]
    ]
    assert unfound == []
