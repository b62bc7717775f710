"""When layers are compiled, how often, and what becomes of it without a compiler."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_classifiers import PAIRS, load
from torch._dynamo.utils import counters

from darling_plugin.errors import DarlingError
from darling_plugin.partition.engine import compiling
from darling_plugin.partition.engine.compiling import COMPILE_AFTER, tokens_before_compiling


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


@pytest.fixture
def layer_by_layer(monkeypatch):
    """Encoders with biases are compiled as on CUDA."""
    base = SimpleNamespace(device=torch.device("cuda"), encoder=None)
    assert not compiling.compiled_whole(base)
    monkeypatch.setattr(compiling, "compiled_whole", lambda base: False)


BERTS = pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"], scope="module")


@BERTS
def test_layers_compiled_one_by_one_as_on_cuda_say_the_same(path, expected, graphs, layer_by_layer):
    model = load(path, dtype="float32", compile_after=0)
    encoder = model.model.base_model.encoder
    assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)
    assert ["forward" in vars(layer) for layer in encoder.layer] == [True] * 4
    assert "forward" not in vars(encoder)
    assert graphs() == 1, "what was made for the first layer serves the others"
    for some in (PAIRS[:1], PAIRS[3:11], PAIRS[::2]):
        where = [PAIRS.index(pair) for pair in some]
        assert torch.allclose(model.similarity(some), expected[where], atol=2e-4)
    assert graphs() == 1


@BERTS
def test_without_a_compiler_they_too_stay_as_they_are(path, expected, graphs, layer_by_layer, caplog):
    model = load(path, dtype="float32", compile_after=0)
    layers = model.model.base_model.encoder.layer
    plain = [layer.forward for layer in layers]
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)
    assert caplog.text.count("torch.compile failed, going on without it") == 1, "once for all layers"
    assert [layer.forward for layer in layers] == plain


def test_layers_are_compiled_once_enough_tokens_are_scored(of_kind, monkeypatch):
    compiled = []
    monkeypatch.setattr(compiling, "compile_layers", compiled.append)
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


def test_by_default_work_is_counted_weights_times_tokens():
    def waits_for(layers, width, device):
        base = torch.nn.Sequential(*(torch.nn.Linear(width, 4 * width) for _ in range(layers)))
        base.device = torch.device(device)
        return tokens_before_compiling(base, None)

    assert waits_for(2, 100, "cpu") == COMPILE_AFTER["cpu"] / (2 * 4 * 100**2)
    assert waits_for(4, 100, "cuda") == waits_for(1, 200, "cuda") == COMPILE_AFTER["cuda"] / (16 * 100**2)
    # What was measured on one H200, in weights of the linear layers: a few million tokens of ModernBERT-base, and
    # the first steps of a 4B model.
    assert 2e6 < COMPILE_AFTER["cuda"] / 0.11e9 < 8e6 and 1e5 < COMPILE_AFTER["cuda"] / 3.6e9 < 3e5


@pytest.mark.parametrize("bad", ["never", True, -1, float("nan")])
def test_a_compile_after_that_is_no_number_of_tokens_is_refused(of_kind, bad):
    with pytest.raises(DarlingError, match="a number from 0 as compile_after"):
        of_kind("bert", compile_after=bad)


CAPABILITIES = ("avx512", "avx2")  # as PyTorch calls them: what its own kernels may use, and what it compiles for
COMPILED = """
import torch
from darling_plugin.partition.engine.compiling import compile_layers

base = torch.nn.Module()
base.device, base.encoder = torch.device("cpu"), torch.nn.Sequential(torch.nn.LayerNorm(40), torch.nn.GELU())
rows = torch.randn(7, 40)
with torch.inference_mode():
    expected = base.encoder(rows)
    compile_layers(base)
    assert torch.allclose(base.encoder(rows), expected, atol=1e-5)
"""


@pytest.mark.skipif("AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="needs a CPU with AVX-512")
def test_what_was_compiled_for_other_vectors_is_not_found_in_a_shared_cache(tmp_path):
    for capability in CAPABILITIES:
        settings = {"ATEN_CPU_CAPABILITY": capability, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        subprocess.run([sys.executable, "-c", COMPILED], env=os.environ | settings, check=True)
