"""Every logged metric, on plain tensors, and the pages that list them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from darling_plugin import metrics
from darling_plugin.config import DarlingConfig
from darling_plugin.evaluation import monitor
from darling_plugin.metrics import Scoring, SignalWatch, evaluation_metrics, training_metrics
from darling_plugin.openrlhf import worker
from darling_plugin.registry import register_reward
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
            "darling/flat_share": 0.5,
            "darling/quality_only_groups": 0.0,
            "darling/floor_share": 5 / 6,
            "darling/weight": 1.0,
            "darling/reward": (0.5 + 0 + 1 + 3 * 0.25) / 6 - 0.25,
            # quality times what 0.5, 0.5 and 1 are from their mean: -1/6, 0, 1/3; the other group is level
            "darling/signal": torch.tensor([-1 / 6, 0, 1 / 3]).std(correction=0).item() / 2,
            "darling/scoring_seconds": 0.5,
            "darling/scoring_wait_seconds": 2.5,
            # ranks of diversity -1/2, -1/2, 1, of quality 1/2, -1, 1/2; of the other group 0
            "darling/monitor/diversity_with_quality": 0.75 / 1.5,
        }
    )


def test_of_an_evaluation():
    logged = evaluation_metrics(GROUPS)
    assert logged == {key: value for key, value in of_training(GROUPS).items() if key in logged}
    in_both = [metrics.PREFIX + function.__name__ for function in metrics.IN_BOTH]
    of_monitor = ["darling/monitor/diversity_with_quality"]  # no lengths and no texts here
    assert list(logged) == [
        *(key for key in in_both if key not in ("darling/text_missing", "darling/cut_share")),
        *of_monitor,
    ]
    assert evaluation_metrics(make_groups([[0], [0]], [[1.0], [1.0]], [[1.0], [0.0]], [False] * 2)) == {}


def test_text_that_is_missing_is_counted_where_a_part_is_compared():
    groups = replace(GROUPS, text_missing=torch.tensor([[True, False, False], [True, True, False]]))
    assert of_training(groups)["darling/text_missing"] == evaluation_metrics(groups)["darling/text_missing"] == 0.5


def test_what_the_partition_model_cut_is_logged_where_it_counts_it():
    groups = replace(GROUPS, cut_share=torch.tensor([0.5, 0.0]))
    assert of_training(groups)["darling/cut_share"] == evaluation_metrics(groups)["darling/cut_share"] == 0.25


def test_a_group_is_flat_if_all_have_one_diversity_those_that_a_gate_leaves_out_too():
    groups = make_groups(
        [[0, 0, -1], [0, 1, 2], [0, -1, -1], [-1] * 3, [-1] * 3],
        [[0.3, 0.3, 0.0], [0.3, 0.3 + 1e-7, 0.3], [1.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3],
        [[1.0] * 3] * 5,
        [False, False, False, False, True],  # the last could not be partitioned
    )
    assert metrics.flat_share(groups) == 2 / 4
    nobody_passes = make_groups([[-1] * 2], [[0.0] * 2], [[1.0] * 2], [False])
    assert (metrics.diversity(nobody_passes), metrics.flat_share(nobody_passes)) == (None, 1.0)


def logged(diversity, flat_share=0.5):
    return {"darling/diversity": diversity, "darling/flat_share": flat_share}


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (logged(0.96), "counts as different from all others"),
        (logged(0.04), "count as the same"),
        (logged(0.5, 0.9), "in nine groups of ten"),
    ],
)
def test_twenty_steps_without_a_signal_are_warned_of_once(step, what):
    watch = SignalWatch(gated=False)
    assert [watch.see(step) for _ in range(19)] == [None] * 19
    warning = watch.see(step)
    assert what in warning and "model or threshold, diversity expected" in warning and "darling-show" in warning
    assert [watch.see(step) for _ in range(30)] == [None] * 30


@pytest.mark.parametrize(
    ("flags", "silent"),
    [
        ({}, False),
        ({"reward": "quality", "advantage": "centered"}, True),
        ({"reward": "quality", "advantage": "diversity_weighted"}, False),
        ({"reward": "nearest_neighbour"}, True),
        ({"reward": "quality", "advantage": "inverse_class_size"}, True),
        ({"reward": "additive"}, False),
    ],
)
def test_a_method_that_does_not_go_by_the_diversity_is_not_warned_of_it(flags, silent):
    assert DarlingConfig(**flags).goes_by_diversity() is not silent
    watch = SignalWatch(gated=False, silent=silent)
    assert ([watch.see(logged(0.01)) for _ in range(20)][-1] is None) is silent


def test_one_response_that_passes_a_gate_is_no_group_of_one_class():
    groups = make_groups([[0, -1], [0, 0], [0, 1]], [[1.0, 0.0], [0.0] * 2, [1.0] * 2], [[1.0, 0.0]] * 3, [False] * 3)
    assert of_training(groups)["darling/one_class_share"] == 0.5


def test_the_warning_of_a_worker_has_the_launchers_flags(monkeypatch):
    monkeypatch.setattr(worker, "_ran", False)
    worker.setup()
    watch = SignalWatch(gated=False)
    warning = [watch.see(logged(0.99)) for _ in range(20)][-1]
    assert "another partition model or --darling.threshold, --darling.diversity expected, a longer" in warning


def test_of_the_last_twenty_steps_two_may_have_a_signal_and_one_without_groups_does_not_count():
    watch = SignalWatch(gated=False)
    with_three = [logged(0.9), *[logged(0.99)] * 6] * 3
    assert [watch.see(each) for each in with_three[:20]] == [None] * 20
    assert watch.see({}) is None
    assert watch.see(logged(0.99)) is not None, "the first of the three is the twenty-first step by now"
    mixed = SignalWatch(gated=False)  # never the same complaint for most of twenty
    assert [mixed.see(logged(*each)) for each in [(0.99, 0.0), (0.01, 0.0)] * 20] == [None] * 40


def test_what_the_floor_makes_of_it_is_warned_of_too():
    few = make_groups([[0, 1, 2, 3]] * 2, [[0.0, 0.1, 0.2, 0.3]] * 2, [[1.0, 0.5, 0.5, 0.0]] * 2, [False] * 2)
    for weight, said in ((1.5, True), (1.0, False)):
        step = of_training(few, weight=weight)
        assert step["darling/flat_share"] == 0 and 0.05 < step["darling/diversity"] < 0.95
        watch = SignalWatch(gated=False)
        warning = [watch.see(step) for _ in range(20)][-1]
        assert (warning is not None) is said
        assert not said or "nine responses of ten count with diversity_floor alone" in warning
        assert not said or "a lower weight or diversity_floor" in warning


def test_a_text_that_most_responses_lack_is_named():
    step = logged(0.0) | {"darling/text_missing": 0.97}
    watch = SignalWatch(gated=False)
    assert "partition_text, which 97% of them lack" in [watch.see(step) for _ in range(20)][-1]
    watch = SignalWatch(gated=False)
    warning = [watch.see(logged(0.99)) for _ in range(20)][-1]
    assert warning and "partition_text" not in warning


def test_with_a_gate_flat_groups_alone_are_warned_of():
    watch = SignalWatch(gated=True)
    assert [watch.see(logged(1.0, 0.2)) for _ in range(30)] == [None] * 30, "who passes is a signal too"
    nobody_passes = {"darling/flat_share": 1.0}
    warning = [watch.see(nobody_passes) for _ in range(18)][-1]
    assert "in nine groups of ten" in warning and "a quality_gate that more responses pass" in warning
    watch = SignalWatch(gated=False)
    warning = [watch.see(logged(0.99)) for _ in range(20)][-1]
    assert warning and "quality_gate" not in warning


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_warning_does_not_depend_on_the_rewards_scale(scale):
    watch = SignalWatch(gated=False)
    groups = replace(GROUPS, quality=GROUPS.quality * scale, diversity=GROUPS.diversity * 0.01)
    assert [watch.see(of_training(groups, diversity_floor=0.0)) for _ in range(20)][-1] is not None


def test_without_a_floor_the_share_at_it_is_that_of_no_diversity():
    assert of_training(GROUPS, diversity_floor=0.0)["darling/floor_share"] == 0.5


def test_the_share_at_the_floor_is_of_what_counts():
    assert of_training(GROUPS, weight=0.5, diversity_floor=0.1)["darling/floor_share"] == 0.0
    assert of_training(GROUPS, weight=2.0, diversity_floor=0.1)["darling/floor_share"] == pytest.approx(5 / 6)


def test_where_diversity_enters_by_the_advantage_the_reward_has_no_signal_to_tell():
    assert "darling/signal" not in of_training(GROUPS, reward="quality", advantage="diversity_weighted")


def test_a_reward_that_needs_a_spread_of_diversity_costs_the_metric_alone():
    register_reward("standardized")(lambda q, d: q + (d - d.mean(-1, keepdim=True)) / d.std(-1, keepdim=True))
    groups = make_groups([[0, 0, 1]] * 2, [[0.5, 0.5, 1.0]] * 2, [[1.0, 0.0, 1.0]] * 2, [False] * 2)
    assert "darling/signal" not in of_training(groups, reward="standardized")


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
    gone = {
        "darling/flat_share",
        "darling/diversity",
        "darling/classes_per_group",
        "darling/one_class_share",
        "darling/floor_share",
        "darling/monitor/diversity_with_quality",
    }
    assert set(of_training(GROUPS)) - set(logged) == gone


def test_the_docs_list_every_metric_in_order():
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    listed = re.findall(r"^\| `([\w/]+)` \| (train, eval|train) \| (.+) \|$", page, re.MULTILINE)
    assert [(key, where) for key, where, _ in listed] == [
        *((function.__name__, "train, eval") for function in metrics.IN_BOTH),
        *((function.__name__, "train") for function in metrics.IN_TRAINING),
        *((monitor.PREFIX + function.__name__, "train, eval") for function in monitor.FIGURES),
    ]
