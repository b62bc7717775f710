"""Classifier forward passes over a batch of pairs: padded, packed without padding, packed with shared beginnings.

Packed, the pairs of a batch lie one after the other in one long row, and only attention has to know where each ends.
It is the one function that is replaced, through transformers' registry of attention functions; embeddings, layers and
classification head run as transformers has them, the layers through torch.compile once that pays. Under transformers'
own SDPA a packed row would attend across pairs without a word.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from darling_plugin.partition.base import out_of_memory
from darling_plugin.partition.engine.device import check_compile_after
from darling_plugin.partition.engine.pair_tokens import PairIds

logger = logging.getLogger(__name__)

Run = Callable[..., torch.Tensor]

# Architectures in which attention goes through transformers' registry and nothing else depends on where in a row a
# token lies; each is compared with one pair at a time in tests/test_forward.py.
ENCODERS = ("bert", "modernbert", "roberta", "xlm-roberta")
CAUSAL = ("llama", "qwen2", "qwen3")
ATTENTION = "darling_packed"
BLOCK = 128  # queries, where torch's SDPA computes a sliding window
# On CPUs with matrix units torch's SDPA takes up to twice as long for lengths that are no multiple of 16, and every
# new number of rows costs each linear layer a kernel of its own: both are rounded up, with padding nobody sees.
MULTIPLE, ROW_SHARE = 16, 16

# Of a batch; on a CPU larger ones gain nothing.
TOKENS = {"cuda": 65536, "cpu": 4096}


def choose_forward(
    run: Run, base: Any, pad_id: int, two_types: bool = False, compile_after: float | None = None
) -> PaddedForward:
    """The fastest exact forward pass for that model on the device and in the dtype that it has.

    Packed needs, on CUDA, half precision and an attention for it: torch.nn.attention.varlen, else flash-attn.
    `compile_after` is PackedForward's; a padded one is never compiled.
    """
    compile_after = check_compile_after(compile_after, base.device.type)
    kind = base.config.model_type
    packs = base.device.type != "cuda" or (base.dtype != torch.float32 and _varlen_attention() is not None)
    if packs and kind in ENCODERS:
        return PackedForward(run, base, pad_id, two_types, compile_after)
    # A window that is smaller than a pair would need its own check: the classifiers meant here have none.
    if packs and kind in CAUSAL and not getattr(base.config, "use_sliding_window", False):
        return CausalForward(run, base, pad_id, two_types, compile_after)
    return PaddedForward(run, base, pad_id, two_types)


class PaddedForward:
    """From pairs of token ids to what the model makes of each, in batches of at most `token_budget` tokens.

    Every pair of a batch is padded to the longest.

    Args:
        run: the whole model: takes input_ids and attention_mask, (B, L) int64, with two_types token_type_ids too, and
            returns B rows.
        base: the transformers model in it that holds the layers.
        pad_id: id of the padding token.
        two_types: whether the tokens of a pair's tail have token type 1.
    """

    one_first = False  # see PairwiseModel

    def __init__(self, run: Run, base: Any, pad_id: int, two_types: bool = False) -> None:
        self._run, self._base, self._pad_id, self._two_types = run, base, pad_id, two_types
        self.token_budget = TOKENS[base.device.type]

    def __call__(self, pairs: Sequence[PairIds]) -> torch.Tensor:
        """(M, ...) float32 on the CPU, one row a pair, in order.

        Raises what the model raises; a shortage of memory halves the budget for good, down to one pair a batch.
        """
        order = self._order(pairs)
        left = [pairs[k] for k in order]
        found: list[torch.Tensor] = []  # on the device until the last batch is under way: one transfer
        while left:
            rows = self._next_batch(left)
            found.append(rows)
            left = left[len(rows) :]
        rows = torch.cat(found).float().cpu()
        in_order = torch.empty_like(rows)
        in_order[order] = rows
        return in_order

    def _next_batch(self, left: Sequence[PairIds]) -> torch.Tensor:
        """Rows of the first of these pairs, as many as the token budget has room for, at least one."""
        while True:
            tokens = self._tokens(left)
            count = max(1, int((tokens <= self.token_budget).sum()))
            try:
                with torch.inference_mode():
                    return self._batch(left[:count])
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if count == 1 or not out_of_memory(error):
                    raise
                self.token_budget = int(tokens[count - 1]) // 2
                logger.warning("Out of memory, going on with %d tokens at once: %s", self.token_budget, error)
            # Outside of the except clause: the traceback, and with it the tensors of that attempt, is gone.
            torch.cuda.empty_cache()

    def _order(self, pairs: Sequence[PairIds]) -> list[int]:
        """Longest first: pairs of like length share a batch, and a shortage of memory shows in the first one."""
        return sorted(range(len(pairs)), key=lambda k: -len(pairs[k]))

    def _tokens(self, pairs: Sequence[PairIds]) -> np.ndarray:
        """(M,) how many tokens the first 1, 2, ... M of the ordered pairs take up in one batch, a row's tail aside."""
        return len(pairs[0]) * np.arange(1, len(pairs) + 1)

    def _batch(self, pairs: Sequence[PairIds]) -> torch.Tensor:
        ids, mask = _padded([pair.ids for pair in pairs], self._pad_id)
        types = _padded([pair.types for pair in pairs], 0)[0] if self._two_types else None
        return self._answers(ids, mask, types)

    def _answers(self, ids: np.ndarray, mask: np.ndarray, types: np.ndarray | None = None) -> torch.Tensor:
        inputs = {"input_ids": self._tensor(ids), "attention_mask": self._tensor(mask.astype(np.int64))}
        if types is not None:
            inputs["token_type_ids"] = self._tensor(types)
        return self._run(**inputs)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._base.device, non_blocking=True)


