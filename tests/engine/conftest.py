"""What the tests of the engine share: tiny classifiers, and what transformers makes of each pair alone."""

import pytest
import torch
from tiny_classifiers import KINDS, MAX_LENGTH, PAIRS, load, make_classifier, make_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast


@pytest.fixture(scope="module", autouse=True)
def the_tokenizer_as_it_was_saved():
    """AutoTokenizer takes Qwen's own tokenizer class for Qwen's models, which drops a vocabulary of whole words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", PreTrainedTokenizerFast.from_pretrained)
        yield


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def path(kind, tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def expected(path, kind):
    """(M,) P(equivalent) of each pair alone, by transformers' eager attention."""
    model = AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="eager").eval()
    tokenizer = make_tokenizer(kind)
    scores = []
    for pair in PAIRS:
        inputs = tokenizer(
            pair.first, pair.second, truncation="longest_first", max_length=MAX_LENGTH, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        scores.append(logits.sigmoid()[0] if len(logits) == 1 else logits.softmax(-1)[1])
    scores = torch.stack(scores)
    assert scores.max() - scores.min() > 0.05, "else nothing here could fail"
    return scores


@pytest.fixture(scope="module")
def of_kind(tmp_path_factory):
    def build(kind, **options):
        return load(make_classifier(tmp_path_factory.mktemp(kind), kind), dtype="float32", **options)

    return build
