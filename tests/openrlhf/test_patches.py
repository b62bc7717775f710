"""patches/ on the real source of every release: applies, compiles, marks every seam, and its --plugin fails loudly."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import patching
import preloaded
import pytest
import ray
import releases
from test_ray_workers import local_ray

from darling_plugin import DarlingError
from darling_plugin.config import DarlingConfig
from darling_plugin.openrlhf import worker
from darling_plugin.openrlhf.seams import FIRST, SUPPORTED_OPENRLHF, seams_of

# Workers cannot import this file: it travels with what it defines.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

PROBE = Path(__file__).with_name("probe_patched.py")
ARGV = ["--actor.model_name_or_path", "m", "--reward.remote_url", "r.py", "--vllm.num_engines", "1"]
ARGV += ["--rollout.n_samples_per_prompt", "4", "--algo.advantage.estimator", "dr_grpo"]
DARLING = [*ARGV, "--plugin", "darling_plugin"]

TOY = """
from types import SimpleNamespace

def add_arguments(parser):
    parser.add_argument("--toy.size", type=int, default=1)

def configure(args):
    if args.toy.size > 9:
        raise ValueError("toy.size above 9")

def ray_init(kwargs):
    kwargs["runtime_env"]["env_vars"]["TOY"] = "1"
    return kwargs

def around(wrapped, instance, args, kwargs):
    return {"around": wrapped(*args, **kwargs), "args": args, "kwargs": kwargs, "instance": instance}

def plugin(seam):
    return SimpleNamespace(
        add_arguments=add_arguments, configure=configure, ray_init=ray_init, wrappers={seam: around}
    )

toy = plugin("openrlhf.trainer.ppo_trainer:compute_eval_metrics")
elsewhere = plugin("openrlhf.trainer.ppo_trainer:prepare_datasets")
nowhere = plugin("openrlhf.trainer.ppo_trainer:BasePPOTrainer.no_such_method")
alias = plugin("openrlhf.trainer.ppo_trainer_async:compute_eval_metrics")
"""
ENTRY_POINTS = "[openrlhf.plugins]\n" + "".join(f"{k} = toys:{k}\n" for k in ("toy", "elsewhere", "nowhere", "alias"))


@pytest.fixture(scope="module", params=SUPPORTED_OPENRLHF)
def release(request, tmp_path_factory):
    """(version, folder of the release, folder of a patched copy beside which the toy plugins are installed)"""
    patched = tmp_path_factory.mktemp("patched") / request.param
    try:
        original = patching.patched_copy(request.param, patched)
    except releases.IndexUnreachable as error:
        pytest.skip(f"no package index: {error}")
    (patched / "toys.py").write_text(TOY)
    info = patched / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return request.param, original, patched


@pytest.fixture(scope="module")
def probed(release):
    """What the patched release's own command line and seams do, told by probe_patched.py in a process of its own."""
    version, original, patched = release
    if version not in releases.RUN:
        pytest.skip("`make compat` runs the command line of this release, too")
    commands = {
        "plain": ARGV,
        "unknown": [*ARGV, "--plugin", "toyy"],
        "toy": [*ARGV, "--plugin", "toy", "--toy.size", "3"],
        "toy refuses": [*ARGV, "--plugin", "toy", "--toy.size", "10"],
        "toy's flag alone": [*ARGV, "--toy.size", "3"],
        "elsewhere": [*ARGV, "--plugin", "elsewhere"],
        "nowhere": [*ARGV, "--plugin=nowhere"],
        "alias": [*ARGV, "--plugin", "alias"],
        "darling": [*DARLING, "--darling.enable", "--darling.threshold", "0.5"],
        "darling off": DARLING,
        "darling unknown flag": [*DARLING, "--darling.enable", "--darling.treshold", "0.5"],
        "darling bad value": [*DARLING, "--darling.enable", "--darling.reward", "multiplyy"],
    }
    seams = [f"{seam.module}:{seam.name}" for seam in seams_of(version)]
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(probe, patched, {"commands": commands, "seams": seams, "by_environment": "toy"})
        plain = pool.submit(probe, original, {"commands": {"plain": ARGV}, "seams": [], "by_environment": None})
        return {"patched": asked.result(), "original": plain.result()}


