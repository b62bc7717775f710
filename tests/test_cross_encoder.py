"""The partition model `cross-encoder`: scores of small classifiers in batches, cut pairs, options."""

import pytest
import torch
from small_partition_models import decisions
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, Pair, load_partition_model
from darling_plugin.partition.models import cross_encoder

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then"]
MAX_POSITIONS = 48


def make_bert(folder, num_labels):
    """A random BERT, with weights large enough that its scores differ from pair to pair."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=MAX_POSITIONS,
        num_labels=num_labels,
        initializer_range=0.6,
        hidden_dropout_prob=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def make_gpt2(folder):
    """A random causal classifier whose tokenizer has no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: k for k, word in enumerate(["<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=MAX_POSITIONS,
        num_labels=2,
        initializer_range=0.6,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["bert-2", "bert-3", "bert-1", "gpt2"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    path = make_gpt2(folder) if request.param == "gpt2" else make_bert(folder, int(request.param[-1]))
    model = load_partition_model(f"cross-encoder:{path}", dtype="float32")
    model.reference = AutoModelForSequenceClassification.from_pretrained(path).eval()  # untouched by ours
    return model


def some_pairs(count=24):
    """Pairs of 2 to 18 words, in no order of length."""
    generator = torch.Generator().manual_seed(1)

    def text():
        length = int(torch.randint(1, 10, (1,), generator=generator))
        return " ".join(WORDS[k] for k in torch.randint(len(WORDS), (length,), generator=generator).tolist())

    return [Pair("p", text(), text()) for _ in range(count)]


def one_at_a_time(model, pair):
    """P(equivalent) of one pair, without padding or batches."""
    inputs = model.tokenizer(
        pair.first, pair.second, truncation="longest_first", max_length=MAX_POSITIONS, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model.reference(**inputs).logits[0].tolist()
    if len(logits) == 1:
        return 1 / (1 + torch.tensor(-logits[0]).exp().item())
    exponentials = torch.tensor(logits).exp().tolist()
    return exponentials[1] / sum(exponentials)


def test_batches_score_like_one_pair_at_a_time(model, monkeypatch):
    monkeypatch.setattr(model._forward, "token_budget", 70)
    pairs = some_pairs()
    scores = model.similarity(pairs)
    expected = [one_at_a_time(model, pair) for pair in pairs]
    assert max(expected) - min(expected) > 0.2  # else nothing here could fail
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_long_pairs_are_cut_the_longer_one_first(model):
    assert model.max_length == MAX_POSITIONS
    pair = Pair("p", "the cat", " ".join(WORDS * 10))
    other = Pair("p", "the cat", " ".join(WORDS * 11))
    scores = model.similarity([pair, other])
    assert scores[0] == pytest.approx(one_at_a_time(model, pair), abs=1e-5)
    assert scores[0] == pytest.approx(scores[1].item(), abs=1e-6)  # the shorter response is whole in both


def test_partition_uses_the_scores(model):
    responses = list(dict.fromkeys(pair.first for pair in some_pairs(6)))
    (equivalent,) = decisions(model, [Group("p", responses)])
    for i in range(len(responses)):
        for j in range(i):
            assert equivalent[i, j] == (one_at_a_time(model, Pair("p", responses[j], responses[i])) > 0.5)


def test_the_prompt_is_not_shown(model):
    pair = some_pairs(1)[0]
    assert torch.equal(model.similarity([pair]), model.similarity([pair._replace(prompt="something else")]))


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([[0.0, 0.0], [0.0, 20.0], [20.0, 0.0]], [0.5, 1.0, 0.0]),
        ([[0.0], [20.0], [-20.0]], [0.5, 1.0, 0.0]),
        ([[0.0, 20.0, 0.0], [0.0, 0.0, 20.0], [0.0, 0.0, 0.0]], [1.0, 0.0, 1 / 3]),
    ],
)
def test_class_1_means_equivalent(logits, expected):
    got = cross_encoder.probability_equivalent(torch.tensor(logits))
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_length_of_a_pair_can_be_set_up_to_what_the_model_takes(tmp_path):
    path = make_bert(tmp_path, 2)
    assert load_partition_model(f"cross-encoder:{path}", max_length=20).max_length == 20
    assert load_partition_model(f"cross-encoder:{path}?max_length=4096").max_length == MAX_POSITIONS
    (_, ids) = load_partition_model(f"cross-encoder:{path}", max_response_length=2)._pair_tokens(
        [Pair("p", "cat", "dog"), Pair("p", "the cat sat on", "a dog ran")]
    )
    assert len(ids) == 2 + 2 + 3


def test_the_dtype_is_the_native_one_unless_it_is_set(tmp_path, monkeypatch):
    path = make_bert(tmp_path, 2)
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert load_partition_model(f"cross-encoder:{path}").model.dtype == expected
    assert load_partition_model(f"cross-encoder:{path}?dtype=float16").model.dtype == torch.float16
    with pytest.raises(DarlingError, match="'float33'(.|\n)*did you mean 'float32'"):
        load_partition_model(f"cross-encoder:{path}?dtype=float33")


def test_options_and_a_missing_path(tmp_path):
    path = make_bert(tmp_path, 2)
    own = load_partition_model(f"cross-encoder:{path}", threshold=0.32, clustering="greedy")
    assert (own.threshold, own.clustering) == (0.32, "greedy")
    assert load_partition_model(f"cross-encoder:{path}").threshold == 0.5
    with pytest.raises(DarlingError, match="missing a required argument: 'path'"):
        load_partition_model("cross-encoder")
    with pytest.raises(DarlingError, match="a sequence classifier in /no/such/folder(.|\n)*download"):
        load_partition_model("cross-encoder:/no/such/folder")


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path):
    path = make_gpt2(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(path)
    with pytest.raises(DarlingError, match="padding or an end token"):
        load_partition_model(f"cross-encoder:{path}")
