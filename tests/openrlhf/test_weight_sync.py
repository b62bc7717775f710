"""The proof of a weight sync: rows as sent against rows as vLLM computes with, on layers like CPU vLLM's."""

import pytest
import torch

from darling_plugin.errors import DarlingError
from darling_plugin.openrlhf import weight_sync


class Repacked(torch.nn.Module):
    """A linear layer as CPU vLLM leaves it: an empty weight, and a kernel that holds the real one."""

    def __init__(self, weight):
        super().__init__()
        self.kernel = weight.to(torch.bfloat16)
        self.weight = torch.nn.Parameter(torch.empty(0, dtype=torch.bfloat16))
        self.input_size = weight.shape[1]

    def cpu_linear(self, inputs, weight, bias):
        return inputs @ self.kernel.T


def sent_and_loaded(seed=0):
    """Tensors as a trainer sends them, and a model that has joined two of them, as vLLM does, and kept a norm."""
    generator = torch.Generator().manual_seed(seed)
    sent = {
        "q.weight": torch.randn(48, 40, generator=generator),
        "k.weight": torch.randn(16, 40, generator=generator),
        "norm.weight": torch.randn(40, generator=generator),
    }
    model = torch.nn.Module()
    model.qk = Repacked(torch.cat([sent["q.weight"], sent["k.weight"]]))
    model.norm = torch.nn.Module()
    model.norm.weight = torch.nn.Parameter(sent["norm.weight"].to(torch.bfloat16))
    return sent, model


def compared(comparison, sent, model):
    comparison.make({name: weight_sync.tensor_fingerprints(each) for name, each in sent.items()}, model)
    return comparison.differing


def test_what_arrived_whole_does_not_differ_from_what_was_sent_in_float32_or_bfloat16():
    for dtype in (torch.float32, torch.bfloat16):
        sent, model = sent_and_loaded()
        comparison = weight_sync.Comparison()
        assert compared(comparison, {name: each.to(dtype) for name, each in sent.items()}, model) == {}
        assert comparison.unfollowed == {} and comparison.tensors == 3


@pytest.mark.parametrize("left_behind", ["q.weight", "k.weight", "norm.weight"])
def test_a_tensor_left_behind_is_named_though_the_step_was_small(left_behind):
    sent, model = sent_and_loaded()
    comparison = weight_sync.Comparison()
    compared(comparison, sent, model)
    trained = {name: each * 1.02 for name, each in sent.items()}
    for name, each in trained.items():
        if name != left_behind and name in ("q.weight", "k.weight"):
            rows = slice(0, 48) if name == "q.weight" else slice(48, 64)
            model.qk.kernel[rows] = each.to(torch.bfloat16)
        elif name != left_behind:
            model.norm.weight.data = each.to(torch.bfloat16)
    differing = compared(comparison, trained, model)
    assert left_behind in differing
    assert not differing.keys() & (sent.keys() - {left_behind})


def test_one_row_of_another_step_is_enough():
    sent, model = sent_and_loaded()
    comparison = weight_sync.Comparison()
    compared(comparison, sent, model)
    model.qk.kernel[5] *= 1.02
    assert compared(comparison, sent, model) == {"q.weight": "1 of 48 rows", "qk, repacked": "1 of 64 rows"}


def test_what_the_first_sync_cannot_follow_is_left_to_the_log_probabilities():
    sent, model = sent_and_loaded()
    comparison = weight_sync.Comparison()
    lost = {**sent, "lm_head.weight": torch.ones(8, 40)}
    assert compared(comparison, lost, model) == {}
    assert comparison.unfollowed == {"lm_head.weight": "8 of 8 rows"}


def test_a_repacked_head_left_behind_is_named_though_only_its_embedding_is_sent():
    generator = torch.Generator().manual_seed(0)
    sent = {"embedding.weight": torch.randn(64, 40, generator=generator)}
    model = torch.nn.Module()
    model.embedding = torch.nn.Module()
    model.embedding.weight = torch.nn.Parameter(sent["embedding.weight"].to(torch.bfloat16))
    model.head = Repacked(sent["embedding.weight"])
    comparison = weight_sync.Comparison()
    assert compared(comparison, sent, model) == {} and comparison.unfollowed == {}
    trained = {"embedding.weight": sent["embedding.weight"] * 1.02}
    model.embedding.weight.data = trained["embedding.weight"].to(torch.bfloat16)
    assert compared(comparison, trained, model) == {"head, repacked": "64 of 64 rows"}
    model.head.kernel = trained["embedding.weight"].to(torch.bfloat16)
    assert compared(comparison, trained, model) == {}


def dummy(tensor):
    """As vLLM starts with it."""
    weight_utils = pytest.importorskip("vllm.model_executor.model_loader.weight_utils")
    filled = torch.empty(tensor.shape, dtype=torch.bfloat16)
    weight_utils.initialize_single_dummy_weight(filled)
    return filled


def test_what_vllm_never_loaded_is_named_at_the_first_sync_however_little_it_moves():
    sent, model = sent_and_loaded()
    model.qk.kernel = dummy(model.qk.kernel)
    comparison = weight_sync.Comparison()
    assert compared(comparison, sent, model) == {}
    assert comparison.unloaded == {"qk, repacked": "64 of 64 rows"}
    sent, model = sent_and_loaded()
    sent["other.weight"] = sent["norm.weight"].repeat(24) + 1
    model.norm.weight.data = dummy(torch.empty(960))
    comparison = weight_sync.Comparison()
    compared(comparison, sent, model)
    assert list(comparison.unloaded) == ["norm.weight"]


