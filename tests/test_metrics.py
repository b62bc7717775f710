"""Every logged metric, on plain tensors, and the pages that list them."""

import re
from pathlib import Path

import pytest
import torch

from darling_plugin import metrics
from darling_plugin.config import DarlingConfig
from darling_plugin.metrics import Scoring, evaluation_metrics, training_metrics
from darling_plugin.shaping import Groups, shape

ROOT = Path(__file__).parents[1]


def make_groups(labels, diversity, quality, quality_only):
    return Groups(torch.tensor(quality), torch.tensor(labels), torch.tensor(diversity), torch.tensor(quality_only))


def scoring(groups):
    return Scoring(
        generated_at=torch.tensor([10_000_000, 11_000_000]),
        scored_at=torch.tensor([12_500_000, 13_500_000]),
        seconds=torch.tensor([0.25, 0.25]),
    )


def of_training(groups, penalty=0.0, **flags):
    return training_metrics(shape(groups, DarlingConfig(**flags), lambda reward: reward - penalty), scoring(groups))


GROUPS = make_groups([[0, 0, 1], [0, 0, 0]], [[0.5, 0.5, 1.0], [0.0] * 3], [[1.0, 0.0, 1.0], [0.5] * 3], [False] * 2)


def test_of_a_training_step():
    assert of_training(GROUPS, penalty=0.25, diversity_floor=0.5) == pytest.approx(
        {
            "darling/quality": 3.5 / 6,
            "darling/diversity": 2 / 6,
            "darling/classes_per_group": 1.5,
            "darling/one_class_share": 0.5,
            "darling/quality_only_groups": 0.0,
            "darling/floor_share": 5 / 6,
            "darling/reward": (0.5 + 0 + 1 + 3 * 0.25) / 6 - 0.25,
            "darling/scoring_seconds": 0.5,
            "darling/scoring_wait_seconds": 2.5,
        }
    )


def test_of_an_evaluation():
    logged = evaluation_metrics(GROUPS)
    assert logged == {key: value for key, value in of_training(GROUPS).items() if key in logged}
    assert list(logged) == [metrics.PREFIX + function.__name__ for function in metrics.IN_BOTH]
    assert evaluation_metrics(make_groups([[0], [0]], [[1.0], [1.0]], [[1.0], [0.0]], [False] * 2)) == {}


def test_without_a_floor_the_share_at_it_is_that_of_no_diversity():
    assert of_training(GROUPS, diversity_floor=0.0)["darling/floor_share"] == 0.5


def test_responses_left_out_count_for_quality_alone():
    groups = make_groups(
        [[0, 1, -1], [-1] * 3], [[1.0, 1.0, 0.0], [0.0] * 3], [[1.0, 1.0, 0.0], [0.0] * 3], [False] * 2
    )
    logged = of_training(groups)
    assert logged["darling/quality"] == pytest.approx(2 / 6)
    assert (logged["darling/diversity"], logged["darling/classes_per_group"]) == (1.0, 2.0)
    assert (logged["darling/one_class_share"], logged["darling/floor_share"]) == (0.0, 0.0)


def test_where_no_response_takes_part_the_metrics_of_diversity_are_left_out():
    groups = make_groups([[-1, -1]] * 2, [[0.0, 0.0]] * 2, [[0.4, 0.8]] * 2, [True] * 2)
    logged = of_training(groups)
    assert logged["darling/quality_only_groups"] == 2.0
    gone = {"darling/diversity", "darling/classes_per_group", "darling/one_class_share", "darling/floor_share"}
    assert set(of_training(GROUPS)) - set(logged) == gone


def test_the_docs_list_every_metric_in_order():
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (train, eval|train) \| (.+) \|$", page, re.MULTILINE)
    assert [(key, where) for key, where, _ in listed] == [
        *((function.__name__, "train, eval") for function in metrics.IN_BOTH),
        *((function.__name__, "train") for function in metrics.IN_TRAINING),
    ]
