"""`served:` and its dialects: what is asked of vLLM and text-embeddings-inference, and what their answers mean."""

import math

import pytest
from small_partition_models import decisions
from small_servers import (
    MAX_LENGTH,
    WORDS,
    by_ids,
    by_texts,
    ids,
    known_score,
    make_tokenizer,
    some_pairs,
)
from transformers import AutoTokenizer, BertConfig, BertTokenizerFast

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, Pair, load_partition_model
from darling_plugin.partition.models.served import Served

pytestmark = pytest.mark.usefixtures("impatient")


def make_bert_tokenizer(folder, segments):
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BertConfig(type_vocab_size=segments).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_vllm_gets_the_ids_of_each_pair_cut_like_the_tokenizer_cuts(start_server, tokenizer, labels):
    server = start_server(labels=labels, root=tokenizer)
    pairs = some_pairs()
    expected = by_ids(tokenizer, pairs)
    assert 10 < sum(len(each) == MAX_LENGTH for each in ids(tokenizer, pairs)) < 90  # some are cut, some are not
    label = "1" if labels == 3 else None
    assert Served(server.url, label=label).similarity(pairs) == pytest.approx(expected)
    assert all(body["use_activation"] for body in server.bodies)


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_text_embeddings_inference_gets_texts_and_class_1_is_found_by_its_name(start_server, labels):
    server = start_server("tei", labels=labels)
    pairs = some_pairs()
    label = "label 1" if labels == 3 else None
    assert Served(server.url, label=label).similarity(pairs) == pytest.approx(by_texts(pairs))


@pytest.mark.parametrize("api", ["vllm", "tei"])
def test_of_three_classes_it_asks_which_means_equivalent(start_server, tokenizer, api):
    server = start_server(api, labels=3, root=tokenizer)
    with pytest.raises(DarlingError, match=r"which of 3 classes(.|\n)*\?label=<label>: 0, 1, 2"):
        Served(server.url)
    with pytest.raises(DarlingError, match="label=3"):
        Served(server.url, label="3")
    pairs = some_pairs(5)
    right = by_ids(tokenizer, pairs) if api == "vllm" else by_texts(pairs)
    found = load_partition_model(f"served:{server.url}?label=2").similarity(pairs)
    assert found == pytest.approx([(1 - score) / 2 for score in right])


def test_a_group_is_partitioned_by_the_servers_scores(start_server):
    server = start_server("tei")
    responses = ["the cat", "a dog", "the mat", "a tree"]
    model = load_partition_model(f"served:{server.url}", threshold=0.6)
    (equivalent,) = decisions(model, [Group("p", responses)])
    for i in range(4):
        for j in range(i):
            assert equivalent[i, j] == (known_score([responses[j], responses[i]]) > 0.6)
    assert Served.threshold == 0.5


@pytest.mark.parametrize("api", ["vllm", "tei"])
def test_a_text_without_a_utf8_form_is_asked_about_all_the_same(start_server, tokenizer, api):
    model = Served(start_server(api, root=tokenizer).url)
    groups = [Group("p \ud800", ["the \udc00", "a cat"])]
    (similarity,) = model.all_similarities(groups)
    (pair,) = [Pair("p", "the \ufffd", "a cat")]
    (expected,) = by_ids(tokenizer, [pair]) if api == "vllm" else by_texts([pair])
    assert similarity[0, 1].item() == pytest.approx(expected)


def test_no_pairs_ask_nothing(start_server):
    server = start_server("tei")
    assert Served(server.url).similarity([]) == []
    assert server.sizes == []


@pytest.mark.parametrize(("asked", "server_length", "used"), [(20, 48, 20), (None, 30, 30), (64, 48, 48)])
def test_pairs_are_cut_at_max_length_but_never_beyond_the_servers(start_server, tokenizer, asked, server_length, used):
    server = start_server(max_length=server_length)
    pairs = some_pairs()
    model = Served(server.url, tokenizer=tokenizer, max_length=asked)
    assert model.similarity(pairs) == pytest.approx(by_ids(tokenizer, pairs, used))
    assert max(len(each) for body in server.bodies for each in body["input"]) == used


