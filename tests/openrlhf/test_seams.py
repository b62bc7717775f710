"""Releases in which a seam has another name: a made-up one costs a line, and the hooks work on it."""

import ast
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from darling_plugin import DarlingError
from darling_plugin.openrlhf import seams
from darling_plugin.openrlhf.seams import SUPPORTED_OPENRLHF, seams_of

INSTALLED = Path(next(iter(find_spec("openrlhf").submodule_search_locations)))
NEWEST = SUPPORTED_OPENRLHF[-1]

# Renamed in it: the method that dispatches, and the parameter that compute_advantages_and_returns gets.
RENAMED = [
    ("trainer/ppo_utils/samples_generator.py", "_dispatch_prompts_to_vllm", "_send_prompts"),
    (
        "trainer/ppo_utils/experience_maker.py",
        "(self, experiences: List[Experience])",
        "(self, batch: List[Experience])",
    ),
]
CHANGES = """CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "99.0.0": {"dispatch": {"name": "SamplesGenerator._send_prompts"},
               "advantages": {"parameters": ("self", "batch"), "known_as": {"batch": "experiences"}}},
}"""

PROBE = """
import inspect
from types import SimpleNamespace

from darling_plugin.config import DarlingConfig
from darling_plugin.openrlhf import cpu, hooks, seams, worker

seams.check_installed_openrlhf()
cpu.stand_in_for_flash_attn()
worker.setup()
from openrlhf.trainer.ppo_utils import experience_maker
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

assert not hasattr(SamplesGenerator, "_dispatch_prompts_to_vllm")
worker.require_hooks()
seams.installed_seam("dispatch").resolve().darling_original  # hooked
generator = object.__new__(SamplesGenerator)
generator.vllm_engines, generator.tokenizer = [], None
generator.args = SimpleNamespace(
    rollout=SimpleNamespace(n_samples_per_prompt=2),
    algo=SimpleNamespace(advantage=SimpleNamespace(is_correction_level="off")),
)
generator.darling_pool = SimpleNamespace(submit=lambda *args, **kwargs: None)
original = SamplesGenerator._send_prompts.darling_original
try:
    generator._send_prompts([], [], temperature=1.0)
except Exception as error:
    print(type(error).__name__, error.args[0])  # the hook's: max_len is missing
arguments = seams.installed_seam("advantages").arguments(lambda batch: None, (), {"batch": [1]})
print(arguments)
"""


@pytest.fixture
def made_up(tmp_path):
    """A folder with OpenRLHF 99.0.0, and darling-plugin with what supporting it takes, to be put on PYTHONPATH."""
    ignore = shutil.ignore_patterns("__pycache__", "default")
    shutil.copytree(INSTALLED, tmp_path / "openrlhf", ignore=ignore)
    for file, before, after in RENAMED:
        text = (tmp_path / "openrlhf" / file).read_text()
        assert before in text
        (tmp_path / "openrlhf" / file).write_text(text.replace(before, after))
    info = tmp_path / "openrlhf-99.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: openrlhf\nVersion: 99.0.0\n")
    shutil.copytree(Path(seams.__file__).parents[1], tmp_path / "darling_plugin", ignore=ignore)
    file = tmp_path / "darling_plugin" / "openrlhf" / "seams.py"
    text = file.read_text()
    supported, changes = f'"{NEWEST}")', "CHANGES: dict[str, dict[str, dict[str, Any]]] = {}"
    assert text.count(supported) == text.count(changes) == 1
    file.write_text(text.replace(supported, f'"{NEWEST}", "99.0.0")').replace(changes, CHANGES))
    return tmp_path


def test_a_release_with_renamed_seams_costs_a_line_a_seam(made_up):
    environment = {**os.environ, "PYTHONPATH": str(made_up), "DARLING_PLUGIN_CONFIG": '{"enable": true}'}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, env=environment, cwd=made_up
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == [
        "DarlingError a number of tokens max_len among what OpenRLHF generates with",
        "{'experiences': [1]}",
    ]


def test_without_that_line_the_launcher_names_what_is_gone(made_up):
    with pytest.raises(DarlingError, match=r"(?s)_dispatch_prompts_to_vllm.*no such function"):
        seams.check_source(str(made_up / "openrlhf"), NEWEST)


def test_a_change_holds_from_its_release_on(monkeypatch):
    monkeypatch.setattr(seams, "SUPPORTED_OPENRLHF", ("1.0", "1.1", "1.2"))
    monkeypatch.setattr(seams, "CHANGES", {"1.1": {"resume": {"name": "BasePPOTrainer.resume"}}})
    names = {release: seams_of(release)[-1].name for release in ("1.0", "1.1", "1.2", "2.0")}
    assert names.pop("1.0") == "BasePPOTrainer.init_checkpoint_states"
    assert set(names.values()) == {"BasePPOTrainer.resume"}, "also in a release that is newer than all supported"


def test_a_renamed_parameter_reaches_the_hook_by_the_name_it_knows():
    seam = seams.Seam("evaluated", "m", "f", ("metrics", "step", "states"), {"metrics": "eval_metrics"})

    def wrapped(metrics, step, states=None): ...

    expected = {"eval_metrics": {"a": 1}, "step": 3, "states": None}
    assert seam.arguments(wrapped, ({"a": 1}, 3), {}) == expected
    assert seam.arguments(wrapped, (), {"step": 3, "metrics": {"a": 1}}) == expected


@pytest.mark.parametrize("has_code", [True, False])
def test_a_worker_without_openrlhfs_metadata_says_what_to_install(tmp_path, has_code):
    code = tmp_path / "openrlhf"
    if has_code:  # as a Ray job's working_dir or PYTHONPATH brings it, without a dist-info
        code.mkdir()
        (code / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(seams.__file__).parents[2]}"}
    asks = "from darling_plugin.openrlhf.seams import installed_seams; installed_seams()"
    done = subprocess.run(  # -S: without the installed packages
        [sys.executable, "-S", "-c", asks], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode != 0 and "DarlingError" in done.stderr, done.stderr
    _, found, do = done.stderr.rsplit("darling-plugin\n", 1)[1].splitlines()
    assert (f"its code alone, in {code}" if has_code else "none installed") in found
    assert "on every node" in do and "PackageNotFoundError" not in done.stderr


def test_seams_import_the_standard_library_alone():
    imported = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name.split(".")[0]
        for file in ("seams.py", "contract.py")
        for node in ast.walk(ast.parse((Path(seams.__file__).parent / file).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"darling_plugin"}
