"""Each way through a classifier gives what transformers gives for one pair at a time in float32."""

import sys
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_classifiers import CAUSAL, KINDS, SPECIAL, WORDS, make_classifier, make_tokenizer, some_texts
from torch._dynamo.utils import counters
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, Pair, load_partition_model
from darling_plugin.partition.engine import forward
from darling_plugin.partition.engine.device import COMPILE_AFTER
from darling_plugin.partition.engine.forward import CausalForward, PackedForward, PaddedForward, choose_forward

MAX_LENGTH = 80
TEXTS = some_texts(9, 60)
PAIRS = [Pair("p", *two) for two in combinations(TEXTS, 2)]


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
    found = []
    for pair in PAIRS:
        inputs = tokenizer(
            pair.first, pair.second, truncation="longest_first", max_length=MAX_LENGTH, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        found.append(logits.sigmoid()[0] if len(logits) == 1 else logits.softmax(-1)[1])
    found = torch.stack(found)
    assert found.max() - found.min() > 0.05, "else nothing here could fail"
    return found


def load(path, **options):
    return load_partition_model(f"cross-encoder:{path}", max_length=MAX_LENGTH, **options)


@pytest.mark.parametrize("token_budget", [1, 150, 10_000])
def test_float32_scores_are_those_of_one_pair_at_a_time(path, kind, expected, token_budget):
    model = load(path, dtype="float32")
    wanted = CausalForward if kind in CAUSAL else PaddedForward if kind == "electra" else PackedForward
    assert type(model._forward) is wanted
    model._forward.token_budget = token_budget
    assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("electra", *CAUSAL)], scope="module")
@pytest.mark.parametrize("token_budget", [1, 150, 10_000])
def test_lengths_rounded_up_change_no_score(path, kind, expected, token_budget, monkeypatch):
    """As on a CPU with matrix units, whatever this one has; in blocks of the window, too."""
    monkeypatch.setattr(forward, "BLOCK", 16)
    model = load(path, dtype="float32")
    model._forward._round_up = True
    model._forward.token_budget = token_budget
    rows = []
    next(iter(forward.layers_of(model.model.base_model))).register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[1])
    )
    assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)
    assert all(length % forward.MULTIPLE == 0 for length in rows)


@pytest.fixture
def graphs():
    """How many graphs torch.compile has made, from nothing."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3"], scope="module")
def test_compiled_layers_say_the_same_and_are_compiled_once_for_all_lengths(path, kind, expected, graphs):
    model = load(path, dtype="float32", compile_after=0)
    assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)
    made = graphs()
    assert made == {"bert": 1, "modernbert": 3, "qwen3": 1}[kind]  # ModernBERT: the first, a global, a sliding one
    for some in (PAIRS[:1], PAIRS[3:11], PAIRS[::2]):
        where = [PAIRS.index(pair) for pair in some]
        assert torch.allclose(model.similarity(some), expected[where], atol=2e-4)
    assert graphs() == made


@pytest.mark.parametrize("kind", ["bert", "modernbert"], scope="module")
def test_without_a_compiler_the_layers_stay_as_they_are(path, expected, graphs, caplog):
    model = load(path, dtype="float32", compile_after=0)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)
    assert caplog.text.count("torch.compile failed, going on without it") == 1, "once for all layers"
    caplog.clear()
    assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)
    assert not caplog.text, "it is not tried again"


def test_layers_are_compiled_once_enough_tokens_are_scored(of_kind, monkeypatch):
    compiled = []
    monkeypatch.setattr(forward, "compile_layers", compiled.append)
    model = of_kind("bert")
    tokens = sum(map(len, model._pair_tokens(PAIRS[:2])))
    model = of_kind("bert", compile_after=3 * tokens)
    for calls in range(1, 7):
        model.similarity(PAIRS[:2])
        assert len(compiled) == (calls > 3), calls
    never = of_kind("bert", compile_after=float("inf"))
    never.similarity(PAIRS)
    never.similarity(PAIRS)
    assert len(compiled) == 1
    assert of_kind("bert")._forward._tokens_until_compiled == COMPILE_AFTER["cpu"]


@pytest.mark.parametrize("bad", ["never", True, -1, float("nan")])
def test_a_compile_after_that_is_no_number_of_tokens_is_refused(of_kind, bad):
    with pytest.raises(DarlingError, match="a number of tokens from 0 to Infinity as compile_after"):
        of_kind("bert", compile_after=bad)


@pytest.mark.parametrize("kind", ["roberta"], scope="function")
def test_the_longest_pair_that_roberta_has_positions_for(tmp_path, kind):
    """Positions are counted from the one after the padding token's."""
    path = make_classifier(tmp_path, kind)
    model = load_partition_model(f"cross-encoder:{path}", dtype="float32", max_length=10_000)
    assert model.max_length == model.model.config.max_position_embeddings - model.tokenizer.pad_token_id - 1
    long = " ".join(WORDS[:3] * 400)
    (score,) = model.similarity([Pair("p", long, long)])
    assert 0 < score < 1


