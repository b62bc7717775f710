r"""OpenRLHF reward function of verifiable maths: 1 for a response whose final answer equals the label, else 0.

    pip install ".[math]"
    python3 -m darling_plugin … --reward.remote_url reward_math.py --data.label_key answer

math-verify finds the final answer (the last \boxed{}, else the last formula or number) and compares it as mathematics:
0.5, 1/2, $\frac{1}{2}$ and 50% are equal, so are 50% and 50, and \{1,2\} and 2,1. Several answers, one of them right,
are wrong. Words count where they are boxed. A label is LaTeX or a number, with $ or \boxed around it or without.

Range: 0 or 1. A response that is empty or has no answer gets 0. A check that hangs past DEADLINE, that kills its
process or on which math-verify raises costs that sample alone: 0, a warning, `math_unchecked` 1 in the logs (else 0).
Errors: ValueError for a label that is missing or that math-verify cannot parse, RuntimeError if workers do not start.
"""

import logging
import math
import multiprocessing
import os
import pickle
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as DeadlineExceeded
from concurrent.futures.process import BrokenProcessPool
from decimal import Decimal

import cloudpickle
import torch
from math_verify import LatexExtractionConfig, parse, verify
from pebble import ProcessExpired, ProcessPool

# Seconds for one check, from its start in a worker; nearly all take milliseconds.
DEADLINE = 10.0
WORKERS = min(8, os.cpu_count() or 1)

LATEX = re.compile(r"\$|\\boxed|\\\(|\\\[")
# What closes a response, as <|im_end|> or </s>: math-verify would read 1/2<|im_end|> as 1.
CLOSING_TOKENS = re.compile(r"(?:<[^<>\s]{1,40}>\s*)+$")

logger = logging.getLogger("reward_math")


# ── In a worker process ──


def _parse_label(label: str) -> list:
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
    raise ValueError(f"label {label!r} is no answer that math-verify can parse") from problem


def _check(response: str, label: str, deadline: float) -> tuple[bool, str]:
    """Return whether the answers are equal, and what kept math-verify from telling."""
    # A worker whose parent was killed has nobody left to stop it: the alarm does.
    signal.setitimer(signal.ITIMER_REAL, 2 * deadline)
    try:
        gold = _parse_label(label)
        try:
            answer = parse(CLOSING_TOKENS.sub("", response), parsing_timeout=None, raise_on_error=True)
            return verify(gold, answer, timeout_seconds=None, raise_on_error=True), ""
        except Exception as error:  # e.g. a number of 5000 digits: of the response's making, not of the setup's
            return False, f"math-verify raised {error!r:.200}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _warm_up() -> None:
    """Pay for the imports before the first deadline runs."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeouts are off
    if _check(r"It is $\frac{1}{2}$.", "0.5", deadline=300) != (True, ""):
        raise RuntimeError("math-verify does not find that 1/2 is 0.5")


# ── In OpenRLHF's process ──


class _ByValue:
    """A function that travels whole: OpenRLHF loads this file by path, so a worker could not import it."""

    def __init__(self, function):
        self.pickled = cloudpickle.dumps(function)

    def __reduce__(self):
        return pickle.loads, (self.pickled,)


_pool_lock = threading.Lock()
_pool: ProcessPool | None = None


def _running_pool() -> ProcessPool:
    global _pool
    with _pool_lock:
        if _pool is None or not _pool.active:
            if _pool is not None:  # broken: a worker died that had no check
                threading.Thread(target=_pool.join, daemon=True).start()
            # spawn: the caller has threads and may have CUDA. math-verify's own timeouts need a main thread.
            context = multiprocessing.get_context("spawn")
            _pool = ProcessPool(max_workers=WORKERS, initializer=_ByValue(_warm_up), context=context)
        return _pool


def _check_in_worker(response: str, label: str) -> tuple[bool, str]:
    pool = _running_pool()
    try:
        future = pool.schedule(_ByValue(_check), args=(response, label, DEADLINE), timeout=DEADLINE)
    except RuntimeError as error:
        raise BrokenProcessPool("broke before the check") from error
    while not wait([future], timeout=1).done:
        if not pool.active:  # pebble forgets the checks that no worker has taken yet
            raise BrokenProcessPool("broke before the check began")
    return future.result()


def check_answer(response: str, label: str | float) -> tuple[bool, bool]:
    """Return whether the response's final answer equals the label, and whether that could not be checked."""
    if isinstance(label, (int, float)) and math.isfinite(label):
        label = format(Decimal(str(label)), "f")  # LaTeX reads 1e-05 as a product with Euler's number
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label {label!r} is no answer: does --data.label_key name the column of answers?")
    for _ in range(3):
        try:
            equal, problem = _check_in_worker(response, label.strip())
        except BrokenProcessPool as error:
            broken = error
            continue
        except DeadlineExceeded:
            equal, problem = False, f"it took more than {DEADLINE:g} s"
        except ProcessExpired as error:
            equal, problem = False, f"its process died: {error}"
        if problem:
            logger.warning("unchecked, so reward 0: …%r with label %r: %s", response[-200:], label, problem)
        return equal, bool(problem)
    raise RuntimeError("the worker processes die as they start; what they say is in the log") from broken


def reward_func(queries: list[str], prompts: list[str], labels: list) -> dict:
    """Reward each query, which is its prompt followed by the response. Any thread may call this."""
    responses = []
    for query, prompt, _ in zip(queries, prompts, labels, strict=True):
        if not query.startswith(prompt):
            raise ValueError(f"query does not start with its prompt: query {query!r}, prompt {prompt!r}")
        responses.append(query[len(prompt) :])
    with ThreadPoolExecutor(WORKERS) as threads:
        results = list(threads.map(check_answer, responses, labels))
    rewards = torch.tensor([float(equal) for equal, _ in results])
    unchecked = torch.tensor([float(unchecked) for _, unchecked in results])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"math_unchecked": unchecked}}
