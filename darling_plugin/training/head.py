"""Trains the linear-cost head: two logistic regressions on pair features, by cross-validation over prompts."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
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

logger = logging.getLogger(__name__)

SHORT_ANSWERS = SHIPPED / "short_answers.jsonl"
TEXTS_AT_ONCE = 256
STRENGTHS = np.logspace(-3, 1, 9)  # inverse of the L2 penalty, chosen by the log loss of held-out prompts


@dataclass(frozen=True)
class TrainedHead:
    """What head.safetensors holds: the tensors of pair_features.probability, and the threshold.

    short_answers: how many of the packaged pairs are told right in cross-validation over their prompts, of how many.
    """

    weights: dict[str, torch.Tensor]
    threshold: float
    short_answers: tuple[int, int]

    def save(self, folder: Path, encoder: str | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"encoder": encoder, "features": FEATURES, "threshold": self.threshold}
        metadata = {name: json.dumps(value) for name, value in settings.items()}
        # save_file would make a file that its owner alone can read.
        (folder / FILE).write_bytes(save({name: each.contiguous() for name, each in self.weights.items()}, metadata))


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
        # Few data sets have many short answers, and those that have none still meet them in use. Of a prompt that is
        # among the pairs none may be trained on while that is tested.
        prompts = {pair.prompt for pair in self.pairs}
        self.short_answers = [pair for pair in read_pairs(str(SHORT_ANSWERS)) if pair.prompt not in prompts]
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
        """A head from the pairs with these indices; penalty and threshold by cross-validation within them.

        Where the pairs of one kind, short or long, are too few for that, its weights are learned from all of them.
        """
        pairs = [self.pairs[k] for k in at]
        idf = self._idf(pairs)
        labels, held_out = _labels(pairs), np.empty(len(pairs))
        short = np.array([self._is_short(pair) for pair in pairs])
        weight, bias = torch.zeros(2, len(FEATURES)), torch.zeros(2)
        kinds = (("long responses", LONG, ~short, []), ("short answers", SHORT, short, self.short_answers))
        for row, (kind, names, of_kind, more) in enumerate(kinds):
            own = np.flatnonzero(of_kind)
            at_own = np.arange(len(own))  # where they are in learned_from
            learned_from = [*(pairs[k] for k in own), *more]
            try:
                parts = folds_by_prompt(learned_from, self.folds, self.seed)
            except DarlingError:
                logger.warning(
                    "%d of %d pairs are of %s: too few, they are judged as all are", of_kind.sum(), len(pairs), kind
                )
                at_own, learned_from, more = own, pairs, []
                parts = folds_by_prompt(pairs, self.folds, self.seed)
            columns = [FEATURES.index(name) for name in names]
            x, y = self._features(learned_from, idf)[:, columns], _labels(learned_from)
            coefficients, bias[row], out = _logistic(x, y, parts)
            weight[row, columns] = torch.tensor(coefficients, dtype=torch.float32)
            held_out[own], packaged = out[at_own], out[len(out) - len(more) :]
        # For the pairs that were given: those in this package are told right at any threshold near one half.
        threshold = best_threshold(labels, held_out)
        right = (packaged > threshold) == _labels(more)
        weights = {"weight": weight, "bias": bias, "idf": idf.half()}
        return TrainedHead(weights, threshold, (int(right.sum()), len(right)))

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


def _labels(pairs: Sequence[LabelledPair]) -> np.ndarray:
    return np.array([pair.similar for pair in pairs], dtype=int)


def _logistic(
    x: np.ndarray, labels: np.ndarray, parts: Sequence[Sequence[int]]
) -> tuple[np.ndarray, float, np.ndarray]:
    """Weights and bias for features as they are; (M,) P(similar) of each pair by the other folds' regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    center, spread = x.mean(0), x.std(0)
    spread[spread < 1e-6] = 1.0
    x = (x - center) / spread

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
