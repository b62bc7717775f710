import pickle
import random
import re
import sys
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darling_plugin.errors import DarlingError
from darling_plugin.partition import (
    EmbeddingModel,
    Group,
    Pair,
    PairwiseModel,
    PartitionModel,
    SimilarityModel,
    check_partition_spec,
    load_partition_model,
    measure,
)
from darling_plugin.partition.clustering import cluster
from darling_plugin.partition.models.lexical import Lexical
from darling_plugin.registry import register_partition_model
from darling_plugin.user_code import import_user_code


class FirstLetter(PairwiseModel):
    """Equivalent if the first letters are; remembers every call."""

    threshold = 0.5

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = []

    def similarity(self, pairs):
        self.calls.append(list(pairs))
        return torch.tensor([float(pair.first[0] == pair.second[0]) for pair in pairs])


class Scripted(PairwiseModel):
    """Returns what it was given."""

    threshold = 0.5

    def __init__(self, result, **options):
        super().__init__(**options)
        self.result = result

    def similarity(self, pairs):
        return self.result


class Listed(PairwiseModel):
    """Pairs of letters are equivalent where they are in the list."""

    threshold = 0.5

    def __init__(self, pairs, **options):
        super().__init__(**options)
        self.pairs, self.asked, self.calls = pairs, [], 0

    def similarity(self, pairs):
        self.calls += 1
        self.asked += [pair.first + pair.second for pair in pairs]
        return [float(pair.first + pair.second in self.pairs) for pair in pairs]


class Labels(PartitionModel):
    def __init__(self, result):
        self.result = result

    def partition(self, groups):
        return self.result


class Angles(EmbeddingModel):
    """A text is a number of degrees; its length grows with it, which a cosine must not see."""

    threshold = 0.9

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = []

    def embed(self, texts):
        self.calls.append(list(texts))
        degrees = torch.tensor([float(text) for text in texts])
        return torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=-1) * (1 + degrees)[:, None]


def error(caught):
    return str(caught.value)


# --- groups


def test_a_group_needs_responses_that_are_str():
    with pytest.raises(DarlingError, match="no responses; the prompt starts 'Say hi'"):
        Group("Say hi", [])
    with pytest.raises(DarlingError, match="int at position 1"):
        Group("p", ["a", 3])
    with pytest.raises(DarlingError, match="NoneType at position 0"):
        Group("p", [None, "a"])
    with pytest.raises(DarlingError, match="one str"):
        Group("p", "abc")


# --- the two rules before the model is asked


texts = st.lists(st.sampled_from(["", "  ", "\n", "apple", " apple ", "avocado", "banana", "cherry"]), min_size=1)


def oracle_equivalent(responses):
    def same(first, second):
        first, second = first.strip(), second.strip()
        if first == second:
            return True
        return bool(first and second) and first[0] == second[0]

    return [[same(first, second) for second in responses] for first in responses]


@settings(deadline=None)
@given(st.lists(texts.map(lambda responses: Group("p", responses[:16])), max_size=3))
def test_judgements_match_the_rules(groups):
    judged = FirstLetter().equivalent(groups)
    assert [each.dtype for each in judged] == [torch.bool] * len(groups)
    assert [each.tolist() for each in judged] == [oracle_equivalent(group.responses) for group in groups]


def test_all_groups_are_scored_together_without_what_the_rules_decide():
    model = FirstLetter()
    groups = [
        Group("one", ["apple", "", "banana", "apple\n"]),
        Group("two", ["kiwi"]),
        Group("three", ["plum", "plum", " plum"]),
        Group("four", ["date", "fig", "dill"]),
    ]
    labels = model.partition(groups)
    first_round = [Pair("one", "apple", "banana"), Pair("four", "date", "fig"), Pair("four", "fig", "dill")]
    assert model.calls == [first_round, [Pair("four", "date", "dill")]]
    expected = [[0, 1, 2, 0], [0], [0, 0, 0], [0, 1, 0]]
    assert [each.tolist() for each in labels] == expected

    model = FirstLetter(clustering="pairwise")
    assert [each.tolist() for each in model.partition(groups)] == expected
    assert model.calls == [
        [
            Pair("one", "apple", "banana"),
            Pair("four", "date", "fig"),
            Pair("four", "date", "dill"),
            Pair("four", "fig", "dill"),
        ]
    ]