def test_pairs_are_cut_at_the_tokenizers_own_limit(start_server, tmp_path):
    make_tokenizer(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path, model_max_length=16).save_pretrained(tmp_path)
    server = start_server(root=str(tmp_path))
    Served(server.url).similarity(some_pairs(20))
    assert max(len(each) for body in server.bodies for each in body["input"]) == 16


def test_the_default_is_cut_at_2048_tokens(start_server, tokenizer):
    server = start_server(root=tokenizer, max_length=8192)
    Served(server.url).similarity([Pair("p", "cat " * 3000, "dog " * 10)])
    assert [len(each) for each in server.bodies[0]["input"]] == [2048]


def test_a_model_that_reads_segment_ids_is_asked_at_score_or_refused(start_server, tmp_path):
    pairs = some_pairs()
    bert = make_bert_tokenizer(tmp_path, segments=2)
    assert Served(start_server(labels=1, root=bert).url).similarity(pairs) == pytest.approx(by_texts(pairs))
    with pytest.raises(DarlingError, match="2 labels, and segment ids"):
        Served(start_server(root=bert).url)
    (tmp_path / "config.json").unlink()  # then nobody knows
    with pytest.raises(DarlingError, match="2 labels, and segment ids"):
        Served(start_server(root=bert).url)
    # DeBERTa's tokenizer makes segment ids too, and the model has no use for them.
    make_bert_tokenizer(tmp_path, segments=0)
    assert Served(start_server(root=bert).url).similarity(pairs) == pytest.approx(by_ids(bert, pairs))


def written(folder, **settings):
    """A tokenizer's folder with a configuration, as darling-train-partition leaves it."""
    from transformers import ModernBertConfig

    make_tokenizer(folder)
    ModernBertConfig(**settings).save_pretrained(folder)
    return str(folder)


def test_what_training_wrote_beside_the_weights_counts(start_server, tmp_path):
    own = {"threshold": 0.31, "max_length": 30, "special_tokens": ["the", "cat", "mat"], "logit_shift": 1.5}
    root = written(tmp_path, darling_partition=own)
    server, pairs = start_server(root=root), some_pairs(40, longest=13)
    model = Served(server.url)
    found = model.similarity(pairs)
    tokens = AutoTokenizer.from_pretrained(root)
    before, between, after = tokens.convert_tokens_to_ids(own["special_tokens"])
    for pair, probability in zip(pairs, found, strict=True):
        first, second = (tokens(text, add_special_tokens=False)["input_ids"] for text in (pair.first, pair.second))
        plain = known_score([before, *first, between, *second, after])
        odds = plain / max(1 - plain, 1e-9) * math.exp(1.5)
        assert probability == pytest.approx(odds / (1 + odds))
    model.similarity(some_pairs(20))
    assert max(len(each) for body in server.bodies for each in body["input"]) == 30
    assert model.threshold == 0.31 and Served(server.url, threshold=0.6).threshold == 0.6
    assert Served(start_server("tei").url).threshold == 0.5


@pytest.mark.parametrize(
    "settings", [{"problem_type": "regression"}, {"sentence_transformers": {"activation_fn": "torch.nn.Identity"}}]
)
def test_one_label_whose_raw_output_vllm_would_give_is_refused(start_server, tmp_path, settings):
    root = written(tmp_path, **settings)
    with pytest.raises(DarlingError, match="probabilities for(.|\n)*its raw output"):
        Served(start_server(labels=1, root=root).url)
    Served(start_server(labels=2, root=root).url)


