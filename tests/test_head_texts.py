"""What of a text's looks the head compares: what it stresses, and its words with a capital."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darling_plugin.partition.models.head import features


class Text:
    def __init__(self, text):
        self.text = text


@pytest.mark.parametrize(
    "other",
    [
        "**Red Fox**\nand more",
        "text, **Red Fox**",
        "# Red Fox",
        "text\n### Red Fox",
        "1. Red Fox: it runs",
        "text\n\n  12) Red Fox. It runs",
        "- Red Fox. It runs",
        "text\n\t• Red Fox: it runs",
    ],
)
def test_bold_text_headings_and_the_beginnings_of_items_are_stressed(other):
    found = features._of_texts([Text("**red fox**"), Text(other)])["headings"]
    assert np.allclose(found, 1.0)


@pytest.mark.parametrize(
    "other", ["Red Fox", "text # Red Fox", "text - Red Fox: it", "-Red Fox: it", "**Red\nFox**", ""]
)
def test_the_same_words_elsewhere_are_not(other):
    assert features._of_texts([Text("**red fox**"), Text(other)])["headings"][0, 1] == 0.0


@given(st.text(st.sampled_from("aB1_ .é"), max_size=20))
def test_a_capital_begins_its_word(text):
    words = "".join(sign if sign.isalnum() or sign == "_" else " " for sign in text).split()
    assert features.CAPITAL.findall(text) == [word for word in words if word[0] == "B" and len(word) > 1]