def test_the_model_is_not_asked_where_the_rules_decide_everything():
    model = FirstLetter()
    assert [each.tolist() for each in model.partition([Group("p", ["", " "]), Group("q", ["x", "x", ""])])] == [
        [0, 0],
        [0, 0, 1],
    ]
    assert model.partition([]) == []
    assert model.calls == []


# --- pairs


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.randoms())
def test_every_score_lands_at_its_pair(sizes, random):
    score = {}
    groups = [Group(str(k), [f"{k}-{i}" for i in range(n)]) for k, n in enumerate(sizes)]

    class Random(PairwiseModel):
        threshold = 0.5

        def similarity(self, pairs):
            for pair in pairs:
                score[pair] = random.randrange(8) / 8
            return [score[pair] for pair in pairs]

    judged = Random().equivalent(groups)
    for group, equivalent in zip(groups, judged, strict=True):
        for i, j in combinations(range(len(group.responses)), 2):
            expected = score[Pair(group.prompt, group.responses[i], group.responses[j])] > 0.5
            assert equivalent[i, j] == equivalent[j, i] == expected
        assert equivalent.diagonal().all()


LETTERS = "abcdefghijkl"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 100)), min_size=1, max_size=4), st.randoms())
@pytest.mark.parametrize("one_first", [False, True])
@pytest.mark.parametrize("clustering", ["union_find", "greedy"])
def test_scoring_in_rounds_gives_what_all_pairs_give(clustering, one_first, sizes, random):
    equivalent = {a + b for a, b in combinations(LETTERS, 2) if random.random() * 100 < sizes[0][1]}
    groups = [Group(str(k), list(LETTERS[:n])) for k, (n, _) in enumerate(sizes)]
    model = Listed(equivalent, clustering=clustering)
    model.one_first = one_first
    labels = model.partition(groups)
    assert len(model.asked) <= sum(n * (n - 1) // 2 for n, _ in sizes)
    oracle = [cluster(each, clustering) for each in Listed(equivalent).equivalent(groups)]
    assert [each.tolist() for each in labels] == [each.tolist() for each in oracle]


def test_responses_that_are_all_equivalent_cost_n_minus_1_pairs():
    group = Group("p", list(LETTERS))
    model = Listed({a + b for a, b in combinations(LETTERS, 2)})
    assert model.partition([group])[0].tolist() == [0] * 12
    assert len(model.asked) == 11
    nothing = Listed(set())
    assert nothing.partition([group])[0].tolist() == list(range(12))
    assert sorted(nothing.asked) == sorted(a + b for a, b in combinations(LETTERS, 2)), "each pair once"


def test_rounds_go_on_while_they_spare_more_than_they_cost():
    """Classes of four and four: alone, what is left after a round is scored at once; in a burst, round by round."""
    equivalent = {a + b for letters in ("abcd", "efgh") for a, b in permutations(letters, 2)}
    groups = [Group(str(k), random.Random(k).sample("abcdefgh", 8)) for k in range(20)]
    alone, together, sparing = (Listed(equivalent) for _ in range(3))
    sparing.round_cost = 0
    expected = [cluster(each) for each in alone.equivalent(groups)]
    alone.asked, alone.calls = [], 0
    for model, batches in ((alone, [[group] for group in groups]), (together, [groups])):
        labels = [each for batch in batches for each in model.partition(batch)]
        assert all(torch.equal(*pair) for pair in zip(labels, expected, strict=True))
    assert alone.calls <= 3 * len(groups)
    assert together.calls > 3
    assert 7 * 20 < len(together.asked) < 0.9 * len(alone.asked)
    for group in groups:
        sparing.partition([group])
    assert len(sparing.asked) == 22 * 20, "16 pairs of two classes, and 3 in each"


@pytest.mark.parametrize("threshold", [0.25, 0.32, 0.5])
def test_a_similarity_equal_to_the_threshold_is_not_above_it(threshold):
    groups = [Group("p", ["a", "b"])]
    assert Scripted([threshold], threshold=threshold).partition(groups)[0].tolist() == [0, 1]
    assert Scripted([threshold + 1e-3], threshold=threshold).partition(groups)[0].tolist() == [0, 0]


@pytest.mark.parametrize("result", [[0.9, 0.1, 0.2], np.array([0.9, 0.1, 0.2]), torch.tensor([0.9, 0.1, 0.2]).half()])
def test_scores_may_be_a_list_an_array_or_a_tensor(result):
    expected = [[True, True, False], [True, True, False], [False, False, True]]
    assert Scripted(result).equivalent([Group("p", ["a", "b", "c"])])[0].tolist() == expected
    # Rounds: two pairs, then none is left to ask for.
    two = result[:2]
    assert Scripted(two).partition([Group("p", ["a", "b"]), Group("q", ["a", "b"])])[0].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [float("nan"), 1.002, -0.002, float("inf")])
