"""Each method against plain Python, its extremes, and what docs/methods.md says that it pushes."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_oracles import ORACLES

from darling_plugin.config import DarlingConfig
from darling_plugin.evaluation.methods import METHODS
from darling_plugin.registry import advantages, rewards
from darling_plugin.shaping import Groups, Similarities, shape

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def apply(name, quality, similarity, labels):
    """That method of P groups, each (n,) and (n, n) in Python -> (P, n) in Python."""
    registry, first = (advantages, "reward") if name in advantages else (rewards, "quality")
    inputs = {
        first: torch.tensor(quality, dtype=torch.float32),
        "similarity": torch.tensor(similarity, dtype=torch.float32),
        "labels": torch.tensor(labels),
    }
    result = registry.call(name, inputs)
    assert result.dtype == torch.float32
    return result.tolist()


@st.composite
def batches(draw):
    """P groups of 1 to 16, some left out by a gate: qualities below 0, too; similarities of classes, or any."""
    groups, n = draw(st.integers(1, 3)), draw(st.integers(1, 16))
    quality = st.integers(-8, 8).map(lambda quarter: quarter / 4)
    batch = []
    for _ in range(groups):
        labels = draw(st.lists(st.integers(draw(st.integers(-1, 0)), draw(st.integers(0, 3))), min_size=n, max_size=n))
        similarity = [[float(i == j or labels[i] == labels[j] >= 0) for j in range(n)] for i in range(n)]
        if draw(st.booleans()):
            for i in range(n):
                for j in range(i):
                    if min(labels[i], labels[j]) >= 0:
                        similarity[i][j] = similarity[j][i] = draw(st.integers(0, 8)) / 8
        batch.append((draw(st.lists(quality, min_size=n, max_size=n)), similarity, labels))
    return [list(each) for each in zip(*batch, strict=True)]


def centered(r):
    return r - r.mean()


def share_of(r):  # lambda of marginal_relevance
    return r.std(correction=0).sigmoid()


def range_of_marginal_relevance(r):
    share, best = share_of(r), r.max()
    least = share * r.min() - (1 - share)
    least, most = (least, best) if best >= 0 else (torch.minimum(least, best), share * best)
    return least.expand_as(r), most.expand_as(r)


# The ranges that docstrings give: the two ends of each response's, in either order.
RANGES = {
    "inverse_class_size": lambda r: (centered(r) / len(r), centered(r)),
    "redundancy": lambda r: (r / len(r), r),
    "marginal_relevance": range_of_marginal_relevance,
    "nearest_neighbour": lambda r: (r, r + 1),
    "reasoning_novelty": lambda r: (torch.where(r > 0, 0.5, -1.0), torch.where(r > 0, 1.0, -0.5)),
    "leave_one_out": lambda r: (centered(r) - math.log(2), centered(r) + math.log(2)),
}


@pytest.mark.parametrize("name", ORACLES)
@given(batch=batches())
def test_every_method_is_what_plain_python_makes_of_its_equation_and_in_its_range(name, batch):
    for found, quality, similarity, labels in zip(apply(name, *batch), *batch, strict=True):
        expected = ORACLES[name](quality, similarity, labels)
        ranges = RANGES[name](torch.tensor(quality, dtype=torch.float64))
        ends = zip(*(each.tolist() for each in ranges), strict=True)
        for value, own, two, label in zip(found, expected, ends, labels, strict=True):
            if label >= 0:  # what a function gives for one that was left out is not used
                assert value == pytest.approx(own, rel=1e-4, abs=1e-4)
                assert min(two) - 1e-5 <= value <= max(two) + 1e-5


# All that a docstring says of a group of four equal responses, and of one of four that have nothing in common.
EXTREMES = {
    "inverse_class_size": lambda r: (centered(r) / 4, centered(r)),
    "redundancy": lambda r: (r / 4, r),
    "marginal_relevance": lambda r: (
        torch.where(r == r.max(), r, share_of(r) * r - (1 - share_of(r))),
        torch.where(r == r.max(), r, share_of(r) * r),
    ),
    "nearest_neighbour": lambda r: (r, r + 1),
    "reasoning_novelty": lambda r: (torch.full((4,), 0.75), torch.full((4,), 0.75)),
    "leave_one_out": lambda r: (centered(r), centered(r)),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_the_extremes_that_are_documented(name):
    quality = torch.tensor([1.0, 2.0, 0.5, 0.25])
    alike = apply(name, [quality.tolist()], [[[1.0] * 4] * 4], [[0] * 4])
    apart = apply(name, [quality.tolist()], [torch.eye(4).tolist()], [[0, 1, 2, 3]])
    for found, expected in zip((alike, apart), EXTREMES[name](quality), strict=True):
        assert found == [pytest.approx(expected.tolist(), abs=1e-6)]


def test_the_weight_is_lambda_of_leave_one_out():
    labels = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 2]])
    same = (labels.unsqueeze(-1) == labels.unsqueeze(-2)).float()
    quality = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    groups = Groups(
        *(quality, labels, torch.zeros(2, 4), torch.zeros(2, dtype=torch.bool)),
        similarities=Similarities(same, 0.5, "union_find"),
    )
    config = DarlingConfig(reward="quality", advantage="leave_one_out", weight=0.05)
    found = shape(groups, config, lambda reward: reward).advantage
    d_first, d_second = -0.75 * math.log(5 / 3), -0.5 * math.log(4 / 3)  # of three alike and one; of two alike and two
    two_and_one, alike = -2 / 3 * math.log(3 / 2), -math.log(2)  # without one of these
    first, second = [d_first - two_and_one] * 3 + [d_first - alike], [d_second] * 2 + [d_second - two_and_one] * 2
    of_quality = [0.5, -0.5, 0.5, -0.5, 0.0, 0.0, 0.0, 0.0]
    expected = [a + 0.05 * s for a, s in zip(of_quality, first + second, strict=True)]
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_marginal_relevance_by_hand():
    trade_off = 1 / (1 + math.exp(-0.5))  # the population's standard deviation of 1 1 0 0
    similarity = [[1, 1, 0, 0.5], [1, 1, 0, 0.5], [0, 0, 1, 0], [0.5, 0.5, 0, 1]]
    found = apply("marginal_relevance", [[1.0, 1.0, 0.0, 0.0]], [similarity], [[0, 0, 1, 2]])
    cost = 1 - trade_off
    assert found == [pytest.approx([1.0, trade_off - cost, 0.0, -0.5 * cost])]


def test_novelties_that_differ_by_rounding_are_equal():
    # In tenths each row has the same sum and the same largest; as float32 the sums differ by 1e-8.
    tenths = [[10, 3, 4, 2, 3], [3, 10, 3, 4, 2], [4, 3, 10, 2, 3], [2, 4, 2, 10, 4], [3, 2, 3, 4, 10]]
    similarity = [[value / 10 for value in row] for row in tenths]
    assert len(set(torch.tensor(similarity).double().sum(-1).tolist())) > 1
    assert apply("reasoning_novelty", [[1.0] * 5], [similarity], [[0] * 5]) == [[0.75] * 5]


# ── What they push, on three made-up groups: docs/methods.md ──

MADE_UP = {  # qualities, and the classes that make the similarities: 1 within, 0 between
    "right ×4, as A A A B": ([1.0] * 4, [0, 0, 0, 1]),
    "right right wrong wrong, as A A B C": ([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 2]),
    "right right right wrong, as A A A A": ([1.0, 1.0, 1.0, 0.0], [0, 0, 0, 0]),
}


def directions():
    """The table of docs/methods.md: a method's advantages, `centered` unless it has its own, in the three groups."""
    labels = torch.tensor([classes for _, classes in MADE_UP.values()])
    same = (labels.unsqueeze(-1) == labels.unsqueeze(-2)).float()
    groups = Groups(
        quality=torch.tensor([quality for quality, _ in MADE_UP.values()]),
        labels=labels,
        diversity=(1 - same).sum(-1) / 3,
        quality_only=torch.zeros(3, dtype=torch.bool),
        similarities=Similarities(same, 0.5, "union_find"),
    )
    lines = [f"| | {' | '.join(MADE_UP)} |", "|---" * (1 + len(MADE_UP)) + "|"]
    for name, flags in METHODS.items():
        shaped = shape(groups, DarlingConfig(**{"advantage": "centered", **flags}), lambda reward: reward)
        cells = [
            " ".join(f"{value + 0.0:+.2f}" for value in row.round(decimals=2).tolist()) for row in shaped.advantage
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_page_shows_what_the_methods_push():
    assert directions() in PAGE.read_text(encoding="utf-8")


def test_of_four_right_answers_every_method_prefers_the_one_that_differs():
    for line in directions().splitlines()[3:]:
        name, first = [cell.strip(" `") for cell in line.split("|")[1:3]]
        values = [float(value) for value in first.split()]
        if name == "inverse_class_size":  # equal rewards have no advantage that could be weighed
            assert values == [0.0] * 4
        elif name == "marginal_relevance":  # the first of the three is chosen before they are alike
            assert values[3] > max(values[1:3]), name
        else:
            assert values[3] > max(values[:3]), name


if __name__ == "__main__":
    print(directions())
