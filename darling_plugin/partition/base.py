"""What a partition model is, and the bases that make writing one short: implement `similarity` or `embed`."""

from __future__ import annotations

import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.partition.clustering import DEFAULT_CLUSTERING, Round, check_clustering, cluster, numbered, rounds
from darling_plugin.partition.cuts import Cuts
from darling_plugin.partition.options import Between, OneOf, check_options

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

DECIMALS = 6  # of a similarity, so that what is decided can be decided again from a log
# Thai, Japanese and Chinese have no spaces: a character counts as a word.
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # json.loads has made one character of two that belong together
RANGE_TOLERANCE = 1e-3  # rounding that a similarity in half precision may show outside [0, 1]


@dataclass(frozen=True)
class Group:
    """One prompt and its n >= 1 responses, in a list of its own; each as :func:`encodable` makes it."""

    prompt: str
    responses: list[str]

    def __post_init__(self) -> None:
        if isinstance(self.responses, str) or not len(self.responses):
            found = "one str" if isinstance(self.responses, str) else "no responses"
            raise DarlingError(
                "a group with a list of at least one response",
                f"{found}; the prompt starts {start(self.prompt)}",
                "pass Group(prompt, [response, ...])",
            )
        for position, response in enumerate(self.responses):
            if not isinstance(response, str):
                raise DarlingError(
                    "responses that are str",
                    f"{type(response).__name__} at position {position}; the prompt starts {start(self.prompt)}",
                    "decode the responses before grouping them",
                )
        # Here, because all that compares texts or hands them to a model comes by here; what is written out does not.
        object.__setattr__(self, "prompt", encodable(self.prompt))
        object.__setattr__(self, "responses", [encodable(response) for response in self.responses])


def encodable(text: str) -> str:
    """The text with U+FFFD for each lone surrogate (JSON's "\\ud800"), which has no UTF-8 form.

    No tokenizer and no server takes a text without one.
    """
    return LONE_SURROGATE.sub("\ufffd", text)


class Pair(NamedTuple):
    """Two responses of one group."""

    prompt: str
    first: str
    second: str


class PartitionModel(ABC):
    """Sorts each group's responses into classes that count as "saying the same".

    Attributes:
        local: set to True where it computes on this machine and nothing else sees what it is given: then made-up
            groups are timed with it before a run.
        cuts: what was cut; None in a model that reads everything, or cannot know.
        option_limits: of arguments of `__init__`, by their names: Between(least, greatest), OneOf(words). They are
            checked, with the types that `__init__` annotates, before a model is built from a spec. A subclass names
            its own; those of its bases hold too.
    """

    option_limits: ClassVar[Mapping[str, Between | OneOf]] = {}
    local = False
    cuts: Cuts | None = None

    @classmethod  # noqa: B027  (a model may have nothing to check)
    def check_arguments(cls, *arguments: Any, **options: Any) -> None:
        """Raises DarlingError for arguments of `__init__` that cannot work, where that shows without building it.

        Called before a run starts, once the names fit the signature. Here: nothing is checked.
        """

    def sleep(self) -> None:  # noqa: B027  (most hold nothing)
        """Gives back the GPU memory that the weights hold, between a run's steps. Here: nothing.

        Called by --darling.partition_sleep when no group has come for a second; `wake` is called before the next.
        """

    def wake(self) -> None:  # noqa: B027
        """Undoes `sleep`."""

    @abstractmethod
    def partition(self, groups: Sequence[Group]) -> list[torch.LongTensor]:
        """One tensor (n,) a group: the class index >= 0 of each response, meaningful within its group only."""


