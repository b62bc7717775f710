"""What math-verify says of maths answers, in processes of its own: only those can be stopped when sympy hangs.

Its own time limits are signals, which do not work in the threads of a Ray actor. The partition model `answer` and the
reward function examples/reward_math.py share this room. Needs the packages math-verify and pebble.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import multiprocessing
import re
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from darling_plugin.errors import DarlingError

if TYPE_CHECKING:
    from pebble import ProcessFuture, ProcessPool

ATTEMPTS = 3  # pools, before worker processes that die as they start stop the run
PROBE = 1234.5678  # any number, to compare every answer with

LATEX = re.compile(r"\$|\\boxed|\\\(|\\\[")
# What closes a response, as <|im_end|> or </s>: math-verify would read 1/2<|im_end|> as 1.
CLOSING_TOKENS = re.compile(r"(?:<[^<>\s]{1,40}>\s*)+$")


def check_installed(user: str) -> None:
    """Raises DarlingError, which names `user`, where a package is missing."""
    missing = [module for module in ("math_verify", "pebble") if importlib.util.find_spec(module) is None]
    if missing:
        raise DarlingError(
            f"the packages math-verify and pebble for {user}",
            f"no module {' and no module '.join(missing)}",
            "pip install math-verify pebble",
        )


class MathWorkers:
    """Processes that can be stopped; any thread may call `run`. They start with the first call.

    Args:
        count: of processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None

    def run(self, function: Callable, calls: Sequence[tuple], *, deadline: float) -> list[Any]:
        """function(*call) for each call, in order; in its place the exception where it raised, hung or died.

        Args:
            deadline: seconds for a call, from its start in a worker.

        Raises DarlingError where workers die as they start.
        """
        outcomes: dict[int, Any] = {}
        for _ in range(ATTEMPTS):
            pool = self._running_pool()
            futures = {}
            with suppress(RuntimeError):  # the pool breaks meanwhile: the rest goes to the next one
                for k, call in enumerate(calls):
                    if k not in outcomes:
                        futures[k] = pool.schedule(_in_worker, args=(function, call, deadline), timeout=deadline)
            for k, future in futures.items():
                with suppress(BrokenProcessPool):
                    outcomes[k] = _outcome(future, pool)
            if len(outcomes) == len(calls):
                return [outcomes[k] for k in range(len(calls))]
        raise DarlingError(
            "worker processes for math-verify",
            f"they die as they start, {ATTEMPTS} times",
            "read what they say in the log, and reinstall math-verify if that fails; a script of your own needs its "
            "`if __name__ == '__main__':`",
        )

    def stop(self) -> None:
        """Ends the processes; the next call starts others."""
        with self._lock:
            if self._pool is not None:
                self._pool.stop()
                self._pool.join()
                self._pool = None

    def _running_pool(self) -> ProcessPool:
        from pebble import ProcessPool

        with self._lock:
            if self._pool is None or not self._pool.active:
                if self._pool is not None:  # broken: a worker died that had nothing to do
                    threading.Thread(target=self._pool.join, daemon=True).start()
                # spawn: the caller has threads and may have CUDA.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPool(max_workers=self._count, initializer=_prepare, context=context)
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


# ── In a worker process ──


def _prepare() -> None:
    """Pays for the imports, also those of the first parse, before the first deadline runs."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeouts are off
    if not equals_label(r"It is $\frac{1}{2}$.", "0.5"):
        raise RuntimeError("math-verify does not find that 1/2 is 0.5")


class MathError(Exception):
    """What math-verify raised, as text."""

    def __repr__(self) -> str:
        return str(self)


class BadLabel(ValueError):
    """A label that math-verify cannot parse."""


def _in_worker(function: Callable, call: tuple, deadline: float) -> Any:
    # A worker whose parent was killed has nobody left to stop it: the alarm does.
    signal.setitimer(signal.ITIMER_REAL, deadline + 2)
    try:
        return function(*call)
    except BadLabel:
        raise
    except Exception as error:
        # As text: an exception that cannot be unpickled would break the pool, and every call in it.
        raise MathError(f"{error!r:.200}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@functools.lru_cache(256)
def find_answer(text: str) -> list[Any]:
    """What math-verify finds, as mathematics and as a string; empty where there is no answer."""
    from math_verify import parse

    return parse(CLOSING_TOKENS.sub("", text), parsing_timeout=None, raise_on_error=True)


def read_answer(text: str) -> str:
    """What the final answer prints as, "" if there is none; raises where it does not equal itself."""
    from math_verify import verify
    from sympy import Float

    answer = find_answer(text)
    if not answer:
        return ""
    if not verify(answer, answer, timeout_seconds=None, raise_on_error=True):
        raise ValueError("an answer that does not equal itself")
    # An answer that hangs against any number, as 9^{9^{9^9}}, is found out here, once, and not in each comparison.
    verify(answer, Float(PROBE), timeout_seconds=None)
    return repr(answer)


def equal_answers(first: str, second: str) -> bool:
    """Whether two texts' answers are equal, in either direction: math-verify compares in one."""
    from math_verify import verify

    one, other = find_answer(first), find_answer(second)
    return any(verify(*two, timeout_seconds=None, raise_on_error=True) for two in ((one, other), (other, one)))


@functools.lru_cache(256)
def parse_label(label: str) -> list[Any]:
    """A label, LaTeX or a number, with $ or \\boxed around it or without, as math-verify has it; raises BadLabel."""
    from math_verify import LatexExtractionConfig, parse, verify

    latex = label if LATEX.search(label) else f"\\boxed{{{label}}}"
    problem = None
    try:
        gold = parse(latex, [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True)
        # A string is what math-verify falls back to; 1/0 does not even equal itself.
        parsed = [answer for answer in gold if not isinstance(answer, str)]
        if parsed and verify(parsed, parsed, timeout_seconds=None, raise_on_error=True):
            return gold
    except Exception as error:
        problem = error
    raise BadLabel(f"label {label!r} is no answer that math-verify can parse") from problem


def equals_label(response: str, label: str) -> bool:
    """Whether the response's final answer equals the label; raises BadLabel, and what math-verify raises."""
    from math_verify import verify

    return verify(parse_label(label), find_answer(response), timeout_seconds=None, raise_on_error=True)
