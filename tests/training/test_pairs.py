"""Labelled pairs: read from files and data sets, their faults, and folds by prompt."""

import json
import re

import datasets
import pytest

from darling_plugin.errors import DarlingError
from darling_plugin.training.pairs import Columns, Input, folds_by_prompt, groups_of, read_inputs, read_pairs


def row(prompt="p", first="a", second="b", similar=0, **more):
    return {"prompt": prompt, "generation_0": first, "generation_1": second, "similar": similar, **more}


def write(path, rows):
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in rows) + "\n")
    return str(path)


def test_pairs_are_read_with_their_lines_and_repeats_kept_once(tmp_path):
    rows = [
        row(model="m"),
        "",
        row(second="c", similar=True),
        row(first="b", second="a"),
        row(second="d", similar=1.0),
    ]
    pairs = read_pairs(write(tmp_path / "pairs.jsonl", rows))
    assert [(p.first, p.second, p.similar, p.line) for p in pairs] == [
        ("a", "b", 0, 1),
        ("a", "c", 1, 3),
        ("a", "d", 1, 5),
    ]


def test_other_names_of_the_columns(tmp_path):
    rows = [{"q": "p", "x": "a", "y": "b", "same": 0}, {"q": "p", "x": "a", "y": "c", "same": 1}]
    pairs = read_pairs(write(tmp_path / "pairs.jsonl", rows), Columns("q", "x", "y", "same"))
    assert [p.similar for p in pairs] == [0, 1]


def test_a_group_with_labels_is_all_its_pairs(tmp_path):
    path = write(tmp_path / "groups.jsonl", [{"prompt": "p", "responses": ["a", "b", "c"], "labels": [0, 1, 0]}])
    pairs = read_pairs(path)
    assert {(p.first, p.second): p.similar for p in pairs} == {("a", "b"): 0, ("a", "c"): 1, ("b", "c"): 0}
    (group,) = groups_of(pairs)
    assert group[0] == "p" and group[2][group[1].index("a")][group[1].index("c")] == 1


def test_pairs_and_groups_in_one_data_set_have_null_in_each_others_columns(tmp_path):
    pair = {"prompt": "p", "generation_0": "a", "generation_1": "b", "similar": 1}
    group = {"prompt": "q", "responses": ["a", "b"], "labels": [0, 1]}
    path = tmp_path / "both.jsonl"
    path.write_text("".join(json.dumps(dict.fromkeys([*pair, *group]) | row) + "\n" for row in (pair, group)))
    assert [(each.prompt, each.similar) for each in read_pairs(str(path))] == [("p", 1), ("q", 0)]


def test_a_prompt_with_a_pair_that_has_no_label_is_no_group(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [row(), row(second="c", similar=1)])
    assert groups_of(read_pairs(path)) == []


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ("{", "not a JSON object in UTF-8"),
        ("[1]", "not a JSON object in UTF-8"),
        ({"prompt": "p", "generation_0": "a", "generation_1": "b"}, "no value of similar"),
        (row(similar=None), "no value of similar"),
        (row(similar=2), "similar neither 0 nor 1"),
        (row(similar=0.5), "similar neither 0 nor 1"),
        (row(similar="1"), "similar neither 0 nor 1"),
        (row(similar=[1]), "similar neither 0 nor 1"),
        (row(first=None), "no value of generation_0"),
        (row(prompt=3), "prompt that is no text"),
        (row(second=" \n"), "an empty response"),
        (row(first="a", second=" a"), "identical responses with similar 0"),
        (row(prompt="q", first="a", second="b", similar=1), "the same pair labelled both ways"),
        (row(prompt="q", first="b ", second="a", similar=1), "the same pair labelled both ways"),
        (
            {"prompt": "p", "responses": ["a", "b"], "labels": [0]},
            "responses and labels that are no lists of one length",
        ),
        ({"prompt": "p", "responses": ["a", ""], "labels": [0, 1]}, "responses that are not all non-empty text"),
        ({"prompt": "p", "responses": ["a", "b"], "labels": [0, None]}, "labels that are not all whole numbers"),
    ],
)
def test_faults_are_counted_with_their_lines(tmp_path, bad, fault):
    path = write(tmp_path / "pairs.jsonl", [row(prompt="q"), bad, row(second="c", similar=1), "nonsense", bad])
    with pytest.raises(DarlingError) as caught:
        read_pairs(path)
    found = str(caught.value)
    if "both ways" in fault:
        assert f"3 lines (1, 2, 5): {fault}" in found
    elif fault == "not a JSON object in UTF-8":
        assert f"3 lines (2, 4, 5): {fault}" in found
    else:
        assert f"2 lines (2, 5): {fault}" in found and "1 line (4): not a JSON object in UTF-8" in found


