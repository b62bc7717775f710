"""Real runs of every way OpenRLHF trains, each with DARLING on and its partitions.jsonl recomputed."""

import json
from itertools import combinations
from pathlib import Path

import launching
import pytest
import recompute
import tiny_model

from darling_plugin.openrlhf.weight_sync import TOLERANCE

REPOSITORY = Path(__file__).parents[2]

DARLING = ["--darling.enable", "--darling.cpu", "--darling.log_dir", "log", "--darling.partition_model", "lexical"]


def train(folder, model, *darling, **changed) -> tuple[list[dict], dict, str]:
    """The recomputed groups of a run that succeeded, what it logged to TensorBoard, and all it said."""
    status, output = launching.run(folder, [*launching.command(folder, model, **changed), *DARLING, *darling])
    assert status == 0, output[-8000:]
    gaps = launching.sync_gaps(output)
    assert gaps and max(gaps) < TOLERANCE
    return recompute.check(folder / "log"), launching.tensorboard(folder), output


def steps(records, split="train"):
    return [record["step"] for record in records if record["split"] == split]


SLEEPER = """
from darling_plugin import load_partition_model

class Sleeper(type(load_partition_model("lexical"))):
    asleep = False

    def sleep(self):
        self.asleep = self._note("sleep")

    def wake(self):
        self.asleep = not self._note("wake")

    def similarities(self, groups):
        assert not self.asleep
        return super().similarities(groups)

    def _note(self, what):
        with open({path!r}, "a") as file:
            file.write(what + "\\n")
        return True
"""


def test_ppo_with_a_critic_a_reward_model_duplicate_prompts_an_overlong_penalty_and_naps_on_qwen3(
    inputs, reward_model, tmp_path
):
    naps = tmp_path / "naps"
    (inputs / "sleeper.py").write_text(SLEEPER.format(path=str(naps)))
    (inputs / "prompts.jsonl").write_text('{"input": "name a bird"}\n' * 8)
    records, logged, output = train(
        inputs,
        tiny_model.build(tmp_path / "qwen3", "qwen3"),
        *["--darling.quality_transform", "raw", "--darling.clustering", "greedy"],
        # A share of a GPU in name, and the model put to sleep whenever no group comes.
        *["--darling.partition_model", f"{inputs}/sleeper.py:Sleeper"],
        *["--darling.gpus_per_partition_actor", "0.2", "--darling.partition_sleep"],
        reward__remote_url=None,
        reward__model_name_or_path=str(reward_model),
        reward__num_gpus_per_node="1",
        reward__overlong_buffer_len="8",
        reward__overlong_penalty_factor="0.5",
        ref__num_gpus_per_node="1",
        critic__num_gpus_per_node="1",
        critic__adam__lr="1e-3",
        algo__advantage__estimator="gae",
        algo__kl__init_coef="0.01",
    )
    assert steps(records) == [1] * 4 + [2] * 4
    assert len({record["prompt"] for record in records}) == 1, "one prompt, and yet eight groups"
    quality = [value for record in records for value in record["quality"]]
    assert min(quality) < 0 < max(quality) and len(set(quality)) > 8, "scores of a reward model"
    assert any(penalty < 0 for record in records for penalty in record["length_penalty"])
    assert all(record["advantage"] is None for record in records), "the critic's advantages are made by OpenRLHF"
    assert {"train/critic_loss", "train/values", "train/kl"} <= set(logged)
    assert logged["train/kl"][2] != 0
    assert output.count("WARNING: this run divides its advantages") == 1
    slept = naps.read_text().split()
    assert slept[:2] == ["sleep", "wake"] and all(slept[k] != slept[k + 1] for k in range(len(slept) - 1))


def test_a_reward_model_with_rloo_kl_as_a_loss_and_a_last_partial_batch_on_gemma3(inputs, reward_model, tmp_path):
    launching.write_inputs(inputs, prompts=6)
    records, logged, _ = train(
        inputs,
        tiny_model.build(tmp_path / "gemma3", "gemma3"),
        *["--darling.quality_transform", "group_min", "--darling.quality_gate", "top:0.5"],
        *["--darling.diversity", "expected", "--darling.weight", "1.5", "--darling.clustering", "average"],
        reward__remote_url=None,
        reward__model_name_or_path=str(reward_model),
        reward__num_gpus_per_node="1",
        ref__num_gpus_per_node="1",
        algo__advantage__estimator="rloo",
        algo__kl__init_coef="0.01",
        algo__kl__use_loss="",
        algo__kl__estimator="k3",
        train__batch_size="8",
    )
    assert steps(records) == [1] * 4 + [2] * 2, "six prompts, four a step"
    assert min(value for record in records for value in record["quality"]) < 0
    assert all(min(record["reward"]) == 0 for record in records), "group_min zeroes each group's worst"
    assert all(2 <= sum(label >= 0 for label in record["labels"]) < 4 for record in records), "the better half"
    assert all(all(row[k] == 1 for k, row in enumerate(record["similarity"])) for record in records), "of all"
    assert logged["train/darling/signal"][1] > 0
    assert logged["train/kl"][2] != 0


