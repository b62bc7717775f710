"""`darling-compare-methods`: its tables, its picture, and what it refuses."""

import json

import pytest

from darling_plugin.commands.compare_methods import main
from darling_plugin.evaluation.methods import METHODS


def line(quality=(1.0, 1.0, 0.5, 0.0), labels=(0, 0, 1, 2), **more):
    diversity = [sum(other != label for other in labels) / (len(labels) - 1) for label in labels]
    return {
        **{"step": 3, "split": "train", "prompt": "<|user|>Name a bird<|end|>"},
        "responses": [f"a bird of {label}" for label in labels],
        **{"labels": list(labels), "quality": list(quality), "diversity": diversity, "reward": list(quality)},
        **more,
    }


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")

    def run(lines, *flags, run=None, name="partitions.jsonl"):
        (tmp_path / "partitions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        if run is not None:
            (tmp_path / "run.json").write_text(run if isinstance(run, str) else json.dumps(run))
        status = main([str(tmp_path / name), *flags])
        return status, *capsys.readouterr()

    return run


def rows(said):
    return [line.replace("│", " ").split() for line in said.splitlines()]


@pytest.mark.parametrize("name", ["partitions.jsonl", ""])
def test_a_table_of_correlations_and_the_groups_that_differ_most(command, name):
    status, said, _ = command([line(), line(step=4, quality=(1.0, 0.8, 0.5, 0.0), labels=(0, 0, 0, 0))], name=name)
    assert status == 0
    table = {row[1]: row[2:] for row in rows(said) if len(row) > 2 and row[1] in METHODS}
    assert list(table) == list(METHODS)
    assert table["quality"] == ["0"] and table["inverse_class_size"][:2] == ["1.00"] * 2
    assert [len(cells) for cells in table.values()] == list(range(1, 1 + len(METHODS)))
    assert "no similarities in this log" in said
    assert said.index("step 3, agreement") < said.index("step 4, agreement")
    assert "Name a bird" in said and "user" not in said
    assert ["1", "0", "1.00", "a", "bird", "of", "0"] in rows(said)
    rewards, advantages = said.index("\nreward "), said.index("\nadvantage ")
    assert ["multiply", "0.67", "0.67", "0.50", "0.00"] in rows(said[rewards:advantages])
    assert ["inverse_class_size", "1.00", "1.00", "0.50", "0.00"] in rows(said[rewards:advantages])
    assert ["multiply", "+0.21", "+0.21", "+0.04", "-0.46"] in rows(said[advantages:])
    assert ["inverse_class_size", "+0.19", "+0.19", "-0.12", "-0.62"] in rows(said[advantages:])


def test_as_many_groups_as_asked_for(command):
    _, said, _ = command([line()] * 5, "--groups", "0")
    assert "agreement" not in said
    _, said, _ = command([line()] * 5, "--groups", "2")
    assert said.count("agreement") == 2


def test_with_the_flags_of_the_run_or_those_given(command):
    negative = [line(quality=(1.0, -1.0, 0.5, 0.0))]
    status, _, error = command(negative)
    assert status == 2 and "--quality_transform" in error
    assert command(negative, run={"darling": {"quality_transform": "sigmoid"}})[0] == 0
    assert command(negative, "--quality_transform", "group_min", run={"darling": {"quality_transform": None}})[0] == 0


def test_a_picture(command, tmp_path):
    status, said, _ = command([line()], "--picture", str(tmp_path / "methods.png"))
    assert status == 0 and "methods.png" in said
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")
    assert command([line()], "--picture", str(tmp_path / "none" / "methods.png"))[0] == 2
    status, _, error = command([line()], "--picture", str(tmp_path / "methods.txt"))
    assert status == 2 and "a picture's file" in error


@pytest.mark.parametrize(
    ("lines", "run", "expected"),
    [
        ([{"prompt": "p"}], None, "line 1, without step"),
        ([line(), line(quality=(1.0, 1.0))], None, "line 2, 2 quality of 4 responses"),
        ([line(), line(quality=(1.0, 1.0, None, 0.0))], None, "line 2, quality not in numbers"),
        ([line(labels=(0, 0, 1, "b"))], None, "labels not in numbers"),
        ([{**line(), "quality": 1.0}], None, "line 1, quality not as a list"),
        ([{**line(), "responses": "abcd"}], None, "line 1, str as responses"),
        ([line(similarity=[[1.0] * 4] * 3 + [[1.0]])], None, "line 1, a similarity that is not 4 times 4"),
        ([line(split="eval")], None, "training groups with classes"),
        ([], None, "training groups with classes"),
        ([line()], "{", "a run.json"),
        ([line()], {"flags": {}}, "a run.json"),
    ],
)
def test_what_cannot_be_compared_is_refused(command, lines, run, expected):
    status, said, error = command(lines, run=run)
    assert (status, said) == (2, "") and expected in error


def test_a_log_that_is_not_there(command):
    status, _, error = command([line()], name="missing/partitions.jsonl")
    assert status == 2 and "missing" in error
