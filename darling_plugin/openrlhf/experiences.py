"""OpenRLHF's experiences as groups: (P, n) tensors gathered from micro-batches in any order, and scattered back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from darling_plugin.errors import DarlingError
from darling_plugin.openrlhf import responses
from darling_plugin.partition import CLUSTERINGS
from darling_plugin.partition.base import DECIMALS
from darling_plugin.shaping import Groups, Shaped, Similarities


@dataclass
class Places:
    """Where the samples of a batch of experiences stand among its P groups of n.

    Attributes:
        order: (P·n,) each sample's place, in the order in which the experiences hold them.
        sizes: number of samples of each experience.
    """

    order: torch.LongTensor
    sizes: list[int]
    n: int

    @classmethod
    def of_training(cls, experiences: list[Any], n: int) -> Places:
        """Places by `experience.index`; raises DarlingError unless they are those of whole groups."""
        order = torch.tensor([index for experience in experiences for index in experience.index])
        if len(order) % n or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise DarlingError(
                f"whole groups of {n} responses, numbered from 0",
                f"{len(order)} samples with indices {order.tolist()[:20]}",
                "report this with the OpenRLHF flags in use",
            )
        return cls(order, [len(experience.index) for experience in experiences], n)

    @classmethod
    def of_evaluation(cls, experiences: list[Any], n: int) -> Places:
        """Places of samples that nobody has reordered, and that have no index."""
        sizes = [len(experience.rewards) for experience in experiences]
        return cls(torch.arange(sum(sizes)), sizes, n)

    def gather(self, values: list[torch.Tensor]) -> torch.Tensor:
        """One tensor (samples, …) an experience -> (P, n, …)."""
        together = torch.cat(values)
        in_place = torch.empty_like(together)
        in_place[self.order] = together
        return in_place.reshape(-1, self.n, *together.shape[1:])

    def scatter(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(P, n) -> one tensor (samples,) an experience."""
        return values.reshape(-1)[self.order].split(self.sizes)

    def gather_list(self, values: list[Any]) -> list[list[Any]]:
        """A value a sample, in the experiences' order -> P lists of n."""
        in_place = [values[k] for k in self.order.argsort().tolist()]
        return [in_place[start : start + self.n] for start in range(0, len(in_place), self.n)]


def take_measured(experiences: list[Any], places: Places) -> dict[str, torch.Tensor]:
    """Takes what the partition actors added out of `experience.info`: (P, n) tensors by the keys of `responses.py`.

    Raises DarlingError where samples lack it, or a group is not one prompt's.
    """
    missing = [key for key in responses.ADDED if any(key not in experience.info for experience in experiences)]
    if missing:
        raise DarlingError(
            "every sample to come from a partition actor",
            f"samples without {', '.join(missing)}",
            "the hooks are not installed where the samples are generated: start with python3 -m darling_plugin",
        )
    optional = (
        *(*responses.OF_SIMILARITY, responses.TEXT_MISSING, responses.CUT_SHARE),
        *responses.OF_TEXT.values(),
    )
    keys = [*responses.ADDED, *(key for key in optional if key in experiences[0].info)]
    measured = {key: places.gather([experience.info.pop(key) for experience in experiences]) for key in keys}
    numbers = measured[responses.GROUP]
    if not (numbers == numbers[:, :1]).all():
        raise DarlingError(
            "the responses of one prompt in each group",
            f"groups made of {numbers.tolist()[:8]}",
            "report this with the OpenRLHF flags in use",
        )
    return measured


