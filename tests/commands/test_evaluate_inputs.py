"""`darling-evaluate` on inputs whose names, prompts or qualities are not as one would have them."""

import gzip
import json
import re

import pytest

from darling_plugin.commands.evaluate import main
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.comparison import check_output
from darling_plugin.evaluation.measures import Interval
from darling_plugin.evaluation.pictures import draw


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def group(prompt, responses, **more):
    return {"prompt": prompt, "responses": responses, **more}


@pytest.mark.parametrize(
    ("one", "other"),
    [("Why? ", "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"), ("caf\u00e9", "cafe\u0301")],
)
def test_one_prompt_in_two_spellings_is_paired(one, other, tmp_path):
    paths = [write(tmp_path / f"{k}.jsonl", [group(text, ["a"], labels=[0])]) for k, text in enumerate((one, other))]
    assert main([*paths, "-o", str(tmp_path / "out"), "--no_cosine"]) == 0
    ((_, difference), _) = json.loads((tmp_path / "out" / "summary.json").read_text())["differences"].items()
    assert difference["distinct"]["prompts"] == 1


def test_what_is_redirected_has_every_name_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [group("p", ["a", "b", "a", "b"], labels=[0, 1, 0, 1], quality=[1, 0, 1, 1])]
    paths = [write(tmp_path / f"a_model_of_some_name_{k}.jsonl", rows) for k in range(6)]
    assert main([*paths, "--no_cosine"]) == 0
    said = capsys.readouterr().out
    for name in (*(f"a_model_of_some_name_{k}" for k in range(6)), "distinct_correct_4", "darling_utility"):
        assert f" {name} " in said, name
    table = said.split("classes of")[0]
    assert "…" not in table and sum("distinct_correct_" in line for line in table.splitlines()) == 3


def test_a_models_name_may_be_one_that_a_picture_would_read_as_a_formula(tmp_path):
    figures = {"quality": Interval(0.5, 0.4, 0.6, 1), "diversity": Interval(0.5, 0.4, 0.6, 1)}
    assert draw(tmp_path / "out.svg", dict.fromkeys(("a$x_{$b", "_c"), figures))
    drawn = re.findall("<!--(.*?)-->", (tmp_path / "out.svg").read_text())
    assert [text.strip() for text in drawn][-2:] == ["a$x_{$b", "_c"], "the legend, which has each text as a comment"
    path = write(tmp_path / "x.jsonl", [group("p", ["a", "b"], labels=[0, 1], quality=[1, 0])])
    assert main([f"a$x_{{$b={path}", f"_c={path}", "-o", str(tmp_path / "out"), "--no_cosine"]) == 0
    assert (tmp_path / "out" / "summary.png").stat().st_size > 10_000


def test_two_compressed_logs_are_named_by_their_runs(tmp_path, capsys):
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        line = json.dumps(group("p", ["a", "b"], labels=[0, 1]))
        (tmp_path / run / "partitions.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    assert main([*(str(tmp_path / run / "partitions.jsonl.gz") for run in ("first", "second")), "--no_cosine"]) == 0
    assert "second - first: paired" in capsys.readouterr().out


def test_a_model_cannot_be_named_as_the_file_of_the_results(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", [group("p", ["a"], labels=[0])])
    assert main([path, f"summary.json={path}", "-o", str(tmp_path / "out"), "--no_cosine"]) == 2
    assert "inputs with a folder each" in capsys.readouterr().err and not (tmp_path / "out").exists()
    for name in ("summary.json", "samples.jsonl"):  # beside a model that is sampled
        with pytest.raises(DarlingError, match="inputs with a folder each"):
            check_output(tmp_path / "out", {name: tmp_path / "x.jsonl"}, sampled=True)


def test_the_lowest_decile_is_no_correct_answer(tmp_path):
    scores = group("p", ["a", "b"], partition=[0, 1], generation_scores=[1, 1], partition_scores=[1, 1])
    for rows, verifiable in (([scores], False), ([scores, scores | {"partition_scores": [1, 0]}], True)):
        out = tmp_path / f"{verifiable}"
        assert main([write(tmp_path / "x.jsonl", rows), "-o", str(out), "--no_cosine"]) == 0
        figures = json.loads((out / "summary.json").read_text())["models"]["x"]["figures"]
        assert ("pass@1" in figures) == verifiable and figures["quality"]["prompts"] == len(rows)


def test_flags_of_classes_that_change_nothing_and_texts_that_lack_are_told(tmp_path, capsys, caplog):
    path = write(tmp_path / "x.jsonl", [group("p", ["a", "b"], labels=[0, 1])])
    flags = [path, "--no_cosine", "--partition_model", "lexical", "--partition_text", "after:</think>"]
    assert main(flags) == 0
    assert "--partition_model, --partition_text changed nothing" in capsys.readouterr().out and not caplog.text
    assert main([*flags, "--again", "classes"]) == 0
    assert "changed nothing" not in capsys.readouterr().out and "2 responses lack the text" in caplog.text


def test_a_partition_model_that_cannot_be_is_refused_before_anything_is_asked_for(tmp_path, capsys):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "p"}])
    asked = ["--url", "http://127.0.0.1:9", "--prompts", prompts, "-o", str(tmp_path / "out")]
    assert main([*asked, "--partition_model", "lexicall"]) == 2
    assert "did you mean 'lexical'" in capsys.readouterr().err