def _padded(rows: Sequence[np.ndarray], value: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, L) the rows with `value` after them, and (B, L) bool where the rows are."""
    mask = np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]
    padded = np.full(mask.shape, value)
    padded[mask] = np.concatenate(rows)
    return padded, mask


@dataclass
class Row:
    """P pieces of text, one after the other, T tokens in all; what is beyond the last piece is padding.

    ids, positions: (T,) int64. types: (T,) int64 token types, for models that have them.
    queries: P lengths that sum to T or less. keys: P numbers of tokens that each piece sees, its own among them, at
        their end. padding: P numbers of tokens at their end that no other token sees.
    seen: index in 0..T-1 of the tokens that the first piece sees, then the second, ...; None: each sees itself alone.
    causal: whether a token sees only what comes before it.
    answers: index in 0..T-1 of the tokens that the classification head is given.
    masks: attention masks by their kind, which the layers share.
    shape, where: (B, L) of the padded batch it is given, and the index in 0..B*L-1 of each of them there.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor | None
    queries: list[int]
    keys: list[int]
    padding: list[int]
    seen: torch.Tensor | None
    causal: bool
    answers: torch.Tensor
    shape: tuple[int, int]
    where: torch.Tensor
    masks: dict[tuple, torch.Tensor | None] = field(default_factory=dict)

    @cached_property
    def query_starts(self) -> torch.Tensor:
        return torch.tensor(np.cumsum([0, *self.queries]), dtype=torch.int32, device=self.ids.device)

    @cached_property
    def key_starts(self) -> torch.Tensor:
        return torch.tensor(np.cumsum([0, *self.keys]), dtype=torch.int32, device=self.ids.device)


