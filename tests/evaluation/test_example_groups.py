"""Which groups of a step are shown, and how they look as rows and as Markdown."""

import torch

from darling_plugin.evaluation.example_groups import choose, markdown, rows

RECORD = {
    "prompt": "<|user|>\nName a | fruit.<|end|>\n<|assistant|>\n",
    "responses": ["a pear", "an <b>apple</b>\n| x", "a *pear*"],
    "labels": [1, 0, 1],
    "quality": [1.0, 0.5, 0.25],
    "diversity": [0.5, 1.0, 0.5],
    "reward": [0.5, 0.5, 0.125],
    "advantage": None,
}


def test_the_best_the_worst_and_another():
    reward = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.5, 0.0], [0.0, 0.1], [0.4, 0.4]])
    seen = [choose(reward, seed) for seed in range(40)]
    assert {(each["best"], each["worst"]) for each in seen} == {(1, 3)}
    assert {each["random"] for each in seen} == {0, 2, 4}
    assert choose(reward, 7) == choose(reward, 7)
    assert choose(reward[:2], 0) == {"best": 1, "worst": 0}
    assert choose(reward[:1], 0) == {"best": 0}
    assert choose(torch.zeros(2, 2), 0) == {"best": 0, "random": 1}, "all alike: none is the worst"


def test_rows_are_class_by_class_with_the_question_and_without_the_template():
    table = rows(RECORD, "best", 5)
    assert [row[:4] for row in table] == [[5, "best", "Name a | fruit.", label] for label in (0, 1, 1)]
    assert [row[4] for row in table] == ["an <b>apple</b>\n| x", "a pear", "a *pear*"]
    assert table[0][5:] == [0.5, 1.0, 0.5, None]
    left_out = rows({**RECORD, "labels": [-1, 0, 1]}, "best", 5)
    assert [row[3] for row in left_out] == [0, 1, -1]
    failed = rows({**RECORD, "labels": None, "diversity": None}, "best", 5)
    assert [row[3] for row in failed] == [None] * 3 and [row[4] for row in failed] == RECORD["responses"]


def test_markdown_shows_a_text_as_it_is_on_one_line():
    text = markdown([rows(RECORD, "best", 5), rows({**RECORD, "responses": ["y" * 900] * 3}, "worst", 5)])
    lines = text.split("\n")
    assert lines[0] == r"**best**: Name a \| fruit."
    assert lines[4] == r"| 0 | an &lt;b&gt;apple&lt;/b&gt; \| x | 0.5 | 1 | 0.5 | – |"
    assert lines[6] == r"| 1 | a \*pear\* | 0.25 | 0.5 | 0.125 | – |"
    assert "y" * 500 + "…" in text and "y" * 501 not in text
