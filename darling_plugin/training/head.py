"""Trains the linear-cost head: three logistic regressions on pair features, by cross-validation over prompts."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from tqdm import tqdm

from darling_plugin.errors import DarlingError
from darling_plugin.partition.models.embedding import Embedding
from darling_plugin.partition.models.head.adapter import adapted_encoder, read_whole, with_cosines
from darling_plugin.partition.models.head.features import FEATURES, KINDS, Encoded, encode, kinds, pair_features
from darling_plugin.partition.models.head.model import FILE, SHIPPED
from darling_plugin.training.adapter import check_pairs, check_positions, train_adapter
from darling_plugin.training.pairs import LabelledPair, folds_by_prompt, read_pairs
from darling_plugin.training.report import best_threshold

logger = logging.getLogger(__name__)

PACKAGED = SHIPPED / "pairs.jsonl"
TEXTS_AT_ONCE = 256
PAIRS_AT_ONCE = 8  # of those without a group: of two texts more each would be compared with all the others
STRENGTHS = np.logspace(-3, 1, 5)  # inverse of the L2 penalty, chosen by the log loss of held-out prompts


@dataclass(frozen=True)
class TrainedHead:
    """What head.safetensors holds: the tensors of pair_features.probability, and the threshold.

    packaged: by kind, the pairs in this package that are told right in cross-validation over their prompts, of all.
    """

    weights: dict[str, torch.Tensor]
    threshold: float
    packaged: dict[str, tuple[int, int]]

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
        adapt: pairs to train an adapter of the encoder on, with each head; None: it gets none.
        threshold_for: what the threshold is best for, one of report.AIMS.
    """

    def __init__(
        self,
        pairs: Sequence[LabelledPair],
        encoder: str | None,
        *,
        folds: int,
        seed: int,
        dtype: str | None = None,
        adapt: Sequence[LabelledPair] | None = None,
        threshold_for: str = "balanced_accuracy",
    ) -> None:
        self.pairs, self.folds, self.seed = list(pairs), folds, seed
        self.threshold_for = threshold_for
        # Few data sets have many short answers and sentences, and those that have none still meet them in use. Of a
        # prompt that is among the pairs none may be trained on while that is tested.
        prompts = {pair.prompt for pair in self.pairs}
        self.packaged = [pair for pair in read_pairs(str(PACKAGED)) if pair.prompt not in prompts]
        self.dtype, self.adapt = dtype, adapt
        self.encoder = Embedding(encoder, dtype=dtype)
        if adapt is not None:
            check_positions(self.encoder)
            self._to_adapt = self._inputs(adapt)
        self.vocabulary = len(self.encoder.model.tokenizer)
        texts = list(dict.fromkeys(t for p in (*self.pairs, *self.packaged) for t in _texts(p)))
        self._encoded: dict[str, Encoded] = {}
        with tqdm(total=len(texts), unit=" texts", desc="encoding", dynamic_ncols=True) as bar:
            for k in range(0, len(texts), TEXTS_AT_ONCE):
                self._encoded |= encode(self.encoder, texts[k : k + TEXTS_AT_ONCE])
                bar.update(min(TEXTS_AT_ONCE, len(texts) - k))

    def fit(self, at: Sequence[int]) -> TrainedHead:
        """A head from the pairs with these indices; penalty and threshold by cross-validation within them.

        Where the pairs of one kind are too few for that, its weights are learned from all of them. The threshold is
        that of the head without its adapter, which has seen all of these pairs.
        """
        pairs = [self.pairs[k] for k in at]
        idf = self._idf(pairs)
        labels, held_out = _labels(pairs), np.empty(len(pairs))
        kind_of, kind_of_packaged = self._kinds(pairs), self._kinds(self.packaged)
        weight, bias = torch.zeros(len(KINDS), len(FEATURES)), torch.zeros(len(KINDS))
        # By kind, of the packaged pairs that it was learned from too: P(similar) by cross-validation, and the labels.
        packaged_held_out: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for row, (kind, names) in enumerate(KINDS.items()):
            own = np.flatnonzero(kind_of == row)
            at_own = np.arange(len(own))  # where they are in learned_from
            more = [self.packaged[k] for k in np.flatnonzero(kind_of_packaged == row)]
            learned_from = [*(pairs[k] for k in own), *more]
            try:
                parts = folds_by_prompt(learned_from, self.folds, self.seed)
            except DarlingError:
                logger.warning(
                    "%d of %d pairs are of %s: too few, they are judged as all are", len(own), len(pairs), kind
                )
                at_own, learned_from, more = own, pairs, []
                parts = folds_by_prompt(pairs, self.folds, self.seed)
            columns = [FEATURES.index(name) for name in names]
            x, y = self._features(learned_from, idf)[:, columns], _labels(learned_from)
            coefficients, bias[row], out = _logistic(x, y, _weights(learned_from), parts)
            weight[row, columns] = torch.tensor(coefficients, dtype=torch.float32)
            held_out[own] = out[at_own]
            if more:
                packaged_held_out[kind] = out[-len(more) :], _labels(more)
        threshold = best_threshold(
            np.concatenate([labels, *(y for _, y in packaged_held_out.values())]),
            np.concatenate([held_out, *(p for p, _ in packaged_held_out.values())]),
            np.concatenate([_weights(pairs), *(np.ones(len(y)) for _, y in packaged_held_out.values())]),
            self.threshold_for,
        )
        # Of kinds that have packaged pairs another share is similar. One threshold is to serve all kinds, so theirs is
        # put where it is: a change of the base rate that they are calibrated for.
        for row, kind in enumerate(KINDS):
            if kind in packaged_held_out:
                probabilities, y = packaged_held_out[kind]
                own = best_threshold(y, probabilities, aim=self.threshold_for)
                shift = _logit(threshold) - _logit(own)
                bias[row] += shift
                packaged_held_out[kind] = 1 / (1 + np.exp(-_logit(probabilities) - shift)), y
        packaged = {kind: (int(((p > threshold) == y).sum()), len(y)) for kind, (p, y) in packaged_held_out.items()}
        weights = {"weight": weight, "bias": bias, "idf": idf.half()}
        if self.adapt is not None:
            tested = {pair.prompt for pair in self.pairs} - {pair.prompt for pair in pairs}
            own = [pair for pair in self.adapt if pair.prompt not in tested]
            weights |= train_adapter(self.encoder.path, own, self._to_adapt, self.seed)
        return TrainedHead(weights, threshold, packaged)

    def check_adapt(self, tested: Sequence[Sequence[int]]) -> int:
        """How many pairs an adapter learns from; DarlingError where too few are left when a fold is tested."""
        for part in tested:
            check_pairs(self.adapt, self._to_adapt, {self.pairs[k].prompt for k in part})
        return check_pairs(self.adapt, self._to_adapt, ())

    def predict(self, head: TrainedHead, at: Sequence[int]) -> np.ndarray:
        """(len(at),) P(similar) of the pairs with these indices."""
        pairs = [self.pairs[k] for k in at]
        kind_of = self._kinds(pairs)
        weight, bias = (head.weights[name].double().numpy()[kind_of] for name in ("weight", "bias"))
        logits = (self._features(pairs, head.weights["idf"].float()) * weight).sum(1) + bias
        adapted = adapted_encoder(self.encoder, head.weights, dtype=self.dtype)
        texts, ids = self._read_whole(pairs)
        if adapted is not None and texts:
            vectors = adapted.embed_ids(ids)().double()
            of_text = dict(zip(texts, torch.nn.functional.normalize(vectors, dim=-1), strict=True))
            for k, (_, *two) in enumerate(map(_texts, pairs)):
                if kind_of[k] == 0 and all(text in of_text for text in two):
                    logits[k] = with_cosines(logits[k], float(of_text[two[0]] @ of_text[two[1]]))
        return 1 / (1 + np.exp(-logits))

    def _kinds(self, pairs: Sequence[LabelledPair]) -> np.ndarray:
        found = (kinds([self._encoded[text] for text in _texts(pair)[1:]]) for pair in pairs)
        return np.array([int(each[0, 1]) for each in found], dtype=int)

    def _read_whole(self, pairs: Sequence[LabelledPair]) -> tuple[list[str], list[np.ndarray]]:
        """The responses that an adapter reads, and their token ids."""
        texts = sorted({text for pair in pairs for text in _texts(pair)[1:]})
        if not texts:
            return [], []
        both = zip(texts, self.encoder.token_ids(texts), strict=True)
        return tuple(map(list, zip(*(each for each in both if read_whole(*each)), strict=True))) or ([], [])

    def _inputs(self, pairs: Sequence[LabelledPair]) -> dict[str, np.ndarray]:
        """Of the responses that an adapter reads, token ids with special ones."""
        texts, ids = self._read_whole(pairs)
        return dict(zip(texts, self.encoder.with_special_tokens(ids), strict=True))

    def _idf(self, pairs: Sequence[LabelledPair]) -> torch.FloatTensor:
        """(V,) log((N + 1) / (k + 1)): of N responses k have that token."""
        responses = dict.fromkeys(text for pair in pairs for text in _texts(pair)[1:])
        counts = torch.zeros(self.vocabulary)
        for text in responses:
            counts[torch.from_numpy(np.unique(self._encoded[text].ids))] += 1
        return ((len(responses) + 1) / (counts + 1)).log()

    def _features(self, pairs: Sequence[LabelledPair], idf: torch.FloatTensor) -> np.ndarray:
        """(len(pairs), len(FEATURES)); of one prompt some pairs at a time, for that is cheaper than each by itself."""
        of_group: dict[tuple[str, int | None], list[int]] = defaultdict(list)
        for k, pair in enumerate(pairs):
            of_group[pair.prompt, pair.group].append(k)
        found = np.empty((len(pairs), len(FEATURES)))
        for (prompt, group), at in of_group.items():
            step = PAIRS_AT_ONCE if group is None else len(at)
            for start in range(0, len(at), step):
                some = at[start : start + step]
                two = [_texts(pairs[k])[1:] for k in some]
                row = {text: k for k, text in enumerate(sorted({text for each in two for text in each}))}
                features = pair_features(self._encoded[prompt], [self._encoded[text] for text in row], idf).numpy()
                for k, each in zip(some, two, strict=True):
                    first, second = sorted(row[text] for text in each)
                    found[k] = features[first, second]
        return found