def test_a_score_outside_its_range_names_the_pair(bad):
    with pytest.raises(DarlingError) as caught:
        Scripted([0.5, bad, 0.5]).equivalent([Group("Name a fruit.", ["apple", "fig", "pear"])])
    assert "Scripted.similarity" in error(caught)
    assert "'apple' and 'pear'; the prompt starts 'Name a fruit.'" in error(caught)
    assert "1 of 3 outside" in error(caught)


def test_rounding_just_outside_the_range_is_tolerated():
    judged = Scripted([1.0005, -0.0005, 0.5]).similarities([Group("p", ["a", "b", "c"])])[0]
    assert judged.tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 0.5], [0.0, 0.5, 1.0]]


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ([0.5, 0.5], r"shape \(2,\) for 3 pairs"),
        (torch.zeros(3, 1), r"shape \(3, 1\) for 3 pairs"),
        (None, "NoneType"),
        ("abc", "str"),
    ],
)
def test_scores_of_another_shape_or_type_are_refused(result, found):
    with pytest.raises(DarlingError, match=f"Scripted.similarity(.|\n)*{found}"):
        Scripted(result).equivalent([Group("p", ["a", "b", "c"])])
    with pytest.raises(DarlingError, match="Scripted.similarity"):
        Scripted(result).partition([Group(prompt, ["a", "b"]) for prompt in "pqr"])


# --- similarity matrices


class Matrix(SimilarityModel):
    threshold = 0.0

    def __init__(self, result):
        super().__init__()
        self.result = result

    def similarities(self, groups):
        return self.result


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ([], "0 for 1 groups"),
        ([torch.zeros(2, 3)], r"shape \(2, 3\) for the prompt that starts 'p'"),
        ([torch.zeros(3)], r"shape \(3,\)"),
        ([torch.tensor([[1, 0, 0], [0, 1, float("nan")], [0, 0, 1]])], "nan for the pair 'b' and 'c'"),
    ],
)
def test_a_bad_similarity_matrix_is_refused(result, found):
    with pytest.raises(DarlingError, match=f"Matrix(.|\n)*{found}"):
        Matrix(result).partition([Group("p", ["a", "b", "c"])])


def test_rounding_between_the_two_halves_of_a_matrix_does_not_matter():
    # Entry [i, j] with i < j decides.
    groups = [Group("p", ["a", "b"])]
    assert Matrix([torch.tensor([[1.0, 1e-9], [-1e-9, 1.0]])]).equivalent(groups)[0].tolist() == [[True] * 2] * 2
    assert torch.equal(Matrix([torch.tensor([[1.0, -1e-9], [1e-9, 1.0]])]).equivalent(groups)[0], torch.eye(2).bool())


# --- embeddings


def test_embeddings_are_compared_by_cosine_each_text_embedded_once():
    model = Angles()
    groups = [Group("p", ["0", "25", "80", "0 "]), Group("q", ["25", "90", ""])]
    similarity = model.similarities([Group("p", ["0", "25", "80"])])[0]
    expected = torch.tensor([0.0, 25.0, 80.0]).deg2rad()
    assert torch.allclose(similarity, (expected[:, None] - expected[None, :]).cos(), atol=1e-6)

    model.calls.clear()
    assert [each.tolist() for each in model.partition(groups)] == [[0, 0, 1, 0], [0, 1, 2]]
    assert model.calls == [["0", "25", "80", "90"]]
    assert Angles(threshold=0.95).partition(groups)[0].tolist() == [0, 1, 2, 0]


