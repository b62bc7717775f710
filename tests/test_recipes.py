"""The recipes' commands: what OpenRLHF's own parser and checks and the launcher make of them, and no training run."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from darling_plugin import DarlingError

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
_spec = importlib.util.spec_from_file_location("check_recipes", RECIPES / "check.py")
check = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check)

README = (RECIPES / "README.md").read_text()
ALL = [(recipe, variant) for recipe in check.RECIPES for variant in check.VARIANTS]

# What the paper says of both trainings, and what it says of one (tables 6-8), in OpenRLHF's arguments.
COMMON = {
    "rollout.n_samples_per_prompt": 8,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "actor.adam.lr": 1e-6,
    "train.num_episodes": 10,
    "train.max_epochs": 1,
    "algo.advantage.estimator": "dr_grpo",
    "actor.eps_clip_low_high": (0.2, 0.2),
    "train.colocate_all": True,
}
MATHS = COMMON | {
    "algo.kl.init_coef": 0,
    "rollout.batch_size": 256,
    "train.batch_size": 64 * 8,
    "rollout.max_new_tokens": 8192,
    "data.max_len": 1024 + 8192,
}
WILDCHAT = COMMON | {
    "algo.kl.init_coef": 0.001,
    "algo.kl.use_loss": True,
    "algo.kl.estimator": "k3",
    "rollout.batch_size": 32,
    "train.batch_size": 32 * 8,
    "rollout.max_new_tokens": 1024,
    "data.max_len": 512 + 1024,
}
PAPER = {
    "wildchat_llama8b": (8, WILDCHAT | {"actor.model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct"}),
    "deepscaler_qwen3_4b": (8, MATHS | {"actor.model_name_or_path": "Qwen/Qwen3-4B-Base"}),
    "deepscaler_qwen3_14b": (64, MATHS | {"actor.model_name_or_path": "Qwen/Qwen3-14B-Base"}),
}


def flags(arguments: list[str]) -> dict[str, list[str]]:
    """{flag: its values}; each flag once."""
    found: dict[str, list[str]] = {}
    for word in arguments:
        if word.startswith("--"):
            assert word not in found, f"{word} twice"
            found[word] = []
            last = word
        else:
            found[last].append(word)
    return found


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table of the README after `heading`, without its two head lines."""
    table = re.search(r"(?:^\|.*\n)+", README[README.index(heading) :], re.MULTILINE)[0]
    return [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize(("recipe", "variant"), ALL)
def test_openrlhf_and_the_launcher_accept_it_with_the_papers_settings(recipe, variant):
    parsed = check.parse(check.command(recipe, variant))
    gpus, expected = PAPER[recipe]
    assert parsed.gpus == gpus
    for name, value in expected.items():
        found = parsed.openrlhf
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value, name
    prompts, episodes = parsed.openrlhf.data.max_samples, parsed.openrlhf.train.num_episodes
    steps = next(int(row[5]) for row in rows("# Recipes") if f"[{recipe}.sh]" in row[0])
    assert steps * parsed.openrlhf.rollout.batch_size == prompts * episodes, "no batch is left that is not full"
    assert prompts % parsed.openrlhf.rollout.batch_size == 0 and 9900 < prompts <= 10_000
    assert parsed.darling.enable and not parsed.darling.cpu
    assert parsed.darling.num_partition_actors == gpus
    classifier = {"w": "darling-modernbert", "d": "darling-qwen3-math"}[recipe[0]]
    compared = ("lexical:4", "expected") if variant == "ngram" else (classifier, "classes")
    assert (parsed.darling.partition_model, parsed.darling.diversity, parsed.darling.threshold) == (*compared, None)
    (reward,) = parsed.openrlhf.reward.remote_url
    name = "reward_athene.py" if recipe.startswith("wildchat") else "reward_math.py"
    assert Path(reward) == RECIPES.parent / name


@pytest.mark.parametrize("recipe", check.RECIPES)
@pytest.mark.parametrize(("variant", "defining"), [(row[0].strip("`"), row[2]) for row in rows("## Variants")])
def test_a_variant_differs_by_the_flags_that_the_readme_gives(recipe, variant, defining):
    theirs, base = flags(check.command(recipe, variant)), flags(check.command(recipe, "darling"))
    assert not base.keys() - theirs.keys()
    different = {flag: values for flag, values in theirs.items() if base.get(flag) != values}
    assert different == flags([] if defining == "none" else defining.strip("`").split())


def test_the_readme_lists_every_recipe_and_variant():
    listed = {re.match(r"\[(\w+)\.sh\]\(\1\.sh\)", row[0])[1]: row[4] for row in rows("# Recipes")}
    assert {name: int(gpus.split(",")[0]) for name, gpus in listed.items()} == {r: g for r, (g, _) in PAPER.items()}
    assert set(listed) == set(check.RECIPES)
    assert [row[0].strip("`") for row in rows("## Variants")] == list(check.VARIANTS)


@pytest.mark.parametrize("recipe", check.RECIPES)
def test_an_unknown_variant_is_refused_with_the_list(recipe):
    for unknown in ("darlin", "--actor.adam.lr"):
        with pytest.raises(DarlingError, match="status 2: unknown variant") as raised:
            check.command(recipe, unknown)
        assert ", ".join(check.VARIANTS) in str(raised.value)


@pytest.mark.parametrize("recipe", check.RECIPES)
def test_the_users_flags_come_last_and_win(recipe):
    arguments = check.command(
        recipe, "quality", "--actor.adam.lr", "2e-6", "--data.prompt_dataset", "a name with blanks"
    )
    assert arguments[-4:] == ["--actor.adam.lr", "2e-6", "--data.prompt_dataset", "a name with blanks"]
    parsed = check.parse(arguments)
    assert (parsed.openrlhf.actor.adam.lr, parsed.openrlhf.data.prompt_dataset) == (2e-6, "a name with blanks")


def test_defaults_without_arguments_or_environment(tmp_path):
    (tmp_path / "python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("DATA", "OUT")}
    done = subprocess.run(
        ["bash", RECIPES / "wildchat_llama8b.sh"],
        env={**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = flags(done.stdout.split()[2:])
    assert found["--darling.log_dir"] == ["runs/wildchat_llama8b-darling"]
    assert found["--data.prompt_dataset"] == ["data/wildchat10k.jsonl"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--no.such_flag"], "unrecognized arguments: --no.such_flag"),
        (["--vllm.num_engines", "3"], "got 8 and 3"),
        (["--ref.num_gpus_per_node", "4"], "must be the same when colocate actor and ref"),
        (["--rollout.micro_batch_size", "64"], "number of sample batches"),
        (["--darling.threshhold", "1"], "did you mean '--darling.threshold'"),
    ],
)
def test_the_check_itself_refuses_what_would_not_start(more, expected):
    with pytest.raises(DarlingError, match=f"(?s){expected}"):
        check.parse(check.command("wildchat_llama8b", "darling", *more))


def test_a_flag_to_be_replaced_that_the_recipe_lacks_is_an_error():
    assert check.replaced(["--a", "1", "--b", "2"], {"--b": "3"}) == ["--a", "1", "--b", "3"]
    for arguments in (["--a", "1"], ["--b", "1", "--b", "2"]):
        with pytest.raises(DarlingError, match="--b once"):
            check.replaced(arguments, {"--b": "3"})


@pytest.mark.parametrize(("recipe", "variant"), ALL)
def test_a_small_run_differs_by_the_stand_ins_alone(recipe, variant, tmp_path):
    small = flags(check.small(recipe, variant, tmp_path, tmp_path / "out"))
    whole = flags(check.command(recipe, variant, out=str(tmp_path / "out")))
    different = {flag for flag in small if small[flag] != whole.get(flag)}
    kept = check.ABSENT.get(recipe, set()) | check.ABSENT.get(variant, set())
    assert different <= (set(check.STAND_INS) - kept) | {"--darling.cpu"}
    steps = [int(each["--rollout.batch_size"][0]) * 8 / int(each["--train.batch_size"][0]) for each in (small, whole)]
    assert steps[0] == steps[1], "optimizer steps a rollout"


# ── slurm.sh, with stand-ins for SLURM, Ray and Python ──

STUBS = {
    "scontrol": "echo node1\necho node2\n",
    # As srun does: a task has the cores of its own variable, not those that sbatch was given.
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexport CORES=${SRUN_CPUS_PER_TASK:-1}\nexec "$@"\n',
    "hostname": 'echo "$ADDRESSES"\n',
    "sleep": "",
    # A log that breaks off.
    "ray": 'printf "%s, %s cores\\n" "$*" "$CORES" >> "$RAY_LOG"\n[[ $2 != logs ]]\n',
    "python3": 'case $2 in\n  *ray.init*) echo "$NODES_UP" ;;\n'
    # The states of the job, one a question.
    '  *get_job_status*) head -n 1 "$STATES"; sed -i 1d "$STATES" ;;\n'
    f'  *) exec {sys.executable} "$@" ;;\nesac\n',
}


@pytest.fixture
def slurm(tmp_path):
    for name, script in STUBS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "log").touch()

    def submit(
        *arguments: str,
        nodes_up: str = "2",
        addresses: str = "fe80::1 127.0.1.1 10.0.0.1 10.0.0.2",
        states: tuple[str, ...] = ("PENDING", "RUNNING", "", "RUNNING", "SUCCEEDED"),
    ) -> tuple[int, str, list[str]]:
        (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(RECIPES.parents[1]),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_ID": "7",
            "RAY_LOG": str(tmp_path / "log"),
            "NODES_UP": nodes_up,
            "ADDRESSES": addresses,
            "STATES": str(tmp_path / "states"),
            "SLURM_CPUS_PER_TASK": "48",
            "DATA": "/shared/data.jsonl",
        }
        done = subprocess.run(
            ["bash", RECIPES / "slurm.sh", *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr, (tmp_path / "log").read_text().splitlines()

    return submit


def test_slurm_starts_a_cluster_and_submits_the_recipe(slurm):
    status, said, calls = slurm("deepscaler_qwen3_14b", "ngram", "--train.seed", "1")
    assert status == 0, said
    head, worker = (sorted(call for call in calls if call.startswith("start"))[k] for k in (1, 0))
    assert worker == "start --block --address=10.0.0.1:6379 --num-gpus=8 --num-cpus=48, 48 cores"
    assert head.startswith("start --head --block --node-ip-address=10.0.0.1 --port=6379 --num-gpus=8 --num-cpus=48")
    (job,) = (call for call in calls if call.startswith("job submit"))
    before, after = job.split(" -- ")
    runtime_env = json.loads(before[before.index("{") :])
    out = f"{RECIPES.parents[1]}/runs/deepscaler_qwen3_14b-ngram-7"
    assert runtime_env == {"env_vars": {"DATA": "/shared/data.jsonl", "OUT": out}}
    assert after == f"bash {RECIPES}/deepscaler_qwen3_14b.sh ngram --train.seed 1, 48 cores"


@pytest.mark.parametrize(
    ("states", "status", "said"),
    [
        (("RUNNING", "SUCCEEDED"), 0, ""),
        (("RUNNING", "FAILED"), 1, "the job darling-7 ended: FAILED"),
        (("STOPPED",), 1, "the job darling-7 ended: STOPPED"),
        (("RUNNING",), 1, "has not said for five minutes"),
    ],
)
def test_slurm_ends_when_the_job_does_and_not_its_log(slurm, states, status, said):
    found, text, calls = slurm("wildchat_llama8b", states=states)
    assert (found, said in text) == (status, True), text
    logs = [call for call in calls if call.startswith("job logs")]
    assert len(logs) == len(states) + 30 * (states == ("RUNNING",))
    assert all("--follow darling-7" in call for call in logs)
    assert [call for call in calls if "--no-wait" in call and "--submission-id=darling-7" in call]


def test_slurm_needs_all_nodes_and_a_recipe_that_exists(slurm):
    status, said, calls = slurm("wildchat_llama8b", nodes_up="1")
    assert (status, "1 of 2 nodes joined" in said) == (1, True)
    assert not any(call.startswith("job") for call in calls)
    assert slurm("wildchat")[:2] == (2, f"no recipe {RECIPES}/wildchat.sh: submit from the repository's root\n")
    assert slurm()[0] == 2


def test_slurm_needs_an_address_that_the_nodes_reach(slurm, monkeypatch):
    status, said, calls = slurm("wildchat_llama8b", addresses="::1 127.0.1.1")
    assert (status, calls, "set HEAD_IP" in said) == (1, [], True)
    monkeypatch.setenv("HEAD_IP", "192.168.7.1")
    status, said, calls = slurm("wildchat_llama8b", addresses="::1")
    assert status == 0 and any("--address=192.168.7.1:6379" in call for call in calls), said


def test_slurm_asks_for_cores_and_for_more_hours_than_any_recipe_needs():
    options = re.findall(r"^#SBATCH --(\S+?)=(\S+)$", (RECIPES / "slurm.sh").read_text(), re.MULTILINE)
    options = dict(options)
    assert int(options["cpus-per-task"]) >= 64
    hours = [int(cells[-1]) for cells in rows("# Recipes")]
    assert len(hours) == 3 and max(hours) < int(options["time"].split(":")[0])
