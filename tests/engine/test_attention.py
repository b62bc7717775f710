"""Attention within pieces: by the formula, and as CUDA's kernels would be given it."""

import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_classifiers import PAIRS

from darling_plugin.partition.engine import attention


def pieces_of(queries, keys=None, causal=False):
    return attention.Pieces(queries, keys or queries, [0] * len(queries), torch.device("cpu"), causal=causal)


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
    monkeypatch.setattr(attention, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    heads, size, key_heads = 4, 8, 2
    keys = keys or queries
    query = torch.randn(sum(queries), heads, size, generator=generator)
    key, value = torch.randn(2, sum(keys), key_heads, size, generator=generator)
    found = attention.sdpa_by_piece(query, key, value, pieces_of(queries, keys, causal), 0.3, window)
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
    plain, calls = attention.sdpa_by_piece, []

    def kernel(query, key, value, query_starts, key_starts, max_query, max_key, scale, window, causal):
        assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
        assert query_starts.dtype == key_starts.dtype == torch.int32
        queries, keys = query_starts.diff().tolist(), key_starts.diff().tolist()
        assert (max(queries), max(keys)) == (max_query, max_key)
        calls.append(window)
        return plain(query, key, value, pieces_of(queries, keys, causal), scale, None if window[0] < 0 else window[0])

    def of_torch_kernel(query, key, value, *lengths, scale, window_size, enable_gqa=False):
        assert enable_gqa == (query.shape[1] != key.shape[1])
        return kernel(query, key, value, *lengths, scale, window_size, window_size[1] == 0)

    def of_flash_attn(query, key, value, *lengths, softmax_scale, causal, window_size):
        return kernel(query, key, value, *lengths, softmax_scale, window_size, causal)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", of_torch_kernel)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=of_flash_attn))
    attention._varlen_attention.cache_clear()
    varlen = (
        attention._varlen_attention(shared_heads=kind == "qwen3")
        if library == "torch"
        else attention._flash_attention()
    )
    attention._varlen_attention.cache_clear()
    monkeypatch.setattr(attention, "sdpa_by_piece", varlen)
    assert torch.allclose(model.similarity(PAIRS), expected, atol=2e-4)
    assert set(calls) == ({(-1, -1), (8, 8)} if kind == "modernbert" else {(-1, 0)})


@pytest.mark.parametrize("flash", [False, True])
def test_torchs_varlen_attention_without_windows_is_not_taken(flash, monkeypatch):
    """Its signature in torch 2.10."""

    def old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        pass

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", old)
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: flash or None)
    monkeypatch.setattr(attention, "_flash_attention", lambda: "flash")
    attention._varlen_attention.cache_clear()
    assert attention._varlen_attention(shared_heads=False) == ("flash" if flash else None)
    attention._varlen_attention.cache_clear()


@pytest.mark.parametrize("flash", [False, True])
def test_torchs_varlen_attention_without_shared_heads_packs_encoders_all_the_same(flash, monkeypatch):
    """Its signature in torch 2.11, and a GPU."""

    def old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
        pass

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", old)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: flash or None)
    monkeypatch.setattr(attention, "_flash_attention", lambda: "flash")
    attention._varlen_attention.cache_clear()
    encoder = attention.choose_attention("cuda", torch.bfloat16)
    assert encoder.__name__ == "torch_varlen"
    assert attention.choose_attention("cuda", torch.bfloat16, shared_heads=True) == ("flash" if flash else None)
    attention._varlen_attention.cache_clear()


@pytest.mark.parametrize(("capability", "packs"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_gpus_before_ampere_get_padded_batches(capability, packs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    for kind in (torch.float16, torch.bfloat16):
        assert (attention.choose_attention("cuda", kind) is not None) == packs
    assert attention.choose_attention("cuda", torch.float32) is None