def as_groups(
    experiences: list[Any], places: Places, measured: dict[str, torch.Tensor], *, gate_is_due: bool = False
) -> Groups:
    """The groups of the experiences, with their quality as `experience.rewards` has it."""
    similarities, missing = None, measured.get(responses.TEXT_MISSING)
    if responses.SIMILARITY in measured:
        similarities = Similarities(
            measured[responses.SIMILARITY].float(),
            threshold=measured[responses.THRESHOLD].flatten()[0].item(),
            clustering=CLUSTERINGS[int(measured[responses.CLUSTERING].flatten()[0])],
        )
    return Groups(
        quality=places.gather([experience.rewards.flatten() for experience in experiences]).float(),
        labels=measured[responses.LABEL],
        diversity=measured[responses.DIVERSITY],
        quality_only=measured[responses.QUALITY_ONLY][:, 0].bool(),
        similarities=similarities,
        text_missing=None if missing is None else missing.bool(),
        cut_share=measured[responses.CUT_SHARE][:, 0].float() if responses.CUT_SHARE in measured else None,
        length=places.gather([experience.response_length.flatten() for experience in experiences]).float(),
        signs={name: measured[key].float() for name, key in responses.OF_TEXT.items() if key in measured} or None,
        gate_is_due=gate_is_due,
    )


def asked(experiences: list[Any], places: Places) -> list[tuple[str, Any]]:
    """Prompt and label of each group, as the data set has the label."""
    prompts = places.gather_list([prompt for experience in experiences for prompt in experience.prompts])
    labels = places.gather_list([label for experience in experiences for label in experience.labels])
    return [(of_prompt[0], of_label[0]) for of_prompt, of_label in zip(prompts, labels, strict=True)]


def records(
    experiences: list[Any],
    places: Places,
    groups: Groups,
    shaped: Shaped | None,
    chosen: Iterable[int] | None = None,
) -> list[dict[str, Any]]:
    """A dict a group, for partitions.jsonl, with each response as its token ids: the trainer has a tokenizer.

    A group that could not be partitioned has neither labels nor diversity.

    Args:
        shaped: what training made of the groups; None in evaluation, which keeps its raw rewards.
        chosen: which groups; None: all.
    """
    prompts = places.gather_list([prompt for experience in experiences for prompt in experience.prompts])
    samples = places.gather_list([(each, row) for each in experiences for row in range(len(each.sequences))])
    lengths = places.gather([experience.response_length.flatten() for experience in experiences])
    truncated = places.gather([experience.truncated.flatten() for experience in experiences]).bool()
    columns = []
    for group in range(len(samples)) if chosen is None else chosen:
        quality_only = groups.quality_only[group].item()
        record = {
            "prompt": prompts[group][0],
            "responses": [_response_tokens(experience, row) for experience, row in samples[group]],
            "labels": None if quality_only else groups.labels[group].tolist(),
            "quality": groups.quality[group].tolist(),
            "diversity": None if quality_only else groups.diversity[group].tolist(),
            "reward": (groups.quality if shaped is None else shaped.reward)[group].tolist(),
            "advantage": None if shaped is None or shaped.advantage is None else shaped.advantage[group].tolist(),
            "response_length": lengths[group].tolist(),
            "truncated": truncated[group].tolist(),
        }
        if shaped is not None:
            record["weight"] = shaped.weight[group].item()
            record["length_penalty"] = (shaped.reward - shaped.unpenalized_reward)[group].tolist()
        if groups.signs is not None:
            record["signs"] = {name: _or_null(values[group]) for name, values in groups.signs.items()}
        if groups.similarities is not None:
            record["similarity"] = None if quality_only else _rounded(groups.similarities.values[group])
        columns.append(record)
    return columns


def _rounded(similarity: torch.Tensor) -> list[list[float]]:
    # As decimals: a float32's nearest double has nine more digits, which say nothing.
    return [[round(value, DECIMALS) for value in row] for row in similarity.tolist()]


def _or_null(values: torch.Tensor) -> list[float | None]:
    # JSON has no NaN.
    return [None if math.isnan(value) else round(value, DECIMALS) for value in values.tolist()]


def _response_tokens(experience: Any, row: int) -> list[int]:
    """A sample's tokens that the partition model saw as text."""
    return experience.sequences[row][1:][experience.action_mask[row].bool()].tolist()
