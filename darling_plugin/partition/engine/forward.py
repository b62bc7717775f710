"""Forward passes over batches of texts or pairs: padded, packed without padding, packed with shared beginnings.

Packed, the inputs of a batch lie one after the other in one long row (attention.py keeps them apart). Embeddings,
layers and classification head run as transformers has them, the layers through torch.compile once that pays
(compiling.py).
"""

from __future__ import annotations

import logging
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch

from darling_plugin.partition.base import out_of_memory
from darling_plugin.partition.engine.attention import (
    Pieces,
    attending_within,
    choose_attention,
    exchange_attention,
    shapes_of,
)
from darling_plugin.partition.engine.compiling import CompileLater, tokens_before_compiling
from darling_plugin.partition.engine.device import to_device
from darling_plugin.partition.engine.inputs import ModelInput
from darling_plugin.partition.progress import alive

logger = logging.getLogger(__name__)

Run = Callable[..., torch.Tensor]
Item = TypeVar("Item")

# Architectures in which attention goes through transformers' registry and nothing else depends on where in a row a
# token lies; each is compared with one pair at a time in tests/engine/test_forward.py.
ENCODERS = ("bert", "modernbert", "roberta", "xlm-roberta")
CAUSAL = ("llama", "qwen2", "qwen3")
# On CPUs with matrix units torch's SDPA takes up to twice as long for lengths that are no multiple of 16, and every
# new number of rows costs each linear layer a kernel of its own: both are rounded up, with padding nobody sees.
MULTIPLE, ROW_SHARE = 16, 16

# Of a batch; on a CPU larger ones gain nothing.
TOKENS = {"cuda": 65536, "cpu": 4096}
# Texts or pairs that are tokenised at once: a GPU computes meanwhile what came before, a CPU can only take turns.
PART = {"cuda": 512, "cpu": sys.maxsize}
# Batches after a shortage of memory until larger ones are tried again: what took the memory may be training's backward
# pass on the same GPU, which comes and goes.
TRY_AGAIN = 64


def choose_forward(
    run: Run, base: Any, pad_id: int, *, compile_after: float | None = None, token_budget: int | None = None
) -> Forward:
    """The fastest exact forward pass for that model on the device and in the dtype that it has.

    Args:
        run, base, pad_id: as for Forward. token_budget: of a batch; None: TOKENS of the device.
        compile_after: tokens after which the layers of a packed model are compiled; None: by the
            model's size, COMPILE_AFTER.
            A padded model is never compiled.
    """
    compile_later = CompileLater(base, tokens_before_compiling(base, compile_after))
    kind = base.config.model_type
    # A window that is smaller than a pair would need its own check: the classifiers meant here have none.
    causal = kind in CAUSAL and not getattr(base.config, "use_sliding_window", False)
    if (kind in ENCODERS or causal) and all(
        choose_attention(base.device.type, shape) for shape in shapes_of(base.config, base.dtype, causal)
    ):
        forward = (CausalForward if causal else PackedForward)(run, base, pad_id, compile_later)
    else:
        forward = PaddedForward(run, base, pad_id)
    if token_budget is not None:
        forward.token_budget = forward.full_budget = token_budget
    return forward