def test_many_faulty_lines_are_counted_and_the_first_named(tmp_path):
    with pytest.raises(DarlingError, match=re.escape("25 lines (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...)")):
        read_pairs(write(tmp_path / "pairs.jsonl", ["?"] * 25))


def test_line_ends_of_any_kind_and_lone_surrogates(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [
        json.dumps({"prompt": "p", "generation_0": "a \ud800", "generation_1": "b", "similar": 0}),
        json.dumps({"prompt": "p", "responses": ["x \udfff", "x y", "z"], "labels": [0, 0, 1]}),
    ]
    path.write_bytes("\r".join(lines).encode())
    pairs, groups = read_inputs([Input(str(path))])
    assert [pair.line for pair in pairs] == [1, 2, 2, 2]
    assert pairs[0].first == "a \ufffd" and groups[0].responses[0] == "x \ufffd", "no tokenizer takes the half of one"


def test_bytes_that_are_no_utf_8_are_a_fault(tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DarlingError, match="not a JSON object in UTF-8"):
        read_pairs(str(tmp_path / "pairs.jsonl"))


@pytest.mark.parametrize("similar", [0, 1])
def test_one_label_only_is_refused(tmp_path, similar):
    rows = [row(similar=similar), row(second="c", similar=similar)]
    with pytest.raises(DarlingError, match=f"2 pairs in .*, {2 * similar} of them similar"):
        read_pairs(write(tmp_path / "pairs.jsonl", rows))


def test_a_data_set_of_hugging_face_in_a_folder(tmp_path):
    rows = [row(), row(second="c", similar=1)]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "splits")
    assert [p.similar for p in read_pairs(str(tmp_path / "plain"))] == [0, 1]
    assert [p.line for p in read_pairs(str(tmp_path / "splits"))] == [1, 2]
    with pytest.raises(DarlingError, match="1 pairs"):
        read_pairs(str(tmp_path / "splits"), split="test")
    with pytest.raises(DarlingError, match="a JSONL file, or a data set"):
        read_pairs(str(tmp_path / "missing"))


def test_no_prompt_is_in_two_folds_and_the_split_is_the_seeds(tmp_path):
    rows = [row(f"prompt {k}", second=f"{k} {j}", similar=(k + j) % 2) for k in range(20) for j in range(1 + k % 4)]
    pairs = read_pairs(write(tmp_path / "pairs.jsonl", rows))
    folds = folds_by_prompt(pairs, 4, seed=3)
    assert sorted(k for part in folds for k in part) == list(range(len(pairs)))
    prompts = [{pairs[k].prompt for k in part} for part in folds]
    assert all(not a & b for i, a in enumerate(prompts) for b in prompts[:i])
    assert folds == folds_by_prompt(pairs, 4, seed=3) != folds_by_prompt(pairs, 4, seed=4)


def test_too_few_prompts_or_labels_for_the_folds_are_refused(tmp_path):
    pairs = read_pairs(write(tmp_path / "pairs.jsonl", [row(), row(second="c", similar=1)]))
    with pytest.raises(DarlingError, match="pairs of at least 5 prompts"):
        folds_by_prompt(pairs, 5, seed=0)
    rows = [row(f"prompt {k}", similar=int(k == 0)) for k in range(8)]
    pairs = read_pairs(write(tmp_path / "pairs.jsonl", rows))
    with pytest.raises(DarlingError, match="1 similar pairs and 7 others"):
        folds_by_prompt(pairs, 4, seed=0)
