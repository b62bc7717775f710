"""Attention within the pieces of a row: what is exchanged inside transformers' models.

A batch is one long row of pieces of text, and only attention has to know where each ends. It is exchanged through
transformers' registry of attention functions; transformers' own SDPA would attend across the pieces without a word.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from darling_plugin.partition.engine.device import to_device

ATTENTION = "darling_packed"  # its name in transformers' registry
BLOCK = 128  # queries, where torch's SDPA computes a sliding window


@dataclass
class Pieces:
    """The P pieces of text that a row of T tokens holds, one after the other; what is beyond the last is padding.

    Args:
        queries: P lengths that sum to T or less.
        keys: P numbers of tokens that each piece sees, its own among them, at their end.
        padding: P numbers of tokens at the end of each piece that no other token sees.
        device: of the row.
        seen: index in 0..T-1 of the tokens that the first piece sees, then the second, ...; None: each sees itself
            alone.
        causal: whether a token sees only what comes before it.
    """

    queries: Sequence[int]
    keys: Sequence[int]
    padding: Sequence[int]
    device: torch.device
    seen: torch.Tensor | None = None
    causal: bool = False
    masks: dict[Block, torch.Tensor | None] = field(default_factory=dict)  # the layers share them

    @cached_property
    def query_starts(self) -> torch.Tensor:
        return to_device(np.cumsum([0, *self.queries]).astype(np.int32), self.device)

    @cached_property
    def key_starts(self) -> torch.Tensor:
        return to_device(np.cumsum([0, *self.keys]).astype(np.int32), self.device)


class Attention(Protocol):
    """Attention of each piece to the tokens that it sees."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pieces: Pieces,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """(T, heads, head size).

        Args:
            query: (T, heads, head size). key, value: (K, key heads, head size), the tokens that each piece sees. Only
                the last dimension must be contiguous: none is copied for a kernel, which all take rows that lie apart.
            window: how many places away a token sees, on both sides; None: all.
        """


@dataclass(frozen=True)
class Shape:
    """What an attention kernel is chosen for.

    Args:
        heads, key_heads, head_size: of the model; `heads` is a multiple of `key_heads`.
        window: how many places away a token sees, on both sides; None: all.
        causal: whether a token sees only what comes before it.
        dtype: of query, key and value.
    """

    heads: int
    key_heads: int
    head_size: int
    window: int | None
    causal: bool
    dtype: torch.dtype


def shapes_of(config: Any, dtype: torch.dtype, causal: bool) -> Iterator[Shape]:
    """Of the attention in the layers of an encoder or causal model with that configuration."""
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    yield Shape(heads, key_heads, head_size, None, causal, dtype)
    if config.model_type == "modernbert":
        yield Shape(heads, key_heads, head_size, config.local_attention // 2, causal, dtype)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this GPU may have a kernel for rows in that dtype: FlashAttention's need compute capability 8.0."""
    return dtype != torch.float32 and torch.cuda.get_device_capability() >= (8, 0)


def choose_attention(device: str, shape: Shape) -> Attention | None:
    """The fastest exact attention that is installed for that device; None: rows cannot be packed there.

    On CUDA that is half precision on GPUs from Ampere on; which kernel, :func:`kernels.choose` finds out.
    """
    if device != "cuda":
        return sdpa_by_piece
    if not can_pack(shape.dtype):
        return None
    from darling_plugin.partition.engine.kernels import choose

    return choose(shape).attend


def exchange_attention(base: Any) -> None:
    """Has the transformers model `base` attend within the pieces of :func:`attending_within`, and in no other way."""
    AttentionInterface.register(ATTENTION, attend_within_pieces)
    base.set_attn_implementation(ATTENTION)


class _Current(threading.local):
    pieces: Pieces | None = None  # of the batch that this thread is at


_current = _Current()


@contextmanager
def attending_within(pieces: Pieces) -> Iterator[None]:
    """Models that were given to :func:`exchange_attention` attend within these pieces, in this thread."""
    _current.pieces = pieces
    try:
        yield
    finally:
        _current.pieces = None


