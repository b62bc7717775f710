"""The released classifiers' names: thresholds, input as their authors made it, short answers."""

import pytest
import torch
from tiny_classifiers import make_classifier, make_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, Pair, load_partition_model
from darling_plugin.partition.models.released import short_answers_agree

LONG = "the cat sat on the mat"


@pytest.fixture(autouse=True)
def the_tokenizer_as_it_was_saved(monkeypatch):
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", PreTrainedTokenizerFast.from_pretrained)


@pytest.mark.parametrize(
    ("name", "kind", "threshold", "max_length", "of_response"),
    [
        ("darling-modernbert", "modernbert", 0.32, 2048, 1022),
        ("noveltybench-deberta", "bert", 0.102, 300, 128),
    ],
)
def test_thresholds_and_lengths_of_the_released_classifiers(name, kind, threshold, max_length, of_response, tmp_path):
    model = load_partition_model(f"{name}:{make_classifier(tmp_path, kind)}")
    assert (model.threshold, model.max_length) == (threshold, max_length)
    (ids,) = model._pair_tokens([Pair("p", "cat " * 3000, "dog")])
    assert len(ids.beginning) == 1 + of_response + 1
    assert load_partition_model(f"{name}:{tmp_path}", threshold=0.4, clustering="greedy").threshold == 0.4


def test_the_maths_classifier_is_given_the_special_tokens_of_its_authors(tmp_path):
    tokenizer = make_tokenizer("qwen3")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    path = make_classifier(tmp_path / "model", "qwen3")
    with pytest.raises(DarlingError, match="knows <|im_start|>"):
        load_partition_model(f"darling-qwen3-math:{path}")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = AutoModelForSequenceClassification.from_pretrained(path)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(path)
    preset = load_partition_model(f"darling-qwen3-math:{path}?tokenizer={tmp_path / 'tokenizer'}&dtype=float32")
    assert (preset.threshold, preset.max_length) == (0.5, 4096)
    (ids,) = preset._pair_tokens([Pair("p", "the cat", "a dog")])
    words = tokenizer.convert_ids_to_tokens(ids.ids.tolist())
    assert words == ["<|im_start|>", "the", "cat", "<|im_end|>", "a", "dog", "<|im_end|>"]


def test_the_official_input_is_one_text_cut_in_words_with_its_special_tokens_written_out(tmp_path, caplog):
    path = make_classifier(tmp_path, "modernbert")
    model = load_partition_model(f"darling-modernbert:{path}?input=official&max_response_length=4&dtype=float32")
    assert model.max_length == 8192, "as long as the model takes, and not as it was trained"
    pair = Pair("p", "the cat\n\nsat  on the mat", "a dog ran")
    (ids,) = model._pair_tokens([pair])
    words = model.tokenizer.convert_ids_to_tokens(ids.ids.tolist())
    written = ["<cls>", *"the cat sat on".split(), "<sep>", *"a dog ran".split(), "<sep>"]
    assert words == ["<cls>", *written, "<sep>"], "the server's tokenizer adds its own around the text"
    assert "1 of 1 (100 %) are cut: the classifier reads 4 words" in caplog.text
    text = model.tokenizer("<cls> the cat sat on <sep> a dog ran <sep>", return_tensors="pt")["input_ids"]
    plain = AutoModelForSequenceClassification.from_pretrained(path).eval()
    expected = plain(input_ids=text).logits.softmax(-1)[0, 1]
    assert model.similarity([pair]).item() == pytest.approx(expected.item(), abs=1e-5)
    long = Pair("p", "cat " * 9000, "dog")
    whole = load_partition_model(f"darling-modernbert:{path}?input=official&max_response_length=9000")
    assert len(whole._pair_tokens([long])[0]) == 8192 and whole.cuts.cut == 1
    trained = load_partition_model(f"darling-modernbert:{path}?max_response_length=4")
    assert len(trained._pair_tokens([pair])[0]) == 1 + 4 + 1 + 3 + 1
    with pytest.raises(DarlingError, match="its authors send token ids"):
        load_partition_model(f"noveltybench-deberta:{path}?input=official")