class PackedForward(PaddedForward):
    """No padding to the longest: a batch is one row, and every pair attends to itself alone.

    After `compile_after` tokens the layers go through torch.compile, which fuses what lies between the matrix
    products; without a compiler for it they stay as they are.

    What comes after the layers gets its padded batch back, so that no head needs to be known here: the base model's
    inputs are exchanged for the row before it runs, and the last layer's output for the padded batch after it. From
    then on the model serves this alone.
    """

    def __init__(
        self, run: Run, base: Any, pad_id: int, two_types: bool = False, compile_after: float = float("inf")
    ) -> None:
        super().__init__(run, base, pad_id, two_types)
        self._tokens_until_compiled, self._compiled = compile_after, False
        AttentionInterface.register(ATTENTION, attend_within_pieces)
        base.set_attn_implementation(ATTENTION)
        base.register_forward_pre_hook(self._give_row, with_kwargs=True)
        # BERT pools inside of its base model, after the encoder.
        getattr(base, "encoder", base).register_forward_hook(self._take_answers)
        # RoBERTa counts positions from the one after its padding token's.
        self._first_position = pad_id + 1 if "roberta" in base.config.model_type else 0
        self._round_up = (
            base.device.type == "cpu" and base.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
        )

    def __call__(self, pairs: Sequence[PairIds]) -> torch.Tensor:
        # By tokens and not by time: the same calls are compiled at the same point, and round alike.
        if not self._compiled and self._tokens_until_compiled <= 0:
            self._compiled = True
            compile_layers(self._base)
        self._tokens_until_compiled -= sum(map(len, pairs))
        return super().__call__(pairs)

    def _tokens(self, pairs: Sequence[PairIds]) -> np.ndarray:
        return np.cumsum(self._lengths(pairs)[1])

    def _lengths(self, pairs: Sequence[PairIds]) -> tuple[np.ndarray, np.ndarray]:
        """(M,) tokens of each pair, and with its padding."""
        lengths = np.array([len(pair) for pair in pairs])
        return lengths, lengths + (-lengths % MULTIPLE if self._round_up else 0)

    def _batch(self, pairs: Sequence[PairIds]) -> torch.Tensor:
        ids, mask = self._lay_out(pairs)
        try:
            return self._answers(ids, mask)
        finally:
            _current.row = None

    def _lay_out(self, pairs: Sequence[PairIds]) -> tuple[np.ndarray, np.ndarray]:
        """Sets the row; returns what the classification head is given: (B, L) ids, and (B, L) bool where they are."""
        lengths, taken = self._lengths(pairs)
        ids, mask = _padded([pair.ids for pair in pairs], self._pad_id)
        within = np.concatenate([np.arange(length) for length in lengths])
        real = np.repeat(np.cumsum(taken) - taken, lengths) + within  # where in the row each token is
        total = int(taken.sum())
        if self._round_up:
            total += -total % (total // ROW_SHARE // MULTIPLE * MULTIPLE or MULTIPLE)
        row, positions, types = np.full(total, self._pad_id), np.full(total, self._first_position), None
        row[real] = ids[mask]
        positions[real] += within
        if self._two_types:
            types = np.zeros(total, dtype=np.int64)
            types[real] = np.concatenate([pair.types for pair in pairs])
        pieces = taken.tolist(), taken.tolist(), (taken - lengths).tolist()
        self._set_row(row, positions, types, pieces, None, real, mask)
        return ids, mask

    def _set_row(self, ids, positions, types, pieces, seen, answers, where) -> None:
        tensors = [array if array is None else self._tensor(array) for array in (ids, positions, types, seen)]
        ids, positions, types, seen = tensors
        causal = isinstance(self, CausalForward)
        # An index, and not a mask: with a mask CUDA would have to wait for its number of places.
        answers, places = self._tensor(answers), self._tensor(np.flatnonzero(where))
        _current.row = Row(ids, positions, types, *pieces, seen, causal, answers, where.shape, places)

    def _give_row(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        row = _current.row
        kwargs = {name: value for name, value in kwargs.items() if name not in ("input_ids", "inputs_embeds")}
        kwargs |= {"attention_mask": None, "position_ids": row.positions[None]}
        if row.types is not None:
            kwargs["token_type_ids"] = row.types[None]
        if row.causal:
            kwargs["use_cache"] = False
        return (row.ids[None],), kwargs

    def _take_answers(self, module: Any, args: tuple, output: Any) -> Any:
        hidden, row = output.last_hidden_state[0], _current.row  # (T, d)
        padded = hidden.new_zeros(row.shape[0] * row.shape[1], hidden.shape[-1])
        padded[row.where] = hidden[row.answers]
        output.last_hidden_state = padded.unflatten(0, row.shape)
        return output


class CausalForward(PackedForward):
    """Packed, and the head of pairs with the same first response is in the row once: exact for causal attention.

    Of n responses' n(n-1)/2 pairs of two texts each, the row holds n(n-1)/2 tails and n - 1 heads: at n = 8, 35 texts
    instead of 56.
    """

    one_first = True

    def _order(self, pairs: Sequence[PairIds]) -> list[int]:
        rank: dict[int, int] = {}  # heads by first appearance
        for pair in pairs:
            rank.setdefault(id(pair.head), len(rank))
        return sorted(range(len(pairs)), key=lambda k: (rank[id(pairs[k].head)], -len(pairs[k].tail)))

    def _tokens(self, pairs: Sequence[PairIds]) -> np.ndarray:
        last, taken = None, []
        for pair in pairs:
            taken.append(len(pair.tail) + (0 if pair.head is last else len(pair.head)))
            last = pair.head
        return np.cumsum(taken)

    def _lay_out(self, pairs: Sequence[PairIds]) -> tuple[np.ndarray, np.ndarray]:
        texts, positions, queries, keys, seen, answers = [], [], [], [], [], []
        used = 0
        for _, same in groupby(pairs, key=lambda pair: id(pair.head)):
            same = list(same)
            head = same[0].head
            of_head = np.arange(used, used + len(head))
            for text, before in chain([(head, 0)], ((pair.tail, len(head)) for pair in same)):
                own = np.arange(used, used + len(text))
                texts.append(text)
                positions.append(before + np.arange(len(text)))
                queries.append(len(text))
                keys.append(before + len(text))
                seen += [of_head, own] if before else [own]
                if before:
                    answers.append(own)
                used += len(text)
        # The head of the model reads the tails alone: it looks for the last token that is not padding.
        ids, mask = _padded([pair.tail for pair in pairs], self._pad_id)
        row = [np.concatenate(arrays) for arrays in (texts, positions)]
        pieces = queries, keys, [0] * len(queries)
        self._set_row(*row, None, pieces, np.concatenate(seen), np.concatenate(answers), mask)
        return ids, mask


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
    """transformers' attention function for the Row under way: (1, heads, T, head size) -> (1, T, heads, head size).

    sliding_window: a token sees those fewer than that many places away, on both sides; None: all of its piece.
    """
    window = -1 if sliding_window is None else sliding_window - 1
    return torch.ops.darling_plugin.attend_to_row(query, key, value, scaling, window), None


class _Current(threading.local):
    row: Row | None = None  # of the batch that this thread is at


_current = _Current()


# An operator of its own, since torch.compile would make a new graph for every row's lengths.
@torch.library.custom_op(
    "darling_plugin::attend_to_row",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, float scaling, int window) -> Tensor",
)
def _attend_to_row(query, key, value, scaling, window):
    row = _current.row
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))  # (T, heads, head size)
    if row.seen is not None:
        key, value = key[row.seen], value[row.seen]
    varlen = _varlen_attention() if query.is_cuda and query.dtype != torch.float32 else None
    return (varlen or sdpa_by_piece)(query, key, value, row, scaling, None if window < 0 else window)[None]