class SimilarityModel(PartitionModel):
    """Two responses are equivalent when their similarity exceeds `threshold`; `clustering` makes classes of that.

    Two rules come before the model is asked. Responses identical after str.strip() are equivalent. A response that is
    empty after str.strip() is equivalent to other empty ones only, and the model never sees it.

    Attributes:
        calibrated: set to True where the similarity is P(equivalent), which expected diversity takes it for.
        is_overlap: set to True where it is a share of what two responses have in common, whose complement is a
            diversity in its own right, and nothing is warned of.

    Args:
        threshold: overrides the class attribute of that name; the comparison is strict.
        clustering: overrides the class attribute of that name; one of CLUSTERINGS.
    """

    threshold: float
    clustering: str = DEFAULT_CLUSTERING
    calibrated = False
    is_overlap = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.calibrated or cls.is_overlap:
            cls.option_limits = {"threshold": Between(0, 1), **vars(cls).get("option_limits", {})}

    def __init__(self, *, threshold: float | None = None, clustering: str | None = None) -> None:
        if threshold is not None:
            self.threshold = threshold
        found = getattr(self, "threshold", None)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise DarlingError(
                f"a finite number as threshold of {type(self).__name__}",
                f"{found!r}",
                f"set the class attribute `threshold`, or pass {spelled('threshold')}",
            )
        check_options(type(self), threshold=found)
        self.clustering = check_clustering(self.clustering if clustering is None else clustering)

    @classmethod
    def check_arguments(cls, *arguments: Any, **options: Any) -> None:
        if options.get("clustering") is not None:
            check_clustering(options["clustering"])

    @abstractmethod
    def similarities(self, groups: Sequence[Group]) -> list[torch.FloatTensor]:
        """One symmetric tensor (n, n) a group; entry i, j compares responses i and j, the diagonal is not used."""

    def all_similarities(self, groups: Sequence[Group]) -> list[torch.FloatTensor]:
        """One symmetric tensor (n, n) a group, of all its responses: the similarities, and the two rules above.

        Where a rule makes two responses equivalent the entry is 1, and where it makes them different 0, or what is
        needed to lie above the threshold, and not above it. To six decimals, as the log has them.
        """
        sorted_out = [_kinds(group) for group in groups]
        # The model sees each distinct text of a group once, and only groups with something left to compare.
        asked = [Group(group.prompt, kinds) for group, (kinds, _) in zip(groups, sorted_out, strict=True) if kinds[1:]]
        answers = iter(self._checked_similarities(asked) if asked else [])

        results = []
        for kinds, rows in sorted_out:
            similarity = next(answers) if len(kinds) > 1 else None
            results.append(self._with_rules(len(kinds) + 1, similarity)[rows][:, rows])
        return results

    def partition(self, groups: Sequence[Group]) -> list[torch.LongTensor]:
        return [cluster(each, self.threshold, self.clustering) for each in self.all_similarities(groups)]

    def _with_rules(self, kinds: int, similarity: torch.FloatTensor | None) -> torch.FloatTensor:
        """(kinds, kinds), symmetric; the last kind, the empty response, is equivalent to itself only."""
        import torch

        complete = torch.full((kinds, kinds), 0.0 if self.threshold >= 0 else self.threshold - 1)
        if similarity is not None:
            # Only i < j is read: a matrix product may differ by a rounding step between [i, j] and [j, i].
            upper = similarity.round(decimals=DECIMALS).triu(1)
            complete[:-1, :-1] = upper + upper.T
        return complete.fill_diagonal_(1.0 if self.threshold < 1 else self.threshold + 1)

    def _checked_similarities(self, groups: Sequence[Group]) -> list[torch.FloatTensor]:
        owner = type(self).__name__
        # Copies, here and below: a subclass may sort or change what it is given.
        answers = list(self.similarities([Group(group.prompt, group.responses) for group in groups]))
        if len(answers) != len(groups):
            raise DarlingError(
                f"one similarity matrix a group from {owner}.similarities",
                f"{len(answers)} for {len(groups)} groups",
                "return them in the order of the groups",
            )
        checked = []
        for group, answer in zip(groups, answers, strict=True):
            n = len(group.responses)
            needed = f"a finite similarity matrix {(n, n)} from {owner}"
            similarity = to_tensor(answer, needed).float()
            if tuple(similarity.shape) != (n, n):
                raise DarlingError(
                    needed,
                    f"shape {tuple(similarity.shape)} for the prompt that starts {start(group.prompt)}",
                    "compare every response of the group with every other",
                )
            if not similarity.isfinite().all():
                i, j = (~similarity.isfinite()).nonzero()[0].tolist()
                pair = Pair(group.prompt, group.responses[i], group.responses[j])
                raise DarlingError(
                    needed,
                    f"{similarity[i, j].item()} for {describe(pair)}",
                    "look at what the model makes of that pair",
                )
            checked.append(similarity)
        return checked


