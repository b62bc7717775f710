"""One recipe, one step, in CPU mode: as `make check-recipes` does with all of them."""

import importlib.util
import json
import sys
from pathlib import Path

import launching
import recompute

_path = Path(__file__).parents[2] / "examples" / "recipes" / "check.py"
_spec = importlib.util.spec_from_file_location("check_recipes", _path)
check = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check)


def test_the_wildchat_recipe_trains_a_step(tmp_path, monkeypatch):
    for name, value in launching.preloaded_workers().items():
        monkeypatch.setenv(name, value)
    check.make_stand_ins(tmp_path / "stand_ins")
    out = tmp_path / "run"
    check.run("wildchat_llama8b", "darling", tmp_path / "stand_ins", out)
    records = recompute.check(out)
    qualities = [value for record in records for value in record["quality"]]
    assert min(qualities) < 0, "Athene's raw scores: --darling.quality_transform sigmoid comes after them"
    assert all(0 < reward < 1 for record in records for reward in record["reward"])
    assert (out / "model" / "model.safetensors").is_file()
    run = json.loads((out / "run.json").read_text())
    assert run["partition_model"]["class"] == "darling_plugin.partition.models.released.DarlingModernBert"