def test_decisions_and_partitions_are_the_same_in_float32_and_seldom_differ_in_bfloat16(path, expected):
    """The threshold lies in the widest gap of the middle half of the scores: no score is a rounding step from it."""
    middle = expected.sort().values[9:27]
    gap = middle.diff().argmax()
    threshold = float(middle[gap : gap + 2].mean())
    groups = [Group(str(k), TEXTS[k : k + 4]) for k in range(6)]
    exact = load(path, dtype="float32", threshold=threshold)
    assert torch.equal(exact.similarity(PAIRS) > threshold, expected > threshold)
    half = load(path, dtype="bfloat16", threshold=threshold)
    flipped = ((half.similarity(PAIRS) > threshold) != (expected > threshold)).sum()
    assert flipped <= 4, f"{flipped} of {len(PAIRS)}"
    same = [torch.equal(*labels) for labels in zip(exact.partition(groups), half.partition(groups), strict=True)]
    assert sum(same) >= 4, f"{sum(same)} of {len(same)} partitions"


def test_packed_and_padded_agree(path, expected, monkeypatch):
    monkeypatch.setattr(forward, "ENCODERS", ())
    monkeypatch.setattr(forward, "CAUSAL", ())
    model = load(path, dtype="float32")
    assert type(model._forward) is PaddedForward
    assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)


def test_both_orders_are_averaged(path, expected):
    swapped = [Pair("p", pair.second, pair.first) for pair in PAIRS]
    one, both = load(path, dtype="float32"), load(path, dtype="float32", both_orders=True)
    mean = (one.similarity(PAIRS) + one.similarity(swapped)) / 2
    assert not torch.allclose(mean, expected, atol=1e-3)
    assert torch.allclose(both.similarity(PAIRS), mean, atol=2e-4)


# --- what a batch holds


@pytest.fixture(scope="module")
def of_kind(tmp_path_factory):
    def build(kind, **options):
        return load(make_classifier(tmp_path_factory.mktemp(kind), kind), dtype="float32", **options)

    return build


def batches_of(model, monkeypatch, pairs=PAIRS):
    """The sizes in tokens of the rows that the layers were given, and the scores."""
    sizes, run = [], type(model._forward)._batch

    def noting(self, some):
        rows = run(self, some)
        sizes.append(int(self._tokens(some)[-1]))
        return rows

    monkeypatch.setattr(type(model._forward), "_batch", noting)
    return sizes, model.similarity(pairs)