class PairwiseModel(SimilarityModel):
    """Scores pairs of responses: implement `similarity`, and set the class attribute `threshold`.

    Under "union_find" and "greedy" the pairs are scored in rounds, all groups' together, and those whose score can no
    longer change the classes are left out (clustering.rounds); the labels are those that all pairs would give. Where
    another round cannot be expected to spare `round_cost` pairs, all that is left is scored at once.
    """

    option_limits: ClassVar = {"threshold": Between(0, 1)}
    one_first = False  # set where pairs with the same first response are cheaper together
    round_cost = 16  # pairs that are scored in the time that another round takes; 0: every pair that can be is spared

    @abstractmethod
    def similarity(self, pairs: Sequence[Pair]) -> torch.FloatTensor:
        """(M,) in [0, 1], one a pair, in order; a list or array will do. Called several times with pairs i < j."""

    def partition(self, groups: Sequence[Group]) -> list[torch.LongTensor]:
        import torch

        if self.clustering == "average":
            return super().partition(groups)
        sorted_out = [_kinds(group) for group in groups]
        dialogues = [rounds(len(kinds), self.clustering, one_first=self.one_first) for kinds, _ in sorted_out]
        labels: dict[int, list[int]] = {}
        judged: dict[int, list[bool] | None] = dict.fromkeys(range(len(groups)))
        while judged:
            due: dict[int, Round] = {}
            for k, judgements in judged.items():
                try:
                    due[k] = dialogues[k].send(judgements)
                except StopIteration as done:
                    labels[k] = done.value
            in_rounds = sum(each.worth for each in due.values()) >= self.round_cost
            asked = {k: each.now if in_rounds else each.now + each.later for k, each in due.items()}
            pairs = [
                Pair(groups[k].prompt, sorted_out[k][0][i], sorted_out[k][0][j])
                for k, wanted in asked.items()
                for i, j in wanted
            ]
            above = iter((self._checked_scores(pairs) > self.threshold).tolist() if pairs else [])
            judged = {k: list(islice(above, len(wanted))) for k, wanted in asked.items()}
        results = []
        for k, (kinds, rows) in enumerate(sorted_out):
            of_kind = [*labels[k], len(kinds)]  # the last: empty responses
            results.append(torch.tensor(numbered([of_kind[row] for row in rows])))
        return results

    def similarities(self, groups: Sequence[Group]) -> list[torch.FloatTensor]:
        import torch

        pairs = [Pair(group.prompt, *two) for group in groups for two in combinations(group.responses, 2)]
        scores = self._checked_scores(pairs) if pairs else torch.empty(0)

        results = []
        for group in groups:
            n = len(group.responses)
            rows, columns = torch.triu_indices(n, n, offset=1)  # the order of combinations()
            similarity = torch.eye(n)
            similarity[rows, columns] = similarity[columns, rows] = scores[: len(rows)]
            scores = scores[len(rows) :]
            results.append(similarity)
        return results

    def _checked_scores(self, pairs: list[Pair]) -> torch.FloatTensor:
        owner = type(self).__name__
        needed = f"one similarity in [0, 1] a pair from {owner}.similarity"
        scores = in_halves(lambda some: to_tensor(self.similarity(list(some)), needed), pairs).float()
        if tuple(scores.shape) != (len(pairs),):
            raise DarlingError(
                needed, f"shape {tuple(scores.shape)} for {len(pairs)} pairs", "return them in the order of the pairs"
            )
        inside = (scores >= -RANGE_TOLERANCE) & (scores <= 1 + RANGE_TOLERANCE)  # false for NaN
        if not inside.all():
            worst = int((~inside).nonzero()[0])
            raise DarlingError(
                needed,
                f"{scores[worst].item()} for {describe(pairs[worst])}; {int((~inside).sum())} of {len(pairs)} outside",
                "map the model's output to [0, 1], and look at what it makes of that pair",
            )
        return scores.clamp(0, 1).round(decimals=DECIMALS)