class Little:
    """Room for `limit` texts at once."""

    def __init__(self, limit, error):
        self.limit, self.error, self.sizes = limit, error, []

    def take(self, items):
        self.sizes.append(len(items))
        if len(items) > self.limit:
            raise self.error


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000000 bytes."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20])
@pytest.mark.parametrize("base", [FirstLetter, Angles])
def test_out_of_memory_halves_the_batch_and_goes_on(base, error):
    room = Little(3, error)

    class Short(base):
        def similarity(self, pairs):
            room.take(pairs)
            return super().similarity(pairs)

        def embed(self, texts):
            room.take(texts)
            return super().embed(texts)

    groups = [Group("p", ["0", "90", "91", "180", "1", "270"]), Group("q", ["5", "5", "6"])]
    expected = [labels.tolist() for labels in base().partition(groups)]
    assert [labels.tolist() for labels in Short().partition(groups)] == expected
    assert room.sizes[0] > 3
    room.limit = 0
    with pytest.raises(type(error)):
        Short().partition(groups)


def test_an_embedding_of_length_zero_is_unlike_all():
    class Zero(Angles):
        def embed(self, texts):
            return torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])

    assert Zero().partition([Group("p", ["a", "b", "c"])])[0].tolist() == [0, 1, 1]


@pytest.mark.parametrize("result", [torch.zeros(2, 4), torch.zeros(3), torch.full((3, 2), float("nan"))])
def test_bad_embeddings_are_refused(result):
    class Bad(Angles):
        def embed(self, texts):
            return result

    with pytest.raises(DarlingError, match="Bad"):
        Bad().partition([Group("p", ["a", "b", "c"])])


# --- thresholds and clustering


def test_a_threshold_must_be_set_and_finite():
    class NoThreshold(PairwiseModel):
        def similarity(self, pairs):
            return [0.0] * len(pairs)

    with pytest.raises(DarlingError, match="threshold of NoThreshold"):
        NoThreshold()
    assert NoThreshold(threshold=0.3).threshold == 0.3
    for bad in (float("nan"), "0.5", True):
        with pytest.raises(DarlingError, match="finite number"):
            FirstLetter(threshold=bad)
    assert FirstLetter(threshold=0).threshold == 0
    assert FirstLetter.threshold == 0.5


def test_a_class_may_have_a_clustering_of_its_own():
    class Own(PairwiseModel):
        threshold, clustering = 0.5, "greedy"

        def similarity(self, pairs):
            return [1.0 for _ in pairs]

    assert (Own().clustering, Own(clustering="pairwise").clustering) == ("greedy", "pairwise")


def test_clustering_is_checked_and_used():
    groups = [Group("p", ["a", "b", "c", "d"])]
    chain = ["ab", "bc", "cd"]
    assert Listed(chain).partition(groups)[0].tolist() == [0, 0, 0, 0]
    assert Listed(chain, clustering="greedy").partition(groups)[0].tolist() == [0, 0, 1, 1]
    with pytest.raises(DarlingError, match="known clustering"):
        Listed(chain, clustering="kmeans")


# --- measure


def test_measure_gives_labels_and_diversity_in_order():
    groups = [Group("p", ["apple", "avocado", "banana"]), Group("q", ["kiwi"])]
    first, second = measure(FirstLetter(), groups)
    assert (first.labels.tolist(), first.diversity.tolist(), first.equivalent) == ([0, 0, 1], [0.5, 0.5, 1.0], None)
    assert (second.labels.tolist(), second.diversity.tolist()) == ([0], [1.0])


