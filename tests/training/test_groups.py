"""Inputs of several files, labelled groups, and the figures of their diversity."""

import json
import math

import numpy as np
import pytest

from darling_plugin.commands.train_partition import main
from darling_plugin.errors import DarlingError
from darling_plugin.training import group_report, report
from darling_plugin.training.pairs import Input, LabelledGroup, LabelledPair, folds_by_prompt, read_inputs


def written(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def group(k, source, responses=("a", "b", "c", "a"), labels=(0, 0, 1, 0)):
    return {"prompt": f"Prompt {k}", "source": source, "responses": list(responses), "labels": list(labels)}


@pytest.mark.parametrize(
    ("text", "data", "weight"),
    [
        ("pairs.jsonl", "pairs.jsonl", 1.0),
        ("groups.jsonl:0.1", "groups.jsonl", 0.1),
        ("org/data:v2", "org/data:v2", 1),
    ],
)
def test_an_input_may_have_a_weight_behind_a_colon(text, data, weight):
    assert Input.parse(text) == Input(data, weight)


@pytest.mark.parametrize("text", ["groups.jsonl:0", "groups.jsonl:-1", "groups.jsonl:nan", "groups.jsonl:inf"])
def test_a_weight_that_is_not_above_0_is_refused(text):
    with pytest.raises(DarlingError, match="a weight above 0"):
        Input.parse(text)


def test_a_file_that_is_there_has_no_weight_in_its_name(tmp_path):
    path = written(tmp_path / "odd:2", [group(1, "x")])
    assert Input.parse(path) == Input(path)


def test_files_of_either_kind_with_weights_and_sources(tmp_path):
    pair = {"prompt": "Prompt 1", "generation_0": "a", "generation_1": "b", "similar": 0}
    inputs = [
        Input(written(tmp_path / "pairs.jsonl", [pair])),
        Input(written(tmp_path / "groups.jsonl", [group(1, "humans"), group(1, "a model")]), 0.5),
    ]
    pairs, groups = read_inputs(inputs)
    # The same two responses are another pair in each group: one class here, two there.
    assert [(p.first, p.second, p.similar, p.source, p.weight, p.group) for p in pairs] == [
        ("a", "b", 0, "pairs.jsonl", 1.0, None),
        *[
            (*two, source, 0.5, number)
            for number, source in enumerate(("humans", "a model"))
            for two in (("a", "b", 1), ("a", "c", 0), ("b", "c", 0))
        ],
    ]
    assert [(g.source, g.number, g.labels) for g in groups] == [
        ("humans", 0, (0, 0, 1, 0)),
        ("a model", 1, (0, 0, 1, 0)),
    ]


def test_identical_responses_of_two_classes_are_refused(tmp_path):
    path = written(tmp_path / "g.jsonl", [group(1, "x", ("a", "a", "b"), (0, 1, 0))])
    with pytest.raises(DarlingError, match=r"1 line \(1\): the same pair labelled both ways"):
        read_inputs([Input(path)])


def test_groups_of_one_prompt_stay_together_and_each_fold_has_some_of_them():
    pairs = [LabelledPair(f"pair {k}", "a", "b", k % 2, k) for k in range(40)]
    for k in range(8):
        for number in range(2):
            two = [("a", "b", 1), ("a", "c", 0), ("b", "c", 0)]
            pairs += [LabelledPair(f"group {k}", *each, 1, group=2 * k + number) for each in two]
    folds = folds_by_prompt(pairs, 4, 0)
    assert sorted(k for part in folds for k in part) == list(range(len(pairs)))
    prompts = [{pairs[k].prompt for k in part} for part in folds]
    assert sum(map(len, prompts)) == 48
    assert [sum(prompt.startswith("group") for prompt in own) for own in prompts] == [2] * 4


def test_the_figures_of_groups_are_those_of_their_diversity(tmp_path):
    path = written(tmp_path / "g.jsonl", [group(1, "x"), group(2, "y"), group(3, "y")])
    pairs, groups = read_inputs([Input(path)])
    labels = np.array([pair.similar for pair in pairs], float)
    found = group_report.group_figures(groups, pairs, labels, np.full(len(pairs), 0.5))
    assert list(found) == [group_report.ALL, "x", "y"]
    for own in found.values():
        assert own["adjusted_rand_index"] == 1
        for kind in ("classes", "average", "pairs", "expected"):
            assert own[kind]["correlation"] == pytest.approx(1) and own[kind]["push"] == pytest.approx(1)
            assert own[kind]["error"] == pytest.approx(0)
    # One that is as unsure of everything: identical texts alone are known.
    unsure = group_report.group_figures(groups, pairs, np.full(len(pairs), 0.5), np.full(len(pairs), 0.4))
    assert unsure["y"]["classes"]["flat"] == 2 and unsure["y"]["classes"]["noise"] is None
    # Given 1/3 to the two a and 1/2 to b and c; true is 1/3, 1/3, 1, 1/3.
    g, t = np.array([1 / 3, 0.5, 0.5, 1 / 3]), np.array([1 / 3, 1 / 3, 1, 1 / 3])
    g, t = g - g.mean(), t - t.mean()
    assert unsure["x"]["expected"]["push"] == pytest.approx((g @ t) / (t @ t), abs=1e-5)
    assert unsure["x"]["expected"]["error"] == pytest.approx(math.sqrt(((g - t) ** 2).mean()), abs=1e-5)


def test_average_linkage_has_figures_of_its_own():
    texts = ["a", "b", "c"]
    group = LabelledGroup("p", tuple(texts), (0, 0, 1), "x", 0)
    chain = {("a", "b"): 0.9, ("b", "c"): 0.8, ("a", "c"): 0.1}  # union-find makes one class, average linkage two
    pairs = [LabelledPair("p", *two, 0, 1, group=0) for two in chain]
    found = group_report.group_figures([group], pairs, np.array([*chain.values()]), np.full(3, 0.5))["x"]
    assert (found["classes"]["push"], found["classes"]["flat"]) == (0, 1)
    assert (found["average"]["push"], found["average"]["flat"]) == (pytest.approx(1), 0)


def test_a_group_with_a_pair_that_was_not_tested_has_no_figures(tmp_path):
    pairs, groups = read_inputs([Input(written(tmp_path / "g.jsonl", [group(1, "x")]))])
    assert group_report.group_figures(groups, pairs[1:], np.full(2, 0.5), np.full(2, 0.5)) == {}


def test_a_source_says_what_its_base_rate_is_and_what_is_said():
    pairs = [LabelledPair(f"p{k}", "a", "b", int(k < 4), k, "x" if k < 8 else "y") for k in range(10)]
    found = group_report.of_sources(pairs, np.linspace(0.21, 0.29, 10), np.full(10, 0.2))
    assert (
        found["x"]["similar"] == 0.5
        and found["x"]["said"] == pytest.approx(0.2411, abs=1e-3)
        and found["x"]["roc_auc"] == 0
    )
    assert found["x"]["similar_joined"] == 1 and found["x"]["different_joined"] == 1
    assert found["y"]["roc_auc"] is None and found["y"]["similar_joined"] is None


def test_the_threshold_for_balanced_accuracy_does_not_move_with_the_base_rate():
    random = np.random.default_rng(0)
    scores = [random.normal(0.4, 0.1, 4000), random.normal(0.6, 0.1, 4000)]
    found = {}
    for aim in report.AIMS:
        for kept in (400, 4000):
            labels = np.repeat([0, 1], [4000, kept])
            found[aim, kept] = report.best_threshold(labels, np.r_[scores[0], scores[1][:kept]].clip(0, 1), aim=aim)
    assert found["balanced_accuracy", 4000] == pytest.approx(0.5, abs=0.02)
    assert found["balanced_accuracy", 400] == pytest.approx(0.5, abs=0.04)
    assert found["accuracy", 400] > 0.57 and found["f1", 400] > 0.54
    # A weight does what copies do.
    labels, p = np.repeat([0, 1], [4000, 400]), np.r_[scores[0], scores[1][:400]].clip(0, 1)
    weighted = report.best_threshold(labels, p, np.where(labels, 10.0, 1.0), "accuracy")
    assert weighted == pytest.approx(0.5, abs=0.04)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.usefixtures("few_packaged_pairs")
def test_a_head_from_pairs_and_groups_reports_on_both(story_pairs, tmp_path, capsys):
    rows = []
    for k in range(12):
        names = [f"one apple {k}", f"apple {k}", "kiwi", "the kiwi"]
        rows.append(group(k, "model" if k % 2 else "humans", names, (0, 0, 1, 1)))
    groups = written(tmp_path / "groups.jsonl", rows)
    out = tmp_path / "head"
    command = [story_pairs, f"{groups}:0.5", "-o", str(out), "--folds", "3", "--dtype", "float32"]
    assert main([*command, "--threshold_for", "accuracy"]) == 0
    assert "12 groups" in capsys.readouterr().out
    written_report = json.loads((out / "report.json").read_text())
    assert set(written_report["sources"]) == {"stories.jsonl", "model", "humans"}
    assert set(written_report["groups"]) == {"all groups", "model", "humans"}
    # 26 of 40 pairs and, each half a pair, 24 of 72.
    assert written_report["base_rate"] == pytest.approx((26 + 12) / (40 + 36))
    assert written_report["arguments"]["inputs"][1] == {"data": groups, "weight": 0.5}