def _texts(pair: LabelledPair) -> tuple[str, str, str]:
    """Prompt and responses as the partition model sees them."""
    return pair.prompt, pair.first.strip(), pair.second.strip()


def _labels(pairs: Sequence[LabelledPair]) -> np.ndarray:
    return np.array([pair.similar for pair in pairs], dtype=int)


def _logit(probability):
    return np.log(probability) - np.log1p(-probability)


def _weights(pairs: Sequence[LabelledPair]) -> np.ndarray:
    return np.array([pair.weight for pair in pairs])


def _logistic(
    x: np.ndarray, labels: np.ndarray, sample_weight: np.ndarray, parts: Sequence[Sequence[int]]
) -> tuple[np.ndarray, float, np.ndarray]:
    """Weights and bias for features as they are; (M,) P(similar) of each pair by the other folds' regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from threadpoolctl import threadpool_limits

    center, spread = x.mean(0), x.std(0)
    spread[spread < 1e-6] = 1.0
    x = (x - center) / spread

    def fitted(strength: float, at: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000).fit(x[at], labels[at], sample_weight[at])

    everything = np.arange(len(labels))

    def out_of_fold(strength: float) -> np.ndarray:
        found = np.empty(len(labels))
        for part in parts:
            found[part] = fitted(strength, np.setdiff1d(everything, part)).predict_proba(x[part])[:, 1]
        return found

    with threadpool_limits(1, user_api="blas"):  # thousands of tiny products: a second thread waits, and spins
        candidates = [(strength, out_of_fold(strength)) for strength in STRENGTHS]
        strength, out = min(candidates, key=lambda each: log_loss(labels, each[1], sample_weight=sample_weight))
        model = fitted(strength, everything)
    weights = model.coef_[0] / spread
    return weights, float(model.intercept_[0] - weights @ center), out
