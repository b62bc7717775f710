"""Each figure of darling-evaluate, against counting by hand."""

import json
import math
import random
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darling_plugin.errors import DarlingError
from darling_plugin.evaluation import measures, pictures
from darling_plugin.evaluation.measures import (
    darling_utility,
    expected_distinct,
    figures,
    interval,
    is_verifiable,
    mean_diversity,
    of_like_length,
    paired,
    pass_at,
    summary,
    utility,
    word_count,
)
from darling_plugin.evaluation.noveltybench import by_first_appearance, decile, lines
from darling_plugin.evaluation.samples import Samples

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=7)


@given(LABELS, st.data())
def test_of_k_responses_by_going_through_all_draws(labels, data):
    n = len(labels)
    correct = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    for k in range(1, n + 1):
        draws = list(combinations(range(n), k))
        of_draws = [len({labels[i] for i in draw}) for draw in draws]
        assert expected_distinct(k, labels) == pytest.approx(sum(of_draws) / len(draws))
        of_correct = [len({labels[i] for i in draw if correct[i]}) for draw in draws]
        assert expected_distinct(k, labels, correct) == pytest.approx(sum(of_correct) / len(draws), abs=1e-12)
        passed = [any(correct[i] for i in draw) for draw in draws]
        assert pass_at(k, correct) == pytest.approx(sum(passed) / len(draws), abs=1e-12)
    if n > 1:
        others = [sum(a != b for b in labels) / (n - 1) for a in labels]
        assert mean_diversity(labels) == pytest.approx(sum(others) / n)


def test_pass_at_k_of_many_samples_stays_exact():
    correct = [k < 3 for k in range(256)]
    assert pass_at(1, correct) == pytest.approx(3 / 256)
    exact = 1 - math.comb(253, 128) / math.comb(256, 128)
    assert pass_at(128, correct) == pytest.approx(exact, rel=1e-9)
    for n, c, k in ((4, 5, 1), (4, 1, 5), (4, 1, 0)):
        with pytest.raises(ValueError):
            measures.none_of(n, c, k)


def test_utility_is_noveltybenchs_and_darlings_copy_is_another():
    assert utility([0] * 10, [10.0] * 10) == pytest.approx(2.2406, abs=5e-5), "ten times one answer at 10"
    assert utility(list(range(10)), [10.0] * 10) == pytest.approx(10)
    assert utility([0, 0, 1], [4, 9, 6]) == pytest.approx((4 + 0.64 * 6) / (1 + 0.8 + 0.64))
    assert darling_utility([0, 0, 1], [4, 9, 6]) == pytest.approx((4 + 6) / 3), "sum(partition_scores) / n"


def test_the_figures_of_one_prompt():
    samples = Samples("1", "p", ["a b", "a b", "c", "d e f"], [1.0, 1.0, 0.0, 1.0])
    found = figures(samples, [0, 0, 1, 2], [1, 2, 4, 8], verifiable=True)
    assert found["distinct"] == found["distinct_4"] == 3 and "distinct_8" not in found
    assert found["distinct_2"] == pytest.approx(11 / 6) and found["distinct_correct_4"] == 2
    assert (found["pass@1"], found["pass@2"], found["quality"], found["words"]) == (0.75, 1.0, 0.75, 2.0)
    assert found["diversity"] == pytest.approx((2 / 3 + 2 / 3 + 1 + 1) / 4)
    without = figures(Samples("1", "p", ["a"]), [0], [1], verifiable=True)
    assert without["distinct"] == 1 and "diversity" not in without and "quality" not in without
    scored = figures(Samples("1", "p", ["a", "b"], [0.2, 3.0]), [0, 1], [1, 2], verifiable=False)
    assert not any(name.startswith(("pass", "distinct_correct")) for name in scored)


def test_quality_comes_first_then_variety_then_the_rest_whatever_prompt_lacks_one():
    rows = [figures(Samples("1", "p", ["a"]), [0], [1], verifiable=True)]
    rows.append(
        figures(Samples("2", "q", ["a b", "c"], [1.0, 0.0]), [0, 1], [1, 2], verifiable=True) | {"cosine": 0.5}
    )
    assert list(summary(rows)) == [
        *("quality", "distinct", "distinct_2", "diversity", "pass@1", "pass@2"),
        *("distinct_correct_1", "distinct_correct_2", "utility", "utility_1", "utility_2", "darling_utility"),
        *("words", "compression", "cosine"),
    ]


def test_correctness_is_known_where_all_quality_is_0_or_1():
    assert is_verifiable([Samples("1", "p", ["a"], [1.0]), Samples("2", "q", ["b"])])
    assert not is_verifiable([Samples("1", "p", ["a"], [1.0]), Samples("2", "q", ["b"], [0.5])])
    assert not is_verifiable([Samples("1", "p", ["a"])])


def test_an_interval_holds_the_mean_as_often_as_it_says():
    rng = random.Random(0)
    held = 0
    for seed in range(120):
        found = interval([rng.gauss(5, 2) for _ in range(60)], seed)
        assert found.low <= found.mean <= found.high and found.prompts == 60
        held += found.low <= 5 <= found.high
    assert 104 <= held <= 120, "95 % of 120 are 114"
    assert interval([3.0]) == measures.Interval(3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError):
        interval([])