def test_a_tensor_that_vllm_loads_in_another_form_is_not_taken_for_one_that_it_never_loaded():
    sent, model = sent_and_loaded()
    model.qk.kernel = model.qk.kernel * 2
    comparison = weight_sync.Comparison()
    compared(comparison, sent, model)
    assert comparison.unloaded == {} and set(comparison.unfollowed) == {"q.weight", "k.weight", "qk, repacked"}
    assert comparison.unfollowed_since_last == comparison.unfollowed
    compared(comparison, sent, model)
    assert comparison.unfollowed_since_last == {} and len(comparison.unfollowed) == 3


def test_small_weights_that_arrived_are_not_taken_for_those_that_vllm_starts_with():
    sent, model = sent_and_loaded()
    sent["norm.weight"] = torch.full((40,), 1e-3)
    model.norm.weight.data = sent["norm.weight"].to(torch.bfloat16)
    comparison = weight_sync.Comparison()
    assert compared(comparison, sent, model) == {} and comparison.unloaded == {}


def test_a_bias_of_zeros_says_nothing_of_whether_it_can_be_followed():
    sent, model = sent_and_loaded()
    model.biases = torch.nn.Module()
    model.biases.bias = torch.nn.Parameter(torch.zeros(96, dtype=torch.bfloat16))
    comparison = weight_sync.Comparison()
    compared(comparison, {**sent, "q.bias": torch.zeros(64), "odd.bias": torch.zeros(20)}, model)
    # Trained, the one that vLLM has cut elsewhere is not taken for one that did not arrive; the other is followed.
    trained = {**sent, "q.bias": torch.arange(1.0, 65), "odd.bias": torch.arange(1.0, 21)}
    model.biases.bias.data[:64] = trained["q.bias"].to(torch.bfloat16)
    assert compared(comparison, trained, model) == {}
    assert list(comparison.unfollowed) == ["odd.bias"]
    assert "q.bias" in compared(comparison, {**trained, "q.bias": trained["q.bias"] * 2}, model)


def test_the_error_of_log_probabilities_is_relative_to_their_spread():
    ours = torch.tensor([-1.0, -2.0, -3.0, -6.0])
    assert weight_sync.relative_error(ours, ours) == 0
    assert weight_sync.relative_error(ours.mean().expand(4), ours) == pytest.approx(1)
    assert weight_sync.relative_error(torch.full((4,), float("nan")), ours) != 0


class Logger:
    warned = ""

    def info(self, text):
        self.said = text

    def warning(self, text):
        self.warned = text


@pytest.mark.parametrize(
    ("gaps", "stops"), [([0.03], False), ([0.3, 0.03], False), ([0.3, 0.3], True), ([float("nan")] * 2, True)]
)
def test_a_second_look_at_another_text_comes_before_the_run_is_stopped(monkeypatch, gaps, stops):
    texts = []
    monkeypatch.setattr(
        weight_sync, "log_probability_gap", lambda trainer, text: texts.append(text) or gaps[len(texts) - 1]
    )
    monkeypatch.setattr(weight_sync, "comparisons", lambda trainer: [weight_sync.Comparison()])
    if stops:
        with pytest.raises(DarlingError, match="to agree on log-probabilities"):
            weight_sync.check(None, Logger(), log_probabilities=True)
    else:
        weight_sync.check(None, Logger(), log_probabilities=True)
    assert texts == list(weight_sync.CHECK_TEXTS[: len(gaps)])


def test_tensors_that_differ_stop_the_run_and_are_named(monkeypatch):
    comparison = weight_sync.Comparison()
    comparison.differing = {"model.norm.weight": "2 of 2 rows"}
    monkeypatch.setattr(weight_sync, "comparisons", lambda trainer: [comparison])
    with pytest.raises(DarlingError, match=r"other weights in model\.norm\.weight \(2 of 2 rows\)"):
        weight_sync.check(None, Logger(), log_probabilities=False)


def test_tensors_that_were_never_loaded_stop_the_run_and_are_named(monkeypatch):
    comparison = weight_sync.Comparison()
    comparison.unfollowed = comparison.unfollowed_since_last = comparison.unloaded = {"norm.weight": "2 of 2 rows"}
    monkeypatch.setattr(weight_sync, "comparisons", lambda trainer: [comparison])
    with pytest.raises(DarlingError, match=r"with which vLLM started in norm\.weight \(2 of 2 rows\)"):
        weight_sync.check(None, Logger(), log_probabilities=False)


def test_tensors_that_cannot_be_followed_are_warned_of_by_name_once(monkeypatch):
    comparison, logger = weight_sync.Comparison(), Logger()
    comparison.unfollowed = comparison.unfollowed_since_last = {"conv.weight": "2 of 2 rows"}
    monkeypatch.setattr(weight_sync, "comparisons", lambda trainer: [comparison])
    weight_sync.check(None, logger, log_probabilities=False)
    assert "not found in vLLM as sent: conv.weight (2 of 2 rows)" in logger.warned
    comparison.unfollowed_since_last, logger.warned = {}, ""
    weight_sync.check(None, logger, log_probabilities=False)
    assert logger.warned == "" and "1 of them not to be followed" in logger.said