class Forward(ABC):
    """From token ids to what the model makes of each input, in batches of at most `token_budget` tokens.

    Args:
        run: the whole model: takes input_ids and attention_mask, (B, L) int64, where the inputs have types also
            token_type_ids, and returns B rows.
        base: the transformers model in it that holds the layers.
        pad_id: id of the padding token.
    """

    one_first = False  # see PairwiseModel

    def __init__(self, run: Run, base: Any, pad_id: int) -> None:
        self._run, self._base, self._pad_id = run, base, pad_id
        self.part = PART[base.device.type]
        self.token_budget = self.full_budget = TOKENS[base.device.type]
        self._since_shortage = 0  # batches
        self._least_budget = self.token_budget

    def __call__(self, inputs: Sequence[ModelInput]) -> torch.Tensor:
        """(M, ...) float32 on the CPU, one row an input, in order.

        Raises what the model raises; a shortage of memory halves the budget, down to one input a batch. It doubles
        again, up to what it was, each TRY_AGAIN batches without one.
        """
        return self.begin([inputs])()

    def of(self, items: Sequence[Item], tokenise: Callable[[Sequence[Item]], Sequence[ModelInput]]) -> torch.Tensor:
        """Those of tokenise(items), called with `part` of the items at a time, in order.

        A GPU only has its work queued here: it computes one part while the next is tokenised, without a thread.
        """
        return self.begin(tokenise(items[k : k + self.part]) for k in range(0, len(items), self.part))()

    def begin(self, parts: Iterable[Sequence[ModelInput]]) -> Callable[[], torch.Tensor]:
        """Queues all parts, and returns what waits for their rows: a GPU computes in between."""
        order: list[int] = []
        batches: list[torch.Tensor] = []  # on the device until the last one is under way: one transfer
        for inputs in parts:
            begun, own_order = len(order), self._order(inputs)
            order += [begun + k for k in own_order]
            waiting = [inputs[k] for k in own_order]
            while waiting:
                batches.append(self._next_batch(waiting))
                waiting = waiting[len(batches[-1]) :]
        queued = torch.cat(batches).float()

        def rows() -> torch.Tensor:
            in_order = torch.empty(queued.shape)
            in_order[order] = queued.cpu()
            return in_order

        return rows

    def _next_batch(self, waiting: Sequence[ModelInput]) -> torch.Tensor:
        """Rows of the first of these inputs, as many as the token budget has room for, at least one."""
        while True:
            tokens = self._token_counts(waiting)
            count = max(1, int((tokens <= self.token_budget).sum()))
            try:
                with torch.inference_mode():
                    rows = self._batch(waiting[:count])
                self._count_success()
                alive()
                return rows
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if count == 1 or not out_of_memory(error):
                    raise
                self.token_budget, self._since_shortage = int(tokens[count - 1]) // 2, 0
                if self.token_budget < self._least_budget:  # once for each depth, and not at each new try
                    self._least_budget = self.token_budget
                    logger.warning("Out of memory, going on with %d tokens at once: %s", self.token_budget, error)
            # Outside of the except clause: the traceback, and with it the tensors of that attempt, is gone.
            torch.cuda.empty_cache()

    def _count_success(self) -> None:
        self._since_shortage += 1
        if self.token_budget < self.full_budget and self._since_shortage >= TRY_AGAIN:
            self.token_budget, self._since_shortage = min(2 * self.token_budget, self.full_budget), 0

    def _order(self, inputs: Sequence[ModelInput]) -> list[int]:
        """Longest first: inputs of like length share a batch, and a shortage of memory shows in the first one."""
        return sorted(range(len(inputs)), key=lambda k: -len(inputs[k]))

    @abstractmethod
    def _token_counts(self, inputs: Sequence[ModelInput]) -> np.ndarray:
        """(M,) how many tokens the first 1, 2, ... M of the ordered inputs take up in one batch."""

    @abstractmethod
    def _batch(self, inputs: Sequence[ModelInput]) -> torch.Tensor:
        """(B, ...) what the model makes of these inputs, in order."""

    def _run_padded(self, ids: np.ndarray, mask: np.ndarray, types: np.ndarray | None = None) -> torch.Tensor:
        inputs = {"input_ids": self._tensor(ids), "attention_mask": self._tensor(mask.astype(np.int64))}
        if types is not None:
            inputs["token_type_ids"] = self._tensor(types)
        return self._run(**inputs)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self._base.device)


