"""`make compat`: whether the hooks fit OpenRLHF's releases, proven on the real source of each.

The seams and the contract are looked up in each release's source. Then each runs in a process of its own: the tests of
the hooks, and the advantages hook on every estimator that it has, in several micro-batch layouts, with length
penalties, KL and integer rewards, compared with the last supported release and with the same numbers by hand.
Supported releases must pass; a newer one is tried and reported.
"""

import itertools
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import contract_in_source
import releases

from darling_plugin.errors import DarlingError
from darling_plugin.openrlhf.seams import FIRST, SUPPORTED_OPENRLHF, check_installed_openrlhf, check_source

REFERENCE = SUPPORTED_OPENRLHF[-1]
TOLERANCE = 1e-5  # of float32 numbers around 1

# Three groups of four; response k has 1 + k % 4 tokens.
N, RESPONSES = 4, 12
LENGTHS = [1 + k % 4 for k in range(RESPONSES)]
TRUNCATED = (3, 6)
DIVERSITY_FLOOR, CLIP, MAX_NEW_TOKENS = 0.1, (-1.1, 0.9), 4
_random = random.Random(0)
LABELS = [_random.randrange(3) for _ in range(RESPONSES)]
QUALITY = {
    "float": [_random.choice([0.0, 0.3, 0.7, 1.0]) for _ in range(RESPONSES)],
    "integer": [_random.choice([0, 1, 2]) for _ in range(RESPONSES)],
}
KL, VALUES = ([[_random.gauss(0, 1) for _ in range(4)] for _ in range(RESPONSES)] for _ in range(2))
LAYOUTS = {
    "one": ([12], None),
    "singles": ([1] * 12, None),
    "mixed": ([5, 4, 3], [7, 0, 11, 3, 2, 9, 4, 1, 10, 6, 5, 8]),
}
PENALTIES: dict[str, dict[str, float]] = {
    "none": {},
    "overlong": {"overlong_buffer_len": 2, "overlong_penalty_factor": 0.5},
    "scaled": {"stop_properly_penalty_coef": 0.5},
    "fixed": {"stop_properly_penalty_coef": -0.7},
}
Numbers = dict[str, list[list[float]]]  # "rewards", "advantages", "returns": one list a response


@dataclass(frozen=True)
class Case:
    """One call of the advantages hook."""

    estimator: str
    layout: str
    penalty: str
    quality: str
    kl: float
    no_std_norm: bool

    @property
    def gamma(self) -> float:
        """Only these two take another than 1."""
        return 0.9 if self.estimator in ("gae", "reinforce") else 1.0


LAMBD = 0.95


def cases(estimators: list[str]) -> Iterator[Case]:
    for *names, (kl, no_std_norm) in itertools.product(
        estimators, LAYOUTS, PENALTIES, QUALITY, ((0.0, False), (0.3, False), (0.3, True))
    ):
        yield Case(*names, kl, no_std_norm)


# ── In the release's own process ──


def advantages(case: Case) -> Numbers:
    """What the installed release makes of a case, through the hook."""
    import torch
    from training_batches import make_experiences, make_maker

    from darling_plugin.config import DarlingConfig

    # Under dr_grpo the launcher chooses "centered"; the other estimators make their own advantages.
    config = DarlingConfig(
        enable=True,
        advantage="centered" if case.estimator == "dr_grpo" else None,
        diversity_floor=DIVERSITY_FLOOR,
    )
    os.environ.update(config.to_environment())
    sizes, order = LAYOUTS[case.layout]
    quality, labels = (torch.tensor(values).reshape(-1, N) for values in (QUALITY[case.quality], LABELS))
    maker = make_maker(case.estimator, kl=case.kl, clip_range=CLIP, **PENALTIES[case.penalty])
    maker.args.rollout.max_new_tokens = MAX_NEW_TOKENS
    advantage = maker.args.algo.advantage
    advantage.gamma, advantage.lambd, advantage.no_std_norm = case.gamma, LAMBD, case.no_std_norm
    experiences = make_experiences(quality, labels, sizes, order)
    for experience in experiences:
        experience.rewards = quality.flatten()[experience.index]
        experience.kl, experience.values = (torch.tensor(table)[experience.index] for table in (KL, VALUES))
        experience.truncated = torch.tensor([place in TRUNCATED for place in experience.index])
    found: Numbers = {name: [[]] * RESPONSES for name in ("rewards", "advantages", "returns")}
    for experience in maker.compute_advantages_and_returns(experiences):
        for row, place in enumerate(experience.index):
            found["rewards"][place] = [experience.rewards[row].item()]
            for name in ("advantages", "returns"):
                found[name][place] = getattr(experience, name)[row][: LENGTHS[place]].tolist()
    return found


