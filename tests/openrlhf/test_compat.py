"""Every supported OpenRLHF release, on its real source: what `make compat` proves, and the flags that are read."""

import re
from pathlib import Path

import compat
import pytest
import releases

from darling_plugin.openrlhf import contract
from darling_plugin.openrlhf.seams import SUPPORTED_OPENRLHF

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def index():
    try:
        for version in SUPPORTED_OPENRLHF:
            releases.source(version)
    except releases.IndexUnreachable as error:
        pytest.skip(f"no package index: {error}")


@pytest.fixture(scope="module")
def outcomes(index):
    return {outcome.version: outcome for outcome in compat.prove(list(releases.RUN))}


@pytest.mark.parametrize("version", SUPPORTED_OPENRLHF)
def test_the_seams_fit_and_the_contract_is_kept(index, version):
    compat.check_release(version)


@pytest.mark.parametrize("version", releases.RUN)
def test_the_hooks_work_and_the_advantages_are_the_same(outcomes, version):
    outcome = outcomes[version]
    assert not outcome.problem, outcome.problem
    assert {case.estimator for case in outcome.numbers} == set(releases.flags(version)["--algo.advantage.estimator"])


@pytest.mark.parametrize("version", SUPPORTED_OPENRLHF)
def test_the_flags_that_are_read_exist(index, version):
    code = "\n".join(path.read_text() for path in (ROOT / "darling_plugin").rglob("*.py"))
    read = {flag for flag in re.findall(r"--[a-z]+(?:\.[a-z0-9_]+)+", code) if not flag.startswith("--darling.")}
    read |= {f"--{name}" for name in re.findall(r"\b(?:args|flags)\.([a-z]+(?:\.[a-z0-9_]+)+)", code)}
    assert {"--rollout.n_samples_per_prompt", "--reward.remote_url", "--reward.clip_range"} <= read
    read |= {f"--{name}" for name in contract.FLAGS}
    assert not read - set(releases.flags(version))


def test_a_difference_is_found():
    case = compat.Case("rloo", "one", "none", "float", 0.3, False)
    expected, found = compat.by_hand(case), compat.by_hand(case)
    assert compat.difference(expected, found) == 0
    found["advantages"][5][-1] += 1e-3
    assert compat.difference(expected, found) > compat.TOLERANCE
    found["advantages"][5][-1] = float("nan")
    assert compat.difference(expected, found) == float("inf")


def test_a_release_that_the_index_lacks_is_no_network_fault():
    with pytest.raises(releases.DarlingError, match="openrlhf==9.9.9") as raised:
        releases.source("9.9.9")
    if isinstance(raised.value, releases.IndexUnreachable):
        pytest.skip(f"no package index: {raised.value}")
    assert not (releases.WHEELS / "9.9.9").exists()


def test_an_unreachable_index_says_so(monkeypatch):
    for name, value in {"INDEX_URL": "http://127.0.0.1:9", "EXTRA_INDEX_URL": "", "FIND_LINKS": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(releases.IndexUnreachable, match="connect to a package index"):
        releases.newest()


def test_the_readme_names_the_supported_releases():
    assert f"Supported OpenRLHF: {', '.join(SUPPORTED_OPENRLHF)}." in (ROOT / "README.md").read_text()
