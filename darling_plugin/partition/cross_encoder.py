"""Partition by a sequence classifier that reads both responses: the learned partition function of arXiv 2509.02534."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import Pair, PairwiseModel, in_halves
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import torch

BATCH_SIZE = 32
MAX_LENGTH = 2048  # tokens of a pair


@register_partition_model("cross-encoder")
class CrossEncoder(PairwiseModel):
    """P(equivalent) of any AutoModelForSequenceClassification: `cross-encoder:<path or Hub name>`.

    Input: CLS first SEP second SEP, as the model's tokenizer builds a pair, the longer one cut first; the prompt is
    not shown. Class 1 means equivalent: softmax(logits)[1] of a model with two or more labels, sigmoid(logit) of a
    model with one.

    The classifier for open-ended tasks that was released with arXiv 2509.02534 is used with --darling.threshold 0.32,
    the one for maths with the default 0.5.
    """

    threshold = 0.5

    def __init__(self, path: str, *, threshold: float | None = None, clustering: str = "union_find") -> None:
        super().__init__(threshold=threshold, clustering=clustering)
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForSequenceClassification.from_pretrained(path).to(self.device).eval()
        # Causal classifiers read the last token that is not padding: tokenizer and model must agree on what that is.
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise DarlingError(
                    f"a tokenizer with a padding or an end token in {path}",
                    "neither",
                    "set pad_token in that tokenizer",
                )
            self.tokenizer.pad_token = self.tokenizer.eos_token
        text_config = self.model.config.get_text_config()
        text_config.pad_token_id = self.tokenizer.pad_token_id
        positions = getattr(text_config, "max_position_embeddings", None) or MAX_LENGTH
        self.max_length = min(self.tokenizer.model_max_length, positions, MAX_LENGTH)

    def similarity(self, pairs: Sequence[Pair]) -> torch.FloatTensor:
        import torch

        encoded = self.tokenizer(
            [pair.first for pair in pairs],
            [pair.second for pair in pairs],
            truncation="longest_first",
            max_length=self.max_length,
        )
        lengths = torch.tensor([len(ids) for ids in encoded["input_ids"]])
        # Longest first: pairs of like length share a batch, and a shortage of memory shows in the first one.
        order = lengths.argsort(descending=True, stable=True)
        scores = torch.empty(len(pairs))

        def score(batch: torch.LongTensor) -> torch.FloatTensor:
            rows = {name: [values[i] for i in batch.tolist()] for name, values in encoded.items()}
            inputs = self.tokenizer.pad(rows, return_tensors="pt").to(self.device)
            return _probability_equivalent(self.model(**inputs).logits.float()).cpu()

        with torch.inference_mode():
            for batch in order.split(BATCH_SIZE):
                scores[batch] = in_halves(score, batch)
        return scores


def _probability_equivalent(logits: torch.Tensor) -> torch.Tensor:
    """(B, number of labels) -> (B,)"""
    return logits.sigmoid().squeeze(-1) if logits.shape[-1] == 1 else logits.softmax(-1)[..., 1]