@pytest.mark.parametrize("kind", ["electra", "modernbert", "qwen3"], scope="function")
def test_a_batch_keeps_within_the_token_budget_longest_first(of_kind, kind, monkeypatch):
    model = of_kind(kind)
    model._forward.token_budget = 300
    sizes, _ = batches_of(model, monkeypatch)
    assert len(sizes) > 3 and max(sizes) <= 300
    lengths = [len(ids) for ids in model._pair_tokens(PAIRS)]
    if kind != "qwen3":
        order = model._forward._order(model._pair_tokens(PAIRS))
        assert [lengths[k] for k in order] == sorted(lengths, reverse=True)


def test_packed_rows_hold_no_padding(of_kind, monkeypatch):
    model = of_kind("modernbert")
    rows = []
    model.model.base_model.layers[0].register_forward_pre_hook(lambda module, args: rows.append(args[0].shape))
    model.similarity(PAIRS)
    assert sum(shape[1] for shape in rows) == sum(len(ids) for ids in model._pair_tokens(PAIRS))
    assert all(shape[0] == 1 for shape in rows)


def test_a_causal_classifier_reads_the_head_of_a_response_once(of_kind):
    model = of_kind("qwen3")
    assert model.one_first
    rows = []
    model.model.base_model.layers[0].register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    texts = [" ".join(["cat"] * 20 + [word]) for word in WORDS[:8]]
    group = Group("p", texts)
    model.threshold = 1.0  # nothing is equivalent: all 28 pairs are asked for
    assert model.partition([group])[0].tolist() == list(range(8))
    head = [len(ids) + 1 for ids in make_tokenizer("qwen3")(texts, add_special_tokens=False)["input_ids"]]
    pairs = list(combinations(range(8), 2))
    assert sum(rows) == sum(head[:-1]) + sum(head[j] for _, j in pairs)
    assert sum(rows) < 0.65 * sum(head[i] + head[j] for i, j in pairs)


@pytest.mark.parametrize("kind", ["electra", "modernbert", "qwen3"], scope="function")
def test_out_of_memory_halves_the_budget_for_good(of_kind, kind, monkeypatch):
    model = of_kind(kind)
    expected = model.similarity(PAIRS)
    sizes, run = [], type(model._forward)._batch

    def short(self, some):
        sizes.append(int(self._tokens(some)[-1]))
        if sizes[-1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, some)

    monkeypatch.setattr(type(model._forward), "_batch", short)
    assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)
    tries = len(sizes)
    assert sizes[0] > 400 and model._forward.token_budget <= 200
    assert sizes == sorted(sizes[: sizes.index(next(s for s in sizes if s <= 200))], reverse=True) + [
        size for size in sizes if size <= 200
    ], "once it fits, it fits"
    model.similarity(PAIRS)
    assert max(sizes[tries:]) <= 200, "the next call does not try the old budget again"


def test_an_error_and_a_shortage_for_a_single_pair_pass_through(of_kind, monkeypatch):
    model = of_kind("modernbert")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("something else")):

        def fail(self, some, error=error):
            raise error

        monkeypatch.setattr(PackedForward, "_batch", fail)
        with pytest.raises(type(error), match=str(error)):
            model.similarity(PAIRS[:3])


# --- attention


def row_of(queries, keys=None, causal=False):
    total = sum(queries)
    ids = torch.arange(total)
    return forward.Row(
        ids, ids, None, queries, keys or queries, [0] * len(queries), None, causal, ids, (1, total), ids
    )