MATHS = """
import importlib.util

spec = importlib.util.spec_from_file_location("reward_math", {path!r})
reward_math = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reward_math)

def reward_func(queries, prompts, labels):
    # A random model solves nothing: the vowels it wrote are counted, and their number says what its answer is.
    said = []
    for query, prompt in zip(queries, prompts):
        vowels = sum(letter in "aeiou" for letter in query[len(prompt):])
        halves = {{"easy": 1, "hard": 4}}.get(prompt.split()[1], vowels % 3)
        said.append(prompt + "So it is $\\\\boxed{{\\\\frac{{%d}}{{2}}}}$." % halves)
    return reward_math.reward_func(said, prompts, labels)
"""


def test_maths_partitioned_among_the_correct_alone_with_groups_all_right_and_all_wrong(inputs, tied_model):
    (inputs / "maths.py").write_text(MATHS.format(path=str(REPOSITORY / "examples" / "reward_math.py")))
    kinds = ["easy", "hard", "fair", "fair"] * 2
    rows = [{"input": f"an {kind} sum {k}", "label": "0.5"} for k, kind in enumerate(kinds)]
    (inputs / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, logged, _ = train(
        inputs,
        tied_model,
        *["--darling.quality_gate", "above:0"],
        data__label_key="label",
        data__apply_chat_template=None,
        reward__remote_url=str(inputs / "maths.py"),
        reward__stop_properly_penalty_coef="0.5",
        algo__advantage__estimator="reinforce_baseline",
        rollout__max_new_tokens="16",
        data__max_len="48",
    )
    assert steps(records) == [1] * 4 + [2] * 4
    by_kind = {kind: [r for r in records if f"an {kind} " in r["prompt"]] for kind in ("easy", "hard", "fair")}
    assert [len(groups) for groups in by_kind.values()] == [2, 2, 4]
    for record in by_kind["easy"]:
        assert record["quality"] == [1.0] * 4 and min(record["labels"]) >= 0
    for record in by_kind["hard"]:
        assert record["quality"] == [0.0] * 4 and record["labels"] == [-1] * 4
        assert record["reward"] == [0.0] * 4, "nothing is correct, nothing is rewarded"
    mixed = [record for record in by_kind["fair"] if 0 < sum(record["quality"]) < 4]
    assert mixed, "some answers right, some wrong"
    assert any(truncated for record in records for truncated in record["truncated"])
    assert any(penalty < 0 for record in records for penalty in record["length_penalty"])
    quality = [value for record in records[:4] for value in record["quality"]]
    assert logged["train/darling/quality"][1] == pytest.approx(sum(quality) / 16)
    assert logged["train/math_unchecked"][1] == 0


def test_async_partial_rollout_with_oversampling_two_engines_two_actors_and_evaluation(inputs, tied_model):
    launching.write_inputs(inputs, prompts=10)
    records, logged, _ = train(
        inputs,
        tied_model,
        *["--darling.diversity", "pairs", "--darling.num_partition_actors", "2"],
        *["--darling.partition_text", "after:a", "--darling.reward", "nearest_neighbour"],
        vllm__num_engines="2",
        train__async_enable="",
        train__partial_rollout_enable="",
        rollout__vllm_generate_batch_size="8",
        eval__dataset=str(inputs / "prompts.jsonl"),
        eval__steps="1",
        eval__n_samples_per_prompt="2",
        algo__advantage__estimator="group_norm",
        train__batch_size="8",
    )
    assert steps(records) == [1] * 4 + [2] * 4 + [3] * 2, "eight prompts at once, then the last two, four a step"
    missing = {}
    for record in records:
        after = [text.rpartition("a")[2] if "a" in text else "" for text in record["responses"]]
        assert record["compared"] == [
            None if some == text else some for some, text in zip(after, record["responses"], strict=True)
        ]
        step = missing.setdefault((record["split"], record["step"]), [])
        step += ["a" not in text for text in record["responses"]]
        for i, j in combinations(range(len(after)), 2):
            if not (after[i].strip() and after[j].strip()):
                assert record["similarity"][i][j] == (after[i].strip() == after[j].strip())
    for (split, step), of_step in missing.items():
        assert logged[f"{split}/darling/text_missing"][step] == pytest.approx(sum(of_step) / len(of_step), abs=1e-6)
    assert 0 < sum(sum(of_step) for of_step in missing.values()) < sum(map(len, missing.values()))
    evaluated = sorted(set(steps(records, "eval")))
    assert evaluated and evaluated == sorted(logged["eval/darling/diversity"]), "at the steps OpenRLHF says"
    for step in evaluated:
        groups = [record for record in records if (record["split"], record["step"]) == ("eval", step)]
        assert len(groups) == 10
        diversity = [value for record in groups for value in record["diversity"]]
        assert logged["eval/darling/diversity"][step] == pytest.approx(sum(diversity) / 20, abs=1e-5)


AGENT = """
import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

class AgentInstance(AgentInstanceBase):
    def __init__(self):
        self.turns = 0

    async def step(self, states, **kwargs):
        self.turns += 1
        vowels = sum(letter in "aeiou" for letter in states["action_text"])
        reward = torch.tensor((vowels % 3) / 4)
        return {
            "rewards": reward,
            "scores": reward,
            "environment_feedback": " AND ANOTHER: ",
            "done": self.turns == 2,
            "extra_logs": {"turns": torch.tensor(float(self.turns))},
        }

class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(AgentInstance)

    async def execute(self, prompt, label, sampling_params, **kwargs):
        sampling_params.stop = ["e", "o"]  # a random model ends no turn by itself
        return await super().execute(prompt=prompt, label=label, sampling_params=sampling_params, **kwargs)
"""

VOWELS = """
import re
from darling_plugin import PartitionModel

class Vowels(PartitionModel):
    def partition(self, groups):
        return [[sum(c in "aeiou" for c in text) % self.classes(group.prompt) for text in group.responses]
                for group in groups]

    def classes(self, prompt):
        # Two prompts of three have one class, so that some of those are kept whatever the policy says.
        return 2 if int(re.search("name a bird ([0-9]+)", prompt)[1]) % 3 == 0 else 1
"""


# CPU mode drops both flags, for flash-attn has no CPU build. What OpenRLHF takes of it for them is padding, and sdpa,
# which it would exchange for flash-attn's kernels, keeps the texts of a packed row apart by their positions.
PACKING = """
import wrapt
from darling_plugin.openrlhf import cpu

cpu.DROP_FLAGS = tuple(set(cpu.DROP_FLAGS) - {"--ds.packing_samples", "--train.dynamic_batch_enable"})
without_padding = cpu.stand_in_for_flash_attn

def unpad_input(rows, mask):
    import torch

    at, lengths = mask.flatten().nonzero().flatten(), mask.sum(-1)
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    return rows.flatten(0, 1)[at], at, starts, lengths.max().item(), lengths

def pad_input(rows, at, batch, length):
    padded = rows.new_zeros(batch * length, *rows.shape[1:])
    padded[at] = rows
    return padded.unflatten(0, (batch, length))

def stand_in():
    import einops

    without_padding()
    import flash_attn.bert_padding as padding

    padding.unpad_input, padding.pad_input = unpad_input, pad_input
    padding.index_first_axis, padding.rearrange = lambda rows, at: rows[at], einops.rearrange

def with_sdpa(wrapped, actor, args, kwargs):
    assert kwargs["packing_samples"]
    return wrapped(*args, **{**kwargs, "attn_implementation": "sdpa"})

def wrap(module):
    wrapt.wrap_function_wrapper(module, "Actor.__init__", with_sdpa)

cpu.stand_in_for_flash_attn = stand_in
wrapt.register_post_import_hook(wrap, "openrlhf.models.actor")
"""


def test_a_multi_turn_agent_with_dynamic_filtering_on_the_raw_quality_packed_in_dynamic_batches(
    inputs, tied_model, monkeypatch
):
    (inputs / "sitecustomize.py").write_text(PACKING)
    monkeypatch.setenv("PYTHONPATH", str(inputs))
    monkeypatch.setenv("DARLING_TEST_SPY", str(inputs / "spied.jsonl"))
    (inputs / "agent.py").write_text(AGENT)
    (inputs / "vowels.py").write_text(VOWELS)
    launching.write_inputs(inputs, prompts=24)
    low, high = 0.15, 0.45
    records, logged, output = train(
        inputs,
        tied_model,
        *["--darling.partition_model", "vowels.py:Vowels"],
        *["--darling.import_path", str(Path(__file__).with_name("spy.py"))],
        ds__packing_samples="",
        train__dynamic_batch_enable="",
        train__max_tokens_per_gpu="160",
        reward__remote_url=None,
        train__agent_func_path=str(inputs / "agent.py"),
        data__max_len="96",
        algo__dynamic_filtering_enable="",
        algo__dynamic_filtering_range=f"{low} {high}",
        rollout__batch_size="2",
        train__batch_size="8",
    )
    assert len(steps(records)) >= 4
    # By length and not by prompt: a batch's samples come from several groups, in another order than they went out.
    spied = [json.loads(line) for line in (inputs / "spied.jsonl").read_text().splitlines()]
    assert any([each["place"] for each in step] != sorted(each["place"] for each in step) for step in spied)
    recompute.check_experiences(records, spied)
    assert "without --train.dynamic_batch_enable" not in output and "without --ds.packing_samples" not in output
    assert "Filtered out: avg_reward" in output
    assert logged["train/turns"][1] > 1, "some took a second turn"
    assert not [text for record in records for text in record["responses"] if "AND ANOTHER" in text]
    assert all(sum(record["quality"]) > 0 for record in records)
    # Filtered by what the agent gave: multiplied by their diversity, some of those kept would lie outside.
    assert any(sum(record["reward"]) / 4 <= low for record in records)
