"""`served:` and a real vLLM server, beside transformers and `cross-encoder`."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request

import preloaded
import pytest
import torch
from small_servers import MAX_LENGTH, WORDS, ids, make_tokenizer, some_pairs
from transformers import AutoTokenizer, ModernBertConfig, ModernBertForSequenceClassification

from darling_plugin.partition import load_partition_model


def make_modernbert(folder):
    """A random ModernBERT with two labels, of weights so large that its scores spread, and its tokenizer."""
    make_tokenizer(folder)
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        global_attn_every_n_layers=2,
        local_attention=16,
        num_labels=2,
        initializer_range=0.3,
        classifier_pooling="cls",
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    )
    model = ModernBertForSequenceClassification(config)
    model.classifier.weight.data *= 10
    model.save_pretrained(folder)
    return str(folder)


def start_vllm(folder, log, *flags):
    """(process, url) of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [preloaded.python(), "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--dtype", "float32"]
    command += ["--runner", "pooling", "--convert", "classify"]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, env=os.environ | settings, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + 240
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return process, f"http://127.0.0.1:{port}"
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                stop_vllm(process)
                pytest.fail(f"vLLM did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)


def stop_vllm(process):
    """Ends its engine too, which is a process of the same group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modernbert")
    path = make_modernbert(folder)
    process, url = start_vllm(path, folder / "vllm.log")
    yield url, path
    stop_vllm(process)


def by_transformers(path, pairs):
    """P(equivalent), one pair at a time in float32."""
    loaded = AutoTokenizer.from_pretrained(path)
    model = ModernBertForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    scores = []
    for pair in pairs:
        cut = {"truncation": "longest_first", "max_length": MAX_LENGTH, "return_tensors": "pt"}
        with torch.no_grad():
            scores.append(model(**loaded(pair.first, pair.second, **cut)).logits.softmax(-1)[0, 1].item())
    return torch.tensor(scores)


def test_a_real_vllm_scores_and_decides_like_transformers_and_the_cross_encoder(vllm):
    url, path = vllm
    pairs = some_pairs(200)
    assert sum(len(each) == MAX_LENGTH for each in ids(path, pairs)) > 20  # cut ones
    scores = torch.tensor(load_partition_model(f"served:{url}").similarity(pairs))
    expected = by_transformers(path, pairs)
    assert expected.std() > 0.1 and 0.2 < (expected > 0.5).float().mean() < 0.8  # else nothing here could fail
    assert torch.allclose(scores, expected, atol=1e-4), (scores - expected).abs().max()
    assert torch.equal(scores > 0.5, expected > 0.5)
    in_process = load_partition_model(f"cross-encoder:{path}?dtype=float32").similarity(pairs)
    assert torch.allclose(scores, in_process, atol=1e-4), (scores - in_process).abs().max()
    assert torch.equal(scores > 0.5, in_process > 0.5)
