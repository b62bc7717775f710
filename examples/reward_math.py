r"""OpenRLHF reward function of verifiable maths: 1 for a response whose final answer equals the label, else 0.

    pip install ".[math]"
    python3 -m darling_plugin … --reward.remote_url reward_math.py --data.label_key answer

The final answer is the last \boxed{}, else a stated one ("the answer is 6"), else what the last sentence ends in
(darling_plugin/final_answer.py has the rules); a number that the text ends past is none. math-verify compares it as
mathematics: 0.5, 1/2, $\frac{1}{2}$ and 50% are equal, so are 50% and 50, and \{1,2\} and 2,1. Units and bases are
equal, or one side has none. Several answers, one of them right, are wrong. Words count where they are boxed. A label
is LaTeX or a number, with $ or \boxed around it or without.

Range: 0 or 1. A response that is empty or has no answer gets 0. A check that hangs past DEADLINE, that kills its
process or on which math-verify raises costs that sample alone: 0, a warning, `math_unchecked` 1 in the logs (else 0).
Errors: ValueError for a label that is missing or that math-verify cannot parse, RuntimeError if workers do not start.
"""

import logging
import math
import os
from concurrent.futures import TimeoutError as DeadlineExceeded
from decimal import Decimal

import torch

from darling_plugin.maths import BadLabel, MathWorkers, check_installed, equals_label
from darling_plugin.queries import response_of

DEADLINE = 10.0  # seconds for one check, from its start in a worker; nearly all take milliseconds
WORKERS = min(8, len(os.sched_getaffinity(0)))

check_installed("the reward function reward_math.py")
logger = logging.getLogger("reward_math")
workers = MathWorkers(WORKERS)


def check_answers(responses: list[str], labels: list[str | float]) -> list[tuple[bool, bool]]:
    """Return of each response whether its final answer equals its label, and whether that could not be checked."""
    texts = [_label_text(label) for label in labels]
    results = []
    outcomes = workers.run(equals_label, list(zip(responses, texts, strict=True)), deadline=DEADLINE)
    for response, label, outcome in zip(responses, texts, outcomes, strict=True):
        if isinstance(outcome, BadLabel):  # of the setup's making; all else is of the response's
            raise outcome
        problem = _problem(outcome) if isinstance(outcome, Exception) else ""
        if problem:
            logger.warning("unchecked, so reward 0: …%r with label %r: %s", response[-200:], label, problem)
        results.append((outcome is True, bool(problem)))
    return results


def check_answer(response: str, label: str | float) -> tuple[bool, bool]:
    """The same of one response."""
    return check_answers([response], [label])[0]


def _label_text(label: str | float) -> str:
    if isinstance(label, (int, float)) and math.isfinite(label):
        label = format(Decimal(str(label)), "f")  # LaTeX reads 1e-05 as a product with Euler's number
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label {label!r} is no answer: does --data.label_key name the column of answers?")
    return label.strip()


def _problem(error: Exception) -> str:
    if isinstance(error, DeadlineExceeded):
        return f"it took more than {DEADLINE:g} s"
    if type(error).__name__ == "ProcessExpired":  # pebble's
        return f"its process died: {error}"
    return f"math-verify raised {error!r:.200}"  # e.g. on a number of 5000 digits


def reward_func(queries: list[str], prompts: list[str], labels: list) -> dict:
    """Reward each query, which is its prompt followed by the response. Any thread may call this."""
    responses = [response_of(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    results = check_answers(responses, labels)
    rewards = torch.tensor([float(equal) for equal, _ in results])
    unchecked = torch.tensor([float(unchecked) for _, unchecked in results])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"math_unchecked": unchecked}}