def test_a_paired_difference_does_not_count_what_makes_a_prompt_easy_for_both():
    rng = random.Random(0)
    easy = [rng.gauss(0, 10) for _ in range(50)]
    first = {f"{k}": {"quality": value, "more": 1.0} for k, value in enumerate(easy)}
    second = {f"{k}": {"quality": value + 1 + rng.gauss(0, 0.1)} for k, value in enumerate(easy[:40])}
    second["only here"] = {"quality": 1000.0}
    found = paired(first, second)
    assert list(found) == ["quality"] and found["quality"].prompts == 40
    assert 0.9 < found["quality"].low < found["quality"].high < 1.1


def test_at_matched_length_responses_are_compared_with_others_as_long():
    first = Samples("1", "p", ["w " * n for n in (10, 50, 100, 12)])
    second = Samples("1", "p", ["w " * n for n in (200, 11, 105, 300, 30)])
    mine, theirs = of_like_length(first, second)
    assert mine == [0, 2] and theirs == [1, 2], "10 with 11, 100 with 105; 12 would do for 11 as well"
    assert of_like_length(first, Samples("1", "p", ["w " * 1000])) == ([], [])


def test_where_no_spaces_are_each_character_is_a_word():
    assert [word_count(text) for text in ("don't stop,  now", "東京です", "I like 寿司 .", "")] == [3, 4, 5, 0]
    short, long = Samples("1", "p", ["東京です"]), Samples("1", "p", ["東京です" * 20])
    assert of_like_length(short, long) == ([], [])
    assert figures(long, [0], [], verifiable=False)["words"] == 80


def test_noveltybenchs_lines_are_what_its_own_rules_say():
    samples = Samples("curated-1", "p", ["x", "y", "x", "z"], [7.0, 3.0, 9.0, 10.0])
    written = lines(samples, [4, 2, 4, 0], "some-model")
    scores = written["scores"]
    # The keys are cumulative; classes are numbered in order of first appearance; distinct is the largest number.
    assert list(written["generations"]) == ["id", "prompt", "model", "generations"]
    assert scores["partition"] == [0, 1, 0, 2] == by_first_appearance([9, 8, 9, 1]) and scores["distinct"] == 2
    highest = -1
    for label in scores["partition"]:  # as its score step reads them
        assert label <= highest + 1
        highest = max(highest, label)
    assert scores["generation_scores"] == [7.0, 3.0, 0, 10.0] and scores["partition_scores"] == [7.0, 3.0, 10.0]
    weights = [0.8**k for k in range(4)]
    expected = sum(w * s for w, s in zip(weights, scores["generation_scores"], strict=True)) / sum(weights)
    assert scores["utility"] == pytest.approx(expected, abs=1e-12)
    assert "scores" not in lines(Samples("1", "p", ["x"]), [0], "m")


def test_deciles_are_those_that_its_score_py_has():
    assert [decile(each) for each in (-1e30, 0, 1e30)] == [1, 10, 10]
    for each in (math.nan, math.inf):
        with pytest.raises(DarlingError, match="a finite logit"):
            decile(each)
    thresholds = (-7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875)
    for number, threshold in enumerate(thresholds, start=1):
        around = (threshold - 1e-6, threshold, threshold + 1e-6)
        assert [decile(each) for each in around] == [number, number, number + 1], "bisect_left, and 1"


def test_real_groups_have_the_diversity_of_their_labels():
    path = Path(__file__).parents[3] / "shared/data/noveltybench/groups_odd.jsonl"
    if not path.exists():
        pytest.skip("no ../shared/data")
    import torch

    from darling_plugin.diversity import class_diversity

    for line in path.read_text(encoding="utf-8").splitlines()[::25]:
        labels = json.loads(line)["labels"]
        assert mean_diversity(labels) == pytest.approx(class_diversity(torch.tensor(labels)).mean().item(), abs=1e-6)


class Axis:
    """Keeps what is drawn, by the function that draws it."""

    def __init__(self):
        self.drawn = {}

    def __getattr__(self, name):
        return lambda *arguments, **options: self.drawn.setdefault(name, []).append((arguments, options))


def test_the_curve_of_pass_at_k_ends_where_prompts_have_too_few_samples():
    def of(k, prompts):
        return measures.Interval(k / 10, 0.0, 1.0, prompts)

    found = {"pass@1": of(1, 10), "pass@4": of(4, 10), "pass@8": of(8, 1)}
    axis = Axis()
    pictures._passes(axis, {"a": found, "b": {"pass@8": of(8, 3)}, "c": {}})
    drawn = {options["label"]: (list(ks), list(values)) for (ks, values, _), options in axis.drawn["plot"]}
    assert drawn == {"a": ([1, 4], [0.1, 0.4]), "b": ([8], [0.8])}


def test_quality_is_drawn_upwards_and_diversity_to_the_right():
    axis = Axis()
    both = {"quality": measures.Interval(0.5, 0.25, 1.0, 9), "diversity": measures.Interval(4.0, 2.0, 8.0, 9)}
    pictures._frontier(axis, {"a": both, "b": {"diversity": both["diversity"]}})
    (((x, y), options),) = axis.drawn["errorbar"]
    assert (x, y, options["label"]) == (4.0, 0.5, "a"), "the other has no quality"
    assert (options["xerr"], options["yerr"]) == ([[2.0], [4.0]], [[0.25], [0.5]])
    ((_, labels),) = axis.drawn["set"]
    assert (labels["xlabel"], labels["ylabel"]) == ("diversity", "quality")
