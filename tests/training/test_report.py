"""A trained model's report: its measures, the best threshold, intervals, files."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from darling_plugin.training import report
from darling_plugin.training.pairs import LabelledPair


def pairs_of(labels, prompts=None):
    prompts = prompts or [f"prompt {k}" for k in range(len(labels))]
    both = zip(labels, prompts, strict=True)
    return [LabelledPair(prompt, f"a{k}", f"b{k}", int(label), k + 1) for k, (label, prompt) in enumerate(both)]


def drawn(count, seed=0, stretch=1.0):
    """Labels that follow the probabilities; then the probabilities, their logits stretched."""
    random = np.random.default_rng(seed)
    logit = random.normal(0, 1.5, count)
    labels = (random.random(count) < 1 / (1 + np.exp(-logit))).astype(int)
    return labels, 1 / (1 + np.exp(-stretch * logit))


def test_measures_are_those_of_the_pairs_thresholds():
    labels, probabilities = drawn(400)
    thresholds = np.where(np.arange(400) < 200, 0.4, 0.6)
    found = report.measures(pairs_of(labels), probabilities, thresholds)
    called = probabilities > thresholds
    assert found["accuracy"].value == pytest.approx((called == labels).mean())
    recalls = called[labels == 1].mean(), 1 - called[labels == 0].mean()
    assert found["balanced_accuracy"].value == pytest.approx(sum(recalls) / 2)
    assert found["roc_auc"].value == pytest.approx(roc_auc_score(labels, probabilities))
    for each in found.values():
        assert 0 <= each.low <= each.value + 0.05 and each.low < each.high <= 1


def test_pairs_of_one_prompt_are_resampled_together():
    labels, probabilities = drawn(200)
    thresholds = np.full(200, 0.5)
    apart = report.measures(pairs_of(labels), probabilities, thresholds)["accuracy"]
    # Ten copies of twenty pairs say no more than these.
    labels, probabilities = np.repeat(labels[:20], 10), np.repeat(probabilities[:20], 10)
    together = report.measures(pairs_of(labels, [f"prompt {k // 10}" for k in range(200)]), probabilities, thresholds)[
        "accuracy"
    ]
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_calibration_error_is_small_for_honest_probabilities_and_large_for_bold_ones():
    assert report.expected_calibration_error(*drawn(20000)) < 0.015
    assert report.expected_calibration_error(*drawn(20000, stretch=4)) > 0.1
    labels = np.array([0, 1] * 50)
    assert report.expected_calibration_error(labels, np.full(100, 0.9)) == pytest.approx(0.4)


@pytest.mark.parametrize("stretch", [1.0, 3.0])
def test_the_best_threshold_of_symmetric_scores_is_one_half(stretch):
    assert report.best_threshold(*drawn(20000, stretch=stretch)) == pytest.approx(0.5, abs=0.06)


def test_the_best_threshold_follows_the_scores():
    labels = np.array([0] * 70 + [1] * 30)
    probabilities = np.concatenate([np.linspace(0, 0.7, 70), np.linspace(0.71, 1, 30)])
    assert report.best_threshold(labels, probabilities) == pytest.approx(0.7, abs=0.03)
    assert report.best_threshold(labels, probabilities / 10) == pytest.approx(0.07, abs=0.003)


def test_there_is_no_threshold_between_equal_scores():
    labels = np.array([0] * 60 + [1] * 40)  # in this order, 30 of the 70 that score 0.98 come first
    probabilities = np.array([0.02] * 30 + [0.98] * 70)
    assert report.best_threshold(labels, probabilities) == pytest.approx(0.5)


def test_partitions_agree_where_all_classes_do_and_not_where_one_pair_joins_two():
    def pair(prompt, a, b, similar):
        return LabelledPair(prompt, a, b, similar, 1)

    triple = [("a", "b", 1), ("a", "c", 0), ("b", "c", 0)]
    pairs = [pair(prompt, *each) for prompt in ("p", "q") for each in triple] + [pair("alone", "a", "b", 1)]
    right = np.array([0.9, 0.1, 0.2, 0.9, 0.1, 0.8, 0.3])  # in q, b and c are called similar
    thresholds = np.full(7, 0.5)
    assert report.partitions_agree(pairs, right, thresholds, "union_find") == (1, 2)
    # Transitive closure: a missed pair that others join does no harm.
    joined = [pair("r", "a", "b", 1), pair("r", "a", "c", 1), pair("r", "b", "c", 1)]
    assert report.partitions_agree(joined, np.array([0.9, 0.9, 0.1]), np.full(3, 0.5), "union_find") == (1, 1)
    assert report.partitions_agree(joined, np.array([0.9, 0.9, 0.1]), np.full(3, 0.5), "average") == (0, 1)


def test_the_report_and_its_pictures_are_written(tmp_path):
    labels, probabilities = drawn(300)
    lines = report.write(tmp_path, pairs_of(labels), probabilities, np.full(300, 0.5), {"seed": 7})
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["seed"] == 7 and written["pairs"] == 300 and written["similar"] == labels.sum()
    assert f"{written['measures']['roc_auc']['value']:.3f}" in lines
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(row["line"], row["similar"], row["probability"]) for row in rows] == [
        (k + 1, int(label), float(p)) for k, (label, p) in enumerate(zip(labels, probabilities, strict=True))
    ]
    assert sum(each["pairs"] for each in written["reliability"]) == 300
    half = next(each for each in written["thresholds"] if each["threshold"] == 0.5)
    for name, own in (("similar_joined", labels == 1), ("different_joined", labels == 0)):
        assert half[name] == pytest.approx(((probabilities > 0.5) & own).sum() / own.sum())
    for name in ("roc.png", "reliability.png", "scores.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