def in_process(version: str, out: Path) -> int:
    """Proves one release, the one that is importable here; writes what the advantages hook made of every case."""
    import pytest

    from darling_plugin.openrlhf import cpu, hooks

    if version in SUPPORTED_OPENRLHF:
        check_installed_openrlhf()
    cpu.stand_in_for_flash_attn()
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("hooks", "advantages", "logging_hooks")]
    status = pytest.main(["-q", "-p", "no:cacheprovider", "-W", "ignore", *tests])
    from openrlhf.trainer.ppo_utils import experience_maker

    assert Path(experience_maker.__file__).is_relative_to(releases.source(version)), (
        "not the release that was asked for"
    )
    hooks.install(experience_maker)
    logging.disable(logging.WARNING)  # OpenRLHF's loggers write to what pytest gave them, closed by now
    known = [name for name in releases.flags(version)["--algo.advantage.estimator"] if name in BASELINES]
    out.write_text(json.dumps([(vars(case), advantages(case)) for case in cases(known)]))
    return int(status)


# ── By hand ──

BASELINES = {
    "gae": lambda k, reward: 0.0,
    "reinforce": lambda k, reward: 0.0,
    "rloo": lambda k, reward: fmean(reward[j] for j in _group(k) if j != k),
    "reinforce_baseline": lambda k, reward: fmean(reward[j] for j in _group(k)),
    "group_norm": lambda k, reward: fmean(reward[j] for j in _group(k)),
    "dr_grpo": lambda k, reward: fmean(reward[j] for j in _group(k)),
    "flash_reinforce": lambda k, reward: fmean(reward),
}


