"""`darling-train-partition`: cross-encoders, and what is refused of either kind."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_classifiers import WORDS, make_classifier
from training_inputs import cross, trainable

from darling_plugin.commands import train_partition
from darling_plugin.commands.train_partition import main
from darling_plugin.partition import Group, Pair, load_partition_model
from darling_plugin.partition.models.cross_encoder import CrossEncoder, probability_equivalent
from darling_plugin.training import cross_encoder
from darling_plugin.training.pairs import LabelledPair

pytestmark = pytest.mark.usefixtures("few_resamples")


def test_a_cross_encoder_learns_and_its_folder_opens_with_its_threshold(tree_pairs, bert, tmp_path, capsys):
    out = tmp_path / "trained"
    assert main(cross(tree_pairs, bert, out, "--test_folds", "2")) == 0
    assert f"cross-encoder:{out}" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["measures"]["roc_auc"]["value"] > 0.8
    model = load_partition_model(f"cross-encoder:{out}")
    own = json.loads((out / "config.json").read_text())["darling_partition"]
    assert model.threshold == own["threshold"] and model.max_length == own["max_length"] == 32
    assert load_partition_model(f"cross-encoder:{out}", threshold=0.9).threshold == 0.9
    labels = model.partition([Group("A prompt", ["the cat sat", "a dog ran", "the cat sat under a tree"])])
    assert labels[0].tolist() == [0, 0, 1]
    assert not list(out.glob("fold_*")) and not (out / "checkpoints").exists()


def test_lora_on_a_causal_model_is_merged_and_its_pairs_have_a_separator(tree_pairs, tmp_path):
    base = trainable(tmp_path / "qwen3", "qwen3")
    out = tmp_path / "trained"
    before = load_file(tmp_path / "qwen3" / "model.safetensors")
    assert main(cross(tree_pairs, base, out, "--lora_rank", "4")) == 0
    after = load_file(out / "model.safetensors")
    assert set(after) == set(before)  # plain weights, no adapter
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("q_proj" in name for name in moved) and not any("embed_tokens" in name for name in moved)
    assert json.loads((out / "report.json").read_text())["measures"]["roc_auc"]["value"] > 0.6
    # Its last layer has no bias: what calibration adds is in config.json, and is added when it is opened.
    shift = json.loads((out / "config.json").read_text())["darling_partition"]["logit_shift"]
    pair = Pair("p", "cat sat", "dog sat")
    model = CrossEncoder(str(out))
    probability, model._logit_shift = model.similarity([pair]), 0.0
    unshifted = model.similarity([pair])
    assert shift and torch.allclose(probability.logit() - unshifted.logit(), torch.tensor(shift), atol=1e-4)


def labelled(path):
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [
        LabelledPair(r["prompt"], r["generation_0"], r["generation_1"], r["similar"], k) for k, r in enumerate(rows)
    ]


def test_the_loss_of_a_step_is_the_mean_over_its_batches(tree_pairs, bert, tmp_path, monkeypatch):
    losses, train = [], transformers.Trainer.train

    def recording(trainer, **options):
        found = train(trainer, **options)
        losses.append(found.training_loss)
        return found

    monkeypatch.setattr(transformers.Trainer, "train", recording)
    pairs = labelled(tree_pairs)[:64]
    for size, accumulate in ((32, 1), (8, 4)):
        settings = cross_encoder.Settings(
            bert, max_length=32, epochs=1, batch_size=size, accumulate=accumulate, learning_rate=1e-6
        )
        cross_encoder.train(pairs[:48], pairs[48:], settings, tmp_path / str(size))
    # Untrained, about ln 2; a sum over four batches would be four times that.
    assert losses == pytest.approx([0.7, 0.7], abs=0.2)


def test_both_labels_weigh_alike_and_both_orders_are_trained_on(tree_pairs, bert):
    pairs = labelled(tree_pairs)
    weights = cross_encoder._class_weights(pairs)
    similar = sum(pair.similar for pair in pairs)
    assert float(weights[1]) * similar == pytest.approx(float(weights[0]) * (len(pairs) - similar))
    tokens = CrossEncoder(bert)._pair_tokens
    rows = cross_encoder._examples(pairs[:1], tokens)
    first, second = ([WORDS.index(w) + 4 for w in text.split()] for text in (pairs[0].first, pairs[0].second))
    assert rows[0]["input_ids"].tolist() == [2, *first, 3, *second, 3]
    assert rows[1]["input_ids"].tolist() == [2, *second, 3, *first, 3]
    assert [row["labels"] for row in rows] == [[1 - pairs[0].similar, pairs[0].similar]] * 2


def test_a_pairs_weight_does_what_copies_of_it_do(tree_pairs, bert, tmp_path, monkeypatch):
    losses, evaluate = [], transformers.Trainer.evaluate

    def recording(trainer, **options):
        found = evaluate(trainer, **options)
        losses.append(found["eval_loss"])
        return found

    monkeypatch.setattr(transformers.Trainer, "evaluate", recording)
    pairs = labelled(tree_pairs)[:30]
    heavy = [replace(pair, weight=0.6 if k % 4 == 1 else 0.2) for k, pair in enumerate(pairs)]
    copied = [each for k, pair in enumerate(pairs) for each in [pair] * (3 if k % 4 == 1 else 1)]
    assert torch.allclose(cross_encoder._class_weights(heavy), cross_encoder._class_weights(copied))
    assert not torch.allclose(cross_encoder._class_weights(heavy), cross_encoder._class_weights(pairs))
    for name, own in (("heavy", heavy), ("copied", copied), ("plain", pairs)):
        settings = cross_encoder.Settings(bert, max_length=32, epochs=1, learning_rate=1e-9, class_weights=False)
        cross_encoder.train(own, own, settings, tmp_path / name)
    heavy_loss, copied_loss, plain_loss = losses
    assert heavy_loss == pytest.approx(copied_loss, rel=1e-4) and heavy_loss != pytest.approx(plain_loss, rel=1e-3)
    labels, weight = np.array([0, 1] * 500), np.tile([1.0, 1.0, 3.0, 1.0], 250)
    probabilities = cross_encoder._sigmoid(labels + np.random.default_rng(0).normal(0, 2, 1000))
    fitted = cross_encoder._calibration(labels, probabilities, weight)
    copies = cross_encoder._calibration(
        labels.repeat(weight.astype(int)), probabilities.repeat(weight.astype(int)), np.ones(int(weight.sum()))
    )
    assert fitted == pytest.approx(copies, rel=0.02)


@pytest.mark.parametrize("bias", [True, False])
def test_calibration_in_the_last_layer_is_platts(bias):
    labels = np.array([0, 1] * 2000)
    logits = np.where(labels, 3.0, -1.0) + np.random.default_rng(0).normal(0, 4, 4000)
    slope, intercept = cross_encoder._calibration(labels, 1 / (1 + np.exp(-logits)), np.ones(4000))
    # Of two normal distributions of one variance, the log odds are (m1 - m0) / s² x - (m1² - m0²) / 2 s².
    assert slope == pytest.approx(4 / 16, rel=0.1) and intercept == pytest.approx(-8 / 32, rel=0.3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=bias))
    x = torch.randn(5, 3)
    before = model(x)
    shift = cross_encoder._calibrate(cross_encoder._last_layer(model), slope, intercept)
    assert shift == (0.0 if bias else intercept)
    after = probability_equivalent(model(x), shift)
    expected = slope * (before[:, 1] - before[:, 0]) + intercept
    assert torch.allclose(after, expected.sigmoid(), atol=1e-5)


def test_pairs_told_apart_without_exception_are_calibrated_to_finite_odds():
    labels = np.array([0, 1] * 50)
    slope, intercept = cross_encoder._calibration(labels, np.where(labels, 0.7, 0.2), np.ones(100))
    called = cross_encoder._sigmoid(slope * cross_encoder._logit(np.array([0.2, 0.7])) + intercept)
    assert called == pytest.approx([1 / 52, 51 / 52], abs=1e-3)  # Platt's targets for 50 pairs


def command(arguments):
    return [sys.executable, "-m", "darling_plugin.commands.train_partition", *arguments]


def json_whole(path):
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):  # the Trainer removes old checkpoints, and writes a new one in place
        return False


def test_a_killed_training_goes_on_from_its_last_epoch(tree_pairs, bert, tmp_path):
    out = tmp_path / "trained"
    arguments = cross(tree_pairs, bert, out, "--epochs", "40", "--patience", "40")
    process = subprocess.Popen(command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    states = "checkpoints/checkpoint-*/trainer_state.json"
    while not any(json_whole(state) for state in out.glob(states)) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "training.json").exists() and not (out / "report.json").exists()
    assert main([*arguments, "--seed", "9"]) == 2  # another command does not go on with it
    content = Path(tree_pairs).read_text()
    Path(tree_pairs).write_text(content.replace("cat", "dog"))
    assert main(arguments) == 2  # nor do other pairs
    Path(tree_pairs).write_text(content)
    for step, state in ((99998, ""), (99999, None)):  # killed as it wrote the state, as it began to write
        half = out / "checkpoints" / f"checkpoint-{step}"
        half.mkdir()
        if state is not None:
            (half / "trainer_state.json").write_text(state)
    done = subprocess.run(command(arguments), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "report.json").exists() and not (out / "training.json").exists()
    # Its bar jumps over the steps that were done before: at least an epoch's.
    steps = [int(step) for step in re.findall(r"(\d+)/\d{3,} ", done.stderr.replace("\r", "\n"))]
    assert min(step for step in steps if step) > 15


def test_what_was_trained_is_not_lost_when_the_report_fails(tree_pairs, bert, tmp_path, monkeypatch):
    out, trained, train = tmp_path / "trained", [], transformers.Trainer.train

    def recording(trainer, resume_from_checkpoint=None):
        trained.append(resume_from_checkpoint is not None)
        return train(trainer, resume_from_checkpoint=resume_from_checkpoint)

    monkeypatch.setattr(transformers.Trainer, "train", recording)
    with monkeypatch.context() as broken:
        broken.setattr("darling_plugin.training.report.write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(cross(tree_pairs, bert, out, "--test_folds", "2"))
    assert trained == [False] * 3  # two folds and the model to keep
    assert main(cross(tree_pairs, bert, out, "--test_folds", "2")) == 0
    assert trained[3:] == [True]  # the folds are done, the model to keep is picked up
    assert (out / "report.json").exists() and not list(out.glob("**/checkpoint*"))


def test_two_processes_by_accelerate_write_one_model(tree_pairs, bert, tmp_path):
    out = tmp_path / "trained"
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "darling_plugin.commands.train_partition"]
    done = subprocess.run(
        [*launch, *cross(tree_pairs, bert, out, "--batch_size", "4")], capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("--darling.partition_model cross-encoder:") == 1
    assert json.loads((out / "report.json").read_text())["measures"]["roc_auc"]["value"] > 0.7
    assert load_partition_model(f"cross-encoder:{out}").partition([Group("p", ["cat sat", "dog sat"])])


def test_bf16_trains_in_bfloat16(tree_pairs, bert, tmp_path, monkeypatch):
    kinds, forward = [], torch.nn.Linear.forward

    def recording(layer, x):
        found = forward(layer, x)
        if layer.training:
            kinds.append(found.dtype)
        return found

    monkeypatch.setattr(torch.nn.Linear, "forward", recording)
    assert main(cross(tree_pairs, bert, tmp_path / "out", "--bf16")) == 0
    assert set(kinds) == {torch.bfloat16}
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {each.dtype for each in saved.values()} == {torch.float32}  # mixed precision: the weights stay exact
    assert json.loads((tmp_path / "out" / "report.json").read_text())["measures"]["roc_auc"]["value"] > 0.8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--test_folds", "9"), "--test_folds from 1 to 4"),
        (("--base", "/nowhere"), "a model that transformers can put a classification head on"),
        (("--folds", "2", "--test_folds", "1"), "three folds or more"),
    ],
)
def test_what_cannot_be_trained_is_said(tree_pairs, bert, tmp_path, capsys, more, message):
    assert main(cross(tree_pairs, bert, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--lora_rank", "16"), "options of --kind head"),
        (("--kind", "cross-encoder", "--base", "b", "--dtype", "float32"), "options of --kind cross-encoder"),
        (("--kind", "cross-encoder", "--base", "b", "--epochs", "0"), "--epochs of 1 or more"),
        (("--test_folds", "0"), "--test_folds from 1 to 5"),
        (("--folds", "1"), "two folds or more"),
        (("--encoder", "/nowhere"), "a sentence encoder in /nowhere"),
    ],
)
def test_what_would_be_ignored_or_cannot_work_is_refused_and_corrected(
    story_pairs, tmp_path, capsys, monkeypatch, more, message
):
    out = ["-o", str(tmp_path / "out")]
    assert main([story_pairs, *out, *more]) == 2
    assert message in capsys.readouterr().err
    # The corrected command may use the same folder.
    monkeypatch.setattr("darling_plugin.training.train._train_head", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([story_pairs, *out])


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharded_training_is_refused(story_pairs, tmp_path, capsys, monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    assert main([story_pairs, "-o", str(tmp_path / "out"), "--kind", "cross-encoder", "--base", "b"]) == 2
    assert f"accelerate set up for {kind}" in capsys.readouterr().err


def test_a_wrong_command_leaves_no_folder_behind(tree_pairs, tmp_path):
    assert main([tree_pairs, "-o", str(tmp_path / "out"), "--kind", "cross-encoder"]) == 2
    assert main([tree_pairs, "-o", str(tmp_path / "out"), "--test_folds", "9"]) == 2
    assert not (tmp_path / "out").exists()


def test_a_base_with_other_labels_gets_a_new_last_layer(tree_pairs, tmp_path):
    base = make_classifier(tmp_path / "one", "modernbert-1")
    assert main(cross(tree_pairs, base, tmp_path / "out", "--epochs", "1")) == 0


def test_a_base_that_may_know_the_pairs_is_warned_of(tree_pairs, bert, tmp_path, caplog):
    quick = ("--epochs", "1", "--test_folds", "1")
    assert main(cross(tree_pairs, bert, tmp_path / "once", *quick)) == 0
    assert "has itself been trained" not in caplog.text
    assert main(cross(tree_pairs, str(tmp_path / "once"), tmp_path / "twice", *quick)) == 0
    assert f"{tmp_path / 'once'} has itself been trained by darling-train-partition" in caplog.text


def test_bad_pairs_end_it_before_any_training(tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text("nonsense\n")
    assert main([str(tmp_path / "pairs.jsonl"), "-o", str(tmp_path / "out")]) == 2
    assert "1 line (1): not a JSON object" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(story_pairs, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    assert main([story_pairs, "-o", str(tmp_path / "out")]) == 2
    assert "with files in it" in capsys.readouterr().err


def test_without_the_extra_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(train_partition, "EXTRA", (*train_partition.EXTRA, "not_installed_here"))
    assert main(["pairs.jsonl", "-o", "out"]) == 2
    said = capsys.readouterr().err
    assert "no module not_installed_here\n" in said and "darling-plugin[train]" in said
