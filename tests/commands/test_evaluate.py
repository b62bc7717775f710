"""`darling-evaluate`: the whole command on files."""

import itertools
import json
import sys
from pathlib import Path

import numpy
import pytest

from darling_plugin.commands.evaluate import main
from darling_plugin.errors import DarlingError

EXAMPLES = Path(__file__).parents[2] / "examples"
PUBLISHED = Path(__file__).parents[1] / "evaluation" / "published_scores.jsonl"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def group(prompt, responses, **more):
    return {"prompt": prompt, "responses": responses, **more}


SAME, APART = ["red", "red", "red", "red"], ["red", "blue", "green", "black"]


def test_two_models_side_by_side_and_every_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    rows = [group(f"p{k}", SAME, quality=[1, 1, 1, 0]) for k in range(6)]
    before = write(tmp_path / "before.jsonl", rows)
    after = write(tmp_path / "after.jsonl", [group(f"p{k}", APART, quality=[1, 1, 0, 0]) for k in range(1, 7)])
    out = tmp_path / "out"
    assert main([before, f"new={after}", "-o", str(out), "--partition_model", "lexical", "--no_cosine"]) == 0
    said = capsys.readouterr().out
    assert "by lexical, greedy" in said and "new - before: paired, over 5 prompts" in said
    summary = json.loads((out / "summary.json").read_text())
    figures = {name: model["figures"] for name, model in summary["models"].items()}
    assert figures["before"]["distinct"]["mean"] == 1 and figures["new"]["distinct"]["mean"] == 4
    assert figures["new"]["diversity"]["mean"] == 1 and figures["new"]["distinct_2"]["mean"] == pytest.approx(2)
    assert figures["before"]["pass@2"]["mean"] == 1 and figures["new"]["pass@2"]["mean"] == pytest.approx(5 / 6)
    difference = summary["differences"]["new - before"]
    assert difference["quality"] == {"mean": -0.25, "low": -0.25, "high": -0.25, "prompts": 5}
    assert summary["differences"]["new - before, at matched length"]["diversity"]["prompts"] == 5
    assert {"torch", "numpy", "scipy", "openai", "math-verify"} <= summary["versions"].keys()
    assert (out / "summary.png").stat().st_size > 10_000
    scores = [json.loads(line) for line in (out / "new" / "scores.jsonl").read_text().splitlines()]
    assert scores[0]["partition"] == [0, 1, 2, 3] and scores[0]["generation_scores"] == [1, 1, 0, 0]
    assert main([str(out / "new" / "scores.jsonl"), "--no_cosine"]) == 0, "what it wrote it reads"


def test_conversations_that_end_with_one_question_are_paired_by_all_they_say(tmp_path):
    def turns(first):
        return f"<|im_start|>system\n{first}<|im_end|>\n<|im_start|>user\ncontinue<|im_end|>\n<|im_start|>assistant\n"

    rows = [group(turns(first), ["a"] * 2, quality=[quality] * 2) for first, quality in (("one", 0), ("two", 1))]
    before, after = write(tmp_path / "before.jsonl", rows), write(tmp_path / "after.jsonl", rows[::-1])
    out = tmp_path / "out"
    assert main([before, after, "-o", str(out), "--partition_model", "lexical", "--no_cosine"]) == 0
    difference = json.loads((out / "summary.json").read_text())["differences"]["after - before"]["quality"]
    assert (difference["low"], difference["mean"], difference["high"]) == (0, 0, 0)


def test_results_that_cannot_be_written_are_status_2(tmp_path, capsys):
    path, out = write(tmp_path / "in.jsonl", [group("p", ["a", "b"], labels=[0, 1])]), tmp_path / "out"
    out.mkdir()
    (out / "summary.json").symlink_to(tmp_path / "no" / "such")
    assert main([path, "-o", str(out), "--no_cosine"]) == 2
    assert "files that can be read and written" in capsys.readouterr().err


