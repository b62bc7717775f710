"""What the launcher refuses, before torch or Ray, and what it leaves alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import preloaded
import pytest
import ray

from darling_plugin import DarlingError
from darling_plugin.config import DarlingConfig, parse
from darling_plugin.openrlhf import cpu, launch, native, seams, worker

ENABLED = ["--darling.enable", "--rollout.n_samples_per_prompt", "8", "--algo.advantage.estimator", "dr_grpo"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--darling.threshhold", "0.3", *ENABLED], "did you mean '--darling.threshold'"),
        (["--darling.enabled"], "did you mean '--darling.enable'"),
        (["--darling.no_such_thing=1", *ENABLED], "--darling.partition_model, --darling.threshold"),
        (["--darling.threshold", "high", *ENABLED], "invalid float value: 'high'"),
        (["--darling.clustering", "kmeans", *ENABLED], "a known --darling.clustering(.|\\n)*'kmeans'"),
        (["--darling.threshold", *ENABLED], "expected one argument"),
        (["--darling.partition_model", "lexicall", *ENABLED], "did you mean 'lexical'.*cross-encoder.*, embedding"),
        (["--darling.partition_model", "cross-encoder", *ENABLED], "cross-encoder:/models/x"),
        (["--darling.partition_model", "cross-encoder:/no/such", *ENABLED], "a folder for .*no /no/such"),
        (["--darling.partition_model", "head:nowhere?dtype=float32", *ENABLED], "a folder for .*no nowhere"),
        (["--darling.partition_model", "nowhere.py:Model", *ENABLED], "nowhere.py"),
        (["--darling.reward", "multiplyy", *ENABLED], "did you mean 'multiply'.*additive, marginal_relevance"),
        (["--darling.advantage", "centred", *ENABLED], "did you mean 'centered'.*diversity_weighted"),
        (["--darling.diversity_floor", "1.5", *ENABLED], "a number from 0 to 1"),
        (["--darling.threshold", "nan", *ENABLED], "a finite number"),
        (["--darling.num_partition_actors", "0", *ENABLED], "at least 1"),
        (["--darling.num_partition_actors", "many", *ENABLED], "invalid number_or_auto value: 'many'"),
        (["--darling.num_partition_actors", "auto", "--darling.cpu", *ENABLED], "there in name only"),
        (
            ["--darling.num_partition_actors", "auto", "--darling.partition_model", "judge:http://j", *ENABLED],
            "it asks a server",
        ),
        (["--darling.gpus_per_partition_actor", "-1", *ENABLED], "from 0 to 1, or a whole number"),
        (["--darling.gpus_per_partition_actor", "1.5", *ENABLED], "from 0 to 1, or a whole number"),
        (["--darling.gpus_per_partition_actor", "nan", *ENABLED], "from 0 to 1, or a whole number"),
        (["--darling.partition_timeout", "0", *ENABLED], "seconds above 0"),
        (["--darling.partition_timeout", "inf", *ENABLED], "seconds above 0"),
        (["--darling.import_path", "no_such_module_anywhere", *ENABLED], "no_such_module_anywhere"),
        (["--darling.enable"], "--rollout.n_samples_per_prompt 1"),
        (["--darling.enable", "--rollout.n_samples_per_prompt=1"], "--rollout.n_samples_per_prompt 1"),
        (["--darling.threshold", "0.3"], "--darling.threshold without it"),
        (["--darling.correct_only", *ENABLED], "it is --darling.quality_gate above:0 now"),
        (["--darling.clustering", "pairwise", *ENABLED], "pass --darling.diversity pairs"),
        (["--darling.diversity", "expect", *ENABLED], "invalid choice: 'expect'"),
        (["--darling.diversity", "pairs", "--darling.partition_model", "answer", *ENABLED], "gives classes alone"),
        (["--darling.weight", "-1", *ENABLED], "weight: a number of 0 or more"),
        (["--darling.weight", "nan", *ENABLED], "weight: a number of 0 or more"),
        (
            ["--darling.weight", "2", "--darling.reward", "additive", *ENABLED],
            "a reward that --darling.weight changes",
        ),
        (
            ["--darling.weight", "2", "--darling.weight_schedule", "0:1", *ENABLED],
            "--darling.weight or --darling.weight_schedule",
        ),
        (
            ["--darling.reward", "reasoning_novelty", "--darling.quality_transform", "sigmoid", *ENABLED],
            "quality as it is: above 0 is right",
        ),
        (["--darling.weight_schedule", "half:1", *ENABLED], "--darling.weight_schedule STEP:WEIGHT"),
        (
            ["--darling.weight_schedule", "0:0,9:1", "--darling.reward", "additive", *ENABLED],
            "a reward that --darling.weight_schedule changes",
        ),
        (
            ["--darling.prompt_weight", "key", "--darling.reward", "additive", "--data.label_key", "answer", *ENABLED],
            "a reward that --darling.prompt_weight changes",
        ),
        (
            ["--darling.weight", "0.5", "--darling.reward", "quality", *ENABLED],
            "a reward or an advantage that --darling.weight changes",
        ),
        (
            ["--darling.weight_schedule", "0:0,9:1", "--darling.reward", "quality", *ENABLED],
            "a reward or an advantage that --darling.weight_schedule changes",
        ),
        (["--darling.prompt_weight", "key", *ENABLED], "no --data.label_key"),
        (["--darling.prompt_weight", "nowhere.py:weight", *ENABLED], "no such file"),
        (["--darling.partition_text", "regex:abc", *ENABLED], "a pattern without a group"),
        (["--darling.partition_text", "nowhere.py:part", *ENABLED], "no such file"),
        (["--darling.start_timeout", "0", *ENABLED], "start_timeout: a finite number of seconds above 0"),
        (["--darling.quality_only_limit", "2", *ENABLED], "quality_only_limit: a share from 0 to 1"),
        (["--darling.quality_gate", "top:2", *ENABLED], "not between 0 and 1"),
        (["--darling.quality_gate", "bove:1", *ENABLED], "did you mean 'above'"),
        (["--darling.advantage", "diversity_weighted", *ENABLED], "set --darling.reward quality"),
        (
            ["--darling.advantage", "diversity_weighted", "--darling.reward", "additive", *ENABLED],
            "set --darling.reward quality",
        ),
        (
            ["--darling.advantage", "inverse_class_size", "--darling.reward", "redundancy", *ENABLED],
            "set --darling.reward quality",
        ),
        (["--darling.advantage", "leave_one_out", *ENABLED], "set --darling.reward quality"),
        (
            ["--darling.weight", "1.5", "--darling.reward", "redundancy", *ENABLED],
            "at most 1, the whole of it, for redundancy.*1.5",
        ),
        (
            [
                *("--darling.weight", "2", "--darling.reward", "quality"),
                *("--darling.advantage", "inverse_class_size", *ENABLED),
            ],
            "at most 1, the whole of it, for inverse_class_size",
        ),
        (
            ["--darling.weight_schedule", "0:0,5:1.25,9:1", "--darling.reward", "marginal_relevance", *ENABLED],
            "at most 1, the whole of it, for marginal_relevance.*1.25",
        ),
        (
            ["--darling.quality_gate", "top:0.5", "--darling.quality_transform", "raw", *ENABLED],
            "qualities of at least 0 for --darling.reward multiply with --darling.quality_gate top:0.5",
        ),
        (
            ["--darling.advantage", "centered_std", *ENABLED, "--algo.advantage.estimator", "rloo"],
            "dr_grpo with --darling.advantage centered_std",
        ),
    ],
)
def test_refused_with_what_to_do(argv, expected, monkeypatch):
    monkeypatch.setattr(launch, "_run_openrlhf", lambda rest: None)  # what is not refused does not train
    with pytest.raises(DarlingError, match=f"(?s){expected}") as raised:
        launch.main(argv)
    assert all(part.strip() for part in raised.value.args), "needed, found and do each say something"


def test_refusal_needs_neither_torch_nor_ray_nor_openrlhf():
    script = (
        "import sys\n"
        "from darling_plugin import DarlingError\n"
        "from darling_plugin.openrlhf.launch import main\n"
        "try:\n"
        "    main(['--darling.enable'])\n"  # refused last of all, after the names and the installed OpenRLHF
        "except DarlingError as error:\n"
        "    print(error.args[1], *sorted({'torch', 'ray', 'openrlhf.trainer', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--rollout.n_samples_per_prompt", "1"]


def test_the_command_line_ends_with_status_1_and_the_message():
    done = subprocess.run(
        [sys.executable, "-m", "darling_plugin", "--darling.enabel"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "did you mean '--darling.enable'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_openrlhf_outside_the_supported_set(monkeypatch):
    monkeypatch.setattr(seams, "version", lambda name: "0.9.0")
    with pytest.raises(DarlingError, match=r"(?s)0\.11\.2.*openrlhf 0\.9\.0.*pip install"):
        launch.main(ENABLED)


@pytest.fixture
def changed_openrlhf(tmp_path) -> Path:
    """A copy of the installed OpenRLHF in which one seam has one more parameter."""
    installed = Path(next(iter(find_spec("openrlhf").submodule_search_locations)))
    shutil.copytree(installed, tmp_path / "openrlhf", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "openrlhf" / "trainer" / "ppo_utils" / "experience_maker.py"
    text = source.read_text()
    before = "def compute_advantages_and_returns(self, experiences: List[Experience])"
    assert text.count(before) == 1
    source.write_text(text.replace(before, before[:-1] + ", extra=None)"))
    return tmp_path


def test_a_seam_whose_signature_differs(changed_openrlhf):
    done = subprocess.run(
        [sys.executable, "-m", "darling_plugin", *ENABLED],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(changed_openrlhf)},
    )
    assert done.returncode == 1
    assert "compute_advantages_and_returns(self, experiences)" in done.stderr
    assert "(self, experiences, extra)" in done.stderr


def test_a_seam_that_is_gone(changed_openrlhf):
    source = changed_openrlhf / "openrlhf" / "trainer" / "ppo_trainer.py"
    source.write_text(source.read_text().replace("def train_step(", "def renamed_step("))
    seam = seams.installed_seam("train_step")
    found = seams.parameters_in_source(str(changed_openrlhf / "openrlhf"), seam)
    with pytest.raises(DarlingError, match="no such function"):
        seam.check(found)


def test_a_setup_hook_of_the_users_own(monkeypatch):
    job = {"runtime_env": {"worker_process_setup_hook": "mine.setup"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with pytest.raises(DarlingError, match="'mine.setup' in the job's runtime_env"):
        launch.main(ENABLED)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    with pytest.raises(DarlingError, match=r"'mine.setup' in ray.init's runtime_env"):
        launch.with_setup_hook(
            {"runtime_env": {"worker_process_setup_hook": "mine.setup"}}, DarlingConfig(enable=True)
        )


def test_cpu_mode_brings_its_gpus_in_name_unless_it_joins_a_cluster(monkeypatch):
    config = DarlingConfig(cpu=True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert launch.with_setup_hook({}, config)["num_gpus"] == 64
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert set(launch.with_setup_hook({}, config)) == {"runtime_env"}, (
        "Ray refuses to be given resources for a cluster that is there"
    )


@pytest.mark.parametrize("name", ["partitions.jsonl", "partitions.jsonl.gz"])
def test_a_log_dir_with_another_runs_partitions(name, tmp_path):
    (tmp_path / name).write_text("")
    with pytest.raises(DarlingError, match=r"(?s)of another run.*--ckpt.load_enable"):
        launch.main([*ENABLED, "--darling.log_dir", str(tmp_path)])
    resumed, rest = parse([*ENABLED, "--darling.log_dir", str(tmp_path), "--ckpt.load_enable"])
    launch.check(resumed, rest)


def test_the_advantage_is_resolved_by_the_estimator(capsys):
    config, rest = parse(ENABLED)
    assert launch.check(config, rest).advantage == "centered"
    config, rest = parse([*ENABLED, "--algo.advantage.estimator", "group_norm"])
    assert launch.check(config, rest).advantage is None, "OpenRLHF's estimator decides, and run.json says so"
    assert "The paper's advantage" in capsys.readouterr().err


DIVIDES = r"WARNING: .*divides its advantages by {} standard deviation.*2509.02534.*3.35.*5.49"


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        (["--algo.advantage.estimator", "group_norm"], DIVIDES.format("each group's")),
        (["--algo.advantage.estimator", "reinforce_baseline"], DIVIDES.format("the batch's")),
        (["--algo.advantage.estimator", "gae"], DIVIDES.format("the batch's")),
        (["--darling.advantage", "centered_std"], DIVIDES.format("each group's")),
        (["--algo.advantage.estimator", "reinforce_baseline", "--algo.advantage.no_std_norm"], None),
        (["--algo.advantage.estimator", "rloo"], None),
        ([], None),
    ],
)
def test_dividing_by_a_standard_deviation_warns_once_and_names_the_ablation(capsys, flags, warning):
    config, rest = parse([*ENABLED, *flags])
    launch.check(config, rest)
    said = capsys.readouterr().err
    assert said.count("WARNING") == (warning is not None)
    assert warning is None or re.search(warning, said)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], 1),
        (["--darling.cpu"], 0),
        (["--darling.partition_model", "lexical"], 0),
        (["--darling.gpus_per_partition_actor", "0.2"], 0),
    ],
)
def test_a_run_on_gpus_that_partitions_with_the_small_default_says_so(capsys, flags, said):
    config, rest = parse([*ENABLED, *flags])
    launch.check(config, rest)
    assert capsys.readouterr().err.count("partitioned by `default`, a small model, on the CPU") == said


def test_expected_diversity_of_a_model_that_gives_no_probabilities_is_warned_of(caplog):
    for model in ("embedding", "default", "lexical"):
        config, rest = parse([*ENABLED, "--darling.partition_model", model, "--darling.diversity", "expected"])
        launch.check(config, rest)
    (warning,) = caplog.records
    assert "diversity expected takes the similarity of Embedding" in warning.message


def test_ray_already_initialised():
    ray.init(num_cpus=1, include_dashboard=False)
    try:
        with pytest.raises(DarlingError, match="Ray is already initialised"):
            launch.main(ENABLED)
    finally:
        ray.shutdown()


def test_without_the_flag_nothing_is_touched(monkeypatch):
    argv = [
        "--rollout.n_samples_per_prompt",
        "8",
        "--algo.kl.init_coef",
        "1e-3",
        "--",
        "--reward.clip_range",
        "-1",
        "1",
    ]
    original_init = ray.init
    seen = {}

    def run_module(name, *, run_name, alter_sys):
        import openrlhf.utils

        seen.update(name=name, run_name=run_name, argv=sys.argv[1:], init=ray.init)
        seen["strategy"] = openrlhf.utils.get_strategy.__module__ if "openrlhf.utils" in sys.modules else None

    cpu.stand_in_for_flash_attn()
    monkeypatch.setattr(launch.runpy, "run_module", run_module)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    launch.main(argv)
    assert seen == {
        "name": "openrlhf.cli.train_ppo_ray",
        "run_name": "__main__",
        "argv": argv,
        "init": original_init,
        "strategy": "openrlhf.utils.utils",
    }
    assert "DARLING_PLUGIN_CONFIG" not in os.environ


def test_ray_init_gets_the_hook_and_keeps_openrlhfs_runtime_env():
    config = DarlingConfig(enable=True, threshold=0.25)
    kwargs = launch.with_setup_hook({"runtime_env": {"env_vars": {"NCCL_DEBUG": "WARN"}}}, config)
    environment = kwargs["runtime_env"]
    assert environment["worker_process_setup_hook"] == "darling_plugin.openrlhf.worker.setup" == worker.SETUP_HOOK
    assert environment["env_vars"]["NCCL_DEBUG"] == "WARN"
    assert "num_gpus" not in kwargs, "logical GPUs belong to CPU mode"
    assert not set(cpu.worker_environment()) & set(environment["env_vars"])
    assert DarlingConfig(**json.loads(environment["env_vars"]["DARLING_PLUGIN_CONFIG"])) == config


def test_our_flags_leave_openrlhfs_in_order():
    config, rest = parse(
        ["--a", "1", "--darling.enable", "--b", "--darling.threshold=0.32", "--darling.reward", "additive", "-c", "-2"]
    )
    assert rest == ["--a", "1", "--b", "-c", "-2"]
    assert (config.enable, config.threshold, config.reward, config.cpu) == (True, 0.32, "additive", False)


def test_cpu_mode_changes_only_what_needs_a_gpu(capsys):
    kept = ["--actor.adam.lr", "1e-6", "--vllm.num_engines", "4"]
    dropped = ["--ds.packing_samples", "--vllm.sync_backend", "nccl", "--train.colocate_all"]
    adapted = cpu.adapt_flags([*dropped, *kept, "--vllm.tensor_parallel_size=2"])
    assert adapted[: len(kept)] == kept
    added = [word for name, value in cpu.SET_FLAGS.items() for word in (name, value)] + list(cpu.ADD_FLAGS)
    assert adapted[len(kept) :] == added
    said = capsys.readouterr().err
    assert "without --ds.packing_samples" in said
    assert "--vllm.sync_backend gloo" in said


def test_help_shows_ours_beside_openrlhfs():
    done = subprocess.run(
        [preloaded.python(), "-m", "darling_plugin", "--help"], capture_output=True, text=True, check=True
    )
    for flag in DarlingConfig.__dataclass_fields__:
        assert f"--darling.{flag}" in done.stdout
    assert "--algo.advantage.estimator" in done.stdout


def test_files_are_named_from_where_the_command_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = DarlingConfig(
        log_dir="runs/a",
        import_path="mine.py",
        partition_model="models/own.py:Own?size=3.5",
        partition_text="~/text.py:part",
    ).with_absolute_paths()
    assert config.log_dir == f"{tmp_path}/runs/a"
    assert config.import_path == f"{tmp_path}/mine.py"
    assert config.partition_model == f"{tmp_path}/models/own.py:Own?size=3.5"
    assert config.partition_text == f"{os.path.expanduser('~')}/text.py:part"
    names = DarlingConfig(
        import_path="my.package", partition_model="embedding:org/model.py", partition_text="after:.py"
    )
    assert names.with_absolute_paths() == names
    (tmp_path / "head").mkdir()
    (tmp_path / "4").mkdir()
    for spec in ("lexical:4", "mine:4"):
        assert DarlingConfig(partition_model=spec).with_absolute_paths().partition_model == spec
    own = DarlingConfig(partition_model="head:head?dtype=float32").with_absolute_paths()
    assert own.partition_model == f"head:{tmp_path}/head?dtype=float32"


def test_a_patched_openrlhf_names_files_from_where_the_command_is_typed_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(native.launch, "check", lambda config, argv: config)
    flags = {"log_dir": "runs/a", "import_path": "mine.py", "partition_model": "models/own.py:Own"}
    plugin = native.Plugin()
    plugin.configure(SimpleNamespace(darling=SimpleNamespace(**{**vars(DarlingConfig(enable=True)), **flags})))
    for name, given in flags.items():
        assert getattr(plugin._config, name) == f"{tmp_path}/{given}"


@pytest.mark.parametrize(
    ("ray", "engines", "refused"), [("2.48.0", 2, True), ("2.48.0", 1, False), ("2.55.0", 2, False)]
)
def test_engines_of_several_gpus_are_refused_in_a_ray_that_takes_no_setup_hook_twice(
    monkeypatch, ray, engines, refused
):
    monkeypatch.setattr(launch.importlib.metadata, "version", {"ray": ray}.__getitem__)
    if refused:
        with pytest.raises(DarlingError, match="install OpenRLHF 0.10.3 or newer"):
            launch._check_ray(engines)
    else:
        launch._check_ray(engines)
