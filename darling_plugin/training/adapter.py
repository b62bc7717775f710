"""Fine-tunes a head's sentence encoder by LoRA, with Hugging Face's Trainer; see partition/models/head/adapter.py."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.partition.models.embedding import Embedding
from darling_plugin.partition.models.head.adapter import DOWN, MIDDLE, MOST_TOKENS, PREFIX, SLOPE, UP
from darling_plugin.training.pairs import LabelledPair

RANK = 16
EPOCHS = 2
LEARNING_RATE = 5e-4
GROUPS_A_STEP = 8
TEXTS_AT_ONCE = 16  # of like length, so that little of a batch is padding


def train_adapter(
    encoder: str, pairs: Sequence[LabelledPair], inputs: Mapping[str, np.ndarray], seed: int
) -> dict[str, torch.Tensor]:
    """The adapter's tensors, as a head's file has them, in float16.

    A step takes some prompts' groups: each response is encoded once, and with the cosines of the labelled pairs the
    loss is the binary cross-entropy of SLOPE * (u . v - MIDDLE), by the pairs' weights: the mean over a step's pairs,
    so that one beside few others counts more. What the encoder computes on the way is computed again for the gradient,
    TEXTS_AT_ONCE texts at a time: a step holds no more, however large its groups.

    Args:
        encoder: path or Hub name of a SentenceTransformer.
        inputs: token ids, special ones included, of the responses that are read whole; pairs of others are left out.
    """
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(seed)
    groups = _groups(pairs, inputs)
    model = SentenceTransformer(encoder, model_kwargs={"dtype": torch.float32})
    layers = model[0].auto_model
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.05, target_modules="all-linear")
    layers.add_adapter(lora)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=EPOCHS,
            learning_rate=LEARNING_RATE,
            warmup_steps=0.1,  # of all
            weight_decay=0.01,
            per_device_train_batch_size=GROUPS_A_STEP,
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            label_names=[],
            seed=seed,
            report_to="none",
        )
        mean_weight = float(np.mean([pair.weight for group in groups for pair in group]))
        collator = _Collator(inputs, model.tokenizer.pad_token_id, mean_weight)
        Trainer(_PairLoss(model), arguments, collator, train_dataset=groups).train()
    tensors = {}
    for name, layer in layers.named_modules():
        if hasattr(layer, "lora_A") and layer.lora_B["default"].weight.any():  # the pooler's is not on the way
            up = layer.lora_B["default"].weight * layer.scaling["default"]
            tensors[PREFIX + name + DOWN] = layer.lora_A["default"].weight.detach().cpu().half()
            tensors[PREFIX + name + UP] = up.detach().cpu().half()
    return tensors


def check_pairs(pairs: Sequence[LabelledPair], inputs: Mapping[str, np.ndarray], left_out: Collection[str]) -> int:
    """How many of the pairs an adapter learns from, those of the prompts `left_out` aside.

    Raises DarlingError where there are none, or of one label alone.
    """
    own = [pair for group in _groups(pairs, inputs) for pair in group if pair.prompt not in left_out]
    similar = sum(pair.similar for pair in own)
    if not 0 < similar < len(own):
        aside = f", those of the {len(left_out)} prompts of a fold that is tested aside" if left_out else ""
        raise DarlingError(
            "similar and different pairs of responses of 9 words and more and at most 160 tokens, to adapt to",
            f"{similar} similar and {len(own) - similar} different of {len(pairs)} pairs{aside}",
            f"leave out {spelled('adapt')}, or give it more pairs",
        )
    return len(own)


def check_positions(encoder: Embedding) -> None:
    """Raises DarlingError for an encoder that does not read as many tokens at once as the adapter hands to it."""
    layers, special = encoder.model[0].auto_model, encoder.model.tokenizer.num_special_tokens_to_add()
    positions = getattr(layers.config, "max_position_embeddings", None) or math.inf
    if positions < MOST_TOKENS + special:
        needed = f"an encoder that reads {MOST_TOKENS + special} tokens at once, for {spelled('adapt')}"
        raise DarlingError(needed, f"{encoder.path}, which reads {positions}", "name another encoder, or leave it out")


def _groups(pairs: Sequence[LabelledPair], inputs: Mapping[str, np.ndarray]) -> list[list[LabelledPair]]:
    """The pairs of one prompt, or of one of its groups, together: their responses are encoded once."""
    found: dict[tuple[str, int | None], list[LabelledPair]] = defaultdict(list)
    for pair in pairs:
        if pair.first.strip() in inputs and pair.second.strip() in inputs:
            found[pair.prompt, pair.group].append(pair)
    return list(found.values())


class _PairLoss(torch.nn.Module):
    """The mean loss of a batch's pairs, as the Trainer takes it."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        texts: list[dict[str, torch.Tensor]],
        first: torch.Tensor,
        second: torch.Tensor,
        similar: torch.Tensor,
        weight: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        vectors = torch.cat([checkpoint(self._vectors, each, use_reentrant=False) for each in texts])
        cosines = torch.nn.functional.cosine_similarity(vectors[first], vectors[second])
        logits = SLOPE * (cosines - MIDDLE)
        return {"loss": torch.nn.functional.binary_cross_entropy_with_logits(logits, similar, weight)}

    def _vectors(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.encoder(dict(inputs))["sentence_embedding"]


@dataclass(frozen=True)
class _Collator:
    """Of some groups: their distinct texts in padded batches of like length, and where each pair's two are."""

    inputs: Mapping[str, np.ndarray]
    pad_id: int
    mean_weight: float

    def __call__(self, groups: list[list[LabelledPair]]) -> dict[str, Any]:
        pairs = [pair for group in groups for pair in group]
        distinct = {text.strip() for pair in pairs for text in (pair.first, pair.second)}
        texts = sorted(distinct, key=lambda text: (len(self.inputs[text]), text))
        place = {text: k for k, text in enumerate(texts)}
        return {
            "texts": [self._padded(texts[k : k + TEXTS_AT_ONCE]) for k in range(0, len(texts), TEXTS_AT_ONCE)],
            "first": torch.tensor([place[pair.first.strip()] for pair in pairs]),
            "second": torch.tensor([place[pair.second.strip()] for pair in pairs]),
            "similar": torch.tensor([float(pair.similar) for pair in pairs]),
            "weight": torch.tensor([pair.weight / self.mean_weight for pair in pairs]),
        }

    def _padded(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        rows = [torch.from_numpy(self.inputs[text]) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
