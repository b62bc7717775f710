"""Attention within pieces, by the formula."""

import pytest
import torch

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