@_attend_to_row.register_fake
def _shape_of_attention(query, key, value, scaling, window):
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


def compile_layers(base: Any) -> None:
    """Has torch.compile make what runs in the layers of `base`, when they are called next.

    An encoder with biases is compiled whole on a CPU, with its weights as constants, since its linear layers can then
    add the biases themselves; other layers share what is compiled for the first of each kind. Where compiling fails,
    all of them go on as they were.
    """
    options = {"freezing": True} if base.device.type == "cpu" and hasattr(base, "encoder") else None
    modules = [base.encoder] if options else layers_of(base)
    plain = {module: module.forward for module in modules}

    def or_plain(module: torch.nn.Module) -> Run:
        fast = torch.compile(plain[module], dynamic=True, options=options)

        def forward(*args: Any, **kwargs: Any) -> Any:
            try:
                return fast(*args, **kwargs)
            except TorchDynamoException as error:
                logger.warning("torch.compile failed, going on without it: %s", error)
                for each in modules:
                    each.forward = plain[each]
                return plain[module](*args, **kwargs)

        return forward

    for module in modules:
        module.forward = or_plain(module)


def layers_of(base: Any) -> Sequence[torch.nn.Module]:
    return next(module for module in base.modules() if isinstance(module, torch.nn.ModuleList))