def test_one_models_summary_has_noveltybenchs_keys(tmp_path):
    rows = [
        group("p", ["a", "b"], labels=[0, 1], quality=[4, 6]),
        group("q", ["a", "a"], labels=[0, 0], quality=[5, 5]),
    ]
    path, out = write(tmp_path / "runs.jsonl", rows), tmp_path / "out"
    assert main([path, "-o", str(out), "--no_cosine"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mean_distinct"] == 1.5
    assert summary["mean_utility"] == pytest.approx(((4 + 0.8 * 6) / 1.8 + 5 / 1.8) / 2)
    assert sorted(file.name for file in out.iterdir()) == [
        *("generations.jsonl", "partitions.jsonl", "scores.jsonl", "summary.json", "summary.png")
    ]
    assert summary["models"]["runs"]["classes"] == "as the file has them"


def test_a_file_made_here_by_the_formulas_of_noveltybenchs_score_py_keeps_its_utilities_and_summary(tmp_path):
    rng = numpy.random.default_rng(0)
    rows, utilities, distinct = [], [], []
    for k in range(30):  # random scores of any partition in its order: none of its published ones
        partition = list(itertools.accumulate(rng.integers(0, 2, 9), lambda top, new: top + int(new), initial=0))
        own = [int(score) for score in rng.integers(1, 11, 10)]
        first = [j for j in range(10) if partition[j] not in partition[:j]]
        generation_scores = [own[j] if j in first else 0 for j in range(10)]
        utilities.append(float(numpy.average(generation_scores, weights=0.8 ** numpy.arange(10))))
        distinct.append(len(first))
        rows.append(
            {"id": f"c-{k}", "prompt": f"p{k}", "model": "m", "generations": [f"g{j}" for j in range(10)]}
            | {"partition": partition, "distinct": max(partition), "generation_scores": generation_scores}
            | {"partition_scores": [own[j] for j in first], "utility": utilities[-1]}
        )
    made_here = write(tmp_path / "scores.jsonl", rows)
    out = tmp_path / "out"
    assert main([f"a={made_here}", f"b={made_here}", "-o", str(out), "--no_cosine"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["models"]["a"]["figures"]["utility"]["mean"] == pytest.approx(numpy.mean(utilities), abs=1e-9)
    for name in "ab":
        again = [json.loads(line) for line in (out / name / "scores.jsonl").read_text().splitlines()]
        for row, found in zip(rows, again, strict=True):
            assert found.pop("quality") == [row["partition_scores"][label] for label in row["partition"]]
            assert found.pop("utility") == pytest.approx(row["utility"], abs=1e-9)
            assert found == {key: row[key] for key in found} | {"model": name}
        assert json.loads((out / name / "summary.json").read_text()) == pytest.approx(
            {"mean_distinct": numpy.mean(distinct), "mean_utility": numpy.mean(utilities)}, abs=1e-9
        )


def test_noveltybenchs_published_utilities_are_made_again_from_its_scores(tmp_path):
    """50 of its curated prompts, by gemini-1.5-pro (github novelty-bench/novelty-bench at 5b22b53, MIT): no texts."""
    published = [json.loads(line) for line in PUBLISHED.read_text().splitlines()]
    assert len(published) == 50 and {len(row["partition"]) for row in published} == {10}
    texts = [{"prompt": row["id"], "generations": [f"g{k}" for k in range(10)]} for row in published]
    path = write(tmp_path / "scores.jsonl", [row | text for row, text in zip(published, texts, strict=True)])
    assert main([path, "-o", str(tmp_path / "out"), "--no_cosine"]) == 0
    again = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    for row, found in zip(published, again, strict=True):
        assert found["utility"] == pytest.approx(row["utility"], abs=1e-9)
        assert {key: found[key] for key in row if key != "utility"} == {
            key: row[key] for key in row if key != "utility"
        }
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["mean_utility"] == pytest.approx(numpy.mean([row["utility"] for row in published]), abs=1e-9)
    assert summary["mean_distinct"] == numpy.mean([len(row["partition_scores"]) for row in published])


def test_its_mean_utility_is_left_out_where_prompts_have_no_quality(tmp_path):
    rows = [group("p", ["a", "b"], labels=[0, 1], quality=[4, 6]), group("q", ["a", "a"], labels=[0, 0])]
    path, out = write(tmp_path / "runs.jsonl", rows), tmp_path / "out"
    assert main([path, f"again={path}", "-o", str(out), "--no_cosine"]) == 0
    assert json.loads((out / "again" / "summary.json").read_text()) == {"mean_distinct": 1.5}, "the other is of one"
    figures = json.loads((out / "summary.json").read_text())["models"]["runs"]["figures"]
    assert figures["utility"]["prompts"] == 1


def test_every_model_is_compared_with_the_first_and_one_without_quality_leaves_its_place_empty(tmp_path):
    rows = {
        "a": group("p", SAME, labels=[0] * 4, quality=[1, 1, 0, 0]),
        "b": group("p", APART, labels=[0, 1, 2, 3], quality=[1, 1, 1, 0]),
        "c": group("p", APART, labels=[0, 0, 1, 1]),
    }
    out = tmp_path / "out"
    paths = [write(tmp_path / f"{name}.jsonl", [row]) for name, row in rows.items()]
    assert main([*paths, "-o", str(out), "--no_cosine"]) == 0
    compared = json.loads((out / "summary.json").read_text())["differences"]
    assert {key for key in compared if "matched" not in key} == {"b - a", "c - a"}
    assert compared["b - a"]["quality"]["mean"] == 0.25 and "quality" not in compared["c - a"]
    assert compared["c - a"]["distinct"]["mean"] == 1
    assert (out / "summary.png").stat().st_size > 10_000


def test_classes_that_were_not_made_alike_are_said_to_be(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    paths = [write(tmp_path / "a.jsonl", [group("p", SAME, labels=[0] * 4)])]
    paths.append(write(tmp_path / "b.jsonl", [group("p", SAME)]))
    for arguments, said in ((paths, True), ([*paths, "--again"], False), (paths[:1], False)):
        assert main([*arguments, "--partition_model", "lexical", "--no_cosine"]) == 0
        assert ("not made alike" in capsys.readouterr().out) == said


def test_prompts_with_a_single_pair_of_like_length_are_left_out(tmp_path):
    long = [["w", "w " * 100, "w " * 101], ["w", "v " * 500, "w " * 600], ["v", "v " * 100, "w " * 103]]
    rows = [[group("p", long[0]), group("q", long[0])], [group("p", long[1]), group("q", long[2])]]
    out = tmp_path / "out"
    paths = [write(tmp_path / f"{name}.jsonl", each) for name, each in zip("ab", rows, strict=True)]
    assert main([*paths, "-o", str(out), "--no_cosine", "--partition_model", "lexical"]) == 0
    compared = json.loads((out / "summary.json").read_text())["differences"]
    assert compared["b - a"]["diversity"]["prompts"] == 2
    assert compared["b - a, at matched length"]["diversity"]["prompts"] == 1


def test_results_never_take_the_place_of_an_input_or_of_anothers_file(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    log = write(run / "partitions.jsonl", [group("p", SAME, labels=[0] * 4, quality=[1, 1, 0, 0])])
    before = Path(log).read_bytes()
    other = write(tmp_path / "other.jsonl", [group("p", APART, labels=[0] * 4)])
    for arguments in ([log, "-o", str(run)], [other, "-o", str(run)], [log, other, "-o", str(tmp_path)]):
        assert main([*arguments, "--no_cosine"]) == 2
        assert "a folder for the results without files that they would replace" in capsys.readouterr().err
    assert Path(log).read_bytes() == before
    for _ in range(2):  # its own files are replaced
        assert main([log, "-o", str(out), "--no_cosine"]) == 0
    scores = (out / "scores.jsonl").read_bytes()
    capsys.readouterr()
    assert main([other, "-o", str(out), "--no_cosine"]) == 2, "results of other samples"
    assert f"summary.json, of {log}" in capsys.readouterr().err
    write(run / "partitions.jsonl", [group("p", SAME, labels=[0] * 4)])
    assert main([log, "-o", str(out), "--no_cosine"]) == 2, "the same samples, without their quality"
    assert "0 of 1 prompts with one" in capsys.readouterr().err
    assert (out / "scores.jsonl").read_bytes() == scores
    write(run / "partitions.jsonl", [group("p", SAME, labels=[0] * 4, quality=[1, 1, 0, 0])])
    assert main([str(out / "partitions.jsonl"), "-o", str(out), "--no_cosine"]) == 2


def test_a_calibrated_model_gives_the_expected_diversity_too(tmp_path):
    path, out = write(tmp_path / "x.jsonl", [group("Name a colour.", APART), group("p", ["a"])]), tmp_path / "out"
    assert main([path, "-o", str(out), "--no_cosine"]) == 0
    model = json.loads((out / "summary.json").read_text())["models"]["x"]
    assert model["classes"] == "by default, greedy"
    assert 0.5 < model["figures"]["expected_diversity"]["mean"] < 1
    assert model["figures"]["expected_diversity"]["prompts"] == model["figures"]["diversity"]["prompts"] == 1


def test_a_reward_function_that_fails_says_why(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", [group("p", ["a"])])
    assert main([path, "--reward_func", str(EXAMPLES / "reward_named_answer.py"), "--no_cosine"]) == 2
    assert "the file has no label of the prompt" in capsys.readouterr().err


def test_a_reward_function_gives_the_quality_that_a_file_lacks(tmp_path):
    rows = [{"prompt": "Name a fruit.", "responses": ["An apple.", "A car.", "A pear."], "answers": "apple|pear"}]
    path, out = write(tmp_path / "samples.jsonl", rows), tmp_path / "out"
    arguments = [path, "--reward_func", str(EXAMPLES / "reward_named_answer.py"), "-o", str(out), "--no_cosine"]
    assert main([*arguments, "--partition_model", "lexical"]) == 0
    figures = json.loads((out / "summary.json").read_text())["models"]["samples"]["figures"]
    assert figures["pass@1"]["mean"] == pytest.approx(2 / 3) and figures["distinct_correct_2"]["mean"] > 1


def test_a_reward_model_gives_it_too_and_deciles_are_noveltybenchs(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
    from tiny_model import build_reward_model

    from darling_plugin.evaluation.noveltybench import decile
    from darling_plugin.evaluation.quality import by_model
    from darling_plugin.evaluation.samples import Samples

    model = str(build_reward_model(tmp_path / "reward"))
    samples = Samples("1", "name a bird", ["an owl", "a wren and a tit", "an owl"])
    raw = by_model(model)(samples)
    assert raw[0] == pytest.approx(raw[2]) and raw[0] != pytest.approx(raw[1])
    assert by_model(model, deciles=True)(samples) == [decile(value) for value in raw]


def test_a_classifier_without_a_chat_template_reads_a_pair_and_of_several_labels_one_is_named(tmp_path):
    import torch
    from tokenizers import processors
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
    from tiny_model import build_reward_model

    from darling_plugin.evaluation.quality import by_model
    from darling_plugin.evaluation.samples import Samples

    path = str(build_reward_model(tmp_path / "tokenizer"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = None
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|USER|>", "<EOS>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|USER|> $A <EOS>", pair="<|USER|> $A <EOS> $B <EOS>", special_tokens=special
    )
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.intermediate_size, config.max_position_embeddings, config.initializer_range = 16, 64, 0.3
    config.id2label, config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    path = str(tmp_path / "classifier")
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)

    samples = Samples("1", "<|im_start|>user\nname a bird<|im_end|>\n<|im_start|>assistant\n", ["an owl", "a wren"])
    pair = tokenizer("name a bird", "an owl", return_tensors="pt")
    assert pair["input_ids"][0, 0] == special[0][1]
    with torch.inference_mode():
        expected = model(**pair).logits.softmax(dim=-1)[0, 1].item()
    good = by_model(path, label="good")
    assert good(samples)[0] == pytest.approx(expected, abs=2e-2), "in bfloat16"
    assert by_model(path, label="bad")(samples)[0] == pytest.approx(1 - expected, abs=2e-2)
    assert good(samples) == good(Samples("1", "name a bird", samples.responses)) != good(Samples("1", "a", ["b", "c"]))
    assert len(by_model(path, label="good")(Samples("1", "p", ["an owl " * 200]))) == 1, "cut at 64 tokens"
    with pytest.raises(DarlingError, match="one of several labels"):
        by_model(path)
    with pytest.raises(DarlingError, match="one of several labels"):
        by_model(str(tmp_path / "tokenizer"), label="good")


def test_mixed_numbers_of_samples_no_quality_and_bad_lines(tmp_path, capsys):
    path = tmp_path / "odd.jsonl"
    write(path, [group("p", ["a"]), group("q", ["\ud800", "b", ""]), group("r", ["a", "b"], quality=[1, 0])])
    with path.open("a") as file:
        file.write("not JSON\n")
    out = tmp_path / "out"
    assert main([str(path), "-o", str(out), "--partition_model", "lexical"]) == 1
    assert "line 4: not JSON" in capsys.readouterr().err
    figures = json.loads((out / "summary.json").read_text())["models"]["odd"]["figures"]
    assert {name: figures[name]["prompts"] for name in ("distinct", "distinct_2", "quality", "cosine")} == {
        **{"distinct": 3, "distinct_2": 2, "quality": 1, "cosine": 2}
    }
    assert not (out / "scores.jsonl").exists(), "not every prompt has scores"


def test_what_a_file_has_is_not_made_again_unless_asked(tmp_path):
    path, out = write(tmp_path / "x.jsonl", [group("p", APART, labels=[0, 0, 0, 0])]), tmp_path / "out"
    write(tmp_path / "x.jsonl", [group("p", APART, labels=[0, 0, 0, 0], quality=[0.25] * 4)])
    (tmp_path / "rewards.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return [0.5] * len(queries)\n"
    )
    arguments = [path, "-o", str(out), "--partition_model", "lexical", "--no_cosine"]
    arguments += ["--reward_func", str(tmp_path / "rewards.py")]
    for again, distinct, quality in (
        ([], 1, 0.25),
        (["--again"], 4, 0.5),
        (["--again", "classes"], 4, 0.25),
        (["--again", "quality"], 1, 0.5),
    ):
        assert main([*arguments, *again]) == 0
        figures = json.loads((out / "summary.json").read_text())["models"]["x"]["figures"]
        assert (figures["distinct"]["mean"], figures["quality"]["mean"]) == (distinct, quality)
    with pytest.raises(SystemExit):
        main(["--again", path])


def test_the_table_says_where_a_figure_is_of_fewer_prompts_and_where_the_quality_is_from(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "160")
    few = write(tmp_path / "few.jsonl", [group(f"p{k}", ["a"] * 8, quality=[1] * 8) for k in range(1, 4)])
    templated = "<|im_start|>user\np1<|im_end|>\n<|im_start|>assistant\n"
    other = write(tmp_path / "other.jsonl", [group(templated, ["a", "b"])])
    (tmp_path / "rewards.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return [0.5] * len(queries)\n"
    )
    arguments = [few, other, "--reward_func", str(tmp_path / "rewards.py"), "--partition_model", "lexical"]
    assert main([*arguments, "--no_cosine"]) == 0
    said = capsys.readouterr().out
    assert "quality of few: quality" in said and "quality of other: rewards.py" in said
    assert "not one quality" in said and "over 1 prompt that both have" in said, "one in a chat template, one without"
    assert "0.500  [–]" in said, "one prompt has no interval"
    mixed = write(tmp_path / "mixed.jsonl", [group("p1", ["a"] * 4), group("p2", ["a"] * 8)])
    assert main([mixed, few, "--partition_model", "lexical", "--no_cosine"]) == 0
    assert "1.000  [–] (1 of 2)" in capsys.readouterr().out
    apart = write(tmp_path / "apart.jsonl", [group("of nobody else", ["a", "b"])])
    assert main([few, apart, "--partition_model", "lexical", "--no_cosine"]) == 0
    assert "apart - few: no prompt in common" in capsys.readouterr().out


def test_what_it_writes_keeps_the_quality_of_each_response(tmp_path):
    rows = [group("p", ["a", "a", "b"], labels=[0, 0, 1], quality=[1, 0, 1])]
    out = tmp_path / "out"
    assert main([write(tmp_path / "x.jsonl", rows), "-o", str(out), "--no_cosine"]) == 0
    assert main([str(out / "scores.jsonl"), "-o", str(tmp_path / "again"), "--no_cosine"]) == 0
    figures = json.loads((tmp_path / "again" / "summary.json").read_text())["models"]["out"]["figures"]
    assert figures["quality"]["mean"] == pytest.approx(2 / 3)


def test_outputs_that_cannot_be(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", [group("p", ["a"])])
    for arguments, said in (
        ([path, "-o", path], "a folder for the results"),
        ([f"a/b={path}", f"a_b={path}", "-o", str(tmp_path / "o")], "inputs with a folder each"),
        ([path, "--partition_model", "lexical", "--no_cosine", "-o", "/proc/nowhere"], "a folder for the results"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    for k, returned in enumerate(("None", "{}", "['high']", "[10**400]")):
        rewards = tmp_path / f"r{k}.py"
        rewards.write_text(f"def reward_func(queries, prompts, labels):\n    return {returned}\n")
        assert main([path, "--reward_func", str(rewards), "--no_cosine"]) == 2
        assert "1 numbers from" in capsys.readouterr().err
    for k, returned in enumerate(("float('nan')", "1e308")):
        rewards = tmp_path / f"f{k}.py"
        rewards.write_text(f"def reward_func(queries, prompts, labels):\n    return [{returned}]\n")
        assert main([path, "--reward_func", str(rewards), "--no_cosine"]) == 2
        assert "rewards from -1e+100 to 1e+100" in capsys.readouterr().err