def probe(folder: Path, questions: dict) -> dict:
    environment = {name: value for name, value in os.environ.items() if name != "OPENRLHF_PLUGIN"}
    done = subprocess.run(
        [preloaded.python(), str(PROBE), json.dumps(questions)],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHONPATH": str(folder)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert Path(answers["openrlhf"]).parent.parent == folder, "the copy was imported, not what is installed"
    return answers


def test_the_patch_applies_with_git_too_and_comes_off_again(release, tmp_path):
    _, original, patched = release
    for folder, options in ((original, []), (patched, ["--reverse"])):
        done = subprocess.run(
            ["git", "apply", "--check", "--verbose", *options, str(patching.PATCH)],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env={**os.environ, "GIT_DIR": str(tmp_path / "none")},  # else it looks at the repository around the folder
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("Checking patch") == 5


def test_patched_modules_compile(release):
    _, _, patched = release
    for line in patching.PATCH.read_text().splitlines():
        if line.startswith("+++ b/"):
            path = patched / line.removeprefix("+++ b/")
            compile(path.read_text(), str(path), "exec")


def test_every_seam_is_marked_and_nothing_else(release):
    _, _, patched = release
    marks = [line for path in (patched / "openrlhf").rglob("*.py") for line in path.read_text().splitlines()]
    assert sum(line.strip() == "@plugin_seam" for line in marks) == len(FIRST)


def test_every_seam_is_one_at_run_time_and_keeps_its_signature(release, probed):
    version, _, _ = release
    assert probed["patched"]["seams"] == {
        f"{seam.module}:{seam.name}": list(seam.parameters) for seam in seams_of(version)
    }


def test_without_the_flag_nothing_changes(probed):
    patched, original = (probed[which]["commands"]["plain"] for which in ("patched", "original"))
    assert "plugin: None" in patched["args"] and "error" not in patched
    assert patched | {"args": [line for line in patched["args"] if line != "plugin: None"]} == original
    assert probed["patched"]["calls"]["no plugin"] == {}


def test_an_unknown_plugin_is_refused_with_the_installed_ones(probed):
    error = probed["patched"]["commands"]["unknown"]["error"]
    assert "Unknown plugin 'toyy'" in error and "alias, darling_plugin, elsewhere, nowhere, toy" in error


def test_a_plugin_adds_flags_checks_them_and_reaches_ray_and_the_seams(probed):
    commands, calls = probed["patched"]["commands"], probed["patched"]["calls"]
    assert "toy.size: 3" in commands["toy"]["args"]
    environment = commands["toy"]["init"]["runtime_env"]["env_vars"]
    assert (environment["OPENRLHF_PLUGIN"], environment["TOY"]) == ("toy", "1")
    assert "NCCL_DEBUG" in environment
    assert probed["patched"]["by_environment"]["init"]["runtime_env"]["env_vars"] == environment
    assert "toy.size above 9" in commands["toy refuses"]["error"]
    assert "SystemExit" in commands["toy's flag alone"]["error"], "unknown without its plugin"
    assert calls["toy"] == {"around": {}, "args": [[], []], "kwargs": {"n_samples_per_prompt": 2}, "instance": None}


@pytest.mark.parametrize("name", ["elsewhere", "nowhere", "alias"])
def test_a_plugin_that_wraps_no_seam_is_refused(probed, name):
    answer = probed["patched"]["commands"][name]
    assert "is not a seam of this OpenRLHF" in answer["error"]
    assert "init" not in answer, "before Ray starts"


def test_a_worker_without_the_plugin_fails(probed):
    assert "Unknown plugin 'gone'" in probed["patched"]["calls"]["gone"]


def test_darling_as_a_plugin(probed):
    commands = probed["patched"]["commands"]
    assert "add --darling.enable or drop --plugin" in commands["darling off"]["error"]
    assert "SystemExit" in commands["darling unknown flag"]["error"]
    assert "did you mean 'multiply'" in commands["darling bad value"]["error"]
    assert "darling.threshold: 0.5" in commands["darling"]["args"]
    assert commands["darling"]["guard"] == "RequiresHooks"
    assert commands["darling"]["placement_group"] == "darling_plugin.openrlhf.placement"
    runtime_env = commands["darling"]["init"]["runtime_env"]
    assert runtime_env["worker_process_setup_hook"] == "darling_plugin.openrlhf.worker.setup"
    config = json.loads(runtime_env["env_vars"]["DARLING_PLUGIN_CONFIG"])
    assert (config["enable"], config["threshold"], config["advantage"]) == (True, 0.5, "centered")
    assert "guard" not in commands["plain"]


class Seen:
    """What a process of a run finds: the guard has been unpickled in it, and let it start."""

    def __init__(self, guard):
        import openrlhf.trainer.ppo_trainer

        self.module = openrlhf.trainer.ppo_trainer

    def look(self):
        from openrlhf.trainer.ppo_utils.experience import Experience

        from darling_plugin.openrlhf.seams import installed_seams

        layers = []
        for seam in installed_seams():
            function, ours = seam.resolve(), 0
            while hasattr(function, "__wrapped__"):
                ours += "darling_original" in vars(function) and function.darling_original is function.__wrapped__
                function = function.__wrapped__
            layers.append(ours)
        try:
            self.module.compute_eval_metrics([], [Experience(prompts=["p"], rewards=[1.0])], 1)
            hooked = False
        except DarlingError as error:
            hooked = "samples without darling_label" in str(error)
        return self.module.__file__, layers, hooked


@pytest.mark.parametrize(("native", "layers"), [(True, 0), (False, 1)], ids=["--plugin", "launcher"])
def test_each_way_in_hooks_a_worker_once(tmp_path, native, layers):
    patched = tmp_path / "patched"
    try:
        patching.patched_copy(SUPPORTED_OPENRLHF[-1], patched)
    except releases.IndexUnreachable as error:
        pytest.skip(f"no package index: {error}")
    environment = {"PYTHONPATH": str(patched)} | ({"OPENRLHF_PLUGIN": "darling_plugin"} if native else {})
    # CPU mode, for its stand-in of flash-attn; its shims, too, stand around one of the seams.
    with local_ray(DarlingConfig(enable=True, cpu=True), runtime_env={"env_vars": environment}):
        seen = ray.remote(num_cpus=0)(Seen).remote(worker.RequiresHooks())
        file, found, hooked = ray.get(seen.look.remote())
    assert Path(file).is_relative_to(patched)
    shimmed = [seam.role == "resume" for seam in FIRST]
    assert found == [layers + shim for shim in shimmed]
    assert hooked


def test_the_guard_stops_a_worker_of_a_native_run_too():
    with (
        local_ray(None, runtime_env={"env_vars": {"OPENRLHF_PLUGIN": "darling_plugin"}}),
        pytest.raises(Exception, match="the worker's setup hook did not run"),
    ):
        ray.get(ray.remote(num_cpus=0)(Seen).remote(worker.RequiresHooks()).look.remote())
