"""python3 -m darling_plugin.check: each line, on this machine and on ones that are played."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import ray
import shared_ray
import torch

from darling_plugin import check
from darling_plugin.check import NEEDS_GPU, NOT_HERE, OK, SLOW, WRONG
from darling_plugin.config import DarlingConfig
from darling_plugin.partition.engine import attention, kernels, selftest

CONFIG = DarlingConfig(enable=True)


def test_the_whole_of_it_on_this_machine(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "darling_plugin.check", "--json", "--log_dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=120,  # as --help says
        env={**os.environ, "RAY_ADDRESS": ""},
    )
    lines = {line["check"]: line for line in map(json.loads, ran.stdout.splitlines())}
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    for name in ("versions", "OpenRLHF's functions", "log folder", "attention, windowed", "a batch of Qwen3"):
        assert lines[name]["verdict"] == OK, lines[name]
    assert lines["partition model"]["verdict"] == OK and "default on a CPU of" in lines["partition model"]["found"]
    if not torch.cuda.is_available():
        needy = ("GPUs", "Ray", "CUDA's attention kernels")
        assert [lines[name]["verdict"] for name in needy] == [NEEDS_GPU] * 3
        assert lines["speed of this CPU"]["verdict"] in (OK, SLOW)
    assert os.listdir(tmp_path) == [], "nothing is left in the log folder"


def test_a_kernel_that_is_wrong_is_told(monkeypatch):
    right = attention.sdpa_by_piece

    def leaky(query, key, value, pieces, scaling, window):
        return right(query, key, value, pieces, scaling, None)  # it forgets the window

    monkeypatch.setattr(
        attention, "sdpa_by_piece", leaky
    )  # what choose_attention finds; the reference is the right one
    lines = {line.check: line for line in check.kernels(CONFIG)}
    assert lines["attention, windowed"].verdict == WRONG and "do not train on it" in lines["attention, windowed"].do
    assert lines["attention, global"].verdict == OK


def test_a_batch_that_is_wrong_is_told(monkeypatch):
    monkeypatch.setattr(selftest, "packed_errors", lambda: {"ModernBERT": ("PackedForward", 0.2)})
    assert [line.verdict for line in check.kernels(CONFIG)][-1] == WRONG


def test_without_a_kernel_for_packed_rows_it_is_slow(monkeypatch):
    monkeypatch.setattr(selftest, "choose_attention", lambda device, shape: None)
    monkeypatch.setattr(selftest, "packed_errors", dict)
    _, *lines = check.kernels(CONFIG)
    assert [line.verdict for line in lines] == [SLOW] * 3 and "flash-attn" in lines[0].do


def test_the_attention_in_use_is_named_with_what_else_was_tried(monkeypatch):
    choice = kernels.Choice("vLLM's flash-attn 3", max, {"torch's": "0.712 ms", "vLLM's flash-attn 3": "0.3 ms"})
    monkeypatch.setattr(selftest, "can_pack", lambda dtype: dtype == torch.bfloat16)
    monkeypatch.setattr(selftest, "choose", lambda shape: choice)
    shape = attention.Shape(8, 8, 64, 64, False, torch.bfloat16)
    assert selftest._in_use("cuda", shape) == "vLLM's flash-attn 3 (torch's: 0.712 ms, vLLM's flash-attn 3: 0.3 ms)"
    assert "none" in selftest._in_use("cuda", replace(shape, dtype=torch.float32))
    monkeypatch.setattr(selftest, "packed_errors", dict)
    monkeypatch.setattr(selftest, "_in_use", lambda device, shape: str(choice))
    _, *lines = check.kernels(CONFIG)
    assert all(str(choice) in line.found and line.verdict == OK for line in lines)


@pytest.mark.parametrize(("share", "verdict"), [(0.03, SLOW), (0.4, OK)])
def test_the_rate(share, verdict, monkeypatch):
    monkeypatch.setattr(selftest, "rate", lambda: selftest.Rate("MiniLM", 200, 30.0, 2e11, share, 0))
    (line,) = check.speed(CONFIG)
    assert line.verdict == verdict and "30 pairs" in line.found


@pytest.mark.parametrize(("free", "verdict"), [(1, WRONG), (60, OK)])
def test_a_full_gpu_is_told(free, verdict, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda k: (free * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda k: "A GPU")
    (line,) = check.memory(CONFIG)
    assert line.verdict == verdict and f"{free}.0 of 80.0 GiB free" in line.found


def test_weights_that_are_not_here(monkeypatch):
    monkeypatch.setattr(check, "_available", lambda path: "in the cache" if "dogtooth/sim" in path else None)
    lines = list(check.hub(DarlingConfig(partition_model="darling-qwen3-math?input=official")))
    verdicts = {line.check: line.verdict for line in lines}
    assert verdicts == {"darling-modernbert": OK, "darling-qwen3-math": WRONG, "noveltybench-deberta": NOT_HERE}


def test_one_check_that_raises_is_a_line_and_the_others_go_on(monkeypatch, capsys, tmp_path):
    def broken(config):
        raise OSError("no such disk")
        yield

    monkeypatch.setattr(check, "CHECKS", (broken, check.log_folder))
    assert check.main(["--log_dir", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().out
    assert "wrong" in said and "no such disk" in said and "can be written" in said
    (tmp_path / "file").write_text("")
    assert check.main(["--log_dir", str(tmp_path / "file")]) == 1, "no folder"


def test_an_unknown_partition_model_is_refused_before_anything_is_tried(capsys):
    assert check.main(["--partition_model", "defalt"]) == 2
    said = capsys.readouterr()
    assert "did you mean 'default'" in said.err and not said.out


def test_a_model_that_takes_too_long_to_load_is_a_line_and_not_a_wait(monkeypatch, tmp_path, capsys):
    (tmp_path / "slow.py").write_text(
        "import time\nfrom darling_plugin import PairwiseModel\nclass Slow(PairwiseModel):\n"
        "    threshold = 0.5\n    def __init__(self, **options):\n        time.sleep(60)\n"
        "    def similarity(self, pairs):\n        return [0.0] * len(pairs)\n"
    )
    monkeypatch.setenv("RAY_ADDRESS", shared_ray.address())
    monkeypatch.setattr(check, "DarlingConfig", partial(DarlingConfig, start_timeout=5.0))
    monkeypatch.setattr(check, "CHECKS", (check.ray_and_model,))
    try:
        assert check.main(["--partition_model", f"{tmp_path}/slow.py:Slow"]) == 1
    finally:
        ray.shutdown()
    said = capsys.readouterr().out
    assert "within 5 s" in said and "--darling.start_timeout" in said
