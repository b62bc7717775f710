"""`darling-evaluate`: its flags, what they stand for where they are not given, and what it says of them."""

import json

import pytest

from darling_plugin.commands.evaluate import main


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def group(prompt, responses, **more):
    return {"prompt": prompt, "responses": responses, **more}


APART = ["red", "blue", "green", "black"]
CHAIN = ["red blue", "red blue green", "blue green"]  # the one in the middle is like either, and they are not alike
OWN_CLASSES = """\
from darling_plugin import PartitionModel

class Mine(PartitionModel):
    def partition(self, groups):
        return [list(range(len(group.responses))) for group in groups]
"""


@pytest.mark.parametrize(
    ("arguments", "classes", "made_by", "clustering"),
    [
        (["--partition_model", "lexical"], 2, "lexical, greedy", "greedy"),
        (["--partition_model", "lexical", "--clustering", "union_find"], 1, "lexical, union_find", "union_find"),
        (["--partition_model", "lexical?clustering=union_find"], 1, "clustering=union_find, union_find", "union_find"),
        (["--partition_model", "{mine}:Mine"], 3, "mine.py:Mine", None),
        (["--partition_model", "{mine}:HandsOn"], 2, "mine.py:HandsOn, greedy", "greedy"),
    ],
)
def test_classes_are_greedys_unless_something_else_is_said_or_the_model_makes_its_own(
    arguments, classes, made_by, clustering, tmp_path
):
    (tmp_path / "mine.py").write_text(
        "from darling_plugin.partition.models.lexical import Lexical\n"
        + OWN_CLASSES
        + "\nclass HandsOn(Lexical):\n    def __init__(self, **options):\n        super().__init__(**options)\n"
    )
    arguments = [each.format(mine=tmp_path / "mine.py") for each in arguments]
    path, out = write(tmp_path / "x.jsonl", [group("p", CHAIN)]), tmp_path / "out"
    assert main([path, *arguments, "-o", str(out), "--no_cosine"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    model = summary["models"]["x"]
    assert model["figures"]["distinct"]["mean"] == classes
    assert model["classes"].startswith("by ") and model["classes"].endswith(made_by)
    assert summary["settings"]["clustering"] == clustering


def test_a_clustering_that_the_model_does_not_take_is_refused_where_it_was_given(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN_CLASSES)
    path = write(tmp_path / "x.jsonl", [group("p", CHAIN)])
    assert main([path, "--partition_model", f"{tmp_path}/mine.py:Mine", "--clustering", "greedy"]) == 2
    assert "options that Mine takes: none" in capsys.readouterr().err


def test_classes_are_of_the_text_that_is_compared_and_all_else_of_the_whole(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def mine(prompt, response):\n    return {}[response]\n")
    thoughts = [f"thought{k} " * 9 + f"</think>{answer}" for k, answer in enumerate(["red", "red", "blue"])]
    path = write(tmp_path / "x.jsonl", [group("p", [*thoughts, "never came to its end"])])
    found = {}
    for spec in ("whole", "after:</think>"):
        out = tmp_path / spec.partition(":")[0]
        arguments = ["--partition_model", "lexical", "--partition_text", spec, "-o", str(out), "--no_cosine"]
        assert main([path, *arguments]) == 0
        found[spec] = json.loads((out / "summary.json").read_text())["models"]["x"]
    assert found["after:</think>"]["figures"]["distinct"]["mean"] == 3  # red, blue and the empty one
    assert found["after:</think>"]["figures"]["words"] == found["whole"]["figures"]["words"]
    assert found["after:</think>"]["classes"] == "by lexical, greedy, after:</think>"
    assert found["whole"]["classes"] == "by lexical, greedy" and found["whole"]["figures"]["distinct"]["mean"] == 4
    for spec, said in (("after", "in one of the forms"), (f"{tmp_path}/mine.py:mine", "KeyError: 'thought0 ")):
        assert main([path, "--partition_model", "lexical", "--partition_text", spec]) == 2
        assert said in capsys.readouterr().err


def test_settings_are_those_in_effect(tmp_path):
    path, out = write(tmp_path / "x.jsonl", [group("p", APART)]), tmp_path / "out"
    arguments = [path, "-o", str(out), "--partition_model", "lexical", "--no_cosine"]
    assert main(arguments) == 0
    settings = json.loads((out / "summary.json").read_text())["settings"]
    assert (settings["threshold"], settings["clustering"], settings["k"]) == (0.5, "greedy", [1, 2, 4])
    assert (settings["patience"], settings["resamples"], settings["level"]) == (0.8, 2000, 0.95)
    assert main([*arguments, "--threshold", "0.25", "--k", "3"]) == 0
    settings = json.loads((out / "summary.json").read_text())["settings"]
    assert (settings["threshold"], settings["k"]) == (0.25, [3])


def test_the_table_says_which_step_was_read_and_a_split_that_all_have(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    steps = [{"step": [f"{k}"] * 2, "prompt": ["p"] * 2, "completion": ["a", "b"], "reward": [1, 0]} for k in range(5)]
    of_run = [group("p", ["a", "b"], labels=[0, 1], step=4, split="eval")]
    of_data = [group(f"p{k}", ["a", "b"], labels=[0, 1], split=f"s{k}") for k in range(2)]
    models = {}
    for name, rows, *said in (
        ("swift", steps, "1 prompt", "step 4"),
        ("run", of_run, "1 prompt", "eval, step 4"),
        ("data", of_data, "2 prompts"),
        ("one", of_data[:1], "1 prompt", "s0"),
    ):
        path, out = write(tmp_path / f"{name}.jsonl", rows), tmp_path / name
        assert main([path, "-o", str(out), "--partition_model", "lexical", "--no_cosine"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.strip("┃ ") for line in lines if line.startswith("┃")] == [name, *said]
        models |= json.loads((out / "summary.json").read_text())["models"]
    assert [models[name]["step"] for name in models] == [4, 4, None, None]
    assert [models[name]["split"] for name in models] == [None, "eval", None, "s0"]


def test_a_path_is_shown_as_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    path, out = write(tmp_path / "x.jsonl", [group("p", ["a"], labels=[0])]), tmp_path / "res[bold]"
    assert main([path, "-o", str(out), "--no_cosine"]) == 0
    assert f"{out}/ holds the files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--k", "2", "file.jsonl"], "needs an integer from 1, found file.jsonl; name files before it"),
        (["--k", "0"], "needs an integer from 1, found 0"),
        (["--n", "many"], "needs an integer from 1, found many"),
        (["--seed", "1.5"], "needs an integer from 0, found 1.5"),
        (["--temperature", "hot"], "needs a number from 0, found hot"),
    ],
)
def test_numbers_that_are_none(arguments, said, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err


def test_a_k_that_no_prompt_has_responses_for_is_refused(tmp_path, capsys):
    paths = [write(tmp_path / f"{n}.jsonl", [group("p", ["a"] * n, labels=[0] * n)]) for n in (1, 3)]
    assert main([*paths, "--no_cosine", "--k", "2", "4", "64"]) == 2
    said = capsys.readouterr().err
    assert "--k up to the 3 responses of the largest group" in said and "4, 64" in said
    assert main([*paths, "--no_cosine", "--k", "3"]) == 0, "the larger one has its figure"


def test_settings_of_sampling_are_those_of_samples_of_its_own(tmp_path):
    path, out = write(tmp_path / "x.jsonl", [group("p", APART, labels=[0, 0, 0, 0])]), tmp_path / "out"
    assert main([path, "-o", str(out), "--no_cosine"]) == 0
    settings = json.loads((out / "summary.json").read_text())["settings"]
    assert not {"n", "temperature", "max_tokens", "model", "url"} & settings.keys() and "seed" in settings


def test_wrong_usage(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", [group("p", ["a"])])
    sampled = [
        *("--prompts", write(tmp_path / "p.jsonl", [{"prompt": "p"}])),
        *("--url", "http://127.0.0.1:9", "--model_name", "m", "-o", str(tmp_path / "out")),
    ]
    for arguments, said in (
        ([path, "--reward_func", "f.py", "--reward_model", "m"], "one of --reward_func and --reward_model"),
        ([path, "--deciles"], "--reward_model with --deciles"),
        ([path, "--reward_label", "good"], "--reward_model with --reward_label"),
        ([path, "--reward_model", "m", "--reward_label", "good", "--deciles"], "--deciles of a logit"),
        ([*sampled, "--temperature", "0"], "--n 1 at --temperature 0"),
        ([], "neither a file nor --model nor --url"),
        ([path, path], "inputs with different names"),
        (["--model", "m"], "with --prompts and -o"),
        ([str(tmp_path / "missing")], "a file with samples"),
        ([path, "--reward_func", str(tmp_path / "missing.py")], "missing.py"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("temperature", ["-1", "nan", "inf"])
def test_a_temperature_that_cannot_be(temperature, capsys):
    with pytest.raises(SystemExit):
        main([f"--temperature={temperature}"])
    assert "needs a number from 0" in capsys.readouterr().err
