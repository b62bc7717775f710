"""Real runs in which real processes are killed, with SIGKILL."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import launching
import psutil
import recompute

MODEL = """
import os, time
from darling_plugin import PartitionModel

class FirstLetter(PartitionModel):
    def partition(self, groups):
        with open({begun!r}, "a") as file:
            file.write(f"{{os.getpid()}}\\n")
        time.sleep(0.5)
        return [[ord(text[:1] or " ") % 3 for text in group.responses] for group in groups]
"""


def check_labels(records):
    for record in records:
        letters = [ord(text[:1] or " ") % 3 for text in record["responses"]]
        assert record["labels"] == [list(dict.fromkeys(letters)).index(letter) for letter in letters]


def kill_the_actor(begun, pids):
    """Kills each process that begins to partition, five times in all."""
    while len(pids) < 5:
        time.sleep(0.1)
        with contextlib.suppress(FileNotFoundError):
            lines = begun.read_text().split("\n")[:-1]  # whole ones: the last may be in the writing
            newest = int(lines[-1]) if lines else None
            if newest and newest not in pids:
                psutil.Process(newest).send_signal(signal.SIGKILL)
                pids.append(newest)


def test_the_partition_actor_killed_five_times_in_a_run_with_a_reward_model(inputs, tied_model, reward_model):
    begun, killed = inputs / "begun", []
    (inputs / "letter.py").write_text(MODEL.format(begun=str(begun)))
    threading.Thread(target=kill_the_actor, args=(begun, killed), daemon=True).start()
    status, output = launching.run(
        inputs,
        [
            *launching.command(
                inputs,
                tied_model,
                reward__remote_url=None,
                reward__model_name_or_path=str(reward_model),
                reward__num_gpus_per_node="1",
            ),
            *["--darling.enable", "--darling.cpu", "--darling.log_dir", "log"],
            *["--darling.partition_model", "letter.py:FirstLetter", "--darling.quality_transform", "sigmoid"],
        ],
    )
    assert status == 0, output[-8000:]
    assert len(set(killed)) == 5
    records = recompute.check(inputs / "log")
    assert Counter(record["step"] for record in records) == {1: 4, 2: 4}
    assert len({record["prompt"] for record in records}) == 8, "each prompt once: none lost, none twice"
    check_labels(records)
    assert min(value for record in records for value in record["quality"]) < 0, (
        "scores that only a transform makes fit"
    )


def kill_run(process):
    """Kills the launcher, its Ray and everything they started, all at once."""
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
    process.wait()


def test_a_run_killed_and_resumed_has_no_gap_and_no_step_twice(inputs, tied_model):
    launching.write_inputs(inputs, prompts=16)
    (inputs / "letter.py").write_text(MODEL.format(begun=str(inputs / "begun")))
    arguments = [
        *launching.command(
            inputs,
            tied_model,
            ckpt__save_steps="2",
            ckpt__load_enable="",
            logger__wandb__run_name="one-run",
            eval__dataset=str(inputs / "prompts.jsonl"),
            eval__steps="4",
            eval__n_samples_per_prompt="2",
        ),
        *["--darling.enable", "--darling.cpu", "--darling.log_dir", "log"],
        *["--darling.partition_model", "letter.py:FirstLetter"],
        *["--darling.reward", "redundancy", "--darling.weight_schedule", "1:0.5,3:0,4:1"],
    ]
    partitions = inputs / "log" / "partitions.jsonl"
    with (inputs / "killed.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "darling_plugin", *arguments], cwd=inputs, stdout=log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 400
        while not (partitions.exists() and '"step": 3' in partitions.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, (inputs / "killed.log").read_text()[-5000:]
            time.sleep(0.1)
        kill_run(process)

    status, output = launching.run(inputs, arguments)
    assert status == 0, output[-8000:]
    records = recompute.check(inputs / "log")
    check_labels(records)
    weights = {record["step"]: record["weight"] for record in records if record["split"] == "train"}
    assert weights == {1: 0.5, 2: 0.25, 3: 0.0, 4: 1.0}, "by OpenRLHF's step, before and after"
    assert [record["step"] for record in records if record["split"] == "train"] == [1] * 4 + [2] * 4 + [3] * 4 + [
        4
    ] * 4
    assert [record["step"] for record in records if record["split"] == "eval"] == [4] * 16
    assert len({r["prompt"] for r in records if r["split"] == "train"}) == 16, "the data go on where they stopped"
    superseded = (inputs / "log" / "partitions.superseded.jsonl").read_text()
    assert superseded.count('"step": 3') == 4
    assert (inputs / "log" / "run.1.json").exists(), "the flags of the first launch"
    logged = launching.tensorboard(inputs)
    for step in (1, 2, 3, 4):
        quality = [value for r in records if (r["split"], r["step"]) == ("train", step) for value in r["quality"]]
        assert abs(logged["train/darling/quality"][step] - sum(quality) / 16) < 1e-5
    assert list(logged["train/policy_loss"]) == [1, 2, 3, 4]
