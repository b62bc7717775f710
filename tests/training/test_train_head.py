"""`darling-train-partition --kind head`."""

import json

import pytest
import torch
from safetensors.torch import load_file
from training_inputs import ANSWERS, WHOLE_SENTENCES, story

from darling_plugin.commands.train_partition import main
from darling_plugin.partition import Group, load_partition_model
from darling_plugin.partition.models.embedding import _default_model_path
from darling_plugin.training.head import PACKAGED, HeadTrainer
from darling_plugin.training.pairs import LabelledPair, read_pairs

pytestmark = pytest.mark.usefixtures("few_resamples")


def test_a_head_from_pairs_to_a_folder_that_opens(story_pairs, tmp_path, capsys):
    out = tmp_path / "head"
    assert main([story_pairs, "-o", str(out), "--folds", "4", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "40 pairs of 40 prompts, 26 similar" in printed and f"head:{out}" in printed
    report = json.loads((out / "report.json").read_text())
    assert report["measures"]["roc_auc"]["value"] > 0.9
    assert list(report["packaged"]) == ["sentences", "short answers"]
    for kind, packaged in report["packaged"].items():
        assert packaged["pairs"] > 700 and 0.8 < packaged["right"] / packaged["pairs"] < 1
        assert f"packaged pairs of {kind}: {packaged['right']} of {packaged['pairs']} told right" in printed
    written = {file.name for file in out.iterdir()}
    assert written == {
        "head.safetensors",
        "report.json",
        "predictions.jsonl",
        "roc.png",
        "reliability.png",
        "scores.png",
    }
    assert (out / "head.safetensors").stat().st_mode == (out / "report.json").stat().st_mode  # others can read it
    model = load_partition_model(f"head:{out}")
    same, other = story("old sailor", "sailed home"), story("tired fox", "wept")
    labels = model.partition([Group("Story 50", [same, same.replace("before dawn", "at 2 in the morning"), other])])
    assert labels[0].tolist() == [0, 0, 1]
    # Short answers and sentences come from the pairs in this package, whatever else a head is trained on.
    for group in (*ANSWERS, WHOLE_SENTENCES):
        assert model.partition([Group("Say something.", list(group))])[0].tolist() == [0, 0, 1]


def test_an_output_that_is_a_file_is_refused(story_pairs, tmp_path, capsys):
    (tmp_path / "out").write_text("somebody's")
    assert main([story_pairs, "-o", str(tmp_path / "out")]) == 2
    assert "out, a file" in capsys.readouterr().err and (tmp_path / "out").read_text() == "somebody's"


@pytest.mark.usefixtures("few_packaged_pairs")
def test_a_head_that_was_killed_goes_on_with_the_folds_that_are_left(story_pairs, tmp_path, monkeypatch):
    fitted, fit = [], HeadTrainer.fit

    def killed_in_the_third(self, at):
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(len(at))
        return fit(self, at)

    out = tmp_path / "head"
    command = [story_pairs, "-o", str(out), "--folds", "3", "--dtype", "float32"]
    monkeypatch.setattr(HeadTrainer, "fit", killed_in_the_third)
    assert main(command) == 130
    assert main([*command, "--seed", "1"]) == 2
    monkeypatch.setattr(HeadTrainer, "fit", lambda self, at: fitted.append(len(at)) or fit(self, at))
    assert main(command) == 0
    assert sorted(fitted) == [26, 27, 27, 40]
    whole = tmp_path / "whole"
    assert main([story_pairs, "-o", str(whole), *command[3:]]) == 0
    rows = [map(json.loads, (each / "predictions.jsonl").read_text().splitlines()) for each in (out, whole)]
    for found, expected in zip(*rows, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    assert not (out / "training.json").exists()


@pytest.fixture
def short_pairs(tmp_path):
    """Answers of a word or two, as in the command's own help."""
    names = "apple kiwi mango plum pear fig lemon cherry grape melon".split()
    rows = []
    for k, name in enumerate(names * 2):
        other = f"An {name}." if k % 2 else names[k % 10 - 1]
        rows.append({"prompt": f"Fruit {k}", "generation_0": name, "generation_1": other, "similar": k % 2})
    path = tmp_path / "short.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


@pytest.mark.usefixtures("few_packaged_pairs")
def test_a_head_with_a_few_long_pairs_among_short_ones(short_pairs, tmp_path, caplog):
    long = [story(name, "slept") for name in ("cook", "fox", "poet")]
    rows = [
        {"prompt": f"Long {k}", "generation_0": t, "generation_1": t + " Then home.", "similar": k % 2}
        for k, t in enumerate(long)
    ]
    with open(short_pairs, "a") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    out = tmp_path / "head"
    assert main([short_pairs, "-o", str(out), "--folds", "3", "--dtype", "float32"]) == 0
    assert "of long responses: too few" in caplog.text
    assert json.loads((out / "report.json").read_text())["measures"]["accuracy"]["value"] > 0.7


def test_a_head_from_short_answers_alone(short_pairs, tmp_path, caplog):
    out = tmp_path / "head"
    assert main([short_pairs, "-o", str(out), "--folds", "3", "--dtype", "float32"]) == 0
    assert "0 of 20 pairs are of long responses: too few" in caplog.text
    report = json.loads((out / "report.json").read_text())
    assert report["measures"]["accuracy"]["value"] > 0.9
    model = load_partition_model(f"head:{out}")
    assert model.threshold == pytest.approx(0.5, abs=0.4)
    for group in ANSWERS:
        assert model.partition([Group("Say something.", list(group))])[0].tolist() == [0, 0, 1]


def test_packaged_pairs_of_a_prompt_that_is_tested_on_are_not_trained_on():
    prompt = "Name a fruit."
    packaged = read_pairs(str(PACKAGED))
    assert any(pair.prompt == prompt for pair in packaged)
    trainer = HeadTrainer([LabelledPair(prompt, "Fig", "Figs", 1, 1)], None, folds=3, seed=0)
    assert {pair.prompt for pair in trainer.packaged} == {pair.prompt for pair in packaged} - {prompt}


@pytest.mark.usefixtures("few_packaged_pairs")
def test_another_encoder_in_a_folder_is_found_from_anywhere(story_pairs, tmp_path, monkeypatch):
    (tmp_path / "encoder").symlink_to(_default_model_path())
    monkeypatch.chdir(tmp_path)
    assert main([story_pairs, "-o", "head", "--folds", "3", "--test_folds", "1", "--encoder", "encoder"]) == 0
    monkeypatch.chdir("/")
    assert load_partition_model(f"head:{tmp_path / 'head'}").partition([Group("p", ["one", "two"])])


@pytest.mark.usefixtures("few_packaged_pairs")
def test_one_seed_gives_one_head(story_pairs, tmp_path):
    weights = []
    for name in ("one", "two"):
        main([story_pairs, "-o", str(tmp_path / name), "--folds", "3", "--dtype", "float32"])
        weights.append(load_file(tmp_path / name / "head.safetensors"))
    for name, first in weights[0].items():
        assert torch.allclose(first.float(), weights[1][name].float(), rtol=1e-3, atol=1e-4), name
