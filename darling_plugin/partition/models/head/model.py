"""Partition by a small learned head on sentence embeddings: a response is encoded once, pairs cost next to nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import Group, SimilarityModel
from darling_plugin.partition.cuts import Cuts
from darling_plugin.partition.options import DTYPES, Between, OneOf
from darling_plugin.partition.progress import alive
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import torch

    from darling_plugin.partition.models.embedding import Embedding
    from darling_plugin.partition.models.head.features import Encoded

Opened = tuple[str, str]  # a short answer that a response opens with, and the beginning of what comes after

FILE = "head.safetensors"
MOST_CHARACTERS = 200_000
SHIPPED = Path(__file__).parents[2] / "default"


@register_partition_model("head")
class Head(SimilarityModel):
    """P(equivalent) by a logistic head on features of the pair: `head:<folder>`, as darling-train-partition writes it.

    A response is cut into chunks of 48 tokens, and a sentence encoder reads each chunk once, however many responses
    there are. With x the features of a pair (features.py; the prompt takes part in them)::

        P(equivalent) = sigmoid(w . x + b)

    Of a response of more than 200,000 characters (50,000 tokens) the first so many are read: what one response may
    cost has an end.

    A head may have an adapter of its encoder, for long responses of at most 160 tokens (adapter.py), which are read
    twice. Classes are made by average linkage: a head is too unsure of a pair for one to join two classes.

    There are three of w and b, by the words of the shorter and of the longer response: for short answers (at most 8
    and 24), sentences (at most 24 and 32), and all others. The folder has them with the encoder's name and the
    threshold that was chosen in training.

    Args:
        threshold: default: the one in the folder.
        dtype: of the encoder's layers, as for cross-encoder.
        compile_after, token_budget: as for cross-encoder.
    """

    calibrated = True
    clustering = "average"
    local = True
    option_limits: ClassVar = {"compile_after": Between(0), "token_budget": Between(1), "dtype": OneOf(DTYPES)}

    def __init__(
        self,
        path: str,
        *,
        threshold: float | None = None,
        clustering: str | None = None,
        dtype: str | None = None,
        compile_after: float | None = None,
        token_budget: int | None = None,
    ) -> None:
        from darling_plugin.partition.models.embedding import Embedding
        from darling_plugin.partition.models.head.adapter import adapted_encoder

        self._weights, settings = read_head(Path(path))
        self.cuts = Cuts()
        super().__init__(threshold=settings["threshold"] if threshold is None else threshold, clustering=clustering)
        options = {"dtype": dtype, "compile_after": compile_after, "token_budget": token_budget}
        self.encoder = Embedding(settings["encoder"], **options)
        self.adapted = adapted_encoder(self.encoder, self._weights, **options)

    def sleep(self) -> None:
        for each in self._encoders():  # the head itself is small, and on the CPU
            each.sleep()

    def wake(self) -> None:
        for each in self._encoders():
            each.wake()

    def _encoders(self) -> list[Embedding]:
        return [self.encoder, self.adapted] if self.adapted else [self.encoder]

    def similarities(self, groups: Sequence[Group]) -> list[torch.FloatTensor]:
        parts = self._parts([self._beginnings(group) for group in groups])
        found: list[torch.FloatTensor] = []
        opened, begin = self._ready(parts[0]) if parts else ([], None)
        encoded_later = begin() if parts else None
        for k, part in enumerate(parts):
            # While a GPU encodes this part the next one is tokenised here, and while it encodes that the features of
            # this one are computed. It is queued only then, for what waits for a part waits for all that is queued.
            opened_next, begin = self._ready(parts[k + 1]) if k + 1 < len(parts) else ([], None)
            encoded = encoded_later()
            encoded_later = begin() if begin else None
            for group, own in zip(part, opened, strict=True):
                found.append(self._of_group(group, own, encoded))
                alive()
            opened = opened_next
        return found

    def _parts(self, groups: list[Group]) -> list[list[Group]]:
        """Groups with enough texts to keep a GPU at work; on a CPU all of them."""
        parts: list[list[Group]] = []
        room = 0
        for group in groups:
            if room <= 0:
                parts.append([])
                room = self.encoder.part
            parts[-1].append(group)
            room -= 1 + len(group.responses)
        return parts

    def _ready(
        self, groups: list[Group]
    ) -> tuple[list[dict[str, Opened | None]], Callable[[], Callable[[], dict[str, Encoded]]]]:
        """Of each group, where its responses open with a short answer; and what has their texts encoded."""
        from darling_plugin.partition.models.head.features import ready_to_encode
        from darling_plugin.partition.models.head.padding import opening_and_rest

        opened = [{each: opening_and_rest(each, group.responses) for each in group.responses} for group in groups]
        texts = [text for group in groups for text in (group.prompt, *group.responses)]
        texts += [text for own in opened for parts in own.values() if parts for text in parts]
        return opened, ready_to_encode(self.encoder, texts, self.adapted, [group.responses for group in groups])

    def _of_group(
        self, group: Group, opened: dict[str, Opened | None], encoded: dict[str, Encoded]
    ) -> torch.FloatTensor:
        import torch

        from darling_plugin.partition.models.head.features import probability
        from darling_plugin.partition.models.head.padding import without_padding

        read = [
            without_padding(encoded, group.prompt, each, opened[each]) if opened[each] else encoded[each]
            for each in group.responses
        ]
        # Each text once, so that an answer and its padded twin are the same to the last bit in any order.
        distinct = {each.text: each for each in read}
        place = torch.tensor([list(distinct).index(each.text) for each in read], dtype=torch.long)
        similarities = probability(self._weights, encoded[group.prompt], list(distinct.values()))
        return similarities[place][:, place]

    def _beginnings(self, group: Group) -> Group:
        responses = [response[:MOST_CHARACTERS] for response in group.responses]
        cut = sum(len(whole) > MOST_CHARACTERS for whole in group.responses)
        self.cuts.count(len(responses), cut, f"the first {MOST_CHARACTERS} characters of a response are read")
        return Group(group.prompt[:MOST_CHARACTERS], responses)


@register_partition_model("default")
class Default(Head):
    """The head that comes with this package, on all-MiniLM-L6-v2; default/README.md is its model card.

    Args: threshold, clustering, dtype, compile_after and token_budget as for head.
    """

    def __init__(
        self,
        *,
        threshold: float | None = None,
        clustering: str | None = None,
        dtype: str | None = None,
        compile_after: float | None = None,
        token_budget: int | None = None,
    ) -> None:
        options = {"dtype": dtype, "compile_after": compile_after, "token_budget": token_budget}
        super().__init__(str(SHIPPED), threshold=threshold, clustering=clustering, **options)


def read_head(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights, and settings: encoder (None: all-MiniLM-L6-v2's package), features, threshold."""
    from safetensors import SafetensorError, safe_open

    from darling_plugin.partition.models.head.features import FEATURES

    needed, do = f"a folder with {FILE}, as darling-train-partition writes it", "correct the path, or train a head"
    try:
        with safe_open(folder / FILE, "pt") as file:
            names, settings = file.keys(), file.metadata()
            weights = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise DarlingError(needed, f"{folder}: {error}", do) from error
    settings = {name: json.loads(value) for name, value in (settings or {}).items()}
    if settings.get("features") != list(FEATURES):
        found = f"{folder / FILE} with the features {settings.get('features')}, here they are {list(FEATURES)}"
        raise DarlingError("a head trained by this version of darling-plugin", found, "train it again")
    return weights, settings
