"""A head's adapter: its sentence encoder once more, fine-tuned, for responses that are short enough to be read whole.

It speaks of pairs of the kind "long responses" alone: what two short answers or sentences in one frame differ in, a
number or a name, their features see and a cosine does not. With u and v the vectors of two such responses by the
adapted encoder, of length 1, and w . x + b the head's logit::

    P(equivalent) = sigmoid(SHARE * (w . x + b + SLOPE * (u . v - MIDDLE)))

An adapter is LoRA's: to the weights of linear layers a product up @ down of few ranks is added. The head's file has
both of each layer, in training/adapter.py they are learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from darling_plugin.errors import DarlingError
from darling_plugin.partition.models.embedding import Embedding
from darling_plugin.partition.models.head.words import SENTENCE, words_of

if TYPE_CHECKING:
    from darling_plugin.partition.models.head.features import Encoded

PREFIX, DOWN, UP = "adapter.", ".down", ".up"  # of the tensors' names, around that of the layer
MORE_WORDS, MOST_TOKENS = 8, 160  # than a short answer has; some 120 words
SLOPE, MIDDLE = 10.0, 0.7  # what the fine-tuned cosine says: as likely as not at 0.7
SHARE = 0.7  # both see the same two responses: their odds, multiplied, would be too sure


def read_whole(text: str, ids: Sequence[int]) -> bool:
    """Whether an adapted encoder reads a response with these token ids: more than 8 words, at most 160 tokens."""
    return len(ids) <= MOST_TOKENS and len(text.split()) > MORE_WORDS


def worth_reading(groups: Sequence[Sequence[str]], ids: Mapping[str, Sequence[int]]) -> set[str]:
    """The responses of these groups that an adapted encoder reads: of a group without a long one no pair is long."""
    found: set[str] = set()
    for responses in groups:
        if any(len(ids[text]) > MOST_TOKENS or len(words_of(text)) > SENTENCE for text in responses):
            found.update(text for text in responses if read_whole(text, ids[text]))
    return found


def adapted_encoder(encoder: Embedding, weights: dict[str, torch.Tensor], **options: Any) -> Embedding | None:
    """The same encoder once more, with the adapter among a head's weights; None where there is none.

    DarlingError where the encoder has other layers than the one that the adapter was made for.
    """
    names = [name[len(PREFIX) : -len(DOWN)] for name in weights if name.startswith(PREFIX) and name.endswith(DOWN)]
    if not names:
        return None
    adapted = Embedding(encoder.path, **options)
    layers = dict(adapted.model[0].auto_model.named_modules())
    for name in names:
        change = weights[PREFIX + name + UP].float() @ weights[PREFIX + name + DOWN].float()
        layer = layers.get(name)
        if layer is None or layer.weight.shape != change.shape:
            found = f"{encoder.path}, whose layer {name} is {'missing' if layer is None else 'of another shape'}"
            raise DarlingError("the sentence encoder that the head was trained with", found, "train the head again")
        with torch.no_grad():
            layer.weight.copy_(layer.weight.float() + change.to(layer.weight.device))
    return adapted


def with_cosines(logits, cosines):
    """The logit of two responses that were both read whole, from the head's own and the cosine; NumPy's or torch's."""
    return SHARE * (logits + SLOPE * (cosines - MIDDLE))


def with_adapter(logits: torch.FloatTensor, long: torch.BoolTensor, responses: Sequence[Encoded]) -> torch.FloatTensor:
    """(n, n) logits of a group's pairs: of long ones, both read whole, with their cosines, of others as they were."""
    whole = [k for k, each in enumerate(responses) if each.whole is not None]
    if whole:
        vectors = torch.stack([responses[k].whole for k in whole])
        at = torch.tensor(whole)
        pairs = at[:, None], at
        own = torch.where(long[pairs], with_cosines(logits[pairs], vectors @ vectors.T), logits[pairs])
        logits = logits.index_put(pairs, own)
    return logits