def test_measure_pairwise_keeps_the_judgements_and_closes_nothing():
    groups = [Group("p", ["a", "b", "c"])]
    (result,) = measure(Scripted([0.9, 0.1, 0.9], clustering="pairwise"), groups)
    assert result.equivalent.tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    assert result.diversity.tolist() == [0.5, 0.0, 0.5]
    assert result.labels.tolist() == [0, 0, 0]
    (closed,) = measure(Listed(["ab", "bc"]), groups)
    assert closed.diversity.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "result", [[[3, 3, 1]], [np.array([3, 3, 1])], [torch.tensor([3, 3, 1]).byte()], torch.tensor([[3, 3, 1]])]
)
def test_measure_takes_lists_arrays_and_tensors(result):
    (measured,) = measure(Labels(result), [Group("p", ["a", "b", "c"])])
    assert measured.labels.dtype == torch.int64
    assert measured.labels.tolist() == [0, 0, 1], "numbered by first appearance, without gaps"
    assert measured.diversity.tolist() == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (None, "NoneType"),
        ([], "0 for 1 groups"),
        ([[0, 0, 0], [0, 0, 0]], "2 for 1 groups"),
        ([[0, 0]], r"shape \(2,\)"),
        ([[[0], [0], [0]]], r"shape \(3, 1\)"),
        ([[0.0, 1.0, 1.0]], "float32"),
        ([[True, False, True]], "bool"),
        ([[0, -1, 1]], "the label -1"),
        ([["a", "b", "c"]], "list"),
        ([None], "NoneType"),
    ],
)
def test_measure_names_the_class_and_the_group_of_bad_labels(result, found):
    with pytest.raises(DarlingError, match=found) as caught:
        measure(Labels(result), [Group("Name a fruit.", ["a", "b", "c"])])
    assert "Labels.partition" in error(caught)
    if isinstance(result, list) and len(result) == 1:
        assert "the prompt that starts 'Name a fruit.'" in error(caught)


def test_measure_of_nothing_does_not_ask():
    assert measure(Labels(None), []) == []


# --- lexical


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


@settings(deadline=None)
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


# --- load_partition_model