def pad(rows: Sequence[np.ndarray], value: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, L) the rows with `value` after them, and (B, L) bool where the rows are."""
    mask = np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]
    padded = np.full(mask.shape, value)
    padded[mask] = np.concatenate(rows)
    return padded, mask


class PaddedForward(Forward):
    """Every input of a batch is padded to the longest: for any architecture."""

    def _token_counts(self, inputs: Sequence[ModelInput]) -> np.ndarray:
        return len(inputs[0]) * np.arange(1, len(inputs) + 1)

    def _batch(self, inputs: Sequence[ModelInput]) -> torch.Tensor:
        ids, mask = pad([each.ids for each in inputs], self._pad_id)
        types = None if inputs[0].types is None else pad([each.types for each in inputs], 0)[0]
        return self._run_padded(ids, mask, types)


@dataclass(frozen=True)
class Row:
    """A batch as one row of T tokens, and the padded batch of B inputs that the model is called with.

    Args:
        ids, positions: (T,) int64. types: (T,) int64 token types, or None.
        pieces: what attends to what.
        answers: (A,) index in 0..T-1 of the tokens whose output what comes after the layers is given.
        padded_ids: (B, L) int64 the ids of those tokens. padded_mask: (B, L) bool, its A true places are theirs.
        places: (A,) index in 0..B*L-1 of these places.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor | None
    pieces: Pieces
    answers: torch.Tensor
    padded_ids: np.ndarray
    padded_mask: np.ndarray
    places: torch.Tensor


class _Current(threading.local):
    row: Row | None = None  # of the batch that this thread is at


