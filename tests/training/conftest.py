"""Fixtures of the tests of training: labelled pairs and small models that learn from them in seconds."""

import json

import pytest
from tiny_classifiers import some_texts
from training_inputs import story, trainable

from darling_plugin.training import head, report


@pytest.fixture
def few_resamples(monkeypatch):
    """The bootstrap of a report takes seconds, and test_report.py tests it."""
    monkeypatch.setattr(report, "RESAMPLES", 20)


@pytest.fixture
def few_packaged_pairs(tmp_path, monkeypatch):
    """An eighth of the pairs of short answers and sentences: for what does not depend on how well they are told."""
    lines = head.PACKAGED.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "packaged.jsonl").write_text("".join(lines[::8]), encoding="utf-8")
    monkeypatch.setattr(head, "PACKAGED", tmp_path / "packaged.jsonl")


@pytest.fixture
def tree_pairs(tmp_path):
    """Pairs that are different where either response has a tree, which the smallest model learns: pairs.jsonl."""
    texts = [text.replace("tree", "mat") for text in some_texts(240, 6)]
    rows = []
    for k in range(0, 240, 2):
        a, b = texts[k : k + 2]
        similar = k % 4 // 2
        if not similar:
            a, b = (f"{a} tree", b) if k % 8 else (a, f"tree {b}")
        if a != b:
            rows.append({"prompt": f"prompt {k}", "generation_0": a, "generation_1": b, "similar": similar})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


@pytest.fixture
def bert(tmp_path):
    return trainable(tmp_path / "bert", "bert")


@pytest.fixture
def story_pairs(tmp_path):
    """Stories that share subject and ending or neither, and short answers."""
    subjects, endings = (
        ("old sailor", "young teacher", "tired fox", "last astronaut"),
        ("sailed home", "slept all day"),
    )
    rows = []
    for k in range(40):
        a = story(subjects[k % 4], endings[k % 2])
        b = a.replace("before dawn", f"at {1 + k} in the morning") if k % 3 else story(subjects[k % 4 - 1], "wept")
        rows.append({"prompt": f"Story {k}", "generation_0": a, "generation_1": b, "similar": int(k % 3 > 0)})
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)
