"""`lexical`, words and word pairs, and `lexical:N`, n-grams of one length."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darling_plugin import DarlingError
from darling_plugin.openrlhf import launch
from darling_plugin.partition import Group, Pair, check_partition_spec, load_partition_model
from darling_plugin.partition.models.lexical import Lexical

WORDS = st.lists(st.sampled_from(["a", "b", "c", "D"]), max_size=9)


def oracle(first: list[str], second: list[str], size: int) -> float:
    def grams(words):
        if not words:
            return []
        words = [word.lower() for word in words]
        every = [words[k : k + size] for k in range(len(words)) if k + size <= len(words)] or [words]
        return [gram for k, gram in enumerate(every) if gram not in every[:k]]

    a, b = grams(first), grams(second)
    shared = sum(gram in b for gram in a)
    return shared / (len(a) + len(b) - shared) if a or b else 0.0


@given(WORDS, WORDS, st.integers(1, 6))
def test_similarity_matches_the_oracle(first, second, size):
    model = load_partition_model(f"lexical:{size}")
    got = model.similarity([Pair("p", " ".join(first), ", ".join(second))])
    assert got == pytest.approx([oracle(first, second, size)])


def test_four_grams():
    model = load_partition_model("lexical:4")
    similarity = dict(
        zip(
            ("one of three shared", "words alone", "short and equal", "short and not", "short in long", "no words"),
            model.similarity(
                [
                    Pair("p", "The cat sat on a", "the cat, sat on MAT"),
                    Pair("p", "one two three four", "four three two one"),
                    Pair("p", "yes, indeed", "Yes indeed!"),
                    Pair("p", "yes indeed", "yes"),
                    Pair("p", "yes indeed", "yes indeed it is"),
                    Pair("p", "?!", "..."),
                ]
            ),
            strict=True,
        )
    )
    assert similarity == {
        "one of three shared": pytest.approx(1 / 3),
        "words alone": 0,
        "short and equal": 1,
        "short and not": 0,
        "short in long": 0,
        "no words": 0,
    }


def test_partition_and_options():
    model = load_partition_model("lexical:4", threshold=0.3, clustering="greedy")
    assert (model.threshold, model.clustering) == (0.3, "greedy")
    responses = ["The cat sat on a", "the cat sat on MAT", "a cat sat on mats", "", "Hm", "hm."]
    assert model.partition([Group("p", responses)])[0].tolist() == [0, 0, 1, 2, 3, 3]


@pytest.mark.parametrize("argument", ["x", "0", "-1", "4.0", " 4", "04", "four"])
def test_an_argument_that_is_no_number_of_words_is_refused_before_anything_starts(argument):
    for check in (load_partition_model, check_partition_spec):
        with pytest.raises(DarlingError, match=f"lexical:{argument}") as raised:
            check(f"lexical:{argument}")
        assert all(part.strip() for part in raised.value.args)
    flags = "--darling.enable --rollout.n_samples_per_prompt 8 --algo.advantage.estimator dr_grpo".split()
    with pytest.raises(DarlingError, match="as in lexical:4"):
        launch.main([*flags, "--darling.partition_model", f"lexical:{argument}"])


def oracle_lexical(first, second):
    def ngrams(text):
        words = re.sub(r"[^\w\s]", " ", text.casefold()).split()
        found = []
        for size in (1, 2):
            for i in range(len(words) - size + 1):
                if words[i : i + size] not in found:
                    found.append(words[i : i + size])
        return found

    a, b = ngrams(first), ngrams(second)
    shared = sum(gram in b for gram in a)
    total = len(a) + len(b) - shared
    return shared / total if total else 0.0


sentences = st.lists(st.sampled_from(["The", "the", "cat", "sat,", "on", "MAT.", "a-b", "?!", "é"]), max_size=6).map(
    " ".join
)


@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=8))
def test_lexical_similarity_matches_the_oracle(pairs):
    got = Lexical().similarity([Pair("p", *pair) for pair in pairs])
    assert got == pytest.approx([oracle_lexical(*pair) for pair in pairs])


def test_lexical_partition():
    responses = [
        "The cat sat on the mat.",
        "the cat sat on the mat!",
        "A dog barked.",
        "",
        "?!",
        "The cat sat on a mat.",
    ]
    model = load_partition_model("lexical")
    assert model.threshold == 0.5
    # The last one shares 4 words and 3 bigrams of 13 n-grams with the first.
    assert model.partition([Group("p", responses)])[0].tolist() == [0, 0, 1, 2, 3, 0]
