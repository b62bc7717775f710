"""`darling-partition`: results, bad lines, partition models and flags."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from partition_command import COLOURS, LEXICAL, joined, numbered, parsed, start

from darling_plugin.commands import partition as partition_command
from darling_plugin.commands.partition import GROUPS_AT_ONCE, main
from darling_plugin.config import DarlingConfig
from darling_plugin.diversity import DIVERSITIES
from darling_plugin.partition import CLUSTERINGS, Group, load_partition_model, measure

# --- results


def test_every_key_is_kept_and_labels_and_diversity_come_last(command):
    done = command([{"id": 7, **COLOURS, "meta": {"score": [1.5, None]}}], *LEXICAL)
    assert done.status == 0
    expected = {"id": 7, **COLOURS, "meta": {"score": [1.5, None]}, "labels": [0, 0, 1, 2]}
    assert done.records == [{**expected, "diversity": [torch.tensor(2 / 3).item()] * 2 + [1.0, 1.0]}]
    assert list(done.records[0]) == ["id", "prompt", "responses", "meta", "labels", "diversity"]


@pytest.mark.parametrize("model", ["default", "lexical", "embedding"])
def test_a_lone_surrogate_is_partitioned_and_comes_out_as_it_came(command, model):
    line = {"prompt": "Name a \ud800", "responses": ["red \udc00", "red \udfff", "blue"]}
    done = command([line], "--partition_model", model, "--partition_text", "regex:(.*)")
    assert (done.status, done.err.count("failed")) == (0, 0)
    found = done.records[0]
    assert (found.pop("similarity", None) is not None) == (model == "default")  # of whose classes it is the reason
    assert found == {**line, "compared": [None] * 3, "labels": [0, 0, 1], "diversity": [0.5, 0.5, 1.0]}


@pytest.mark.parametrize("diversity", DIVERSITIES)
@pytest.mark.parametrize("clustering", CLUSTERINGS)
@pytest.mark.parametrize("threshold", [None, 0.1])
def test_results_are_those_of_measure(command, clustering, diversity, threshold):
    responses = ["a b c", "b c d", "c d e", "d e f", "x", "x y"]
    records = [{"prompt": "p", "responses": responses[: k + 1]} for k in range(len(responses))]
    flags = [] if threshold is None else ["--threshold", str(threshold)]
    done = command(records, *LEXICAL, "--clustering", clustering, "--diversity", diversity, *flags)
    model = load_partition_model("lexical", threshold=threshold, clustering=clustering)
    expected = measure(model, [Group("p", record["responses"]) for record in records], diversity)
    assert [each["labels"] for each in done.records] == [each.labels.tolist() for each in expected]
    assert [each["diversity"] for each in done.records] == [each.diversity.tolist() for each in expected]
    if diversity == "classes" and clustering != "average":
        assert not any("similarity" in each for each in done.records)
    else:
        similarities = [torch.tensor(each["similarity"]) for each in done.records]
        assert all(torch.allclose(*two) for two in zip(similarities, [x.similarity for x in expected], strict=True))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system(tmp_path, capfdbinary, end):
    path = tmp_path / "groups.jsonl"
    path.write_bytes(end.join([json.dumps(COLOURS), "", "nonsense", json.dumps(COLOURS)]).encode())
    assert main([str(path), *LEXICAL]) == 1
    out, err = capfdbinary.readouterr()
    assert [each["labels"] for each in parsed(out)] == [[0, 0, 1, 2]] * 2
    assert b"line 3: not JSON" in err


def test_noveltybench_calls_responses_generations(command):
    line = {"id": 3, "prompt": "p", "generations": ["so: red", "well: red", "blue \ud800"]}
    done = command([line, {"prompt": "p"}, {"prompt": "p", "generations": None}], *LEXICAL)
    assert done.records == [{**line, "labels": [0, 1, 2], "diversity": [1.0] * 3}]
    assert "line 2: needs a list as responses, found no responses" in done.err
    part = command([line], *LEXICAL, "--partition_text", "after:: ")
    assert part.records[0]["compared"] == ["red", "red", ""] and part.records[0]["labels"] == [0, 0, 1]


def test_a_part_of_each_response_is_compared(command):
    lines = [{"prompt": "p", "responses": ["so: red", "well: red", "none"]}, {"prompt": "q", "responses": ["a", "b"]}]
    done = command(lines, *LEXICAL, "--partition_text", "after:: ")
    assert done.records[0] == {
        **lines[0],
        "compared": ["red", "red", ""],
        "labels": [0, 0, 1],
        "diversity": [0.5, 0.5, 1.0],
    }
    assert done.records[1]["labels"] == [0, 0], "without the mark they count as empty"
    assert "3 responses lack the text that is compared" in done.err


def test_a_line_on_which_the_text_function_fails_is_named(command, tmp_path):
    file = tmp_path / "part.py"
    file.write_text("def part(prompt, response):\n    return response.split(': ')[1]\n")
    lines = [{"prompt": "p", "responses": ["none"]}, {"prompt": "p", "responses": ["so: red"]}]
    done = command(lines, *LEXICAL, "--partition_text", f"{file}:part")
    assert (done.status, len(done.records), done.records[0]["compared"]) == (1, 1, ["red"])
    assert "line 1: --partition_text failed: IndexError" in done.err


def test_the_report_compares_every_kind_of_diversity_with_the_labels(command):
    right = {"prompt": "p", "responses": ["a b", "b a", "c"], "labels": [0, 0, 1]}
    flat = {"prompt": "p", "responses": ["x", "y", "z"], "labels": [0, 0, 1]}
    left_out = {**right, "labels": [0, 0, -1]}  # a gate's, of a log: no class that could be told right
    lines = [right, {**COLOURS}, {**right, "labels": [0, 1]}, flat, left_out]
    done = command(lines, *LEXICAL, "--report", "--threshold", "0.3")
    assert [each["true_labels"] for each in done.records] == [[0, 0, 1]] * 2
    assert [each["labels"] for each in done.records] == [[0, 0, 1], [0, 1, 2]]
    assert "line 2: needs a class number, from 0 on, for each response as labels, found None" in done.err
    assert "line 3: needs a class number" in done.err and "line 5: needs a class number, from 0 on" in done.err
    rows = [re.findall(r"[\w.-]+", line) for line in done.err.splitlines() if "│" in line]
    # One of two groups is told right, of the other nothing arrives: push 1/2, noise as much as that again.
    assert rows[0] == ["classes", "0.707", "0.500", "1.000", "0.167", "1"]
    assert [row[0] for row in rows] == ["classes", "pairs", "expected"]
    assert "error of no signal at all: 0.236" in done.err


def test_lines_come_out_in_order_across_batches(command):
    records = numbered(2 * GROUPS_AT_ONCE + 3)
    done = command(records, *LEXICAL)
    assert [each["prompt"] for each in done.records] == [each["prompt"] for each in records]
    assert [each["responses"] for each in done.records] == [each["responses"] for each in records]


def test_the_model_gets_full_batches(command, monkeypatch):
    asked = []

    def counting(model, groups, diversity, *, with_similarity):
        asked.append(len(groups))
        return measure(model, groups, diversity, with_similarity=with_similarity)

    monkeypatch.setattr(partition_command, "measure_each", counting)
    lines = [line for record in numbered(GROUPS_AT_ONCE + 1) for line in (b"bad", b"", record)]
    command(lines, *LEXICAL)
    assert asked == [GROUPS_AT_ONCE, 1]


def test_what_an_earlier_call_made_of_pairs_and_texts_does_not_stay(command):
    old = {"similarity": [[1, 0.9], [0.9, 1]], "compared": ["x", None]}
    (found,) = command([{"prompt": "p", "responses": ["a", "b"], **old}], *LEXICAL).records
    assert not {"similarity", "compared"} & set(found)


def test_old_labels_are_overwritten(command):
    done = command([{"labels": "old", **COLOURS, "diversity": None}], *LEXICAL)
    assert done.records[0]["labels"] == [0, 0, 1, 2]
    assert done.records[0]["diversity"][2:] == [1.0, 1.0]


def test_a_group_of_one_response_is_one_class_of_full_diversity(command):
    done = command([{"prompt": "p", "responses": ["alone"]}], *LEXICAL)
    assert (done.records[0]["labels"], done.records[0]["diversity"]) == ([0], [1.0])
    assert "1 groups, 1 responses, 0 pairs, 1.00 classes a group" in done.err, "it has no others to differ from"
    both = command([{"prompt": "p", "responses": ["alone"]}, {"prompt": "q", "responses": ["a", "a"]}], *LEXICAL)
    assert "mean diversity 0.000" in both.err


def test_any_text_comes_out_as_it_went_in(command):
    texts = ["日本語", "a\u2028b\x85c\n\x00", "\ud800", "e\u0301", "😀", "\ufeff", "\\ud800"]
    done = command([b"\xef\xbb\xbf" + json.dumps({"prompt": "é", "responses": texts}).encode()], *LEXICAL)
    assert done.records[0]["responses"] == texts
    assert (done.status, done.records[0]["prompt"]) == (0, "é")
    assert "日本語".encode() in done.out


def test_a_line_of_megabytes_is_whole_in_a_pipe():
    record = {"prompt": "p", "responses": ["long " * 2**20, "short"]}
    process = start(*LEXICAL)
    out, err = process.communicate(joined([record, COLOURS]))
    assert (process.returncode, [each["responses"] for each in parsed(out)]) == (
        0,
        [record["responses"], COLOURS["responses"]],
    ), err


def test_no_input_is_no_error(command):
    done = command([], *LEXICAL)
    assert (done.status, done.out) == (0, b"")
    assert done.err.endswith("0 groups, 0 responses, 0 pairs, 0 bad lines\n")


def test_the_summary_counts_what_was_measured(command):
    done = command([COLOURS, {"prompt": "p", "responses": ["same", "same"]}, b"bad"], *LEXICAL)
    diversity = (2 / 3 + 2 / 3 + 1 + 1) / 6
    assert done.err.endswith(
        f"2 groups, 6 responses, 7 pairs, mean diversity {diversity:.3f}, 2.00 classes a group, 1 bad lines\n"
    )


# --- bad lines


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"prompt": "p"', "not JSON: Expecting ',' delimiter at character 15"),
        (b'{"prompt": "p"} {}', "not JSON: Extra data at character 17"),
        (b'{"prompt": "\xff"}', "not UTF-8: invalid start byte at byte 13"),
        (b"1" * 5000, "JSON that Python cannot read: Exceeds the limit"),
        (b"[" * 100_000, "JSON that Python cannot read: maximum recursion depth exceeded"),
        (b'["p"]', "needs an object with prompt and responses, found list"),
        (b"null", "needs an object with prompt and responses, found NoneType"),
        ({"responses": ["a"]}, "needs a str as prompt, found no prompt"),
        ({"prompt": None, "responses": ["a"]}, "needs a str as prompt, found NoneType"),
        ({"prompt": "p"}, "needs a list as responses, found no responses"),
        ({"prompt": "p", "responses": "abc"}, "needs a list as responses, found str"),
        ({"prompt": "p", "responses": {"a": 1}}, "needs a list as responses, found dict"),
        ({"prompt": "p", "responses": []}, "found no responses"),
        ({"prompt": "p", "responses": ["a", 3]}, "found int at position 1"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_goes_on(command, line, fault):
    done = command([COLOURS, b"", b" \t\r", line, COLOURS], *LEXICAL)
    assert done.status == 1
    assert [each["prompt"] for each in done.records] == [COLOURS["prompt"]] * 2
    faults = [each for each in done.err.splitlines() if each.startswith("line ")]
    assert len(faults) == 1
    assert faults[0].startswith("line 4: ")
    assert fault in faults[0]
    assert done.err.endswith("1 bad lines\n")


def test_a_last_line_without_its_end_counts(tmp_path, capfdbinary):
    path = tmp_path / "groups.jsonl"
    path.write_bytes(joined([COLOURS]) + json.dumps(COLOURS).encode())
    assert main([str(path), *LEXICAL]) == 0
    assert len(parsed(capfdbinary.readouterr().out)) == 2


def test_a_group_that_the_model_fails_on_costs_only_itself(command, models):
    records = numbered(5)
    records[1]["prompt"], records[3]["prompt"] = "poison", "panic"
    done = command([b"", *records], "--partition_model", f"{models}:Picky")
    assert done.status == 1
    assert [each["prompt"] for each in done.records] == ["prompt 0", "prompt 2", "prompt 4"]
    faults = [each for each in done.err.splitlines() if each.startswith("line ")]
    assert faults[0].startswith("line 3: the partition model failed: ZeroDivisionError: no way (")
    assert f"{models}:" in faults[0], "the place in the user's file"
    assert faults[1].startswith("line 5: the partition model failed: SystemExit: panic")
    assert len(faults) == 2
    assert done.err.endswith("2 bad lines\n")


def test_a_broken_accelerator_ends_it_and_what_came_before_is_written(command, models):
    """One by one all groups would fail, and each would be named as one on which the model fails."""
    records = numbered(2 * GROUPS_AT_ONCE + 5)
    records[GROUPS_AT_ONCE + 3]["prompt"] = "illegal"
    done = command([b"bad", *records], "--partition_model", f"{models}:Picky")
    assert done.status == 2
    assert [each["prompt"] for each in done.records] == [f"prompt {k}" for k in range(GROUPS_AT_ONCE)]
    said = " ".join(done.err.split())
    assert "found: AcceleratorError: CUDA error: an illegal memory access was encountered (" in said
    first, last = GROUPS_AT_ONCE + 2, 2 * GROUPS_AT_ONCE + 1
    assert f"on the lines {first} to {last}; before: {GROUPS_AT_ONCE} groups" in said
    assert f"start again with the lines from {first} on" in said
    assert done.err.count("asked") == 1, "all together, and not one by one after it"
    assert "the partition model failed" not in done.err and "Traceback" not in done.err


def test_labels_that_do_not_fit_are_the_models_failure(command, tmp_path):
    path = tmp_path / "short.py"
    path.write_text(
        "from darling_plugin import PartitionModel\n"
        "class Short(PartitionModel):\n"
        "    def partition(self, groups):\n"
        "        return [[0, 1] for group in groups]\n"
    )
    done = command([*numbered(1), COLOURS], "--partition_model", f"{path}:Short")
    assert (done.status, len(done.records)) == (1, 1)
    assert "line 2: the partition model failed: DarlingError: " in done.err
    assert "needed: 4 integer labels" in done.err


# --- partition models and flags


def test_a_model_of_your_own_is_named_by_its_file(command, models):
    done = command(numbered(2), "--partition_model", f"{models}:ByLength")
    assert (done.status, [each["labels"] for each in done.records]) == (0, [[0, 0], [0, 1]])


def test_a_model_of_your_own_is_registered_by_the_import_path(command):
    example = Path(__file__).parents[2] / "examples" / "own_partition_model.py"
    done = command([COLOURS], "--import_path", str(example), "--partition_model", "opening")
    assert (done.status, done.records[0]["labels"]) == (0, [0, 1, 2, 3])


def test_what_a_model_prints_stays_out_of_the_results(models):
    process = start("--partition_model", f"{models}:Talker")
    out, err = process.communicate(joined(numbered(2)))
    assert [each["labels"] for each in parsed(out)] == [[0, 0], [0, 1]]
    assert b"a model that talks" in err
    assert b"past Python, too" in err


def test_defaults_and_help_are_those_of_training():
    flags = {action.dest: action for action in partition_command._parser()._actions}
    for flag in fields(DarlingConfig):
        if flag.name in ("partition_model", "threshold", "clustering", "import_path"):
            assert flags[flag.name].default == flag.default
            assert flags[flag.name].help.startswith(flag.metadata["help"])
            assert flags[flag.name].choices == flag.metadata["choices"]


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--partition_model", "lexcal"], "did you mean 'lexical'?"),
        (["--partition_model", "lexical:x"], "lexical:x"),
        (["--partition_model", "nowhere.py:Class"], "nowhere.py"),
        (["--import_path", "nowhere.py", *LEXICAL], "nowhere.py"),
        ([*LEXICAL, "--threshold", "nan"], "--threshold: a finite number"),
        ([*LEXICAL, "-o", "no/such/folder/out.jsonl"], "a file that can be written"),
    ],
)
def test_a_wrong_use_is_refused_before_anything_is_loaded(command, monkeypatch, flags, fault):
    monkeypatch.setattr(partition_command, "load_partition_model", None)
    done = command([COLOURS], *flags)
    assert (done.status, done.out) == (2, b"")
    assert fault in done.err
    assert "--darling." not in done.err, "flags that this command does not have"


@pytest.mark.parametrize("flags", [["--diversity", "most"], ["--threshold", "high"], ["--partition", "lexical"]])
def test_an_unknown_flag_or_value_is_refused(flags):
    with pytest.raises(SystemExit) as exited:
        main(flags)
    assert exited.value.code == 2


@pytest.mark.parametrize(("method", "do"), [("best", "known: union_find"), ("pairwise", "pass --diversity pairs")])
def test_a_clustering_that_there_is_not_is_refused_with_what_there_is(method, do, capsys):
    assert main(["--clustering", method]) == 2
    assert do in capsys.readouterr().err


def test_weights_that_are_not_there_are_no_traceback(command, models):
    done = command([COLOURS], "--partition_model", f"{models}:NotThere")
    assert (done.status, done.out) == (2, b"")
    assert "no weights at /nowhere" in done.err


def test_an_unreadable_file_is_refused(tmp_path, capfd):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        assert main([str(path), *LEXICAL]) == 2
        assert "a file that can be read" in capfd.readouterr().err


def test_a_wrong_spec_on_the_command_line_is_no_traceback():
    process = start("--partition_model", "lexcal")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert b"lexcal" in err
    assert b"Traceback" not in err