def attend_within_pieces(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function for the row under way: (1, heads, T, head size) -> (1, T, heads, head size).

    sliding_window: a token sees those fewer than that many places away, on both sides; None: all of its piece.
    """
    window = -1 if sliding_window is None else sliding_window - 1
    return torch.ops.darling_plugin.attend_to_row(query, key, value, scaling, window), None


# An operator of its own, since torch.compile would make a new graph for every row's lengths.
@torch.library.custom_op(
    "darling_plugin::attend_to_row",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, float scaling, int window) -> Tensor",
)
def _attend_to_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int
) -> torch.Tensor:
    pieces = _current.pieces
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))  # (T, heads, head size)
    if pieces.seen is not None:
        key, value = key[pieces.seen], value[pieces.seen]
    side = None if window < 0 else window
    shape = Shape(query.shape[1], key.shape[1], query.shape[2], side, pieces.causal, query.dtype)
    attend = choose_attention(query.device.type, shape) or sdpa_by_piece
    # As declared below; a copy only of what a kernel gives otherwise, and so far none does.
    return attend(query, key, value, pieces, scaling, side)[None].contiguous()


@_attend_to_row.register_fake
def _shape_of_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int
) -> torch.Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Block:
    """Some queries of pieces of one length, and the keys that are read for them.

    Args:
        queries, keys: how many, of each piece.
        place: number of the first query among the keys.
        window: how many places away a token sees, on both sides; None: all.
        causal: whether a token sees only what comes before it.
        padded_from: for each piece the number of the first key that is padding: no query sees it, but its own; None:
            there is no padding.
    """

    queries: int
    keys: int
    place: int
    window: int | None
    causal: bool
    padded_from: tuple[int, ...] | None


def sdpa_by_piece(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: Pieces, scaling: float, window: int | None
) -> torch.Tensor:
    """Attention with torch's SDPA, the pieces of like length that are neighbours in one call."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    piece = query_start = key_start = 0
    gqa = query.shape[1] != key.shape[1]
    for (queries, keys), alike in groupby(zip(pieces.queries, pieces.keys, strict=True)):
        count = len(list(alike))
        query_stop, key_stop = query_start + count * queries, key_start + count * keys
        of_queries, of_keys = slice(query_start, query_stop), slice(key_start, key_stop)
        padding = pieces.padding[piece : piece + count]
        own = query[of_queries], key[of_keys], value[of_keys]
        own_query, own_key, own_value = (each.unflatten(0, (count, -1)).transpose(1, 2) for each in own)
        own_out = out[of_queries].unflatten(0, (count, -1)).transpose(1, 2)  # (count, heads, length, head size)
        # Of what lies outside of a block's window, nothing needs to be computed.
        step = BLOCK if window is not None and queries > 2 * BLOCK else queries
        for start in range(0, queries, step):
            stop, place = min(start + step, queries), keys - queries + start  # of the first query among the keys
            low = 0 if window is None else max(0, place - window)
            high = keys if window is None else min(keys, place + stop - start + window)
            padded_from = tuple(keys - each - low for each in padding) if max(padding) > keys - high else None
            block = Block(stop - start, high - low, place - low, window, pieces.causal, padded_from)
            if block not in pieces.masks:
                pieces.masks[block] = _mask(block, query)
            own_out[:, :, start:stop] = scaled_dot_product_attention(
                own_query[:, :, start:stop],
                own_key[:, :, low:high],
                own_value[:, :, low:high],
                attn_mask=pieces.masks[block],
                scale=scaling,
                enable_gqa=gqa,
            )
        piece, query_start, key_start = piece + count, query_stop, key_stop
    out[query_start:] = 0
    return out


def _mask(block: Block, like: torch.Tensor) -> torch.Tensor | None:
    """What is added to the scores of a block, (1 or pieces, 1, 1 or queries, keys) like `like`; None: nothing."""
    queries, keys, place, window = block.queries, block.keys, block.place, block.window
    at = torch.arange(keys, device=like.device)
    distance = at - torch.arange(place, place + queries, device=like.device)[:, None]
    sees = None
    if block.causal:
        sees = distance <= 0
    if window is not None and max(place + queries - 1, keys - 1 - place) > window:
        sees = distance.abs() <= window if sees is None else sees & (distance.abs() <= window)
    if block.padded_from is not None:
        real = at < torch.tensor(block.padded_from, device=like.device)[:, None, None, None]
        # A query that sees nothing at all would make a NaN, which spreads: in a window padding sees itself.
        sees = real if sees is None else (sees & real) | (distance == 0)
    return None if sees is None else torch.zeros_like(sees, dtype=like.dtype).masked_fill_(~sees, -torch.inf)