def _group(k: int) -> range:
    return range(k // N * N, k // N * N + N)


def by_hand(case: Case) -> Numbers:
    """The paper's reward, OpenRLHF's penalties and estimators, in plain Python."""
    reward = []
    for k, quality in enumerate(QUALITY[case.quality]):
        others = [LABELS[j] != LABELS[k] for j in _group(k) if j != k]
        value = quality * max(fmean(others), DIVERSITY_FLOOR)
        if case.penalty == "overlong":
            value -= 0.5 * max(LENGTHS[k] - (MAX_NEW_TOKENS - 2), 0) / 2
        elif case.penalty != "none" and k in TRUNCATED:
            value = value * 0.5 if case.penalty == "scaled" else -0.7
        reward.append(value)
    advantages, returns = [], []
    for k, length in enumerate(LENGTHS):
        shaped = reward[k] - BASELINES[case.estimator](k, reward)
        if case.estimator == "group_norm":
            shaped /= stdev(reward[j] for j in _group(k)) + 1e-9
        tokens = [-case.kl * kl for kl in KL[k][:length]]
        tokens[-1] += min(max(shaped, CLIP[0]), CLIP[1])
        mine, following, value_after = [], 0.0, 0.0
        for t in reversed(range(length)):
            if case.estimator == "gae":
                following = tokens[t] + case.gamma * value_after - VALUES[k][t] + case.gamma * LAMBD * following
                value_after = VALUES[k][t]
            else:
                following = tokens[t] + case.gamma * following
            mine.insert(0, following)
        advantages.append(mine)
        returns.append([a + v for a, v in zip(mine, VALUES[k], strict=False)] if case.estimator == "gae" else mine)
    if case.estimator in ("gae", "reinforce", "reinforce_baseline"):
        every = [value for values in advantages for value in values]
        mean = fmean(every)
        scale = 1.0 if case.no_std_norm else fmean((value - mean) ** 2 for value in every) ** -0.5
        advantages = [[(value - mean) * scale for value in values] for values in advantages]
    return {"rewards": [[value] for value in reward], "advantages": advantages, "returns": returns}


def difference(one: Numbers, other: Numbers) -> float:
    """The largest between two numbers in the same place; infinite where one is not a number or missing."""
    apart = [0.0]
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            apart += [abs(x - y) for x, y in zip(a, b, strict=True)] if len(a) == len(b) else [float("inf")]
    return max(value if value == value else float("inf") for value in apart)


# ── From outside ──


@dataclass
class Outcome:
    """What was found out about a release; `problem` says what does not fit, and is empty when all does."""

    version: str
    seams: str = "–"
    tests: str = "–"
    advantages: str = "–"
    seconds: float = 0.0
    problem: str = ""
    numbers: dict[Case, Numbers] | None = None


def check_release(version: str) -> None:
    """Raises DarlingError where the release's source has other seams, or breaks the contract."""
    root = releases.source(version) / "openrlhf"
    check_source(str(root), version)
    broken = contract_in_source.broken(root, version)
    if broken:
        raise DarlingError(
            "OpenRLHF as darling_plugin/openrlhf/contract.py has it",
            "; ".join(broken),
            "change the contract and the hooks that use what it names",
        )


# Python 3.11's parser keeps one count of its depth for all threads, and calls a parse in another a SystemError.
_parsing = threading.Lock()


def _run(version: str) -> Outcome:
    outcome, started = Outcome(version), time.monotonic()
    try:
        with _parsing:
            check_release(version)
    except releases.IndexUnreachable:
        raise
    except DarlingError as error:
        outcome.seams, outcome.problem = "no", str(error)
        return outcome
    outcome.seams = f"{len(FIRST)} fit"
    path = os.pathsep.join(filter(None, [str(releases.source(version)), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "numbers.json")
        done = subprocess.run(
            [sys.executable, __file__, version, out],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        counted = re.findall(r"^.*\d+ (?:passed|failed|error).* in .*s.*$", done.stdout, re.MULTILINE)
        outcome.tests = counted[-1].split(" in ")[0].strip("= ") if counted else "did not run"
        if done.returncode:
            outcome.problem = done.stdout[-3000:]
        if out.exists():
            outcome.numbers = {Case(**case): numbers for case, numbers in json.loads(out.read_text())}
    outcome.seconds = time.monotonic() - started
    return outcome


def _compare(outcome: Outcome, reference: dict[Case, Numbers]) -> None:
    if outcome.numbers is None:
        return
    worst, case, with_what = max(
        (difference(numbers, other), str(case), with_what)
        for case, numbers in outcome.numbers.items()
        for with_what, other in (("by hand", by_hand(case)), (REFERENCE, reference.get(case, numbers)))
    )
    estimators = {case.estimator for case in outcome.numbers}
    outcome.advantages = f"{len(estimators)} estimators, {len(outcome.numbers)} cases within {worst:.0e}"
    if worst > TOLERANCE:
        outcome.advantages = f"differs by {worst:.2g}"
        outcome.problem += f"\nthe advantages differ by {worst:.2g} from {with_what}: {case}"


def prove(versions: list[str], progress: Any = lambda outcome: None) -> list[Outcome]:
    """The outcome of each release and, first, of REFERENCE; two at a time. Raises IndexUnreachable."""
    versions = list(dict.fromkeys([REFERENCE, *versions]))
    outcomes = []
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for outcome in pool.map(_run, versions):
            outcomes.append(outcome)
            _compare(outcome, outcomes[0].numbers or {})
            progress(outcome)
    return outcomes


def main() -> int:
    """Prints the table; its status is 1 when a supported release does not pass."""
    versions = list(SUPPORTED_OPENRLHF)
    try:
        newest = releases.newest()
        versions += [newest] if newest not in versions else []
    except releases.IndexUnreachable as error:
        print(f"the newest release is not looked at: {error}")
    print(f"OpenRLHF {', '.join(versions)}: tests of the hooks and the advantages on each, two at a time", flush=True)

    def progress(outcome: Outcome) -> None:
        print(f"  {outcome.version}: {'fails' if outcome.problem else 'passes'}, {outcome.seconds:.0f} s", flush=True)

    outcomes = sorted(prove(versions, progress), key=lambda outcome: versions.index(outcome.version))
    for outcome in outcomes:
        if outcome.problem:
            print(f"\n── {outcome.version}\n{outcome.problem}")
    row = "{:<10}{:<9}{:<22}{:<44}{:>7}".format
    print("\n" + row("release", "seams", "tests", "advantages, from " + REFERENCE + " and by hand", "seconds"))
    for outcome in outcomes:
        print(row(outcome.version, outcome.seams, outcome.tests, outcome.advantages, f"{outcome.seconds:.0f}"))
    for outcome in outcomes:
        if outcome.version not in SUPPORTED_OPENRLHF:
            would = f"would fail: {outcome.problem.strip().splitlines()[-1]}" if outcome.problem else "would pass"
            print(f"\nOpenRLHF {outcome.version} is newer and not supported yet: {would}")
    return int(any(outcome.problem for outcome in outcomes if outcome.version in SUPPORTED_OPENRLHF))


if __name__ == "__main__":
    sys.exit(in_process(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main())
