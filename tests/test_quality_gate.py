"""--darling.quality_gate: who takes part in the partition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.quality_gate import read_quality_gate
from darling_plugin.registry import register_quality_gate

QUALITIES = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.1, 0.3, 0.7, 1.0]), min_size=1, max_size=16)


def passes(spec, *qualities):
    return read_quality_gate(spec)(torch.tensor(qualities)).tolist()


def test_by_hand():
    group = [0.0, 1.0, 0.5, 0.5]
    assert passes("none", group) == [[True] * 4]
    assert passes("above:0", group) == [[False, True, True, True]]
    assert passes("above:0.5", group) == [[False, True, False, False]]
    assert passes("top:0.25", group) == [[False, True, False, False]]
    assert passes("top:0.5", group) == [[False, True, True, True]], "the second and third are equally good"
    assert passes("reference:0.5", group) == [[False, True, True, True]], "0 + 0.5 (1 - 0.5) = 0.25"
    assert passes("reference:0", group) == [[True] * 4]
    assert passes("reference:1", [-0.5, 0.1, 0.7]) == [[False, True, True]], "0.1 is the threshold, float32 or not"


@given(QUALITIES, st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]))
def test_each_gate_against_loops(quality, number):
    worst, best, mean = min(quality), max(quality), math.fsum(quality) / len(quality)
    kept = sorted(quality, reverse=True)[: max(1, math.ceil(round(number * len(quality), 9)))]
    oracles = {
        "above": (torch.tensor(quality) > torch.tensor(number)).tolist(),
        "top": [q >= kept[-1] for q in quality],
        "reference": [q >= worst + number * (best - mean) - 1e-6 for q in quality],
    }
    for name, expected in oracles.items():
        assert passes(f"{name}:{number}", quality) == [expected], name
    assert any(oracles["top"]) and any(oracles["reference"]), "the best is never left out"


def test_groups_are_judged_apart_and_may_have_nobody_left():
    assert passes("above:0", [0.0, 0.0], [1.0, 0.0]) == [[False, False], [True, False]]
    assert passes("top:0.5", [5.0, 6.0], [1.0, 0.0]) == [[False, True], [True, False]]
    for spec in ("top:0", "top:1", "reference:1"):
        assert passes(spec, [0.3] * 3) == [[True] * 3]


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("abov:0", "did you mean 'above'"),
        ("above", "missing a required argument"),
        ("above:", "could not convert"),
        ("above:x", "could not convert"),
        ("above:nan", "not finite"),
        ("top:1.5", "not between 0 and 1"),
        ("reference:-1", "not between 0 and 1"),
        ("mine:3", "too many positional arguments"),
    ],
)
def test_what_no_run_can_use_is_refused_by_the_configuration(spec, found):
    register_quality_gate("mine")(lambda quality: quality > 0)
    with pytest.raises(DarlingError) as caught:
        DarlingConfig(quality_gate=spec).check()
    assert found in str(caught.value)


def test_a_gate_of_ones_own():
    register_quality_gate("mine")(lambda quality: quality > quality.mean(-1, keepdim=True))
    assert passes("mine", [0.0, 1.0, 0.2]) == [[False, True, False]]
    register_quality_gate("in_place")(lambda quality: quality.sub_(0.5) > 0)
    quality = torch.tensor([[0.0, 1.0]])
    assert read_quality_gate("in_place")(quality).tolist() == [[False, True]]
    assert quality.tolist() == [[0.0, 1.0]]
    register_quality_gate("wrong")(lambda quality: quality)
    with pytest.raises(DarlingError, match=r"a bool tensor \(1, 2\) from the quality gate 'wrong'(.|\n)*float32"):
        passes("wrong", [0.0, 1.0])
