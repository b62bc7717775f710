"""CUDA's attention kernels, played on the CPU: what they would be given, and which is chosen."""

import inspect
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_classifiers import PAIRS

from darling_plugin.errors import DarlingError
from darling_plugin.partition.engine import attention, kernels
from darling_plugin.partition.engine.attention import Pieces, Shape, sdpa_by_piece
from darling_plugin.partition.engine.forward import PaddedForward, choose_forward

ENCODER = Shape(2, 2, 8, None, False, torch.bfloat16)
WINDOWED = Shape(2, 2, 8, 64, False, torch.bfloat16)
SHARED = Shape(4, 2, 8, None, True, torch.bfloat16)
FLASH = {"flash-attn 2": "flash_attn", "flash-attn 3": "flash_attn_interface"}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Samples of a few pieces, long enough for a window to be seen."""
    monkeypatch.setattr(kernels, "ENCODED", ([200, 130, 12], [200, 130, 12]))
    monkeypatch.setattr(kernels, "SHARED", ([40, 30, 30], [40, 70, 70]))


@pytest.fixture(autouse=True)
def forget():
    yield
    kernels.choose.cache_clear()


@pytest.fixture
def install(monkeypatch):
    """The machine has these modules (and torch), and a GPU of that compute capability."""

    def of(names, capability=(9, 0)):
        monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: name in names or None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return of


def played(calls, apart):
    """A kernel with the arguments of flash-attn's, computed by the reference."""

    def flash_attn_varlen_func(
        q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size, **more
    ):
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
        assert (max(queries), max(keys)) == (max_seqlen_q, max_seqlen_k)
        calls.append((window_size, more))
        apart.add(tuple(not each.is_contiguous() for each in (q, k, v)))
        pieces = Pieces(queries, keys, [0] * len(queries), torch.device("cpu"), causal=causal)
        return sdpa_by_piece(q, k, v, pieces, softmax_scale, None if window_size[0] < 0 else window_size[0])

    return flash_attn_varlen_func


@pytest.mark.parametrize("library", ["torch's", *FLASH, "vLLM's flash-attn 3"])
@pytest.mark.parametrize("kind", ["modernbert", "qwen3"], scope="function")
def test_what_cuda_would_be_given_says_the_same(of_kind, kind, library, install, monkeypatch):
    """The kernel's arguments, as its library documents them, played back by a plain one."""
    model, calls, apart = of_kind(kind), [], set()
    expected = model.similarity(PAIRS)
    flash = played(calls, apart)

    def varlen_attn(
        query, key, value, query_starts, key_starts, most, most_keys, *, scale, window_size, enable_gqa=False
    ):
        assert enable_gqa == (query.shape[1] != key.shape[1])
        lengths = {"cu_seqlens_q": query_starts, "cu_seqlens_k": key_starts, "max_seqlen_q": most}
        how = {"softmax_scale": scale, "causal": window_size[1] == 0, "window_size": window_size}
        return flash(query, key, value, **lengths, max_seqlen_k=most_keys, **how)

    varlen_attn.__signature__ = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("scale", "window_size", "enable_gqa")]
    )
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    for module in (*FLASH.values(), "vllm.vllm_flash_attn"):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(flash_attn_varlen_func=flash))
    install(["vllm"] if library.startswith("vLLM") else FLASH.values())
    shape = SHARED if kind == "qwen3" else ENCODER
    attend = kernels.candidates(shape, (9, 0))[library]()
    monkeypatch.setattr(attention, "choose_attention", lambda device, shape: attend)
    found = model.similarity(PAIRS)
    assert torch.allclose(found, expected, atol=2e-4)
    if kind == "modernbert":  # one linear layer gives all three: what is apart stays so, and is not copied
        assert apart == {(False, False, True)}

    def contiguous(device, shape):
        return lambda query, key, value, *how: attend(query.contiguous(), key.contiguous(), value.contiguous(), *how)

    monkeypatch.setattr(attention, "choose_attention", contiguous)
    assert torch.equal(model.similarity(PAIRS), found)
    assert {window for window, _ in calls} == ({(-1, -1), (8, 8)} if kind == "modernbert" else {(-1, 0)})
    assert {options.get("fa_version") for _, options in calls} == {3 if library.startswith("vLLM") else None}


