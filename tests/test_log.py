"""What a run leaves on disk."""

import gzip
import json
import math
from types import SimpleNamespace

import pytest

from darling_plugin.errors import DarlingError
from darling_plugin.log import (
    NOT_LOGGED,
    append_partitions,
    groups_with_text,
    read_partitions,
    rewind_partitions,
    write_run,
)


def strict(text):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_run_json_is_strict_json_without_secrets(tmp_path):
    flags = SimpleNamespace(
        eval=SimpleNamespace(steps=math.inf),
        logger=SimpleNamespace(wandb=SimpleNamespace(key="secret", project="mine")),
        actor=SimpleNamespace(adam=SimpleNamespace(betas=(0.9, 0.95), lr=1e-6)),
        reward=SimpleNamespace(remote_url=["reward.py"], model_name_or_path=None),
    )
    write_run(str(tmp_path / "new"), darling={"enable": True}, partition_model={"threshold": 0.5}, openrlhf=flags)
    text = (tmp_path / "new" / "run.json").read_text()
    assert "secret" not in text
    assert strict(text)["openrlhf"] == {
        "eval": {"steps": "inf"},
        "logger": {"wandb": {"key": None, "project": "mine"}},
        "actor": {"adam": {"betas": [0.9, 0.95], "lr": 1e-6}},
        "reward": {"remote_url": ["reward.py"], "model_name_or_path": None},
    }
    assert strict(text)["versions"]["torch"]


def test_the_run_json_of_an_earlier_launch_is_kept(tmp_path):
    for launch in range(3):
        write_run(str(tmp_path), darling={"launch": launch}, partition_model={}, openrlhf=SimpleNamespace())
    found = [json.loads((tmp_path / name).read_text())["darling"] for name in ("run.1.json", "run.2.json", "run.json")]
    assert [each["launch"] for each in found] == [0, 1, 2]


def test_partitions_are_appended_a_line_a_group_whatever_the_text(tmp_path):
    records = [{"step": 1, "responses": ["a\u2028b\n", "é"]}, {"step": 1, "responses": ["\x85", '"', "\ud800"]}]
    append_partitions(str(tmp_path), records[:1])
    append_partitions(str(tmp_path), records[1:])
    lines = (tmp_path / "partitions.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == records


def test_a_compressed_log_is_read_and_texts_that_are_not_there_are_told(tmp_path):
    append_partitions(str(tmp_path), [{"step": 1, "responses": ["a", "b"]}, {"step": 2, "responses": [None, None]}])
    plain = tmp_path / "partitions.jsonl"
    expected = [["a", "b"], [NOT_LOGGED, NOT_LOGGED]]
    assert [record["responses"] for record in read_partitions(tmp_path)] == expected
    packed = tmp_path / "partitions.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert [record["responses"] for record in read_partitions(tmp_path)] == expected
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(DarlingError, match="partitions.jsonl"):
        read_partitions(tmp_path)


def test_a_line_that_is_none_is_named_by_its_number_and_only_the_last_may_be_unfinished(tmp_path):
    plain = tmp_path / "partitions.jsonl"
    plain.write_text('{"step": 1}\n\n{"step": 2}\n{"step": 3}')
    assert [record["step"] for record in read_partitions(tmp_path)] == [1, 2, 3], "the last lacks its newline alone"
    plain.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [record["step"] for record in read_partitions(tmp_path)] == [1, 2]
    plain.write_text('{"step": 1}\n{"step\n{"step": 3}\n')
    with pytest.raises(DarlingError, match=r"partitions.jsonl, line 2: "):
        read_partitions(tmp_path)


def test_which_groups_are_logged_with_their_texts():
    assert groups_with_text("all", 3, 5) == {0, 1, 2, 3, 4} and groups_with_text("none", 3, 5) == set()
    some = [groups_with_text("sample:2", step, 50) for step in range(40)]
    assert all(len(each) == 2 for each in some) and len(set().union(*some)) > 30, "others at each step"
    assert groups_with_text("sample:2", 7, 50) == some[7] and groups_with_text("sample:9", 0, 3) == {0, 1, 2}
    for bad in ("sample", "sample:0", "sample:-1", "sample:x", "some"):
        with pytest.raises(DarlingError, match="sample:N"):
            groups_with_text(bad, 0, 1)


def test_a_log_that_was_compressed_in_between_goes_on(tmp_path):
    append_partitions(str(tmp_path), [{"step": step, "split": "train", "responses": ["a"]} for step in (1, 2)])
    plain, packed = tmp_path / "partitions.jsonl", tmp_path / "partitions.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    rewind_partitions(str(tmp_path), 1, evaluates_again=False)
    append_partitions(str(tmp_path), [{"step": 2, "split": "train", "responses": ["b"]}])
    assert [(record["step"], record["responses"]) for record in read_partitions(tmp_path)] == [(1, ["a"]), (2, ["b"])]
    assert not packed.exists(), "or there would be two"
