"""Each way through a classifier gives what transformers gives for one pair at a time in float32."""

from itertools import combinations

import numpy as np
import pytest
import torch
from tiny_classifiers import CAUSAL, KINDS, PAIRS, TEXTS, WORDS, load, make_classifier, make_tokenizer

from darling_plugin.partition import Group, Pair, load_partition_model
from darling_plugin.partition.engine import attention, forward, kernels
from darling_plugin.partition.engine.compiling import layers_of
from darling_plugin.partition.engine.device import to_device
from darling_plugin.partition.engine.forward import CausalForward, PackedForward, PaddedForward, choose_forward
from darling_plugin.partition.engine.inputs import ModelInput


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
    monkeypatch.setattr(attention, "BLOCK", 16)
    model = load(path, dtype="float32")
    model._forward._round_up = True
    model._forward.token_budget = token_budget
    rows = []
    next(iter(layers_of(model.model.base_model))).register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[1])
    )
    assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)
    assert all(length % forward.MULTIPLE == 0 for length in rows)


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


def batches_of(model, monkeypatch, pairs=PAIRS):
    """The sizes in tokens of the rows that the layers were given, and the scores."""
    sizes, run = [], type(model._forward)._batch

    def noting(self, some):
        rows = run(self, some)
        sizes.append(int(self._token_counts(some)[-1]))
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


@pytest.mark.parametrize("kind", ["modernbert", "qwen3"], scope="function")
def test_the_tokens_counted_are_those_of_the_row(of_kind, kind, monkeypatch):
    model = of_kind(kind)
    model._forward.token_budget = 300
    rows = []
    model.model.base_model.layers[0].register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    sizes, _ = batches_of(model, monkeypatch)
    assert rows == sizes


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
def test_out_of_memory_halves_the_budget(of_kind, kind, monkeypatch):
    model = of_kind(kind)
    expected = model.similarity(PAIRS)
    sizes, run = [], type(model._forward)._batch

    def short(self, some):
        sizes.append(int(self._token_counts(some)[-1]))
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


def test_a_shortage_that_passes_does_not_last(of_kind, monkeypatch, caplog):
    monkeypatch.setattr(forward, "TRY_AGAIN", 3)
    model = of_kind("modernbert")
    tried, room, run = [], [150], PackedForward._batch

    def short(self, some):
        tried.append(int(self._token_counts(some)[-1]))
        if tried[-1] > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, some)

    monkeypatch.setattr(PackedForward, "_batch", short)
    for _ in range(3):
        model.similarity(PAIRS)
    assert sum(size > room[0] for size in tried) > 3, "larger batches are tried again, in vain"
    told = [record.args[0] for record in caplog.records if "Out of memory" in record.msg]
    assert told == sorted(set(told), reverse=True), "and told once for each depth"
    room[0] = 10_000
    for _ in range(9):
        model.similarity(PAIRS)
    assert model._forward.token_budget == model._forward.full_budget == forward.TOKENS["cpu"]


def test_the_budget_can_be_set(path):
    assert load(path, token_budget=77)._forward.token_budget == 77


def test_an_error_and_a_shortage_for_a_single_pair_pass_through(of_kind, monkeypatch):
    model = of_kind("modernbert")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("something else")):

        def fail(self, some, error=error):
            raise error

        monkeypatch.setattr(PackedForward, "_batch", fail)
        with pytest.raises(type(error), match=str(error)):
            model.similarity(PAIRS[:3])


class OnCuda:
    """What choose_forward asks of a base model, on a GPU that is not there."""

    def __init__(self, model_type, dtype):
        self.device, self.dtype = torch.device("cuda"), dtype
        shape = {"num_attention_heads": 4, "num_key_value_heads": 2 if model_type == "qwen3" else 4}
        shape |= {"hidden_size": 32, "local_attention": 16}
        self.config = type("Config", (), {"model_type": model_type, **shape})()

    def modules(self):
        return []

    def set_attn_implementation(self, name):
        self.attention = name

    def register_forward_pre_hook(self, hook, with_kwargs):
        pass

    def register_forward_hook(self, hook):
        pass


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
    chosen = kernels.Choice("a", max, {}) if kernel else kernels.Choice(None, None, {})
    monkeypatch.setattr(kernels, "choose", lambda shape: chosen)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert type(choose_forward(None, OnCuda(kind, dtype), 0)) is expected


def test_a_sliding_window_of_a_causal_model_is_not_packed():
    base = OnCuda("qwen2", torch.float32)
    base.device = torch.device("cpu")
    assert type(choose_forward(None, base, 0)) is CausalForward
    base.config.use_sliding_window = True
    assert type(choose_forward(None, base, 0)) is PaddedForward