class RowForward(Forward):
    """The base of those whose batch is one row without padding to the longest, in which inputs do not see each other.

    What comes after the layers gets its padded batch back, so that no head needs to be known here: the base model's
    inputs are exchanged for the row before it runs, and the last layer's output for the padded batch after it. From
    then on the model serves this alone.
    """

    def __init__(self, run: Run, base: Any, pad_id: int, compile_later: CompileLater) -> None:
        super().__init__(run, base, pad_id)
        self.compile_later = compile_later
        self._current = _Current()
        exchange_attention(base)
        base.register_forward_pre_hook(self._give_row, with_kwargs=True)
        # BERT pools inside of its base model, after the encoder.
        getattr(base, "encoder", base).register_forward_hook(self._take_answers)

    def begin(self, parts: Iterable[Sequence[ModelInput]]) -> Callable[[], torch.Tensor]:
        return super().begin(map(self._counted, parts))

    def _counted(self, inputs: Sequence[ModelInput]) -> Sequence[ModelInput]:
        self.compile_later.before_scoring(sum(map(len, inputs)))
        return inputs

    @abstractmethod
    def _lay_out(self, inputs: Sequence[ModelInput]) -> Row: ...

    def _batch(self, inputs: Sequence[ModelInput]) -> torch.Tensor:
        row = self._current.row = self._lay_out(inputs)
        try:
            with attending_within(row.pieces):
                return self._run_padded(row.padded_ids, row.padded_mask)
        finally:
            self._current.row = None

    def _places(self, padded_mask: np.ndarray) -> torch.Tensor:
        # An index, and not a mask: with a mask CUDA would have to wait for its number of places.
        return self._tensor(np.flatnonzero(padded_mask))

    def _give_row(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        row = self._current.row
        kwargs = {name: value for name, value in kwargs.items() if name not in ("input_ids", "inputs_embeds")}
        kwargs |= {"attention_mask": None, "position_ids": row.positions[None]}
        if row.types is not None:
            kwargs["token_type_ids"] = row.types[None]
        if row.pieces.causal:
            kwargs["use_cache"] = False
        return (row.ids[None],), kwargs

    def _take_answers(self, module: Any, args: tuple, output: Any) -> Any:
        hidden, row = output.last_hidden_state[0], self._current.row  # (T, d)
        padded = hidden.new_zeros(row.padded_mask.size, hidden.shape[-1])
        padded[row.places] = hidden[row.answers]
        output.last_hidden_state = padded.unflatten(0, row.padded_mask.shape)
        return output


class PackedForward(RowForward):
    """The inputs lie one after the other, and each attends to itself alone: for encoders."""

    def __init__(self, run: Run, base: Any, pad_id: int, compile_later: CompileLater) -> None:
        super().__init__(run, base, pad_id, compile_later)
        # RoBERTa counts positions from the one after its padding token's.
        self._first_position = pad_id + 1 if "roberta" in base.config.model_type else 0
        self._round_up = (
            base.device.type == "cpu" and base.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
        )

    def _token_counts(self, inputs: Sequence[ModelInput]) -> np.ndarray:
        return np.cumsum(self._rounded(np.array([len(each) for each in inputs])))

    def _rounded(self, lengths: np.ndarray) -> np.ndarray:
        """(M,) the lengths with the padding that each gets."""
        return lengths + (-lengths % MULTIPLE if self._round_up else 0)

    def _lay_out(self, inputs: Sequence[ModelInput]) -> Row:
        lengths = np.array([len(each) for each in inputs])
        rounded = self._rounded(lengths)
        padded_ids, padded_mask = pad([each.ids for each in inputs], self._pad_id)
        within = np.concatenate([np.arange(length) for length in lengths])
        answers = np.repeat(np.cumsum(rounded) - rounded, lengths) + within  # all tokens but padding
        total = int(rounded.sum())
        if self._round_up:
            total += -total % (total // ROW_SHARE // MULTIPLE * MULTIPLE or MULTIPLE)
        ids, positions, types = np.full(total, self._pad_id), np.full(total, self._first_position), None
        ids[answers] = padded_ids[padded_mask]
        positions[answers] += within
        if inputs[0].types is not None:
            types = np.zeros(total, dtype=np.int64)
            types[answers] = np.concatenate([each.types for each in inputs])
        return Row(
            ids=self._tensor(ids),
            positions=self._tensor(positions),
            types=None if types is None else self._tensor(types),
            pieces=Pieces(
                queries=rounded.tolist(),
                keys=rounded.tolist(),
                padding=(rounded - lengths).tolist(),
                device=self._base.device,
            ),
            answers=self._tensor(answers),
            padded_ids=padded_ids,
            padded_mask=padded_mask,
            places=self._places(padded_mask),
        )


class CausalForward(RowForward):
    """A beginning that inputs share is in the row once: exact for causal attention, for Llama's and Qwen's kind.

    Of n responses' n(n-1)/2 pairs of two texts each, the row holds n(n-1)/2 second texts and n - 1 first ones: at
    n = 8, 35 texts instead of 56.
    """

    one_first = True

    def _order(self, inputs: Sequence[ModelInput]) -> list[int]:
        """Those with the same beginning next to each other, the longest of them first."""
        rank: dict[int, int] = {}  # beginnings by first appearance
        for each in inputs:
            rank.setdefault(id(each.beginning), len(rank))
        return sorted(range(len(inputs)), key=lambda k: (rank[id(inputs[k].beginning)], -len(inputs[k].own)))

    def _token_counts(self, inputs: Sequence[ModelInput]) -> np.ndarray:
        last, counts = None, []
        for each in inputs:
            counts.append(len(each.own) + (0 if each.beginning is last else len(each.beginning)))
            last = each.beginning
        return np.cumsum(counts)

    def _lay_out(self, inputs: Sequence[ModelInput]) -> Row:
        texts, positions, keys, seen, answers = [], [], [], [], []
        used = 0

        def add(text: np.ndarray, before: np.ndarray) -> np.ndarray:
            """Puts a piece at the end of the row, `before` being what it sees before itself; returns where it is."""
            nonlocal used
            where = np.arange(used, used + len(text))
            texts.append(text)
            positions.append(len(before) + np.arange(len(text)))
            keys.append(len(before) + len(text))
            seen.extend([before, where])
            used += len(text)
            return where

        for _, alike in groupby(inputs, key=lambda each: id(each.beginning)):
            alike = list(alike)
            beginning, nothing = alike[0].beginning, np.arange(0)
            of_beginning = add(beginning, nothing) if len(beginning) else nothing
            answers += [add(each.own, of_beginning) for each in alike]
        # The head of the model reads what each has for itself: it looks for the last token that is not padding.
        padded_ids, padded_mask = pad([each.own for each in inputs], self._pad_id)
        return Row(
            ids=self._tensor(np.concatenate(texts)),
            positions=self._tensor(np.concatenate(positions)),
            types=None,
            pieces=Pieces(
                queries=[len(text) for text in texts],
                keys=keys,
                padding=[0] * len(texts),
                device=self._base.device,
                seen=self._tensor(np.concatenate(seen)),
                causal=True,
            ),
            answers=self._tensor(np.concatenate(answers)),
            padded_ids=padded_ids,
            padded_mask=padded_mask,
            places=self._places(padded_mask),
        )
