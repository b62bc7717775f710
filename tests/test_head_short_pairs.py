"""Short pairs by kind, groups in one frame, and padding: how many are told right, with floors.

The tables were written with the training pairs of the same kinds: other prompts and values, the same hand.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from darling_plugin.partition import Group, load_partition_model
from darling_plugin.partition.models.head.model import SHIPPED
from darling_plugin.partition.models.head.padding import opening_and_rest
from darling_plugin.partition.models.head.words import is_number, values_of, words_of

HERE = Path(__file__).parent
TABLE = [json.loads(line) for line in (HERE / "short_pairs.jsonl").read_text().splitlines()]
PADDED = json.loads((HERE / "padding.json").read_text())
# Shares of the same and of the different pairs of each kind that must be told right; some below what was measured.
FLOOR, LOWER = 0.9, {"names": 0.85, "unicode": 0.85}
LEAST_PADDED = 0.85


@pytest.fixture(scope="module")
def default():
    return load_partition_model("default")


def _pairs(classes):
    """The first spelling with each other one of its class, and each class with the next, spelling by spelling."""
    for k, own in enumerate(classes):
        yield from ((own[0], other, True) for other in own[1:])
        if len(classes) > 2 or k + 1 < len(classes):
            following = classes[(k + 1) % len(classes)]
            for i in range(max(len(own), len(following))):
                yield own[i % len(own)], following[i % len(following)], False


PAIRS = [(row["kind"], row["prompt"], *pair) for row in TABLE for pair in _pairs(row["classes"])]


def test_the_table_has_same_and_different_pairs_of_each_kind():
    count = Counter((kind, same) for kind, *_, same in PAIRS)
    assert len(count) == 26 and min(count.values()) >= 12


def test_short_pairs_of_each_kind_are_told_right(default):
    found = default.partition([Group(prompt, [first, second]) for _, prompt, first, second, _ in PAIRS])
    right, count = Counter(), Counter()
    for (kind, *_, same), labels in zip(PAIRS, found, strict=True):
        count[kind, same] += 1
        right[kind, same] += (labels[0] == labels[1]).item() == same
    low = {each: f"{right[each]} of {n}" for each, n in count.items() if right[each] < LOWER.get(each[0], FLOOR) * n}
    assert low == {}


def test_none_of_the_prompts_is_trained_on():
    trained = {json.loads(line)["prompt"] for line in (SHIPPED / "pairs.jsonl").read_text().splitlines()}
    assert trained.isdisjoint({row["prompt"] for row in TABLE})
    assert trained.isdisjoint({prompt for prompt, *_ in (*PADDED["answers"], *PADDED["lists"])})


FRAMES = [
    ("Write the equation of a line.", "y = 2x + {}", [*"12345678"]),
    ("Name the part that I should read.", "You should read section {} first.",
     ["2.1", "2.10", "2.2", "2.11", "2.12", "3.1", "12.1", "1.2"]),
    ("Pick lottery numbers.", "My lottery numbers are 3, 11, 19, 27 and {}.",
     ["31", "32", "33", "34", "35", "36", "37", "38"]),
    ("Name a colour in hex.", "The colour is #{}.",
     ["ff0000", "00ff00", "0000ff", "ffff00", "ff00ff", "00ffff", "12ab9f", "a0b1c2"]),
    ("Make up a password.", "A password that you could use is {}.",
     ["hK3nv9Qa", "Zt81mPw4", "b7Rc2xLd", "Qp5s8Vne", "x9Gf3kTa", "M2wd7Hcr", "u4Yb6jSz", "E8tn1oKp"]),
    ("Which page has it?", "It is at https://wiki.test/{}", ["a", "b", "home", "faq", "team", "news", "help", "map"]),
    ("Which card did you draw?", "The card that I drew is the {}.",
     ["7 of hearts", "8 of hearts", "7 of spades", "king of clubs", "9 of clubs", "2 of diamonds", "ace of spades",
      "queen of hearts"]),
    ("What is the support address?", "Please write to {}@shop.test if it does not work.",
     ["help", "info", "sales", "anna", "office", "care", "team", "service"]),
    ("Which seat is free?", "Seat {} is free.", ["12A", "12B", "12C", "12D", "13A", "13B", "A12", "B12"]),
    ("Which flight do you take?", "{}", ["BA-2490", "LH-2490", "AF2490", "U2-2490", "BA2491", "A-17", "B-17", "I-17"]),
    ("Which address is it?", "It is {}@shop.test.", ["a17", "b17", "i17", "17", "a18", "ab17", "a-17", "anna"]),
    ("Name a chess square.", "The knight stands on {}.", ["a4", "b4", "c4", "d4", "e4", "f4", "g4", "a5"]),
]  # fmt: skip
SPELLINGS = [
    ("How many cells are there?", "There are about {} cells in it.", ["2.5 million", "2,500,000", "2500000"]),
    ("When was the law passed?", "The law was passed on {}.", ["3 March 2024", "2024-03-03", "March 3rd, 2024"]),
    ("How far can you see?", "You can see for {} from there.", ["2 km", "2000 m", "2,000 metres", "two kilometres"]),
    ("How much of it is water?", "{} of it is water.", ["1/2", "50%", "50 percent", "Half"]),
    ("Which room is it?", "It is room {}.", ["A-17", "a17", "A17"]),
    ("Which seat is it?", "It is {}", ["12A", "12a", "12-A"]),
    ("Which gate is it?", "Go to gate {}.", ["A12", "A 12"]),
    ("How far do you run?", "I run {} a day.", ["5km", "5000m", "5KM"]),
    ("When was it?", "It was in the {}.", ["1990s", "1990's"]),
    ("Which road do you take?", "I take {} home.", ["Interstate 95", "I-95"]),
]


@pytest.mark.parametrize(("prompt", "frame", "values"), FRAMES)
def test_other_numbers_and_codes_in_one_frame_are_classes_of_their_own(default, prompt, frame, values):
    labels = default.partition([Group(prompt, [frame.format(each) for each in values])])[0]
    assert labels.tolist() == list(range(8))


@pytest.mark.parametrize(("prompt", "frame", "values"), SPELLINGS)
def test_one_value_in_other_spellings_is_one_class(default, prompt, frame, values):
    labels = default.partition([Group(prompt, [frame.format(each) for each in values])])[0]
    assert set(labels.tolist()) == {0}


def test_padding_does_not_make_another_class_of_an_answer(default):
    right, count = Counter(), 0
    for text in PADDED["padding"].values():
        for prompt, answer, other in PADDED["answers"]:
            for between in (" ", "\n\n"):
                group = [answer, answer + between + text, other + between + text]
                plain, padded, another = default.partition([Group(prompt, group)])[0].tolist()
                count += 1
                right["joined"] += plain == padded
                right["apart"] += plain != another and padded != another
    assert min(right["joined"], right["apart"]) >= LEAST_PADDED * count, (right, count)


@pytest.mark.parametrize(("prompt", "answer", "many"), PADDED["lists"])
def test_a_list_that_begins_with_an_answer_is_another_answer(default, prompt, answer, many):
    assert default.partition([Group(prompt, [answer, many])])[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "words", "values"),
    [
        ("Two and a half million", ["2500000"], ["2500000"]),
        ("1 km", ["1", "kilometer"], ["1000 meter"]),
        ("half an hour", ["half", "an", "hour"], ["1800 second"]),
        ("3 March 2024", ["3", "march", "2024"], ["2024-03-03"]),
        ("03/04/2024", ["03/04/2024"], ["03/04/2024"]),  # of two readings none is taken
        ("5 p.m.", ["5", "pm"], ["17:00"]),
        (r"$\frac{3}{4}$", ["3/4"], ["0.75"]),
        ("x² > 2", ["x", "^2", ">", "2"], ["x", "^2", ">", "2"]),
        ("the twenty-first", ["the", "21st"], ["the", "21st"]),
        ("a second", ["a", "second"], ["1 second"]),
        ("colourful", ["colorful"], ["colorful"]),
        ("section 2.10", ["section", "2.10"], ["section", "2.10"]),
        ("$20 and $30", ["dollar", "20", "and", "dollar", "30"], ["dollar", "20", "and", "dollar", "30"]),
        ("West Virginia", ["west virginia"], ["west virginia"]),
    ],
)
def test_what_a_text_is_read_as(text, words, values):
    assert words_of(text) == words and values_of(text) == values


def test_what_counts_as_a_number_or_a_code():
    assert all(map(is_number, ["-21", "1000 meter", "^2", "#ff0000", "a@b.c", "https://a.b", "1st"]))
    assert not any(map(is_number, ["-", "c#", "#", "x", "^", "half"]))


LONG_REST = (
    "The fox crossed the river at dawn, while the others slept, and found the hill on which he had been born. " * 2
)


@pytest.mark.parametrize("head", ["## The fox", "**The fox**", "Here's another one:", "Title: The fox.", "Dear Dr."])
def test_what_heads_a_text_is_no_answer_with_padding(head):
    assert opening_and_rest(f"{head}\n{LONG_REST}", []) is None
    assert opening_and_rest(f"Paris.\n{LONG_REST}", [])[0] == "Paris."
