"""Partition by the final answer of maths solutions, compared as mathematics by math-verify."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.maths import MathWorkers, check_installed, equal_answers, own_cores, read_answer
from darling_plugin.partition.base import Group, Pair, PairwiseModel, PartitionModel, start
from darling_plugin.partition.clustering import DEFAULT_CLUSTERING, check_clustering
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import torch

DEADLINE = 5.0  # seconds in a worker for reading one response or for one comparison; nearly all take milliseconds
MOST_WORKERS = 4

logger = logging.getLogger(__name__)


@register_partition_model("answer")
class Answer(PartitionModel):
    r"""One class a final answer: `answer`. For maths; needs the packages math-verify and pebble, no model, no GPU.

    A response's answer is the last \boxed{}, else a stated one, else what the last sentence ends in: the rules are in
    darling_plugin/final_answer.py. math-verify compares it as mathematics: 1/2, \frac{1}{2} and 0.5 are one class.
    Words count where they are boxed. Units are not converted: 1 km and 1000 m are two classes. It compares in one
    direction (3/6 = 1/2 is right where 1/2 is wanted, not the reverse); here two answers are equal if either direction
    says so. That is not transitive: 50% equals both 50 and 0.5, and 5 both 5 hours and 5 minutes. Clustering
    "union_find" makes one class of the three, "greedy" goes by each class's first answer; "average" is refused, and so
    is a threshold, for answers are equal or not.

    All responses without an answer share one class, the empty ones included, or babble would be the most diverse
    response of all. In that class, too, is a response that math-verify fails to read, or not within DEADLINE; a
    comparison that fails or takes longer leaves two answers different. Both are counted in a warning.
    """

    local = True

    @classmethod
    def check_arguments(cls, *, clustering: str | None = None) -> None:
        clustering = check_clustering(DEFAULT_CLUSTERING if clustering is None else clustering)
        if clustering == "average":
            raise DarlingError(
                'clustering "union_find" or "greedy" for the partition model answer',
                f"{clustering!r}",
                f"drop {spelled('clustering')}",
            )

    def __init__(self, *, clustering: str | None = None) -> None:
        self.check_arguments(clustering=clustering)
        self.clustering = DEFAULT_CLUSTERING if clustering is None else clustering
        check_installed("the partition model answer")
        self._workers = MathWorkers(own_cores(MOST_WORKERS))
        (trial,) = self._workers.run(read_answer, [(r"It is $\frac{1}{2}$.",)], deadline=DEADLINE)  # starts them, too
        if not isinstance(trial, str):
            raise DarlingError(
                r"math-verify to find 1/2 in 'It is $\frac{1}{2}$.'",
                f"{trial!r}",
                "reinstall it: pip install --force-reinstall math-verify",
            )

    def partition(self, groups: Sequence[Group]) -> list[torch.LongTensor]:
        name = self._names(list(dict.fromkeys(text for group in groups for text in group.responses)))
        same = _SameAnswer(self._workers, name, clustering=self.clustering)
        # An empty name is to SimilarityModel an empty response: a class of its own.
        labels = same.partition([Group(group.prompt, [name[text] for text in group.responses]) for group in groups])
        _warn(same.failed, "comparisons of answers failed, so these answers are different")
        return labels

    def _names(self, texts: Sequence[str]) -> dict[str, str]:
        """What each text's answer prints as, "" where it has none."""
        name, failed = dict.fromkeys(texts, ""), []
        answers = self._workers.run(read_answer, [(text,) for text in texts], deadline=DEADLINE)
        for text, answer in zip(texts, answers, strict=True):
            if isinstance(answer, Exception):
                failed.append(f"{answer!r:.200} for the response that ends {text[-100:]!r}")
            else:
                name[text] = answer
        _warn(failed, "responses could not be read by math-verify, so they count as having no answer")
        return name


class _SameAnswer(PairwiseModel):
    """1 where two answers, given by what they print as, are equal in either direction, else 0.

    Args:
        name: what each text's answer prints as.
    """

    threshold = 0.5

    def __init__(self, workers: MathWorkers, name: dict[str, str], *, clustering: str) -> None:
        super().__init__(clustering=clustering)
        self._workers = workers
        # One text stands for all with that answer. Texts are sent to the workers, for pickle does not keep answers
        # as they are: the equation 3/6 = 1/2 comes back as the word True.
        self._text = {name: text for text, name in name.items()}
        self.failed: list[str] = []

    def similarity(self, pairs: Sequence[Pair]) -> list[float]:
        two = [(self._text[pair.first], self._text[pair.second]) for pair in pairs]
        results = self._workers.run(equal_answers, two, deadline=DEADLINE)
        for pair, result in zip(pairs, results, strict=True):
            if isinstance(result, Exception):
                self.failed.append(f"{result!r:.200} for {start(pair.first)} and {start(pair.second)}")
        return [float(result is True) for result in results]


def _warn(failed: Sequence[str], what: str) -> None:
    if failed:
        logger.warning("%d %s; the first: %s", len(failed), what, failed[0])