@pytest.mark.parametrize(
    ("name", "kind", "of_response", "of_pair", "marks"),
    [
        ("darling-modernbert", "modernbert", 1022, 2048, ("<cls>", "<sep>")),
        ("darling-qwen3-math", "qwen3", 2046, 4096, ("<|im_start|>", "<|im_end|>")),
    ],
)
def test_by_default_a_response_is_cut_after_as_many_tokens_in_training_as_words_in_rl(
    name, kind, of_response, of_pair, marks, tmp_path, caplog
):
    path = make_classifier(tmp_path, kind)
    tokenizer = make_tokenizer(kind)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(path)
    long = Pair("p", "cat " * 3000, "the dog ran, " * 3000)  # one token a word; four tokens to three words

    trained = load_partition_model(f"{name}:{path}")
    assert trained.max_length == of_pair == 2 * (of_response + 2)
    (ids,) = trained._pair_tokens([long])
    assert (len(ids.beginning), len(ids.own)) == (1 + of_response + 1, of_response + 1)

    official = load_partition_model(f"{name}:{path}?input=official")
    (ids,) = official._pair_tokens([long])
    first, second = " ".join(["cat"] * of_response), " ".join(("the dog ran, " * 3000).split()[:of_response])
    sent = f"{marks[0]} {first} {marks[1]} {second} {marks[1]}"
    assert ids.ids.tolist() == official.tokenizer(sent)["input_ids"] and len(ids.ids) > 2.3 * of_response
    assert f"reads {of_response} words of a response" in caplog.text


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Paris", "paris", 1.0),
        ("Paris", "Rome", 0.0),
        ("New York", "york", 1.0),  # one of two
        ("in New York", "York", 0.0),  # one of three
        ("a b c d", "a b x y", 1.0),
        ("a b c d e", "a b x y z", 0.0),  # two of five
        ("a a a a", "a b", 0.0),  # the longer one has four words, one distinct is shared
        ("one two three four five six", "six", None),
        ("Paris", LONG, None),
    ],
)
def test_short_answers_are_compared_by_their_words(first, second, expected):
    for pair in (Pair("p", first, second), Pair("p", second, first)):
        found = short_answers_agree(pair)
        assert found == expected if expected is not None else found != found


def test_the_classifier_is_asked_where_a_response_is_long(tmp_path):
    path = make_classifier(tmp_path, "modernbert")
    preset = load_partition_model(f"darling-modernbert:{path}?dtype=float32")
    plain = load_partition_model(f"cross-encoder:{path}?dtype=float32")
    pairs = [Pair("p", "cat", "dog"), Pair("p", LONG, "cat"), Pair("p", "the cat", "cat"), Pair("p", "cat", LONG)]
    scores = preset.similarity(pairs)
    assert torch.allclose(scores[[1, 3]], plain.similarity([pairs[1], pairs[3]]), atol=1e-5)
    assert scores[[0, 2]].tolist() == [0.0, 1.0]
    assert preset.similarity(pairs[:1]).tolist() == [0.0]
    assert preset.partition([Group("p", ["cat", "the cat", "dog"])])[0].tolist() == [0, 0, 1]


def test_a_name_alone_asks_for_the_released_weights(monkeypatch):
    asked = []

    def offline(path, **options):
        asked.append(path)
        raise OSError("no connection")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", offline)
    for name, tokenizer in (
        ("darling-modernbert", "dogtooth/similarity-classifier-f168-hf"),
        ("darling-qwen3-math", "Qwen/Qwen3-Embedding-4B"),
        ("noveltybench-deberta", "microsoft/deberta-v3-large"),
    ):
        with pytest.raises(DarlingError, match="download"):
            load_partition_model(name)
        assert asked.pop() == tokenizer
