"""Partition by a sequence classifier that reads both responses: the learned partition function of arXiv 2509.02534."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import Pair, PairwiseModel
from darling_plugin.partition.options import DTYPES, Between, OneOf
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import torch

    from darling_plugin.partition.engine.inputs import ModelInput

KEY = "darling_partition"  # of ClassifierSettings in config.json


@dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier of pairs is used; darling-train-partition writes it into the classifier's config.json.

    Args:
        threshold: the similarity above which two responses are equivalent; None: the partition model's own.
        max_length: tokens of a pair.
        special_tokens: before, between and after the two responses; None: the tokenizer's own.
        logit_shift: what calibration adds to the logit of a classifier whose last layer has no bias.
    """

    threshold: float | None = None
    max_length: int = 2048
    special_tokens: tuple[str, str, str] | None = None
    logit_shift: float = 0.0

    @classmethod
    def read(cls, config: Any) -> ClassifierSettings:
        """Those in a transformers configuration, for what is not there the defaults."""
        written, known = getattr(config, KEY, {}), [field.name for field in fields(cls)]
        return cls().replaced(**{name: written.get(name) for name in known})

    def write(self, config: Any) -> None:
        setattr(config, KEY, asdict(self))

    @staticmethod
    def written(config: Any) -> bool:
        return hasattr(config, KEY)

    def replaced(self, **options: Any) -> ClassifierSettings:
        """These with the options that are not None in their place."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


def longest_pair(tokenizer: Any, config: Any, max_length: int) -> int:
    """`max_length`, or what the tokenizer and the classifier with this configuration take at most."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or max_length
    if "roberta" in config.model_type:  # it counts from the place after its padding token's
        positions -= config.pad_token_id + 1
    return min(tokenizer.model_max_length, positions, max_length)


@register_partition_model("cross-encoder")
class CrossEncoder(PairwiseModel):
    """P(equivalent) of any AutoModelForSequenceClassification: `cross-encoder:<path or Hub name>`.

    Input: CLS first SEP second SEP, as the model's tokenizer builds a pair; the prompt is not shown. Class 1 means
    equivalent: softmax(logits)[1] of a model with two or more labels, sigmoid(logit) of a model with one.

    Args:
        threshold: default: 0.5; of a classifier that darling-train-partition made, the one in its config.json.
        max_length: tokens of a pair, by default 2048, or as it was trained; the longer response is cut first. Never
            more than the model takes.
        max_response_length: tokens of each response, cut first.
        both_orders: the mean of P(first, second) and P(second, first), at twice the cost.
        tokenizer: path or Hub name, where it does not lie beside the weights.
        dtype: torch's name of one; default: bfloat16 where the GPU or the CPU computes in it, else float16 on a GPU
            and float32 on a CPU.
        compile_after: tokens after which torch.compile is used, for the architectures that are packed (forward.py);
            default: as many as take about as long to score as the layers to compile. 0: at once, Infinity: never.
        token_budget: tokens of a batch; default: 65536 on a GPU, 4096 on a CPU. Less takes less memory.
    """

    threshold = 0.5
    calibrated = True
    local = True
    option_limits: ClassVar = {
        "max_length": Between(1),
        "max_response_length": Between(1),
        "compile_after": Between(0),
        "token_budget": Between(1),
        "dtype": OneOf(DTYPES),
    }
    special_tokens: tuple[str, str, str] | None = None  # before, between and after; None: the tokenizer's own

    def __init__(
        self,
        path: str,
        *,
        threshold: float | None = None,
        clustering: str | None = None,
        max_length: int | None = None,
        max_response_length: int | None = None,
        both_orders: bool = False,
        tokenizer: str | None = None,
        dtype: str | None = None,
        compile_after: float | None = None,
        token_budget: int | None = None,
    ) -> None:
        from darling_plugin.partition.engine.forward import choose_forward

        self.both_orders = both_orders
        self.tokenizer, self.model = load_classifier(path, tokenizer or path, dtype)
        settings = ClassifierSettings.read(self.model.config).replaced(threshold=threshold, max_length=max_length)
        super().__init__(threshold=settings.threshold, clustering=clustering)
        self._logit_shift = settings.logit_shift
        self.max_length = longest_pair(self.tokenizer, self.model.config, settings.max_length)
        special_tokens = settings.special_tokens or self.special_tokens
        self._pair_tokens = self._make_pair_tokens(max_response_length, special_tokens)
        self.cuts = self._pair_tokens.cuts
        self._forward = choose_forward(
            lambda **inputs: self.model(**inputs).logits,
            self.model.base_model,
            self.tokenizer.pad_token_id,
            compile_after=compile_after,
            token_budget=token_budget,
        )
        self.one_first = self._forward.one_first

    def _make_pair_tokens(
        self, max_response_length: int | None, special_tokens: tuple[str, str, str] | None
    ) -> Callable[[Sequence[Pair]], list[ModelInput]]:
        from darling_plugin.partition.engine.pair_tokens import PairTokens

        return PairTokens(self.tokenizer, self.max_length, max_response_length, special_tokens)

    def similarity(self, pairs: Sequence[Pair]) -> torch.FloatTensor:
        if self.both_orders:
            swapped = [Pair(pair.prompt, pair.second, pair.first) for pair in pairs]
            return self._probabilities([*pairs, *swapped]).view(2, -1).mean(0)
        return self._probabilities(pairs)

    def sleep(self) -> None:
        self._device = self.model.device
        self.model.to("cpu")

    def wake(self) -> None:
        self.model.to(self._device)

    def _probabilities(self, pairs: Sequence[Pair]) -> torch.FloatTensor:
        return probability_equivalent(self._forward.of(pairs, self._pair_tokens), self._logit_shift)


def load_classifier(path: str, tokenizer_path: str, dtype: str | None) -> tuple[Any, Any]:
    """Tokenizer and sequence classifier, on the GPU where there is one, with a padding token both agree on."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from darling_plugin.partition.engine.device import device_and_dtype

    device, kind = device_and_dtype(dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
        model = AutoModelForSequenceClassification.from_pretrained(path, dtype=kind).to(device).eval()
    except OSError as error:
        raise DarlingError(
            f"a sequence classifier in {path} and a tokenizer in {tokenizer_path}",
            f"{error}",
            "correct the path, or download them first: hf download <Hub name>",
        ) from error
    # Causal classifiers read the last token that is not padding: tokenizer and model must agree on what that is.
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise DarlingError(
                f"a tokenizer with a padding or an end token in {tokenizer_path}",
                "neither",
                "set pad_token in that tokenizer",
            )
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return tokenizer, model


def probability_equivalent(logits: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
    """(B, number of labels) -> (B,); `shift` is added to the logit of label 1 where there are two or more."""
    if logits.shape[-1] == 1:
        return logits.sigmoid().squeeze(-1)
    logits = logits.clone()
    logits[..., 1] += shift
    return logits.softmax(-1)[..., 1]