def test_an_early_flash_attn_3_gives_the_logsumexp_too(monkeypatch):
    flash = played([], set())
    both = SimpleNamespace(flash_attn_varlen_func=lambda *arguments, **options: (flash(*arguments, **options), None))
    monkeypatch.setitem(sys.modules, "flash_attn_interface", both)
    found = kernels.try_out(WINDOWED, {"3": lambda: kernels._flash_varlen("flash_attn_interface")}, "cpu")
    assert found.name == "3"


@pytest.mark.parametrize(
    ("installed", "capability", "expected"),
    [
        ([], (9, 0), ["torch's"]),
        (["flash_attn"], (8, 0), ["torch's", "flash-attn 2"]),
        (["flash_attn", "vllm"], (9, 0), ["torch's", "flash-attn 2", "vLLM's flash-attn 3"]),
        (["flash_attn_interface", "vllm"], (9, 0), ["torch's", "flash-attn 3"]),
        (["flash_attn", "flash_attn_interface", "vllm"], (12, 0), ["torch's", "flash-attn 2"]),
    ],
)
def test_candidates_are_what_is_installed_with_flash_attention_3_on_hopper(installed, capability, expected, install):
    install(installed, capability)
    assert list(kernels.candidates(WINDOWED, capability)) == expected


class Clock:
    """Time that passes in the kernels alone."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(kernels, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def kernel(self, seconds, attend=sdpa_by_piece):
        def timed(*arguments):
            self.now += seconds
            return attend(*arguments)

        return lambda: timed


def test_a_kernel_that_needs_its_rows_together_is_not_used_where_they_lie_apart():
    def together(query, key, value, *how):
        assert value.is_contiguous(), "value must be contiguous"
        return sdpa_by_piece(query, key, value, *how)

    found = kernels.try_out(ENCODER, {"together": lambda: together}, "cpu")
    assert found.attend is None and "value must be contiguous" in found.tried["together"]


@pytest.mark.parametrize("shape", [ENCODER, WINDOWED, SHARED])
def test_the_fastest_is_chosen(shape, monkeypatch):
    clock = Clock(monkeypatch)
    found = kernels.try_out(shape, {"slow": clock.kernel(3), "fast": clock.kernel(1), "late": clock.kernel(2)}, "cpu")
    assert found.name == "fast" and found.attend is not None
    assert found.tried == {"slow": "3e+03 ms", "fast": "1e+03 ms", "late": "2e+03 ms"}


def test_of_two_that_are_as_fast_the_first_is_chosen_whatever_the_noise(monkeypatch):
    clock = Clock(monkeypatch)
    for seconds in (0.95, 1.0, 1.05):
        found = kernels.try_out(ENCODER, {"first": clock.kernel(1.0), "second": clock.kernel(seconds)}, "cpu")
        assert found.name == "first"


def no_window(query, key, value, pieces, scaling, window):
    return sdpa_by_piece(query, key, value, pieces, scaling, None)


def one_less(query, key, value, pieces, scaling, window):
    return sdpa_by_piece(query, key, value, pieces, scaling, window - 1)


def other_scale(query, key, value, pieces, scaling, window):
    return sdpa_by_piece(query, key, value, pieces, 1.1 * scaling, window)


def not_a_number(*arguments):
    return sdpa_by_piece(*arguments) * float("nan")


@pytest.mark.parametrize("wrong", [no_window, one_less, other_scale, not_a_number])
def test_what_is_not_exact_is_refused_with_a_warning_however_fast(wrong, monkeypatch, caplog):
    clock = Clock(monkeypatch)
    found = kernels.try_out(WINDOWED, {"wrong": clock.kernel(0.1, wrong), "right": clock.kernel(9)}, "cpu")
    assert found.name == "right" and "refused" in found.tried["wrong"] and "wrong" in caplog.text
    alone = kernels.try_out(WINDOWED, {"wrong": clock.kernel(0.1, wrong)}, "cpu")
    assert alone.name is None and alone.attend is None
    assert "batches are padded" in caplog.text


def test_an_error_of_a_twentieth_is_refused(monkeypatch):
    def near(*arguments):
        return sdpa_by_piece(*arguments) + 0.05

    assert kernels.try_out(WINDOWED, {"near": Clock(monkeypatch).kernel(1, near)}, "cpu").name is None


def test_what_raises_is_passed_over_and_named(monkeypatch, caplog):
    clock = Clock(monkeypatch)

    def missing():
        raise ImportError("libcudart.so.99: cannot open shared object file")

    def not_here(*arguments):
        raise RuntimeError("no kernel image is available")

    tried = {"missing": missing, "not here": clock.kernel(0.1, not_here), "right": clock.kernel(9)}
    found = kernels.try_out(ENCODER, tried, "cpu")
    assert found.name == "right"
    assert (
        "ImportError: libcudart" in str(found) and "no kernel image" in str(found) and "right: 9e+03 ms" in str(found)
    )
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_kernel_that_breaks_the_accelerator_is_named_and_not_passed_over(monkeypatch):
    """The next one would fail by the same error, and the model itself would."""
    clock, loaded = Clock(monkeypatch), []

    def illegal(*arguments):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def other():
        loaded.append("other")
        return sdpa_by_piece

    with pytest.raises(DarlingError, match="(?s)flash-attn 9, tried on a sample.*AcceleratorError.*illegal memory"):
        kernels.try_out(ENCODER, {"flash-attn 9": clock.kernel(1, illegal), "other": other}, "cpu")
    assert not loaded

    def not_built_for_it(*arguments):
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")

    kernels_here = {"flash-attn 9": clock.kernel(1, not_built_for_it), "other": other}
    assert kernels.try_out(ENCODER, kernels_here, "cpu").name == "other"


@pytest.mark.parametrize("breaks", [False, True])
def test_a_kernel_that_raises_only_when_it_is_timed_is_named_too(breaks, monkeypatch):
    clock, calls = Clock(monkeypatch), []
    message = "CUDA error: an illegal memory access was encountered" if breaks else "no workspace is left"

    def once(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise (torch.AcceleratorError if breaks else RuntimeError)(message)
        return sdpa_by_piece(*arguments)

    tried = {"once": clock.kernel(0.1, once), "right": clock.kernel(9)}
    if breaks:
        with pytest.raises(DarlingError, match=f"(?s)once, tried on a sample.*{message}"):
            kernels.try_out(ENCODER, tried, "cpu")
    else:
        found = kernels.try_out(ENCODER, tried, "cpu")
        assert found.name == "right" and message in found.tried["once"] and len(calls) == 2


@pytest.mark.parametrize("version", ["2.10", "2.11"])
def test_torchs_varlen_attention_is_taken_for_what_it_can(version, monkeypatch):
    """Its signatures: 2.10 had no windows, 2.11 no shared heads."""

    def of_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        pass

    def of_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):
        pass

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", of_10 if version == "2.10" else of_11)
    for shape, takes in ((ENCODER, version == "2.11"), (WINDOWED, version == "2.11"), (SHARED, False)):
        if takes:
            assert kernels._torch_varlen(shape).__name__ == "torch_varlen"
        else:
            with pytest.raises(NotImplementedError, match="enable_gqa" if version == "2.11" else "scale"):
                kernels._torch_varlen(shape)


def test_a_shape_is_tried_once_a_process(install, monkeypatch):
    tried = []
    monkeypatch.setattr(kernels, "try_out", lambda shape, *rest: tried.append(shape) or kernels.Choice("a", max, {}))
    install([])
    for shape in (ENCODER, WINDOWED, ENCODER):
        assert attention.choose_attention("cuda", shape) is max
    assert tried == [ENCODER, WINDOWED]


@pytest.mark.parametrize(("capability", "packs"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_gpus_before_ampere_get_padded_batches(capability, packs, install, monkeypatch):
    monkeypatch.setattr(kernels, "try_out", lambda *arguments: kernels.Choice("a", max, {}))
    install([], capability)
    for kind in (torch.float16, torch.bfloat16):
        assert (attention.choose_attention("cuda", Shape(2, 2, 8, None, False, kind)) is not None) == packs
    assert attention.choose_attention("cuda", Shape(2, 2, 8, None, False, torch.float32)) is None


def test_a_model_is_padded_where_one_of_its_shapes_has_no_exact_kernel(of_kind, monkeypatch):
    model = of_kind("modernbert")
    asked = []

    def chosen(device, shape):
        asked.append(shape)
        return None if shape.window else sdpa_by_piece

    monkeypatch.setattr("darling_plugin.partition.engine.forward.choose_attention", chosen)
    assert isinstance(choose_forward(max, model.model.base_model, 0), PaddedForward)
    config = model.model.config
    size = config.hidden_size // config.num_attention_heads
    assert asked[-1] == Shape(config.num_attention_heads, config.num_attention_heads, size, 8, False, torch.float32)
    # What a batch asks for must be what was tried when the model was loaded.
    in_batch = []
    monkeypatch.setattr(attention, "choose_attention", lambda device, shape: in_batch.append(shape) or sdpa_by_piece)
    model.similarity(PAIRS)
    assert set(in_batch) == set(asked)
