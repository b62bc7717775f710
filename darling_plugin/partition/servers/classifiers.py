"""The dialects of `served:`, for classifiers that read two texts: vLLM's /classify and /score, and /predict of
text-embeddings-inference (TEI)."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import RANGE_TOLERANCE, Pair, describe
from darling_plugin.partition.models.cross_encoder import ClassifierSettings
from darling_plugin.partition.servers.pool import BATCH_SIZE, Dialect
from darling_plugin.partition.servers.server import WRONG_FORM, BadAnswer, Server

LEAST_LENGTH = 8  # room for special tokens and one of each side
SUM_TOLERANCE = 0.02  # the classes' probabilities may come from half precision
SAME_WEIGHTS = 0.02  # by how much servers in half precision may differ in one probability
# Without the last flag vLLM (0.29) never answers a causal classifier's pair of exactly max_model_len tokens that it
# reads in two parts.
START_COMMAND = (
    "python3 -m vllm.entrypoints.openai.api_server --model <path> --runner pooling --convert classify "
    "--no-enable-chunked-prefill"
)

logger = logging.getLogger(__name__)


class Probabilities(tuple):
    """What a vLLM server says of one and the same text: with the same weights nearly the same."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple) or len(self) != len(other):
            return False
        return all(abs(one - two) <= SAME_WEIGHTS for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


Weights = tuple[str | None, ...] | Probabilities


@dataclass(frozen=True)
class ServedClassifier:
    """What a server holds; all servers of a pool must hold the same."""

    api: str  # "vllm" or "tei"
    labels: int  # classes; of two, class 1 means equivalent
    names: tuple[str, ...]  # of the classes, by number, where the server says them: TEI does
    max_length: int  # tokens of a pair
    batch_size: int  # pairs a request
    weights: Weights = ()  # by what servers with the same ones are told: of TEI model and revision
    root: str | None = field(default=None, compare=False, repr=False)  # path or Hub name that vLLM was started with


async def learn_classifier(server: Server) -> ServedClassifier:
    """What a vLLM or TEI server holds; BadAnswer if that is no classifier."""
    info = await server.ask("/info", optional=True)
    if isinstance(info, dict) and "model_type" in info:
        return TeiPredict.held_by(info)
    return VllmDialect.held_by(await server.ask("/v1/models"), await server.ask("/classify", {"input": "a"}))


class ClassifierDialect(Dialect):
    """P(equivalent) of pairs, from the classes' probabilities."""

    def __init__(self, held: ServedClassifier, label: str | None, settings: ClassifierSettings | None = None) -> None:
        self.labels = held.labels
        self.batch_size = held.batch_size
        self.equivalent = equivalent_class(held, label)
        self.settings = settings or ClassifierSettings()

    @abstractmethod
    def rows(self, answer: Any) -> list[list[float]]:
        """The classes' probabilities of each pair, by the classes' numbers."""

    def read(self, answer: Any, pairs: Sequence[Pair]) -> list[float]:
        needed = f"{self.labels} probabilities for each of {len(pairs)} pairs"
        try:
            rows = self.rows(answer)
            if len(rows) != len(pairs):
                raise ValueError("another number of pairs")
            good = [_is_distribution(row, self.labels) for row in rows]
        except WRONG_FORM as error:
            raise BadAnswer(needed, answer) from error
        if not all(good):
            worst = good.index(False)
            raise BadAnswer(needed, rows[worst], describe(pairs[worst]))
        return [self._shifted(row[self.equivalent]) for row in rows]

    def _shifted(self, probability: float) -> float:
        """With what calibration adds to the logit, as in cross_encoder.probability_equivalent."""
        if not self.settings.logit_shift:
            return probability
        odds = probability / max(1 - probability, 1e-12) * math.exp(self.settings.logit_shift)
        return odds / (1 + odds)


class TextsDialect(ClassifierDialect):
    """One whose server is sent the two texts, and tokenises and cuts the pair itself."""

    def encode(self, pairs: Sequence[Pair]) -> list[tuple[str, str]]:
        return [(pair.first, pair.second) for pair in pairs]

    def length(self, texts: tuple[str, str]) -> int:
        return len(texts[0]) + len(texts[1])


class VllmDialect(ClassifierDialect):
    """What vLLM's two have in common."""

    @staticmethod
    def held_by(models: dict, probe: dict) -> ServedClassifier:
        """From the answers of /v1/models, and of /classify to a single text."""
        try:
            card = next(card for card in models["data"] if not card.get("parent"))  # one with a parent is an adapter
            says = Probabilities(map(float, probe["data"][0]["probs"]))
            length, root = int(card["max_model_len"]), card.get("root")
            return ServedClassifier("vllm", len(says), (), length, BATCH_SIZE, says, root)
        except (StopIteration, *WRONG_FORM) as error:
            raise BadAnswer("a vLLM classify server", [models, probe]) from error

    @staticmethod
    def in_order(answer: dict) -> list[dict]:
        items = sorted(answer["data"], key=lambda item: item["index"])
        if [item["index"] for item in items] != list(range(len(items))):
            raise ValueError("indices that do not count from 0")
        return items


class VllmClassify(VllmDialect):
    """vLLM, sent token ids."""

    path = "/classify"

    def __init__(
        self, held: ServedClassifier, label: str | None, tokenizer: Any, settings: ClassifierSettings
    ) -> None:
        from darling_plugin.partition.engine.pair_tokens import PairTokens

        super().__init__(held, label, settings)
        self._pair_tokens = PairTokens(tokenizer, settings.max_length, special_tokens=settings.special_tokens)
        self.cuts = self._pair_tokens.cuts

    def encode(self, pairs: Sequence[Pair]) -> list[list[int]]:
        return [pair.ids.tolist() for pair in self._pair_tokens(pairs)]

    def length(self, ids: list[int]) -> int:
        return len(ids)

    def body(self, encoded: Sequence[list[int]]) -> dict:
        return {"input": encoded, "use_activation": True}

    def rows(self, answer: dict) -> list[list[float]]:
        return [item["probs"] for item in self.in_order(answer)]


class VllmScore(VllmDialect, TextsDialect):
    """vLLM, sent texts; for models with one label."""

    path = "/score"

    def __init__(self, held: ServedClassifier, label: str | None, settings: ClassifierSettings) -> None:
        super().__init__(held, label, settings)

    def body(self, encoded: Sequence[tuple[str, str]]) -> dict:
        first, second = zip(*encoded, strict=True)
        length = self.settings.max_length
        return {"text_1": first, "text_2": second, "truncate_prompt_tokens": length, "use_activation": True}

    def rows(self, answer: dict) -> list[list[float]]:
        return [[item["score"]] for item in self.in_order(answer)]


class TeiPredict(TextsDialect):
    """TEI, sent texts."""

    path = "/predict"

    def __init__(self, held: ServedClassifier, label: str | None) -> None:
        super().__init__(held, label)
        self.names = held.names

    @staticmethod
    def held_by(info: dict) -> ServedClassifier:
        """From the answer of /info."""
        try:
            names = next(info["model_type"][kind] for kind in ("classifier", "reranker") if kind in info["model_type"])
            labels = {int(number): name for number, name in names["id2label"].items()}
            by_number = tuple(labels[k] for k in range(len(labels)))
            if len(set(labels.values())) < len(labels):
                raise ValueError("two classes of one name")
            batch_size = min(BATCH_SIZE, int(info["max_client_batch_size"]))
            weights = info.get("model_id"), info.get("model_sha")
            return ServedClassifier("tei", len(labels), by_number, int(info["max_input_length"]), batch_size, weights)
        except (StopIteration, *WRONG_FORM) as error:
            raise BadAnswer("text-embeddings-inference with a classifier", info) from error

    def body(self, encoded: Sequence[tuple[str, str]]) -> dict:
        return {"inputs": encoded, "raw_scores": False, "truncate": True}

    def rows(self, answer: list) -> list[list[float]]:
        """The classes come by falling score, and are put in the order of their numbers."""
        rows = []
        for row in answer:
            score = {item["label"]: item["score"] for item in row}
            if len(row) != len(score):
                raise ValueError("a class twice")
            rows.append([score[name] for name in self.names])
        return rows


def equivalent_class(held: ServedClassifier, label: str | None) -> int:
    """The number of the class that means equivalent: by `label`, its name or number; of one class 0, of two 1.

    Raises DarlingError for a label that is none, and for three classes or more without one.
    """
    if label is None and held.labels <= 2:
        return held.labels - 1
    known = {**{str(k): k for k in range(held.labels)}, **{name: k for k, name in enumerate(held.names)}}
    if label not in known:
        raise DarlingError(
            f"which of {held.labels} classes means that two responses are equivalent",
            "no label" if label is None else f"label={label}",
            f"add it, served:<url>?label=<label>: {', '.join(known)}",
        )
    return known[label]


def choose_dialect(
    held: ServedClassifier, tokenizer: str | None, max_length: int | None, label: str | None = None
) -> ClassifierDialect:
    """The one in which the model reads what `cross-encoder` would give it.

    Args:
        tokenizer: a path or Hub name; None: that of `held.root`, if it is on this machine.
        label: of the class that means equivalent; see :func:`equivalent_class`.
        max_length: tokens of a pair; None: as the classifier was trained, else 2048. Never more than the server's.

    Raises DarlingError where there is none.
    """
    if held.api == "tei":
        if max_length is not None and max_length < held.max_length:
            raise DarlingError(
                f"max_length of at least {held.max_length}: text-embeddings-inference cuts pairs there itself",
                f"max_length={max_length}",
                "drop max_length, or serve the classifier with vLLM",
            )
        return TeiPredict(held, label)
    loaded = _load_tokenizer(tokenizer, held.root)
    config = None if loaded is None else _config_of(loaded.name_or_path)
    settings = ClassifierSettings.read(config).replaced(max_length=max_length)
    limits = [settings.max_length, held.max_length, *([] if loaded is None else [loaded.model_max_length])]
    settings = settings.replaced(max_length=min(limits))
    if settings.max_length < LEAST_LENGTH:
        needed = f"max_length of at least {LEAST_LENGTH}: room for two responses"
        raise DarlingError(needed, f"{settings.max_length}", "raise it")
    _check_activation(config, held.labels)
    if loaded is not None and not _reads_segments(loaded, config):
        return VllmClassify(held, label, loaded, settings)
    if held.labels == 1 and settings.special_tokens is None:
        return VllmScore(held, label, settings)
    if loaded is None:
        raise DarlingError(
            "the classifier's tokenizer, to build pairs with",
            f"no tokenizer option, and none can be loaded here from {held.root}, which the server was started with",
            "name its path or Hub name: served:<url>?tokenizer=<path>",
        )
    raise DarlingError(
        f"a model without segment ids, or with one label, behind vLLM for {loaded.name_or_path}",
        f"{held.labels} labels, and segment ids (token_type_ids), which vLLM would set to 0",
        "use cross-encoder:<path>, or serve it with text-embeddings-inference",
    )


def _load_tokenizer(path: str | None, root: str | None) -> Any:
    """That of `path`; without one, that of `root` if it is on this machine, or None if it is not."""
    from transformers import AutoTokenizer

    if path is None and root is None:
        return None
    try:
        loaded = AutoTokenizer.from_pretrained(path or root, local_files_only=path is None)
    except (OSError, ValueError) as error:
        if path is None:
            logger.warning("No tokenizer here in %s, which the server was started with: %s", root, error)
            return None
        raise DarlingError(f"a tokenizer in {path}", str(error), "correct the tokenizer option") from error
    if not loaded.is_fast:
        raise DarlingError(
            "a fast tokenizer (tokenizer.json)", f"{type(loaded).__name__} of {path or root}", "convert it"
        )
    return loaded


def _config_of(path: str) -> Any:
    """The classifier's configuration; None where it is not on this machine."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError):
        return None


def _check_activation(config: Any, labels: int) -> None:
    """Raises DarlingError for one label whose raw output vLLM gives, of which `cross-encoder` takes the sigmoid.

    It goes by the configuration, into which transformers writes "regression" where such a classifier was trained.
    """
    if labels > 1 or config is None:
        return
    of_sentences = getattr(config, "sentence_transformers", None) or {}
    activation = str(of_sentences.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", ""))
    kind = getattr(config, "problem_type", None)
    if kind == "regression" or activation.endswith("Identity"):
        raise DarlingError(
            "a classifier that vLLM answers probabilities for",
            f"problem_type {kind!r}, activation {activation!r} in its config.json: its raw output",
            "use cross-encoder:<path>, or serve it with text-embeddings-inference",
        )


def _reads_segments(tokenizer: Any, config: Any) -> bool:
    """Whether the model has an embedding of the side that a token is on; True where that cannot be known."""
    if not any(tokenizer("a", "a").get("token_type_ids", [])):
        return False
    if config is None:
        return True
    return getattr(config, "type_vocab_size", 0) > 1  # DeBERTa's tokenizer makes segment ids that it does not read


def _is_distribution(row: list[float], labels: int) -> bool:
    inside = all(-RANGE_TOLERANCE <= value <= 1 + RANGE_TOLERANCE for value in row)  # false for NaN
    return len(row) == labels and inside and (labels == 1 or abs(sum(row) - 1) < SUM_TOLERANCE)