def test_the_padding_of_a_batch():
    ids, mask = forward.pad([np.array([5, 6]), np.array([7])], 0)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [7, 0]], [[True, True], [True, False]])


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "qwen3"], scope="function")
def test_a_text_is_an_input_too_and_pairs_beside_it_change_nothing(of_kind, kind):
    model = of_kind(kind)
    pairs = model._pair_tokens(PAIRS[:6])
    texts = [ModelInput(pair.ids) for pair in pairs]
    assert torch.allclose(model._forward(texts), model._forward(pairs), atol=2e-4)
    mixed = [each for two in zip(texts, pairs, strict=True) for each in two]
    assert torch.allclose(model._forward(mixed), model._forward(pairs).repeat_interleave(2, 0), atol=2e-4)


class OnePerInput(PaddedForward):
    """A stand-in for a GPU's: what is asked of it is noted, and each input's row is its length."""

    def __init__(self, events, part):
        base = OnCuda("bert", torch.float32)
        base.device = torch.device("cpu")
        super().__init__(None, base, 0)
        self.events, self.part, self.token_budget = events, part, 10

    def _batch(self, inputs):
        self.events.append(f"queue {len(inputs)}")
        return torch.tensor([[float(len(each))] for each in inputs])


def test_a_part_is_queued_before_the_next_is_tokenised_and_nothing_waits_before_the_end(monkeypatch):
    """On a GPU queued is not computed: it is at one part while the next is tokenised."""
    events, back = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda rows: events.append("wait") or back(rows))

    def tokenise(lengths):
        events.append(f"tokenise {lengths}")
        return [ModelInput(np.ones(length, dtype=np.int64)) for length in lengths]

    rows = OnePerInput(events, part=2).of([3, 9, 5, 5, 1], tokenise)
    assert rows[:, 0].tolist() == [3, 9, 5, 5, 1]
    first, second, third = "tokenise [3, 9]", "tokenise [5, 5]", "tokenise [1]"
    assert events == [first, "queue 1", "queue 1", second, "queue 2", third, "queue 1", "wait"]


def test_what_tokenising_raises_comes_out_and_the_next_call_is_as_ever():
    def tokenise(lengths):
        if 5 in lengths:
            raise ValueError("no such token")
        return [ModelInput(np.ones(length, dtype=np.int64)) for length in lengths]

    forward = OnePerInput([], part=2)
    with pytest.raises(ValueError, match="no such token"):
        forward.of([3, 9, 5], tokenise)
    assert forward.of([3, 9, 4], tokenise)[:, 0].tolist() == [3, 9, 4]


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3"], scope="function")
@pytest.mark.parametrize("part", [1, 4, 7])
def test_scores_in_parts_are_those_of_all_at_once_to_the_bit(of_kind, kind, part):
    model = of_kind(kind, token_budget=1)  # one input a batch: what shares one may round otherwise
    whole = model.similarity(PAIRS)
    model._forward.part = part
    assert torch.equal(model.similarity(PAIRS), whole)
    model._forward.token_budget = model._forward.full_budget = 300
    assert torch.allclose(model.similarity(PAIRS), whole, atol=2e-4)


def test_parts_count_for_the_compiler_like_calls(of_kind, monkeypatch):
    model = of_kind("bert", compile_after=1)
    seen = []
    monkeypatch.setattr(model._forward.compile_later, "before_scoring", seen.append)
    model._forward.part = 4
    model.similarity(PAIRS)
    lengths = [len(each) for each in model._pair_tokens(PAIRS)]
    assert seen == [sum(lengths[k : k + 4]) for k in range(0, len(lengths), 4)]


def test_on_a_cpu_everything_is_one_part_and_a_gpu_has_several():
    assert forward.PART["cpu"] > 10**9 and forward.PART["cuda"] < 10**4


def test_what_goes_to_a_gpu_comes_from_pinned_memory_and_nobody_waits(monkeypatch):
    done = []

    class Host:
        def pin_memory(self):
            done.append("pin")
            return self

        def to(self, device, non_blocking):
            done.append((device.type, non_blocking))

    monkeypatch.setattr(torch, "from_numpy", lambda array: Host())
    to_device(np.arange(3), torch.device("cuda"))
    to_device(np.arange(3), torch.device("cpu"))
    assert done == ["pin", ("cuda", True), ("cpu", True)]
    pieces = attention.Pieces([2, 3], [2, 3], [0, 0], torch.device("cuda"))
    assert pieces.query_starts is None and pieces.key_starts is None
    assert done[3:] == ["pin", ("cuda", True)] * 2
