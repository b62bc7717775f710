"""What math-verify says of maths answers, in processes of its own: only those can be stopped when sympy hangs.

Its own time limits are signals, which do not work in the threads of a Ray actor. The partition model `answer` and the
reward function examples/reward_math.py share this room. Needs the packages math-verify and pebble.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from darling_plugin.answer_form import FinalAnswer
from darling_plugin.errors import DarlingError
from darling_plugin.final_answer import final_answer, label_answer

if TYPE_CHECKING:
    from pebble import ProcessFuture, ProcessPool

CORES = "DARLING_PLUGIN_CORES"  # environment variable: how many a partition actor has reserved
ATTEMPTS = 3  # pools, before worker processes that die as they start stop the run
PROBE = 1234.5678  # any number, to compare every answer with

DECIMALS = re.compile(r"\.(\d+)|$")


def check_installed(user: str) -> None:
    """Raises DarlingError, which names `user`, where a package is missing."""
    missing = [module for module in ("math_verify", "pebble") if importlib.util.find_spec(module) is None]
    if missing:
        raise DarlingError(
            f"the packages math-verify and pebble for {user}",
            f"no module {' and no module '.join(missing)}",
            "pip install math-verify pebble",
        )


def own_cores(most: int) -> int:
    """How many processes to start: one for each core that a partition actor has reserved, elsewhere up to `most`."""
    return int(os.environ.get(CORES, min(most, len(os.sched_getaffinity(0)))))


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


@dataclass(frozen=True)
class Reading:
    """A final answer, and what math-verify makes of it: mathematics and a string, or the string alone."""

    answer: FinalAnswer
    parsed: list[Any]


@functools.lru_cache(256)
def find_answer(text: str) -> Reading | None:
    """A response's final answer; None where there is none."""
    answer = final_answer(text)
    return None if answer is None else Reading(answer, _parse(answer))


def _parse(answer: FinalAnswer) -> list[Any]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse
    from sympy import nan, zoo

    if answer.literal:
        return [answer.text]
    # Units are read already: math-verify drops them, and with them the t of 3t. The first match or none: it would go
    # on to a fraction inside of what it cannot read.
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    config = LatexExtractionConfig(normalization_config=normalization)
    parsed = parse(
        f"${answer.text}$", [config], extraction_mode="first_match", parsing_timeout=None, raise_on_error=True
    )
    # A division by zero equals nothing to math-verify, not even itself; as text it equals itself.
    undefined = any(part.has(nan, zoo) for part in parsed if not isinstance(part, str))
    return [answer.text] if undefined else parsed


def read_answer(text: str) -> str:
    """What the final answer prints as, "" if there is none; raises where it does not equal itself."""
    from math_verify import verify
    from sympy import Float

    found = find_answer(text)
    if found is None:
        return ""
    if not verify(found.parsed, found.parsed, timeout_seconds=None, raise_on_error=True):
        raise ValueError("an answer that does not equal itself")
    # An answer that hangs against any number, as 9^{9^{9^9}}, is found out here, once, and not in each comparison.
    verify(found.parsed, Float(PROBE), timeout_seconds=None)
    return f"{found.parsed!r} {found.answer.unit}".strip()


def equal_answers(first: str, second: str) -> bool:
    """Whether two texts' answers are equal, in either direction: math-verify compares in one."""
    one, other = find_answer(first), find_answer(second)
    if one is None or other is None:
        return False
    return _equal(one, other) or _equal(other, one)


def _equal(gold: Reading, found: Reading) -> bool:
    """Whether the values are equal, to six digits where one is rounded, and the units, where both have one."""
    from math_verify import verify

    if gold.answer.unit and found.answer.unit and gold.answer.unit != found.answer.unit:
        return False
    rounding, precision = _digits(gold, found)
    return verify(
        gold.parsed,
        found.parsed,
        float_rounding=rounding,
        numeric_precision=precision,
        timeout_seconds=None,
        raise_on_error=True,
    )


def _digits(*readings: Reading) -> tuple[int, int]:
    """Decimal places for math-verify to round to, and digits to subtract with.

    It rounds to six places, whatever the size: 1e-7 is 4e-7. Here to six digits of the smallest number there is, and
    no coarser than the places written out, so that 1234567.1 is not 1234567.2. Floats have no more than 15 digits.
    """
    smallest = min((size for reading in readings for part in reading.parsed for size in _sizes(part)), default=0)
    written = max(len(places) for reading in readings for places in DECIMALS.findall(reading.answer.text + " "))
    return max(5 - smallest, min(6, written, 14 - smallest)), max(15, 15 - smallest)


def _sizes(part: Any) -> list[int]:
    """The powers of ten of the numbers in an answer: -7 for 4e-7."""
    import mpmath
    from sympy import preorder_traversal

    if isinstance(part, str):
        return []
    sizes, nodes = [], preorder_traversal(part)
    for node in nodes:
        if getattr(node, "is_number", False):
            nodes.skip()
            value = abs(node.evalf(5))
            if value.is_Float and value > 0:
                sizes.append(math.floor(mpmath.log10(value._to_mpmath(15))))  # a float has no 2^-2000
    return sizes


@functools.lru_cache(256)
def parse_label(label: str) -> Reading:
    """A label, LaTeX or a number, with $ or \\boxed around it or without, read as answers are; raises BadLabel."""
    from math_verify import verify

    problem = None
    try:
        answer = label_answer(label)
        parsed = [] if answer is None else _parse(answer)
        # A string is what math-verify falls back to: for words alone it is right.
        known = parsed if answer and answer.literal else [part for part in parsed if not isinstance(part, str)]
        if known and verify(known, known, timeout_seconds=None, raise_on_error=True):
            return Reading(answer, parsed)
    except Exception as error:
        problem = error
    raise BadLabel(f"label {label!r} is no answer that math-verify can parse") from problem


def equals_label(response: str, label: str) -> bool:
    """Whether the response's final answer equals the label; raises BadLabel, and what math-verify raises."""
    gold, found = parse_label(label), find_answer(response)
    return found is not None and _equal(gold, found)