class EmbeddingModel(SimilarityModel):
    """Compares responses by the cosine of embeddings: implement `embed`, and set the class attribute `threshold`."""

    option_limits: ClassVar = {"threshold": Between(-1, 1)}

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> torch.FloatTensor:
        """(M, d), one row a text, of any length but 0. Every distinct text of all groups comes once, in one call."""

    def similarities(self, groups: Sequence[Group]) -> list[torch.FloatTensor]:
        """Cosines, in [-1, 1]; an embedding of length 0 has cosine 0 with every other."""
        texts = list(dict.fromkeys(response for group in groups for response in group.responses))
        if not texts:
            return []
        needed = f"one embedding a text, (M, d), from {type(self).__name__}.embed"
        vectors = in_halves(lambda some: to_tensor(self.embed(list(some)), needed), texts).float()
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise DarlingError(
                needed, f"shape {tuple(vectors.shape)} for {len(texts)} texts", "return them in the order of the texts"
            )
        vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        row = {text: k for k, text in enumerate(texts)}
        results = []
        for group in groups:
            own = vectors[[row[response] for response in group.responses]]  # (n, d)
            results.append(own @ own.T)
        return results


def _kinds(group: Group) -> tuple[list[str], list[int]]:
    """The distinct texts of a group after str.strip(), and which of them each response is; past the last: empty."""
    texts = [response.strip() for response in group.responses]
    kinds = list(dict.fromkeys(text for text in texts if text))
    index = {text: k for k, text in enumerate(kinds)}
    return kinds, [index.get(text, len(kinds)) for text in texts]


def to_tensor(value: Any, needed: str) -> torch.Tensor:
    """What a user's model returned (list, array or tensor) as a tensor on the CPU; DarlingError if it is neither."""
    import torch

    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DarlingError(needed, f"{type(value).__name__}: {error}", "return a tensor") from error


def in_halves(score: Callable[[Sequence[Any]], torch.Tensor], items: Sequence[Any]) -> torch.Tensor:
    """`score(items)`, one row an item; where that runs out of memory, each half is scored on its own, and so on.

    Raises what `score` raises, a shortage of memory for a single item included.
    """
    import torch

    try:
        return score(items)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if len(items) < 2 or not out_of_memory(error):
            raise
        logger.warning("Out of memory with %d at once, going on with half of them: %s", len(items), error)
    # Outside of the except clause: the traceback, and with it the tensors of that attempt, is gone.
    torch.cuda.empty_cache()
    half = len(items) // 2
    return torch.cat([in_halves(score, items[:half]), in_halves(score, items[half:])])


def out_of_memory(error: Exception) -> bool:
    import torch

    # The CPU's allocator, CUDA itself and cuBLAS raise bare RuntimeErrors, this also where its handle finds no room.
    texts = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "cublasCreate")
    if isinstance(error, DarlingError):  # which may quote such a text, of a server's memory say
        return False
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


def start(text: str, length: int = 60) -> str:
    """The start of a text, quoted, for an error message."""
    return repr(text if len(text) <= length else text[:length] + "...")


def describe(pair: Pair) -> str:
    return f"the pair {start(pair.first)} and {start(pair.second)}; the prompt starts {start(pair.prompt)}"