@pytest.mark.parametrize(
    ("queries", "keys", "causal", "window"),
    [
        ([3, 3, 5, 1], None, False, None),
        ([30, 12], None, False, 4),
        ([4, 4, 2], [9, 9, 2], True, None),
        ([6, 5], [6, 11], True, 3),
        ([30, 9, 17], None, False, 6),
    ],
)
@pytest.mark.parametrize("block", [4, 128])
def test_attention_of_pieces_matches_the_formula(queries, keys, causal, window, block, monkeypatch):
    monkeypatch.setattr(forward, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    heads, size, key_heads = 4, 8, 2
    keys = keys or queries
    query = torch.randn(sum(queries), heads, size, generator=generator)
    key, value = torch.randn(2, sum(keys), key_heads, size, generator=generator)
    found = forward.sdpa_by_piece(query, key, value, row_of(queries, keys, causal), 0.3, window)
    q = k = 0
    for n, m in zip(queries, keys, strict=True):
        for head in range(heads):
            own = head * key_heads // heads
            for i in range(n):
                place = m - n + i  # of the query among the keys
                seen = [
                    j for j in range(m) if (not causal or j <= place) and (window is None or abs(j - place) <= window)
                ]
                scores = torch.stack([query[q + i, head] @ key[k + j, own] for j in seen]) * 0.3
                expected = scores.softmax(0) @ torch.stack([value[k + j, own] for j in seen])
                assert torch.allclose(found[q + i, head], expected, atol=1e-5)
        q, k = q + n, k + m


@pytest.mark.parametrize("library", ["torch", "flash-attn"])
@pytest.mark.parametrize("kind", ["modernbert", "qwen3"], scope="function")
def test_what_cuda_would_be_given_says_the_same(of_kind, kind, library, monkeypatch):
    """The kernel's arguments, as documented for torch's varlen_attn and flash-attn, played back by a plain one."""
    model = of_kind(kind)
    expected = model.similarity(PAIRS)
    plain, calls = forward.sdpa_by_piece, []

    def kernel(query, key, value, query_starts, key_starts, max_query, max_key, scale, window, causal):
        assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
        assert query_starts.dtype == key_starts.dtype == torch.int32
        queries, keys = query_starts.diff().tolist(), key_starts.diff().tolist()
        assert (max(queries), max(keys)) == (max_query, max_key)
        calls.append(window)
        return plain(query, key, value, row_of(queries, keys, causal), scale, None if window[0] < 0 else window[0])

    def of_torch(query, key, value, *lengths, scale, window_size, enable_gqa):
        assert enable_gqa == (query.shape[1] != key.shape[1])
        return kernel(query, key, value, *lengths, scale, window_size, window_size[1] == 0)

    def of_flash_attn(query, key, value, *lengths, softmax_scale, causal, window_size):
        return kernel(query, key, value, *lengths, softmax_scale, window_size, causal)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", of_torch)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=of_flash_attn))
    forward._varlen_attention.cache_clear()
    varlen = forward._varlen_attention() if library == "torch" else forward._flash_attention()
    forward._varlen_attention.cache_clear()
    monkeypatch.setattr(forward, "sdpa_by_piece", varlen)
    assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)
    assert set(calls) == ({(-1, -1), (8, 8)} if kind == "modernbert" else {(-1, 0)})


class OnCuda:
    """What choose_forward asks of a base model, on a GPU that is not there."""

    def __init__(self, model_type, dtype):
        self.device, self.dtype = torch.device("cuda"), dtype
        self.config = type("Config", (), {"model_type": model_type})()

    def set_attn_implementation(self, name):
        self.attention = name

    def register_forward_pre_hook(self, hook, with_kwargs):
        pass

    def register_forward_hook(self, hook):
        pass


@pytest.mark.parametrize("flash", [False, True])
def test_torchs_varlen_attention_without_windows_is_not_taken(flash, monkeypatch):
    """Its signature in torch 2.10."""

    def old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        pass

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", old)
    monkeypatch.setattr(forward.importlib.util, "find_spec", lambda name: flash or None)
    monkeypatch.setattr(forward, "_flash_attention", lambda: "flash")
    forward._varlen_attention.cache_clear()
    assert forward._varlen_attention() == ("flash" if flash else None)
    forward._varlen_attention.cache_clear()


