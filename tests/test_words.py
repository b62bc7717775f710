"""Words as the head compares them: numbers in digits, and texts that go astray."""

import pytest

from darling_plugin.partition.models.head.order import other_codes
from darling_plugin.partition.models.head.words import values_of, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Twenty-one cats", ["21", "cat"]),
        ("forty two", ["42"]),
        ("one hundred", ["100"]),
        ("ten five", ["10", "5"]),
        ("Minus nine", ["-9"]),
        ("x = -7", ["x", "=", "-7"]),
        ("x-3 or 2n - 1", ["x", "-", "3", "or", "2", "n", "-", "1"]),
        ("x >= 3, y != 4", ["x", "≥", "3", "y", "≠", "4"]),
        ("2*3 * 4", ["2", "×", "3", "×", "4"]),
        ("> A quotation", ["a", "quotation"]),
        ("C++, C# and an A- in F#.", ["c++", "c#", "and", "an", "a-", "in", "f#"]),
        ("1,000.50 and −.5", ["1000.5", "and", "-0.5"]),
        ("2/3 at 12:30, 1,5", ["2/3", "at", "12:30", "1", "5"]),
        ("This cat's toys", ["this", "cat's", "toy"]),
        ("我喜欢AI", ["我", "喜", "欢", "ai"]),
        ("10-20 km", ["10", "-", "20", "kilometer"]),
        ("$5", ["dollar", "5"]),
        ("20 °C, or 3.14", ["20", "degree", "c", "or", "3.14"]),
        ("It’s the boss", ["it's", "the", "boss"]),
        ("It won't, can't and didn't.", ["it", "will", "not", "can", "not", "and", "did", "not"]),
    ],
)
def test_words_have_numbers_in_digits(text, words):
    assert words_of(text) == words


NINES = "9" * 400


@pytest.mark.parametrize(
    "text",
    [
        *(f"{NINES}{after}" for after in ("", " km", "%", "½", ".5 kg", "/7", " million", ":30", " and a half")),
        *("\\sqrt{" * 160, "\\frac{" + "{" * 480, "$" * 900, "[1,2" * 240, "1/" * 499, "a.b." * 240, "one " * 240),
        *("5/0", "31/02/2024", "25:61", "\ud83d", "\x00" * 900, "⟦⟧", "", " ", "-", "٣ km"),
    ],
)
def test_a_response_that_goes_astray_is_read_all_the_same(text):
    for read in (words_of, values_of):
        assert read(text) == read(text) and all(isinstance(word, str) and word for word in read(text))


def test_long_numbers_that_differ_differ():
    assert values_of("1000000001 km") != values_of("1000000002 km")
    assert values_of(f"{NINES}1 km") != values_of(f"{NINES}2 km")
    assert values_of("1000000001 km") == values_of("1000000001000 m")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A-17", ["letter a", "17"]),
        ("seat 12a.", ["seat", "12", "letter a"]),
        ("Gate A 12.", ["gate", "letter a", "12"]),
        ("I-17", ["letter i", "17"]),
        ("x = a-2", ["x", "=", "a", "-", "2"]),
        ("2a + 3", ["2", "a", "+", "3"]),
        ("a17@shop.test", ["a17@shop.test"]),
        ("https://x.com/A-17", ["https://x.com/a-17"]),
        ("A 12 year old", ["a", "12", "year", "old"]),
        ("A7!x", ["a", "7", "x"]),
    ],
)
def test_the_a_of_a_code_is_no_article_and_that_of_a_formula_no_code(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("first", "second", "others"),
    [
        ("Seat 12A.", "seat 12B", True),
        ("A-17", "B-17", True),
        ("27H9", "27J9", True),
        ("GPT-4", "GPT-4o", True),
        ("A-17", "a17", False),
        ("B-52s", "B-52", False),
        ("He is 18yr old.", "He is 18years old.", False),
        ("5usd", "5dollars", False),
        ("mid-1990s", "mid1990s", False),
        ("the 90s", "the 1990s", False),
        ("Seat 12A is free", "12B is free", False),
    ],
)
def test_codes_differ_by_their_letters_and_digits_and_quantities_are_none(first, second, others):
    assert list(other_codes([first, "another text", second])) == ([(0, 2)] if others else [])
