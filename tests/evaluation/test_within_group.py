"""The figures of a diversity within its groups: against NumPy, and what they say of known distortions."""

import math

import numpy as np
import pytest
import torch

from darling_plugin.evaluation.within_group import within_group


def groups(seed: int, sizes: tuple[int, ...] = (8, 5, 10, 2)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, generator=generator) for n in sizes]


def test_each_figure_against_numpy() -> None:
    given, true = groups(1), groups(2)
    g = np.concatenate([(x - x.mean()).double().numpy() for x in given])
    t = np.concatenate([(x - x.mean()).double().numpy() for x in true])
    found = within_group(given, true)
    push = np.polyfit(t, g, 1)[0]
    assert found.correlation == pytest.approx(np.corrcoef(g, t)[0, 1], abs=1e-6)
    assert found.push == pytest.approx(push, abs=1e-6)
    assert found.noise == pytest.approx(np.std(g - push * t) / (abs(push) * np.std(t)), rel=1e-5)
    assert found.error == pytest.approx(np.sqrt(np.mean((g - t) ** 2)), abs=1e-7)
    assert found.error_of_none == pytest.approx(np.std(t), abs=1e-7)
    each = [np.corrcoef(x, y)[0, 1] for x, y in zip(given, true, strict=True)]
    assert found.correlation_of_groups == pytest.approx(np.mean(each), abs=1e-6)


def test_a_shift_of_a_group_is_nothing_and_a_flatter_diversity_has_less_push_and_no_noise() -> None:
    true = groups(3)
    shifted = within_group([x + k for k, x in enumerate(true)], true)
    assert (shifted.push, shifted.correlation) == (pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))
    assert shifted.error == pytest.approx(0, abs=1e-6)
    flatter = within_group([0.25 * x for x in true], true)
    assert flatter.push == pytest.approx(0.25) and flatter.noise == pytest.approx(0, abs=1e-6)
    assert flatter.error == pytest.approx(0.75 * flatter.error_of_none)


def test_degenerate_groups() -> None:
    level, true = torch.full((4,), 0.3), torch.tensor([0.0, 0.0, 0.0, 1.0])
    nothing = within_group([level], [true])
    assert (nothing.flat, nothing.correlation, nothing.push) == (1, 0.0, 0.0)
    assert nothing.correlation_of_groups == 0.0 and nothing.noise == math.inf
    assert nothing.error == pytest.approx(nothing.error_of_none)
    one_class = within_group([true], [level])  # what is given is all noise
    assert one_class.flat == 0 and math.isnan(one_class.push) and math.isnan(one_class.correlation_of_groups)
    with pytest.raises(ValueError, match="at least one group"):
        within_group([], [])
