"""Trains the linear-cost head: two logistic regressions on pair features, by cross-validation over prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from darling_plugin.errors import DarlingError
from darling_plugin.partition.embedding import Embedding
from darling_plugin.partition.head import FILE, SHIPPED
from darling_plugin.partition.pair_features import (
    FEATURES,
    LONG,
    SHORT,
    Encoded,
    encode,
    is_short,
    pair_features,
    probability,
)
from darling_plugin.training.pairs import LabelledPair, folds_by_prompt, read_pairs
from darling_plugin.training.report import best_threshold

SHORT_ANSWERS = SHIPPED / "short_answers.jsonl"
TEXTS_AT_ONCE = 256
STRENGTHS = np.logspace(-3, 1, 9)  # inverse of the L2 penalty, chosen by the log loss of held-out prompts


@dataclass(frozen=True)
class TrainedHead:
    """What head.safetensors holds: the tensors of pair_features.probability, and the threshold."""

    weights: dict[str, torch.Tensor]
    threshold: float

    def save(self, folder: Path, encoder: str | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"encoder": encoder, "features": FEATURES, "threshold": self.threshold}
        metadata = {name: json.dumps(value) for name, value in settings.items()}
        save_file({name: each.contiguous() for name, each in self.weights.items()}, folder / FILE, metadata)


class HeadTrainer:
    """Encodes the pairs' texts once; then heads on any of the pairs take seconds.

    Args:
        pairs: to train on and to judge by.
        encoder: path or Hub name of a sentence encoder; None: all-MiniLM-L6-v2's package.
        folds: of the cross-validation that chooses penalty and threshold within the pairs trained on.
        dtype: of the encoder's layers, as for the partition model.
    """

    def __init__(
        self, pairs: Sequence[LabelledPair], encoder: str | None, *, folds: int, seed: int, dtype: str | None = None
    ) -> None:
        self.pairs, self.folds, self.seed = list(pairs), folds, seed
        # Few data sets have many short answers, and those that have none still meet them in use.
        self.short_answers = read_pairs(str(SHORT_ANSWERS))
        model = Embedding(encoder, dtype=dtype)
        self.vocabulary = len(model.model.tokenizer)
        texts = list(
            dict.fromkeys(t for p in (*self.pairs, *self.short_answers) for t in (p.prompt, p.first, p.second))
        )
        self._encoded: dict[str, Encoded] = {}
        with tqdm(total=len(texts), unit=" texts", desc="encoding", dynamic_ncols=True) as bar:
            for k in range(0, len(texts), TEXTS_AT_ONCE):
                self._encoded |= encode(model, texts[k : k + TEXTS_AT_ONCE])
                bar.update(min(TEXTS_AT_ONCE, len(texts) - k))

    def fit(self, at: Sequence[int]) -> TrainedHead:
        """A head from the pairs with these indices; penalty and threshold by cross-validation within them."""
        pairs = [self.pairs[k] for k in at]
        idf = self._idf(pairs)
        short = [self._is_short(pair) for pair in pairs]
        kinds = (
            ([pair for pair, is_one in zip(pairs, short, strict=True) if not is_one], LONG),
            ([*(pair for pair, is_one in zip(pairs, short, strict=True) if is_one), *self.short_answers], SHORT),
        )
        weight, bias, held_out = torch.zeros(len(kinds), len(FEATURES)), torch.zeros(len(kinds)), []
        for row, (own, names) in enumerate(kinds):
            columns = [FEATURES.index(name) for name in names]
            labels = np.array([pair.similar for pair in own])
            if len(set(labels)) < 2:
                raise DarlingError(
                    "pairs of both labels that are not short answers",
                    f"{len(own)} such pairs, {labels.sum()} of them similar",
                    "add some; a head for short answers alone comes with this package: default",
                )
            coefficients, bias[row], out = self._logistic(own, self._features(own, idf)[:, columns], labels)
            weight[row, columns] = torch.tensor(coefficients, dtype=torch.float32)
            held_out.append((labels, out))
        # Short answers have a threshold that is as good anywhere near one half; the others' is the one that matters.
        threshold = best_threshold(*held_out[0])
        return TrainedHead({"weight": weight, "bias": bias, "idf": idf.half()}, threshold)

    def predict(self, head: TrainedHead, at: Sequence[int]) -> np.ndarray:
        """(len(at),) P(similar) of the pairs with these indices."""
        found = []
        for k in at:
            prompt, *responses = self._texts(self.pairs[k])
            found.append(float(probability(head.weights, prompt, responses)[0, 1]))
        return np.array(found)

    def _texts(self, pair: LabelledPair) -> list[Encoded]:
        return [self._encoded[text] for text in (pair.prompt, pair.first, pair.second)]

    def _is_short(self, pair: LabelledPair) -> bool:
        return bool(is_short(self._texts(pair)[1:])[0, 1])

    def _idf(self, pairs: Sequence[LabelledPair]) -> torch.FloatTensor:
        """(V,) log((N + 1) / (k + 1)): of N responses k have that token."""
        responses = dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second))
        counts = torch.zeros(self.vocabulary)
        for text in responses:
            counts[torch.from_numpy(np.unique(self._encoded[text].ids))] += 1
        return ((len(responses) + 1) / (counts + 1)).log()

    def _features(self, pairs: Sequence[LabelledPair], idf: torch.FloatTensor) -> np.ndarray:
        rows = []
        for pair in pairs:
            prompt, *responses = self._texts(pair)
            rows.append(pair_features(prompt, responses, idf)[0, 1])
        return torch.stack(rows).double().numpy()

    def _logistic(
        self, pairs: Sequence[LabelledPair], x: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, float, np.ndarray]:
        """Weights and bias for features as they are; (M,) P(similar) of each pair by the other folds' regression."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import log_loss

        center, spread = x.mean(0), x.std(0)
        spread[spread < 1e-6] = 1.0
        x = (x - center) / spread
        parts = folds_by_prompt(pairs, self.folds, self.seed)

        def out_of_fold(strength: float) -> np.ndarray:
            found = np.empty(len(labels))
            for part in parts:
                others = np.setdiff1d(np.arange(len(labels)), part)
                model = LogisticRegression(C=strength, max_iter=1000).fit(x[others], labels[others])
                found[part] = model.predict_proba(x[part])[:, 1]
            return found

        candidates = [(strength, out_of_fold(strength)) for strength in STRENGTHS]
        strength, out = min(candidates, key=lambda each: log_loss(labels, each[1]))
        model = LogisticRegression(C=strength, max_iter=1000).fit(x, labels)
        weights = model.coef_[0] / spread
        return weights, float(model.intercept_[0] - weights @ center), out
