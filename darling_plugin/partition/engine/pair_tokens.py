"""Pairs of responses as token ids: every response is tokenised once, and pairs are put together from the ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import Pair
from darling_plugin.partition.cuts import Cuts
from darling_plugin.partition.engine.inputs import ModelInput

KEPT = 100_000  # responses whose ids are kept between rounds; then all are forgotten


class PairTokens:
    """Builds what `tokenizer(first, second, truncation="longest_first", max_length=max_length)` gives.

    Args:
        max_length: tokens of a pair, special ones included. Of a longer pair the end of the longer response is cut,
            then of both.
        max_response_length: tokens of a response, cut first; None: no limit of its own.
        special_tokens: the tokens before, between and after the two responses, in place of the tokenizer's own.

    Raises DarlingError for a tokenizer whose pairs are not the two responses' own tokens with others around.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        max_response_length: int | None = None,
        special_tokens: tuple[str, str, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, np.ndarray] = {}
        self._beginnings: dict[tuple[str, int], np.ndarray] = {}
        self._shortened: set[str] = set()  # responses that are longer than max_response_length
        self._two_types = False
        self.cuts = Cuts()
        if special_tokens is None:
            around = self._find_template()
        else:
            around = tokenizer.convert_tokens_to_ids(list(special_tokens))
            if any(token is None or token == tokenizer.unk_token_id for token in around):
                raise DarlingError(
                    f"a tokenizer that knows {', '.join(special_tokens)}",
                    f"{tokenizer.name_or_path}, which gives them the ids {around}",
                    "name the classifier's own with the option tokenizer",
                )
            around = [[token] for token in around]
        self._before, self._between, self._after = (np.array(ids, dtype=np.int64) for ids in around)
        self._room = max_length - sum(map(len, around))
        if self._room < 2:
            raise DarlingError(
                f"a max_length above the pair's {max_length - self._room} special tokens and one of each response",
                f"{max_length}",
                "raise it",
            )
        self._max_response_length = max_response_length

    def _find_template(self) -> list[list[int]]:
        """What the tokenizer puts before, between and after two texts; whether it gives them different types."""
        probe = ("One response.", "another\none")
        pair = self._tokenizer(*probe)
        alone = self._tokenizer(list(probe), add_special_tokens=False)["input_ids"]
        ids, side = pair["input_ids"], pair.sequence_ids(0) if self._tokenizer.is_fast else []
        of_side = [[token for token, s in zip(ids, side, strict=False) if s == k] for k in (0, 1)]
        if of_side != alone or not all(alone):
            raise DarlingError(
                "a fast tokenizer that joins two texts' own tokens with special ones around them",
                f"{type(self._tokenizer).__name__}, which makes {ids} of {alone}",
                "use another tokenizer, or a partition model of your own",
            )
        first, second = side.index(0), side.index(1)
        types = pair.get("token_type_ids")
        # The separator after a response counts as part of it in the tokenizers that tell the two apart.
        self._two_types = types is not None and types[second] != types[first]
        return [ids[:first], ids[first + len(alone[0]) : second], ids[second + len(alone[1]) :]]

    def __call__(self, pairs: Sequence[Pair]) -> list[ModelInput]:
        """The ids of each pair, in order."""
        self._tokenise(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second)))
        self._count_cuts(pairs)
        return [self._join(pair) for pair in pairs]

    def _count_cuts(self, pairs: Sequence[Pair]) -> None:
        cut = sum(
            pair.first in self._shortened
            or pair.second in self._shortened
            or len(self._ids[pair.first]) + len(self._ids[pair.second]) > self._room
            for pair in pairs
        )
        of_response = f", {self._max_response_length} of a response" if self._max_response_length else ""
        self.cuts.count(len(pairs), cut, f"the classifier reads {self._room} tokens of a pair{of_response}")

    def _tokenise(self, texts: dict[str, None]) -> None:
        new = [text for text in texts if text not in self._ids]
        if not new:
            return
        if len(self._ids) + len(new) > KEPT:
            self._ids.clear()
            self._beginnings.clear()
            self._shortened.clear()
            new = list(texts)
        for text, ids in zip(new, self._tokenizer(new, add_special_tokens=False)["input_ids"], strict=True):
            if self._max_response_length and len(ids) > self._max_response_length:
                self._shortened.add(text)
            self._ids[text] = np.array(ids[: self._max_response_length], dtype=np.int64)

    def _join(self, pair: Pair) -> ModelInput:
        first, second = self._ids[pair.first], self._ids[pair.second]
        if len(first) + len(second) > self._room:
            shorter = min(len(first), len(second), self._room // 2)
            longer = self._room - shorter
            a, b = (longer, shorter) if len(first) > len(second) else (shorter, longer)
            first, second = first[:a], second[:b]
        key = pair.first, len(first)
        if key not in self._beginnings:
            self._beginnings[key] = np.concatenate([self._before, first, self._between])
        beginning, own = self._beginnings[key], np.concatenate([second, self._after])
        types = np.repeat([0, 1], [len(beginning), len(own)]) if self._two_types else None
        return ModelInput(own, beginning, types)


class WrittenOutPairs:
    """The pair as one text, which the official client of arXiv 2509.02534 sends to a server in its RL runs.

    "CLS first SEP second SEP", the special tokens spelled out, white space collapsed, each response cut after so many
    words. The server's tokenizer then adds its own special tokens to the text, as to any.

    Args:
        max_length: tokens of the whole; what is longer is cut at its end, where a server would refuse it.
        max_response_words: words of a response.
        special_tokens: spelled out before, between and after; None: the tokenizer's CLS and SEP.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        max_response_words: int,
        special_tokens: tuple[str, str, str] | None = None,
    ) -> None:
        self._tokenizer, self._max_length, self._words = tokenizer, max_length, max_response_words
        self._around = special_tokens or (tokenizer.cls_token, tokenizer.sep_token, tokenizer.sep_token)
        self.cuts = Cuts()
        if None in self._around:
            raise DarlingError(
                "a tokenizer with CLS and SEP, for pairs written out",
                f"{tokenizer.name_or_path}, which has {self._around}",
                "name the classifier's own with the option tokenizer",
            )

    def __call__(self, pairs: Sequence[Pair]) -> list[ModelInput]:
        """The ids of each pair, in order."""
        before, between, after = self._around
        words = {text: text.split() for pair in pairs for text in (pair.first, pair.second)}
        beginnings = {text: " ".join(own[: self._words]) for text, own in words.items()}
        texts = [f"{before} {beginnings[pair.first]} {between} {beginnings[pair.second]} {after}" for pair in pairs]
        tokenised = self._tokenizer(texts, return_token_type_ids=False)["input_ids"] if texts else []
        cut = sum(
            len(ids) > self._max_length or max(len(words[pair.first]), len(words[pair.second])) > self._words
            for ids, pair in zip(tokenised, pairs, strict=True)
        )
        reads = f"the classifier reads {self._words} words of a response, {self._max_length} tokens of a pair"
        self.cuts.count(len(pairs), cut, reads)
        return [ModelInput(np.array(ids[: self._max_length], dtype=np.int64)) for ids in tokenised]