@pytest.mark.parametrize(
    ("kind", "dtype", "kernel", "expected"),
    [
        ("modernbert", torch.bfloat16, True, PackedForward),
        ("qwen3", torch.float16, True, CausalForward),
        ("modernbert", torch.float32, True, PaddedForward),
        ("modernbert", torch.bfloat16, False, PaddedForward),
        ("deberta-v2", torch.bfloat16, True, PaddedForward),
    ],
)
def test_on_cuda_packing_needs_half_precision_and_a_kernel(kind, dtype, kernel, expected, monkeypatch):
    monkeypatch.setattr(forward, "_varlen_attention", lambda: (lambda: None) if kernel else None)
    assert type(choose_forward(None, OnCuda(kind, dtype), 0)) is expected


def test_a_sliding_window_of_a_causal_model_is_not_packed():
    base = OnCuda("qwen2", torch.float32)
    base.device = torch.device("cpu")
    assert type(choose_forward(None, base, 0)) is CausalForward
    base.config.use_sliding_window = True
    assert type(choose_forward(None, base, 0)) is PaddedForward


# --- pairs of token ids


@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen3"], scope="function")
@pytest.mark.parametrize("max_length", [8, 9, 21, 200])
def test_pairs_are_what_the_tokenizer_makes_of_them(kind, max_length):
    from darling_plugin.partition.engine.pair_tokens import PairTokens

    tokenizer = make_tokenizer(kind)
    pairs = [Pair("p", *two) for two in combinations(["", "cat", *some_texts(7, 20)], 2)]
    for pair, ids in zip(pairs, PairTokens(tokenizer, max_length)(pairs), strict=True):
        expected = tokenizer(pair.first, pair.second, truncation="longest_first", max_length=max_length)
        assert ids.ids.tolist() == expected["input_ids"]
        if kind == "bert":
            assert ids.types.tolist() == expected["token_type_ids"]


def test_each_response_is_tokenised_once(monkeypatch):
    from darling_plugin.partition.engine import pair_tokens

    tokenizer = make_tokenizer("bert")
    seen, tokenise = [], type(tokenizer)._encode_plus

    def noting(self, text, *args, **kwargs):
        seen.extend([text] if isinstance(text, str) else text)
        return tokenise(self, text, *args, **kwargs)

    tokens = pair_tokens.PairTokens(tokenizer, 100)
    monkeypatch.setattr(type(tokenizer), "_encode_plus", noting)
    first = tokens(PAIRS[:10])
    tokens(PAIRS)
    assert sorted(seen) == sorted(set(TEXTS))
    monkeypatch.setattr(pair_tokens, "KEPT", 3)
    again = tokens([*PAIRS[:1], Pair("p", "a new one", "cat")])
    assert again[0].ids.tolist() == first[0].ids.tolist()
    assert set(tokens._ids) == {*PAIRS[0][1:], "a new one", "cat"}, "older responses are forgotten"


def test_the_limit_of_a_response_and_the_special_tokens():
    from darling_plugin.partition.engine.pair_tokens import PairTokens

    tokenizer = make_tokenizer("qwen3")
    tokens = PairTokens(tokenizer, 100, max_response_length=3, special_tokens=("<cls>", "<sep>", "<pad>"))
    (ids,) = tokens([Pair("p", "the cat sat on", "a dog")])
    words = {word: k for k, word in enumerate(SPECIAL)} | tokenizer.get_vocab()
    assert ids.head.tolist() == [words[w] for w in ("<cls>", "the", "cat", "sat", "<sep>")]
    assert ids.tail.tolist() == [words[w] for w in ("a", "dog", "<pad>")]
    with pytest.raises(Exception, match="a tokenizer that knows <nope>"):
        PairTokens(tokenizer, 100, special_tokens=("<nope>", "<sep>", "<sep>"))
    with pytest.raises(Exception, match="max_length above the pair's 2 special"):
        PairTokens(tokenizer, 3)


def test_the_types_of_a_pair_and_the_padding_of_a_batch():
    ids, mask = forward._padded([np.array([5, 6]), np.array([7])], 0)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [7, 0]], [[True, True], [True, False]])
