"""Partition by the final answer of maths solutions, compared as mathematics by math-verify."""

from __future__ import annotations

import functools
import importlib.util
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.partition.base import Group, Pair, PairwiseModel, PartitionModel, start
from darling_plugin.partition.clustering import DEFAULT_CLUSTERING, check_clustering
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import torch
    from pebble import ProcessFuture, ProcessPool

DEADLINE = 5.0  # seconds in a worker for reading one response or for one comparison; nearly all take milliseconds
WORKERS = min(4, os.cpu_count() or 1)
ATTEMPTS = 3  # pools, before worker processes that die as they start stop the run
PROBE = 1234.5678  # any number, to compare every answer with

# What closes a response, as <|im_end|> or </s>: math-verify would read 1/2<|im_end|> as 1.
CLOSING_TOKENS = re.compile(r"(?:<[^<>\s]{1,40}>\s*)+$")

logger = logging.getLogger(__name__)


@register_partition_model("answer")
class Answer(PartitionModel):
    r"""One class a final answer: `answer`. For maths; needs the packages math-verify and pebble, no model, no GPU.

    math-verify finds a response's answer (the last \boxed{}, else the last formula or number) and compares it as
    mathematics: 1/2, \frac{1}{2} and 0.5 are one class. Words count where they are boxed. It compares in one direction
    (3/6 = 1/2 is right where 1/2 is wanted, not the reverse); here two answers are equal if either direction says so.
    That is not transitive: 50% equals both 50 and 0.5. Clustering "union_find" makes one class of the three, "greedy"
    goes by each class's first answer; "pairwise" is refused, and so is a threshold, for answers are equal or not.

    All responses without an answer share one class, the empty ones included, or babble would be the most diverse
    response of all. In that class, too, is a response that math-verify fails to read, or not within DEADLINE; a
    comparison that fails or takes longer leaves two answers different. Both are counted in a warning.

    math-verify runs in processes of its own, for only those can be stopped when sympy hangs; its own time limits are
    signals, which do not work in the threads of a Ray actor.
    """

    def __init__(self, *, clustering: str | None = None) -> None:
        self.clustering = check_clustering(DEFAULT_CLUSTERING if clustering is None else clustering)
        if self.clustering == "pairwise":
            raise DarlingError(
                'clustering "union_find" or "greedy" for the partition model answer',
                f"{clustering!r}",
                f"drop {spelled('clustering')}",
            )
        _check_installed()
        self._workers = _Workers()
        (trial,) = self._workers.run(_read, [(r"It is $\frac{1}{2}$.",)])  # starts them, too
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
        for text, answer in zip(texts, self._workers.run(_read, [(text,) for text in texts]), strict=True):
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

    def __init__(self, workers: _Workers, name: dict[str, str], *, clustering: str) -> None:
        super().__init__(clustering=clustering)
        self._workers = workers
        # One text stands for all with that answer. Texts are sent to the workers, for pickle does not keep answers
        # as they are: the equation 3/6 = 1/2 comes back as the word True.
        self._text = {name: text for text, name in name.items()}
        self.failed: list[str] = []

    def similarity(self, pairs: Sequence[Pair]) -> list[float]:
        two = [(self._text[pair.first], self._text[pair.second]) for pair in pairs]
        results = self._workers.run(_equal, two)
        for pair, result in zip(pairs, results, strict=True):
            if isinstance(result, Exception):
                self.failed.append(f"{result!r:.200} for {start(pair.first)} and {start(pair.second)}")
        return [float(result is True) for result in results]


class _Workers:
    """Processes that can be stopped; any thread may call `run`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None

    def run(self, function: Callable, calls: Sequence[tuple]) -> list[Any]:
        """function(*call) for each call, in order; in its place the exception where it raised, hung or died."""
        outcomes: dict[int, Any] = {}
        for _ in range(ATTEMPTS):
            pool = self._running_pool()
            futures = {}
            with suppress(RuntimeError):  # the pool breaks meanwhile: the rest goes to the next one
                for k, call in enumerate(calls):
                    if k not in outcomes:
                        futures[k] = pool.schedule(function, args=call, timeout=DEADLINE)
            for k, future in futures.items():
                with suppress(BrokenProcessPool):
                    outcomes[k] = _outcome(future, pool)
            if len(outcomes) == len(calls):
                return [outcomes[k] for k in range(len(calls))]
        raise DarlingError(
            "worker processes for math-verify",
            f"they die as they start, {ATTEMPTS} times",
            "read what they say in the log; a script of your own needs its `if __name__ == '__main__':`",
        )

    def _running_pool(self) -> ProcessPool:
        from pebble import ProcessPool

        with self._lock:
            if self._pool is None or not self._pool.active:
                if self._pool is not None:  # broken: a worker died that had nothing to do
                    threading.Thread(target=self._pool.join, daemon=True).start()
                # spawn: the caller has threads and may have CUDA.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPool(max_workers=WORKERS, initializer=_prepare, context=context)
            return self._pool


def _outcome(future: ProcessFuture, pool: ProcessPool) -> Any:
    while not wait([future], timeout=1).done:
        if not pool.active:  # pebble forgets the calls that no worker has taken yet
            raise BrokenProcessPool("broke before the call began")
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise error
    if error is not None and not isinstance(error, Exception):
        return RuntimeError(repr(error))
    return future.result() if error is None else error


def _check_installed() -> None:
    missing = [module for module in ("math_verify", "pebble") if importlib.util.find_spec(module) is None]
    if missing:
        raise DarlingError(
            "the packages math-verify and pebble for the partition model answer",
            f"no module {' and no module '.join(missing)}",
            "pip install math-verify pebble",
        )


def _warn(failed: Sequence[str], what: str) -> None:
    if failed:
        logger.warning("%d %s; the first: %s", len(failed), what, failed[0])


# In a worker process


def _prepare() -> None:
    import math_verify  # noqa: F401  (its import is paid for before the first deadline runs)

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeouts are off


@contextmanager
def _ended_with_the_parent() -> Iterator[None]:
    # A worker whose parent was killed has nobody left to stop it: the alarm does.
    signal.setitimer(signal.ITIMER_REAL, DEADLINE + 2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@functools.lru_cache(256)
def _answer(text: str) -> list[Any]:
    """What math-verify finds, as mathematics and as a string; empty where there is no answer."""
    from math_verify import parse

    return parse(CLOSING_TOKENS.sub("", text), parsing_timeout=None, raise_on_error=True)


@_ended_with_the_parent()
def _read(text: str) -> str:
    """What the final answer prints as, "" if there is none."""
    from math_verify import verify
    from sympy import Float

    answer = _answer(text)
    if not answer:
        return ""
    if not verify(answer, answer, timeout_seconds=None, raise_on_error=True):
        raise ValueError("an answer that does not equal itself")
    # An answer that hangs against any number, as 9^{9^{9^9}}, is found out here, once, and not in each comparison.
    verify(answer, Float(PROBE), timeout_seconds=None)
    return repr(answer)


@_ended_with_the_parent()
def _equal(first: str, second: str) -> bool:
    from math_verify import verify

    one, other = _answer(first), _answer(second)
    return any(verify(*two, timeout_seconds=None, raise_on_error=True) for two in ((one, other), (other, one)))