def sdpa_by_piece(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row, scaling: float, window: int | None
) -> torch.Tensor:
    """Attention of each piece with torch's SDPA, those of like length that are neighbours in one call.

    Args:
        query: (T, heads, head size). key, value: (K, key heads, head size), the tokens that each piece sees.
        window: how many places away a token sees, on both sides; None: all.
    """
    out, q, k, p = torch.empty_like(query, memory_format=torch.contiguous_format), 0, 0, 0
    gqa = query.shape[1] != key.shape[1]
    for (queries, keys), alike in groupby(zip(row.queries, row.keys, strict=True)):
        count = len(list(alike))
        of_queries, of_keys = slice(q, q := q + count * queries), slice(k, k := k + count * keys)
        padding = row.padding[p : p + count]
        own = query[of_queries], key[of_keys], value[of_keys]
        own_query, own_key, own_value = (each.unflatten(0, (count, -1)).transpose(1, 2) for each in own)
        own_out = out[of_queries].unflatten(0, (count, -1)).transpose(1, 2)  # (count, heads, length, head size)
        # Of what lies outside of a block's window, nothing needs to be computed.
        step = BLOCK if window is not None and queries > 2 * BLOCK else queries
        for start in range(0, queries, step):
            stop, place = min(start + step, queries), keys - queries + start  # of the first query among the keys
            low = 0 if window is None else max(0, place - window)
            high = keys if window is None else min(keys, place + stop - start + window)
            kind = stop - start, high - low, place - low, window, row.causal
            hidden = [keys - each - low for each in padding] if max(padding) > keys - high else None
            name = kind if hidden is None else (p, low, *kind)
            if name not in row.masks:
                row.masks[name] = _mask(*kind, hidden, query)
            own_out[:, :, start:stop] = scaled_dot_product_attention(
                own_query[:, :, start:stop],
                own_key[:, :, low:high],
                own_value[:, :, low:high],
                attn_mask=row.masks[name],
                scale=scaling,
                enable_gqa=gqa,
            )
        p += count
    out[q:] = 0
    return out


def _mask(
    queries: int, keys: int, place: int, window: int | None, causal: bool, hidden: list[int] | None, like: torch.Tensor
) -> torch.Tensor | None:
    """What is added to the scores of some pieces, (1 or pieces, 1, 1 or queries, keys) like `like`; None: nothing.

    Args:
        place: number of the first query among the keys.
        hidden: for each piece, the number of the first key that is padding: no query sees it, but its own.
    """
    at = torch.arange(keys, device=like.device)
    distance = at - torch.arange(place, place + queries, device=like.device)[:, None]
    sees = None
    if causal:
        sees = distance <= 0
    if window is not None and max(place + queries - 1, keys - 1 - place) > window:
        sees = distance.abs() <= window if sees is None else sees & (distance.abs() <= window)
    if hidden is not None:
        real = at < torch.tensor(hidden, device=like.device)[:, None, None, None]
        # A query that sees nothing at all would make a NaN, which spreads: in a window padding sees itself.
        sees = real if sees is None else (sees & real) | (distance == 0)
    return None if sees is None else torch.zeros_like(sees, dtype=like.dtype).masked_fill_(~sees, -torch.inf)


@cache
def _varlen_attention() -> Callable[..., torch.Tensor] | None:
    """sdpa_by_piece on CUDA in half precision in one kernel: torch's own where it ships one, else flash-attn's."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        varlen_attn = None
    # Up to torch 2.11 it had no windows and no shared key heads.
    if (
        varlen_attn is None
        or not {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()
    ):
        return _flash_attention() if importlib.util.find_spec("flash_attn") else None

    def torch_varlen(query, key, value, row, scaling, window):
        return varlen_attn(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            row.query_starts,
            row.key_starts,
            max(row.queries),
            max(row.keys),
            scale=scaling,
            window_size=_window_sides(row.causal, window),
            enable_gqa=query.shape[1] != key.shape[1],
        )

    return torch_varlen


def _flash_attention() -> Callable[..., torch.Tensor]:
    from flash_attn import flash_attn_varlen_func

    def flash_varlen(query, key, value, row, scaling, window):
        return flash_attn_varlen_func(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            row.query_starts,
            row.key_starts,
            max(row.queries),
            max(row.keys),
            softmax_scale=scaling,
            causal=row.causal,
            window_size=_window_sides(row.causal, window),
        )

    return flash_varlen


def _window_sides(causal: bool, window: int | None) -> tuple[int, int]:
    """How far to the left and to the right a token sees; -1: all the way."""
    side = -1 if window is None else window
    return (side, 0) if causal else (side, side)
