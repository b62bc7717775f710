"""Real runs of an OpenRLHF with patches/: its own command line, `--plugin darling_plugin`, no launcher."""

import sys
from collections import Counter
from pathlib import Path

import launching
import pytest
import recompute

from darling_plugin.openrlhf import cpu, weight_sync
from darling_plugin.openrlhf.seams import SUPPORTED_OPENRLHF

sys.path.insert(0, str(Path(__file__).parents[1] / "openrlhf"))

import patching
import releases

# Of this path Python imports it first, in the driver and in every worker. OpenRLHF's driver imports flash_attn before
# it knows of any plugin; and each process writes down which OpenRLHF it imported.
SITECUSTOMIZE = """
import os
import sys
import wrapt
from darling_plugin.openrlhf import cpu

cpu.stand_in_for_flash_attn()

def write_down(module):
    with open(os.environ["DARLING_TEST_IMPORTED"], "a") as file:
        file.write(f"{os.getpid()} {os.path.basename(sys.argv[0])} {module.__file__}\\n")

wrapt.register_post_import_hook(write_down, "openrlhf.trainer.ppo_trainer")
"""


@pytest.fixture
def patched(inputs, monkeypatch):
    try:
        patching.patched_copy(SUPPORTED_OPENRLHF[-1], inputs / "patched")
    except releases.IndexUnreachable as error:
        pytest.skip(f"no package index: {error}")
    (inputs / "patched" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(inputs / "patched"))
    monkeypatch.setenv("DARLING_TEST_IMPORTED", str(inputs / "imported"))
    return inputs


def test_openrlhfs_own_command_trains_with_darling(patched, tied_model):
    arguments = launching.command(
        patched,
        tied_model,
        eval__dataset=str(patched / "prompts.jsonl"),
        eval__steps="1",
        eval__n_samples_per_prompt="2",
    )
    darling = ["--darling.enable", "--darling.cpu", "--darling.partition_model", "lexical", "--darling.log_dir", "log"]
    status, output = launching.run(
        patched,
        [*cpu.adapt_flags(arguments), "--plugin", "darling_plugin", *darling],
        module=["-m", "openrlhf.cli.train_ppo_ray"],
    )
    assert status == 0, output[-8000:]
    records = recompute.check(patched / "log")
    steps = Counter((record["split"], record["step"]) for record in records)
    assert steps["train", 1] == steps["train", 2] == 4
    assert steps["eval", 1] == 8
    gaps = launching.sync_gaps(output)
    assert gaps and max(gaps) < weight_sync.TOLERANCE
    logged = launching.tensorboard(patched)
    assert {"train/darling/diversity", "eval/darling/diversity"} <= set(logged)

    imported = [line.split() for line in (patched / "imported").read_text().splitlines()]
    assert {Path(file).parents[2] for _, _, file in imported} == {patched / "patched"}
    assert "default_worker.py" in {program for _, program, _ in imported}, "Ray's workers among them"
    assert len({pid for pid, _, _ in imported}) >= 2
