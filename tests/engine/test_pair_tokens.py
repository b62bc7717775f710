"""Pairs of token ids are the tokenizer's own."""

from itertools import combinations

import pytest
from tiny_classifiers import PAIRS, SPECIAL, TEXTS, make_tokenizer, some_texts

from darling_plugin.partition import Pair
from darling_plugin.partition.engine import pair_tokens
from darling_plugin.partition.engine.pair_tokens import PairTokens


@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen3"], scope="function")
@pytest.mark.parametrize("max_length", [8, 9, 21, 200])
def test_pairs_are_what_the_tokenizer_makes_of_them(kind, max_length):
    tokenizer = make_tokenizer(kind)
    pairs = [Pair("p", *two) for two in combinations(["", "cat", *some_texts(7, 20)], 2)]
    for pair, ids in zip(pairs, PairTokens(tokenizer, max_length)(pairs), strict=True):
        expected = tokenizer(pair.first, pair.second, truncation="longest_first", max_length=max_length)
        assert ids.ids.tolist() == expected["input_ids"]
        if kind == "bert":
            assert ids.types.tolist() == expected["token_type_ids"]
        else:
            assert ids.types is None


def test_each_response_is_tokenised_once(monkeypatch):
    tokenizer = make_tokenizer("bert")
    seen, tokenise = [], type(tokenizer)._encode_plus

    def noting(self, text, *args, **kwargs):
        seen.extend([text] if isinstance(text, str) else text)
        return tokenise(self, text, *args, **kwargs)

    tokens = PairTokens(tokenizer, 100)
    monkeypatch.setattr(type(tokenizer), "_encode_plus", noting)
    first = tokens(PAIRS[:10])
    tokens(PAIRS)
    assert sorted(seen) == sorted(set(TEXTS))
    monkeypatch.setattr(pair_tokens, "KEPT", 3)
    again = tokens([*PAIRS[:1], Pair("p", "a new one", "cat")])
    assert again[0].ids.tolist() == first[0].ids.tolist()
    assert set(tokens._ids) == {*PAIRS[0][1:], "a new one", "cat"}, "older responses are forgotten"


def test_the_limit_of_a_response_and_the_special_tokens():
    tokenizer = make_tokenizer("qwen3")
    tokens = PairTokens(tokenizer, 100, max_response_length=3, special_tokens=("<cls>", "<sep>", "<pad>"))
    (ids,) = tokens([Pair("p", "the cat sat on", "a dog")])
    words = {word: k for k, word in enumerate(SPECIAL)} | tokenizer.get_vocab()
    assert ids.beginning.tolist() == [words[w] for w in ("<cls>", "the", "cat", "sat", "<sep>")]
    assert ids.own.tolist() == [words[w] for w in ("a", "dog", "<pad>")]
    with pytest.raises(Exception, match="a tokenizer that knows <nope>"):
        PairTokens(tokenizer, 100, special_tokens=("<nope>", "<sep>", "<sep>"))
    with pytest.raises(Exception, match="max_length above the pair's 2 special"):
        PairTokens(tokenizer, 3)


@pytest.mark.parametrize(("limits", "told"), [((200,), 0), ((9,), 1), ((200, 4), 1)])
def test_pairs_that_are_cut_are_told_once(caplog, limits, told):
    tokens = PairTokens(make_tokenizer("bert"), *limits)
    for _ in range(2):
        tokens([Pair("p", "cat", "cat"), Pair("p", "cat", "cat " * 20)])
    assert caplog.text.count("1 of 2 (50 %) are cut") == told
