"""What each method would have made of groups that a run logged, and where the methods disagree (docs/methods.md)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError

if TYPE_CHECKING:
    import numpy
    import torch

# The flags of each; `centered` where a method has no advantage of its own.
METHODS: dict[str, dict[str, str]] = {
    "quality": {"reward": "quality"},
    "multiply": {"reward": "multiply"},
    "additive": {"reward": "additive"},
    "inverse_class_size": {"reward": "quality", "advantage": "inverse_class_size"},
    "redundancy": {"reward": "redundancy"},
    "marginal_relevance": {"reward": "marginal_relevance"},
    "nearest_neighbour": {"reward": "nearest_neighbour"},
    "reasoning_novelty": {"reward": "reasoning_novelty"},
    "leave_one_out": {"reward": "quality", "advantage": "leave_one_out"},
}
DECIMALS = 5  # of an advantage: what differs by less is rounding, and ranks the same


@dataclass(frozen=True)
class ComparedGroup:
    """One logged group: what each of METHODS makes of its n responses.

    Attributes:
        record: the line of partitions.jsonl.
        reward, advantage: (n,) floats by the name of the method.
        agreement: mean rank correlation of the advantages over all pairs of methods that have a say here.
    """

    record: dict[str, Any]
    reward: dict[str, list[float]]
    advantage: dict[str, list[float]]
    agreement: float


@dataclass(frozen=True)
class Comparison:
    """METHODS on the same groups.

    Attributes:
        rank_correlation: (M, M) Spearman's correlation of the advantages within a group, its mean over the groups in
            which both methods have a say; NaN where there is none.
        silent: by method, the number of groups in which its advantages are all equal: there it has no say.
        groups: by agreement, the least first. A group in which fewer than two methods have a say is the last.
        of_similarities: whether the log had similarities; else they were taken as 1 within a class, 0 between.
    """

    rank_correlation: numpy.ndarray
    silent: dict[str, int]
    groups: list[ComparedGroup]
    of_similarities: bool


def shown(correlation: float) -> str:
    """To two digits; a dash where there is none."""
    return "–" if math.isnan(correlation) else f"{correlation:.2f}"


def compare_methods(records: Sequence[dict[str, Any]], flags: dict[str, Any] | None = None) -> Comparison:
    """Compares METHODS, each at weight 1 and before OpenRLHF's length penalties.

    Args:
        records: lines of partitions.jsonl. Those of evaluations and of groups that could not be partitioned are passed
            over, as are groups of one.
        flags: the run's, as run.json has them under "darling"; quality_transform and diversity_floor are used.

    Raises DarlingError where nothing is left to compare, and for negative qualities without a quality_transform.
    """
    import numpy

    used = [
        record
        for record in records
        if record["split"] == "train" and record["labels"] is not None and len(record["labels"]) > 1
    ]
    if not used:
        raise DarlingError(
            "training groups with classes, to compare the methods on", "none", "name the log of a run that has trained"
        )
    of_similarities = all(record.get("similarity") is not None for record in used)
    given = {name: (flags or {}).get(name) for name in ("quality_transform", "diversity_floor")}
    given = {name: value for name, value in given.items() if value is not None}
    by_size = defaultdict(list)
    for record in used:
        by_size[len(record["labels"])].append(record)
    correlations, compared = [], []
    for of_size in by_size.values():
        rewards, advantages = _shaped(of_size, given, of_similarities)
        correlation = _within_groups(advantages)
        correlations.append(correlation)
        first, second = numpy.triu_indices(len(METHODS), 1)
        agreement = _mean_of_known(correlation[:, first, second], axis=1)
        for group, record in enumerate(of_size):
            compared.append(
                ComparedGroup(
                    record,
                    reward=dict(zip(METHODS, rewards[:, group].tolist(), strict=True)),
                    advantage=dict(zip(METHODS, advantages[:, group].tolist(), strict=True)),
                    agreement=float(agreement[group]),
                )
            )
    together = numpy.concatenate(correlations)
    silent = numpy.isnan(numpy.diagonal(together, axis1=1, axis2=2)).sum(axis=0)
    return Comparison(
        rank_correlation=_mean_of_known(together, axis=0),
        silent=dict(zip(METHODS, silent.tolist(), strict=True)),
        groups=sorted(compared, key=lambda each: (numpy.isnan(each.agreement), each.agreement)),
        of_similarities=of_similarities,
    )


def _shaped(
    records: list[dict[str, Any]], flags: dict[str, Any], of_similarities: bool
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Rewards and advantages (M, P, n) of METHODS on P groups of n."""
    import torch

    from darling_plugin.partition import DEFAULT_CLUSTERING
    from darling_plugin.shaping import Groups, Similarities, shape

    labels = torch.tensor([record["labels"] for record in records])
    similarity = (labels.unsqueeze(-1) == labels.unsqueeze(-2)).float()
    if of_similarities:
        similarity = torch.tensor([record["similarity"] for record in records])
    groups = Groups(
        quality=_numbers(records, "quality"),
        labels=labels,
        diversity=_numbers(records, "diversity"),
        quality_only=torch.zeros(len(records), dtype=torch.bool),
        # Nothing is clustered here: threshold and clustering have no say.
        similarities=Similarities(similarity, threshold=0.5, clustering=DEFAULT_CLUSTERING),
    )
    shaped = []
    for method in METHODS.values():
        of_method = {"advantage": "centered", **method, **flags}
        if of_method.get("reward") == "reasoning_novelty":  # which goes by the quality as it is: above 0 is right
            of_method.pop("quality_transform", None)
        shaped.append(shape(groups, DarlingConfig(**of_method), lambda reward: reward))
    reward = torch.stack([each.reward for each in shaped])
    return reward.numpy(), torch.stack([each.advantage for each in shaped]).round(decimals=DECIMALS).numpy()


def _numbers(records: list[dict[str, Any]], key: str) -> torch.Tensor:
    import torch

    return torch.tensor([record[key] for record in records], dtype=torch.float32)


def _within_groups(values: numpy.ndarray) -> numpy.ndarray:
    """Spearman's correlations (P, M, M) of (M, P, n): Pearson's of the ranks; NaN with one whose values are equal."""
    import numpy
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=-1)
    deviations = (ranks - ranks.mean(-1, keepdims=True)).swapaxes(0, 1)  # (P, M, n)
    lengths = numpy.linalg.norm(deviations, axis=-1, keepdims=True)
    directions = numpy.divide(deviations, lengths, out=numpy.full_like(deviations, numpy.nan), where=lengths > 0)
    return directions @ directions.swapaxes(-1, -2)


def _mean_of_known(values: numpy.ndarray, axis: int) -> numpy.ndarray:
    """The mean over those that are not NaN; NaN where none is."""
    import numpy

    known = ~numpy.isnan(values)
    count = known.sum(axis=axis)
    total = numpy.where(known, values, 0.0).sum(axis=axis)
    return numpy.divide(total, count, out=numpy.full(total.shape, numpy.nan), where=count > 0)