@pytest.mark.parametrize("root", ["/no/such/folder", "no-one/no-such-model", None])
def test_without_a_tokenizer_here_one_label_is_asked_at_score_and_more_are_refused(start_server, root, tokenizer):
    pairs = some_pairs()
    one, two = start_server(labels=1, root=root), start_server(labels=2, root=root)
    assert Served(one.url).similarity(pairs) == pytest.approx(by_texts(pairs))
    assert all(body["truncate_prompt_tokens"] == MAX_LENGTH and body["use_activation"] for body in one.bodies)
    with pytest.raises(DarlingError, match=f"{root}, which the server was started with(.|\n)*tokenizer=<path>"):
        Served(two.url)
    with pytest.raises(DarlingError, match="a tokenizer in /not/there"):
        Served(two.url, tokenizer="/not/there")
    assert Served(two.url, tokenizer=tokenizer).similarity(pairs) == pytest.approx(by_ids(tokenizer, pairs))


def test_text_embeddings_inference_cuts_by_itself(start_server):
    server = start_server("tei", max_length=48)
    with pytest.raises(DarlingError, match="at least 48(.|\n)*max_length=47"):
        Served(server.url, max_length=47)
    Served(server.url, max_length=48)


@pytest.mark.parametrize("max_length", [-1, 0, 7])
def test_max_length_leaves_room_for_both_sides(start_server, tokenizer, max_length):
    with pytest.raises(DarlingError, match=f"room for two responses(.|\n)*{max_length}"):
        Served(start_server().url, tokenizer=tokenizer, max_length=max_length)


def change(key, value):
    def fault(answer):
        answer["data"][0][key] = value
        return answer

    return fault


VLLM_FAULTS = {
    "not JSON": lambda answer: b"<html>",
    "null": lambda answer: None,
    "a list": lambda answer: [],
    "no data": lambda answer: {"data": None},
    "a pair missing": lambda answer: {"data": [item for item in answer["data"] if item["index"] < 9]},
    "a pair twice": lambda answer: {"data": [answer["data"][-1], *answer["data"]]},
    "a class missing": change("probs", [1.0]),
    "a class too many": change("probs", [0.5, 0.5, 0.0]),
    "text": change("probs", ["0.5", "0.5"]),
    "NaN": change("probs", [float("nan"), 0.5]),
    "infinite": change("probs", [float("inf"), float("-inf")]),
    "logits": change("probs", [-2.0, 3.0]),
    "independent classes": change("probs", [0.9, 0.8]),
}
TEI_FAULTS = {
    "a pair missing": lambda answer: answer[1:],
    "another label": lambda answer: [[{"score": 0.5, "label": "x"}, {"score": 0.5, "label": "y"}], *answer[1:]],
    "an error": lambda answer: {"error": "no"},
    "raw scores": lambda answer: [[{"score": 5.0, "label": name} for name in ("label 0", "label 1")], *answer[1:]],
    "no score": lambda answer: [[{"label": name} for name in ("label 0", "label 1")], *answer[1:]],
}
FAULTS = [("vllm", name) for name in VLLM_FAULTS] + [("tei", name) for name in TEI_FAULTS]


@pytest.mark.parametrize(("api", "fault"), FAULTS)
def test_an_answer_that_is_no_distribution_for_each_pair_is_refused(start_server, tokenizer, api, fault):
    server = start_server(api, root=tokenizer)
    model = Served(server.url)
    server.faults = [(VLLM_FAULTS if api == "vllm" else TEI_FAULTS)[fault]]
    with pytest.raises(DarlingError, match=server.url):
        model.similarity(some_pairs(20))
    assert len(server.sizes) <= 2


def test_what_is_no_classify_server_is_said_at_the_start(start_server, tokenizer):
    server = start_server("neither")
    server.answer = lambda path, body: (404, {"detail": "Not Found"})
    with pytest.raises(DarlingError, match="HTTP 404 from .*/v1/models(.|\n)*--convert classify"):
        Served(server.url)
    server.answer = lambda path, body: (200, {"data": []})
    with pytest.raises(DarlingError, match="a vLLM classify server"):
        Served(server.url)
    server.answer = lambda path, body: (200, {"model_type": {"embedding": {"pooling": "cls"}}})
    with pytest.raises(DarlingError, match="with a classifier"):
        Served(server.url)
    with pytest.raises(DarlingError, match="with a classifier"):
        Served(start_server("tei", names=["same", "same"]).url)
