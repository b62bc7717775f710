"""What other methods make of a log: the numbers of shaping, rank correlations, the groups they disagree on."""

import itertools
import math

import pytest
import torch
from scipy.stats import spearmanr

from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.methods import METHODS, compare_methods
from darling_plugin.shaping import Groups, Similarities, shape


def record(quality, labels, similarity=None, split="train", step=1):
    different = [sum(other != label for other in labels) / (len(labels) - 1) for label in labels]
    line = {"step": step, "split": split, "prompt": "p", "responses": ["r"] * len(labels)}
    line |= {"quality": quality, "labels": labels, "diversity": different}
    return line if similarity is None else {**line, "similarity": similarity}


def of_classes(labels):
    return [[float(a == b) for b in labels] for a in labels]


def some_records(n, count, seed):
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for _ in range(count):
        labels = torch.randint(0, 3, (n,), generator=generator).tolist()
        similarity = torch.rand(n, n, generator=generator)
        similarity = (similarity + similarity.T) / 2
        quality = (torch.randint(0, 5, (n,), generator=generator) / 4).tolist()
        lines.append(record(quality, labels, similarity.fill_diagonal_(1.0).tolist()))
    return lines


def test_each_method_gives_what_the_run_would_have_trained_on():
    lines = some_records(4, 5, seed=1)
    comparison = compare_methods(lines, {"diversity_floor": 0.75, "quality_transform": "sigmoid", "weight": 0.5})
    found = {id(each.record): each for each in comparison.groups}
    for line in lines:
        for name, flags in METHODS.items():
            groups = Groups(
                *(torch.tensor([line[key]]) for key in ("quality", "labels", "diversity")),
                quality_only=torch.tensor([False]),
                similarities=Similarities(torch.tensor([line["similarity"]]), 0.5, "union_find"),
            )
            # reasoning_novelty goes by the quality as it is: above 0 is right.
            transform = None if name == "reasoning_novelty" else "sigmoid"
            config = DarlingConfig(
                **{"advantage": "centered", **flags}, diversity_floor=0.75, quality_transform=transform
            )
            shaped = shape(groups, config, lambda reward: reward)
            each = found[id(line)]
            assert each.reward[name] == pytest.approx(shaped.reward[0].tolist())
            assert each.advantage[name] == pytest.approx(shaped.advantage[0].tolist(), abs=1e-5)


def test_the_correlations_are_scipys_over_groups_of_any_size():
    lines = [
        *some_records(4, 6, seed=2),
        *some_records(7, 5, seed=3),
        record([1.0] * 4, [0, 0, 0, 1], of_classes([0, 0, 0, 1])),
    ]
    comparison = compare_methods(lines)
    assert comparison.of_similarities and len(comparison.groups) == 12
    for (row, a), (column, b) in itertools.combinations(enumerate(METHODS), 2):
        known = [
            spearmanr(each.advantage[a], each.advantage[b]).statistic
            for each in comparison.groups
            if len(set(each.advantage[a])) > 1 and len(set(each.advantage[b])) > 1
        ]
        assert comparison.rank_correlation[row, column] == pytest.approx(sum(known) / len(known))
    assert comparison.silent["quality"] == sum(len(set(each.record["quality"])) == 1 for each in comparison.groups)
    assert comparison.silent["inverse_class_size"] == comparison.silent["quality"] >= 1


def test_groups_come_by_agreement_and_those_without_a_say_last():
    agreed = record([1.0, 0.5, 0.25, 0.0], [0, 0, 0, 0])
    torn = record([1.0, 1.0, 1.0, 0.0], [0, 0, 0, 1])
    nothing = record([1.0, 1.0], [0, 0])  # all methods but the greedy one give both the same
    comparison = compare_methods([agreed, nothing, torn])
    assert [each.record for each in comparison.groups] == [torn, agreed, nothing]
    assert comparison.groups[0].agreement < comparison.groups[1].agreement and math.isnan(
        comparison.groups[2].agreement
    )
    assert not comparison.of_similarities


def test_what_differs_by_rounding_alone_says_nothing():
    # 0.3 times a third and 0.1 times 1, which are not the same as float32.
    assert compare_methods([record([0.3, 0.3, 0.3, 0.1], [0, 0, 0, 1])]).silent["multiply"] == 1


def test_evaluation_failed_groups_and_groups_of_one_are_passed_over():
    used = record([1.0, 0.0], [0, 1])
    others = [record([1.0, 0.0], [0, 1], split="eval"), {**used, "labels": None, "diversity": None}]
    others.append({**used, "labels": [0], "quality": [1.0], "diversity": [1.0]})
    assert [each.record for each in compare_methods([*others, used]).groups] == [used]
    with pytest.raises(DarlingError, match="training groups with classes"):
        compare_methods(others)


def test_negative_qualities_need_a_transform():
    lines = [record([-1.0, 0.5], [0, 1])]
    with pytest.raises(DarlingError, match="quality_transform"):
        compare_methods(lines, {"quality_transform": None})
    assert len(compare_methods(lines, {"quality_transform": "group_min"}).groups) == 1


def test_what_a_gate_left_out_is_compared_as_it_is_trained_on():
    line = record([1.0, 0.5, 0.0], [0, 1, -1], [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    line["diversity"] = [1.0, 1.0, 0.0]
    (group,) = compare_methods([line]).groups
    assert group.reward["redundancy"] == pytest.approx([1 / 1.5, 0.5 / 1.5, 0.0])
    assert group.reward["nearest_neighbour"] == pytest.approx([1.5, 1.0, 0.0])