MINE = """
from darling_plugin import Group, PairwiseModel, PartitionModel

class Mine(PairwiseModel):
    threshold = 0.5
    def similarity(self, pairs):
        return [1.0] * len(pairs)

class WithPath(Mine):
    def __init__(self, path, *, threshold=None):
        super().__init__(threshold=threshold)
        self.path = path

class AnyOption(Mine):
    def __init__(self, **options):
        super().__init__()
        self.options = options

class Unfinished(PairwiseModel):
    threshold = 0.5

class NotAModel:
    pass

def function(groups):
    return []
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my_models.py"
    path.write_text(MINE)
    return path


def test_a_registered_name():
    model = load_partition_model("lexical", threshold=0.7, clustering="greedy")
    assert (type(model), model.threshold, model.clustering) == (Lexical, 0.7, "greedy")
    assert load_partition_model("lexical", threshold=None, clustering=None).threshold == 0.5


def test_a_registered_name_with_its_argument(mine):
    register_partition_model("with-path")(import_user_code(str(mine)).WithPath)
    model = load_partition_model("with-path:org/name", threshold=0.2)
    assert (model.path, model.threshold) == ("org/name", 0.2)
    assert load_partition_model("with-path:/models/x:1").path == "/models/x:1"
    with pytest.raises(DarlingError, match="missing a required argument: 'path'"):
        load_partition_model("with-path")


def test_registered_names_win(monkeypatch, mine):
    monkeypatch.syspath_prepend(str(mine.parent))
    (mine.parent / "lexical.py").write_text(MINE)
    with pytest.raises(DarlingError, match="fit Lexical"):
        load_partition_model("lexical:Mine")


def test_a_module_and_a_class(monkeypatch, mine):
    package = mine.parent / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(mine.parent))
    model = load_partition_model("my_package.models:Mine", threshold=0.9)
    assert type(model) is sys.modules["my_package.models"].Mine
    assert model.threshold == 0.9


def test_a_file_and_a_class(monkeypatch, mine):
    by_path = load_partition_model(f"{mine}:Mine")
    monkeypatch.chdir(mine.parent)
    by_name = load_partition_model("my_models.py:Mine")
    assert type(by_path) is type(by_name)
    assert by_path.partition([Group("p", ["a", "b"])])[0].tolist() == [0, 0]
    assert type(pickle.loads(pickle.dumps(by_path))) is type(by_path)


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"VALUE = {value}\n")
    assert [import_user_code(str(tmp_path / folder / "same.py")).VALUE for folder in "ab"] == [1, 2]


def test_a_class_that_takes_any_option_gets_it(mine):
    assert load_partition_model(f"{mine}:AnyOption", threshold=0.1, clustering=None).options == {"threshold": 0.1}


def test_options_may_follow_as_a_query(mine):
    spec = f"{mine}:AnyOption?max_length=4096&rate=0.5&both=true&where=a:b/c&word=NaN1&empty=null"
    options = load_partition_model(spec, threshold=0.1).options
    assert options == {
        "threshold": 0.1,
        "max_length": 4096,
        "rate": 0.5,
        "both": True,
        "where": "a:b/c",
        "word": "NaN1",
        "empty": "null",
    }
    assert load_partition_model("lexical:2?threshold=0.25").threshold == 0.25


@pytest.mark.parametrize("load", [load_partition_model, check_partition_spec])
@pytest.mark.parametrize(
    ("spec", "options", "found"),
    [
        ("lexcal", {}, "did you mean 'lexical'.*known: .*cross-encoder.*, embedding.*, lexical"),
        ("lexical?threshold", {}, "each given once(.|\n)*'threshold' in 'lexical.threshold'"),
        ("lexical?threshold=", {}, "each given once"),
        ("lexical?threshold=1&threshold=2", {}, "each given once"),
        ("lexical?threshold=1", {"threshold": 0.5}, "what threshold"),
        ("lexical?tempo=1", {}, "options that Lexical takes: size, threshold(.|\n)*tempo=1"),
        ("cross-encodr:/models/x", {}, "did you mean 'cross-encoder'"),
        ("cross-encodr:bert", {}, "did you mean 'cross-encoder'"),
        ("embeding:org/name", {}, "did you mean 'embedding'"),
        ("", {}, "known: .*cross-encoder"),
        ("lexical", {"temperature": 1.0}, "options that Lexical takes: size, threshold(.|\n)*temperature=1.0"),
        ("cross-encoder", {}, "missing a required argument: 'path'"),
        (
            "no_such_package.module:Class",
            {},
            "no module named 'no_such_package'(.|\n)*registered partition model: .*cross-encoder",
        ),
        ("darling_plugin.no_such:Class", {}, "no module named 'darling_plugin.no_such'"),
        (
            "darling_plugin.partition.models.lexical:Lexicl",
            {},
            "no such name; partition models defined there: Lexical",
        ),
        ("collections:OrderedDict", {}, "subclass of darling_plugin.partition.PartitionModel"),
        ("{mine}:Missing", {}, "there: Mine, WithPath, AnyOption, Unfinished"),
        ("{mine}:NotAModel", {}, "subclass of .*PartitionModel"),
        ("{mine}:function", {}, "subclass of .*PartitionModel"),
        ("{mine}:Unfinished", {}, "Unfinished lacks similarity"),
        ("{mine}:WithPath", {}, "missing a required argument: 'path'"),
        ("{mine}:WithPath", {"clustering": "greedy"}, "options that WithPath takes: path, threshold"),
        ("{folder}/nothing.py:Mine", {}, "no such file; .* holds my_models.py"),
        ("{folder}/deep/er/nothing.py:Mine", {}, "no such file; .* holds my_models.py"),
    ],
)
def test_what_cannot_be_loaded_says_why(load, mine, spec, options, found):
    with pytest.raises(DarlingError, match=found):
        load(spec.format(mine=mine, folder=mine.parent), **options)


def test_checking_a_spec_builds_nothing(mine):
    assert check_partition_spec("cross-encoder:/no/such/folder").__name__ == "CrossEncoder"
    assert check_partition_spec(f"{mine}:Mine", threshold=0.4).__name__ == "Mine"


# --- import_user_code


def test_errors_of_the_users_own_code_pass_through(tmp_path, monkeypatch):
    (tmp_path / "broken_inside.py").write_text("import no_such_dependency\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("broken_inside", str(tmp_path / "broken_inside.py")):
        with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
            import_user_code(name)
    before = set(sys.modules)
    for _ in range(2):  # a failed import leaves nothing behind
        with pytest.raises(ZeroDivisionError):
            import_user_code(str(tmp_path / "raises.py"))
    assert not [name for name in set(sys.modules) - before if "raises" in name]


def test_a_file_runs_once(tmp_path):
    (tmp_path / "counts.py").write_text("VALUES = []\n")
    first = import_user_code(str(tmp_path / "counts.py"))
    assert import_user_code(str(tmp_path / "counts.py")) is first
    assert sys.modules[first.__name__] is first
