"""Seam 2 and the logging hooks, on OpenRLHF's own classes, without Ray."""

import itertools
import json
import math
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils import experience_maker, samples_generator
from openrlhf.trainer.ppo_utils.experience import Experience, balance_experiences
from openrlhf.utils import logging_utils
from ray import cloudpickle
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from darling_plugin import DarlingError, metrics
from darling_plugin.log import append_partitions
from darling_plugin.openrlhf import hooks, seams, worker
from darling_plugin.openrlhf import partition_actor as carried
from darling_plugin.registry import register_advantage

TOKENS = 5


@pytest.fixture
def installed(configured):
    configured()
    for module in (experience_maker, ppo_trainer):
        hooks.install(module)
    yield
    for module in (experience_maker, ppo_trainer):
        hooks.uninstall(module)


class Tokenizer:
    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


def make_maker(estimator="dr_grpo", n=4, kl=0.0, **reward_flags):
    reward = {"clip_range": (-10, 10), "overlong_buffer_len": None, "stop_properly_penalty_coef": None, **reward_flags}
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=n),
        algo=SimpleNamespace(
            advantage=SimpleNamespace(estimator=estimator, gamma=1.0, lambd=1.0, no_std_norm=False),
            kl=SimpleNamespace(use_loss=False),
        ),
        reward=SimpleNamespace(**reward),
        data=SimpleNamespace(max_len=64),
    )
    return experience_maker.RemoteExperienceMaker(
        None, None, None, None, SimpleNamespace(value=kl), SimpleNamespace(args=args), Tokenizer()
    )


def make_experiences(quality, labels, sizes, order=None, *, quality_only=(), kl=0.0, drop=()):
    """Experiences of `sizes` samples each, holding the samples of (P, n) `quality` and `labels` in `order`."""
    quality, labels = torch.as_tensor(quality, dtype=torch.float32), torch.as_tensor(labels)
    groups, n = quality.shape
    order = list(range(groups * n)) if order is None else order
    different = (labels[:, :, None] != labels[:, None, :]).sum(-1).float()
    diversity = torch.where(labels >= 0, different / max(n - 1, 1), 0.0)
    experiences, start = [], 0
    for size in sizes:
        places = order[start : start + size]
        start += size
        group = torch.tensor([place // n for place in places])
        info = {
            carried.LABEL: labels.flatten()[places],
            carried.DIVERSITY: diversity.flatten()[places],
            carried.GROUP: group + 100,
            carried.QUALITY_ONLY: torch.tensor([int(g in quality_only) for g in group.tolist()]),
            carried.GENERATED_AT: 10_000_000 + 1_000_000 * group,
            carried.SCORED_AT: 12_500_000 + 1_000_000 * group,
            carried.SCORING_SECONDS: torch.full((size,), 0.25),
            "reward": quality.flatten()[places],
        }
        for key in drop:
            del info[key]
        lengths = [1 + place % (TOKENS - 1) for place in places]
        mask = torch.tensor([[int(t < length) for t in range(TOKENS - 1)] for length in lengths])
        experiences.append(
            Experience(
                sequences=torch.arange(TOKENS).repeat(size, 1) + 10 * torch.tensor(places)[:, None],
                attention_mask=torch.ones(size, TOKENS, dtype=torch.long),
                action_mask=mask,
                kl=torch.full((size, TOKENS - 1), kl),
                rewards=quality.flatten()[places].clone(),
                response_length=torch.tensor(lengths),
                truncated=torch.zeros(size, dtype=torch.bool),
                index=list(places),
                prompts=[f"prompt {place // n}" for place in places],
                info=info,
            )
        )
    return experiences


def by_place(experiences, read):
    return dict(itertools.chain.from_iterable(zip(e.index, read(e), strict=True) for e in experiences))


def response_advantages(experiences):
    """Each response's advantage: without a KL penalty every one of its tokens carries the same."""
    found = {}
    for e in experiences:
        for row, (place, mask) in enumerate(zip(e.index, e.action_mask.bool(), strict=True)):
            values = e.advantages[row][mask]
            assert torch.allclose(values, values[0].expand_as(values))
            found[place] = values[0].item()
    return found


def test_multiply_and_the_papers_advantage_whatever_the_micro_batches(installed, configured):
    configured(diversity_floor=0.1)
    quality = [[1.0, 1.0, 0.0, 1.0], [0.2, 0.9, 0.4, 0.4], [0.5, 0.5, 0.5, 0.5]]
    labels = [[0, 0, 1, 2], [0, 0, 0, 0], [0, 1, 2, 3]]
    # Div by hand: 2/3, 2/3, 1, 1; 0 floored to 0.1; 1. reward = quality x Div.
    expected_rewards = [2 / 3, 2 / 3, 0.0, 1.0, 0.02, 0.09, 0.04, 0.04, 0.5, 0.5, 0.5, 0.5]
    expected = []
    for start in (0, 4, 8):
        mean = sum(expected_rewards[start : start + 4]) / 4
        expected += [value - mean for value in expected_rewards[start : start + 4]]
    order = [7, 0, 11, 3, 2, 9, 4, 1, 10, 6, 5, 8]
    for sizes in ([12], [1] * 12, [5, 4, 3]):
        experiences = make_experiences(quality, labels, sizes, order)
        maker = make_maker()
        out = maker.compute_advantages_and_returns(experiences)
        rewards, advantages = by_place(out, lambda e: e.rewards.tolist()), response_advantages(out)
        for place in range(12):
            assert math.isclose(rewards[place], expected_rewards[place], abs_tol=1e-6)
            assert math.isclose(advantages[place], expected[place], abs_tol=1e-6)
        for e in out:
            assert not [key for key in e.info if key.startswith("darling")], "none of ours is averaged into metrics"
            assert torch.equal(e.info["reward"], e.rewards)


@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_other_advantages_replace_dr_grpos(installed, configured, kl):
    configured(advantage="diversity_weighted", reward="quality", diversity_floor=0.1)
    quality, labels = [[-1.0, -2.0, -4.0, -1.0], [0.0, 0.0, 4.0, 0.0]], [[0, 0, 1, 2], [0, 0, 0, 0]]
    maker = make_maker(kl=kl)
    out = maker.compute_advantages_and_returns(make_experiences(quality, labels, [3, 5], kl=0.5))
    expected = [2 / 3 * (-1 + 2), 2 / 3 * (-2 + 2), 1 * (-4 + 2), 1 * (-1 + 2), 0.1 * -1, 0.1 * -1, 0.1 * 3, 0.1 * -1]
    for e in out:
        for row, (place, mask) in enumerate(zip(e.index, e.action_mask.bool(), strict=True)):
            length = int(mask.sum())
            for token in range(length):
                # OpenRLHF's KL penalty per token stays: -kl for this token and each one after it.
                wanted = expected[place] - kl * 0.5 * (length - token)
                assert math.isclose(e.advantages[row, token].item(), wanted, abs_tol=1e-5)
        assert torch.equal(e.advantages, e.returns)


def test_centered_std(installed, configured):
    configured(advantage="centered_std", diversity_floor=0.0)
    out = make_maker().compute_advantages_and_returns(make_experiences([[1.0, 1.0, 0.0, 1.0]], [[0, 1, 2, 3]], [4]))
    found = response_advantages(out)
    assert [round(found[k], 4) for k in range(4)] == [0.5, 0.5, -1.5, 0.5]


def whiten(values, no_std_norm):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [(value - mean) / (1 if no_std_norm else variance**0.5) for value in values]


def expected_advantages(estimator, rewards, lengths, value, no_std_norm):
    """Every token's advantage, response after response, from (P, n) rewards: what the estimators' papers say."""
    flat = []
    for group in rewards:
        n, mean = len(group), sum(group) / len(group)
        std = (sum((r - mean) ** 2 for r in group) / (n - 1)) ** 0.5
        for r in group:
            flat.append(
                {
                    "rloo": r - (sum(group) - r) / (n - 1),
                    "group_norm": (r - mean) / std if std else 0.0,
                    "dr_grpo": r - mean,
                    "reinforce_baseline": r - mean,
                    "reinforce": r,
                    "gae": r - value,  # gamma = lambda = 1: what comes, minus what the critic expected
                }[estimator]
            )
    tokens = [advantage for advantage, length in zip(flat, lengths, strict=True) for _ in range(length)]
    whitens = estimator in ("gae", "reinforce", "reinforce_baseline")
    return whiten(tokens, no_std_norm) if whitens else tokens


@pytest.mark.parametrize("no_std_norm", [False, True])
@pytest.mark.parametrize("estimator", ["gae", "reinforce", "reinforce_baseline", "rloo", "group_norm", "dr_grpo"])
def test_each_of_openrlhfs_estimators_works_on_darlings_rewards(installed, configured, estimator, no_std_norm):
    configured(diversity_floor=0.0, advantage="centered" if estimator == "dr_grpo" else None)
    quality, labels = [[1.0, 1.0, 0.0, 1.0], [0.2, 0.8, 0.4, 0.6]], [[0, 0, 1, 2], [0, 1, 1, 1]]
    rewards = [[2 / 3, 2 / 3, 0.0, 1.0], [0.2, 0.8 / 3, 0.4 / 3, 0.2]]
    maker = make_maker(estimator)
    maker.args.algo.advantage.no_std_norm = no_std_norm
    experiences = make_experiences(quality, labels, [3, 5], order=[6, 0, 3, 1, 7, 2, 5, 4])
    for experience in experiences:
        experience.values = torch.full_like(experience.action_mask, 0.3, dtype=torch.float32)
    out = maker.compute_advantages_and_returns(experiences)
    rows = by_place(
        out, lambda e: [row[mask.bool()].tolist() for row, mask in zip(e.advantages, e.action_mask, strict=True)]
    )
    lengths = [len(rows[place]) for place in range(8)]
    assert sorted(set(lengths)) == [1, 2, 3, 4]
    found = [token for place in range(8) for token in rows[place]]
    assert found == pytest.approx(expected_advantages(estimator, rewards, lengths, 0.3, no_std_norm), abs=1e-5)


def test_quality_only_groups_are_trained_on_quality_and_counted(installed, configured, tmp_path):
    configured(on_error="quality_only", log_dir=str(tmp_path))
    quality, labels = [[0.3, 0.6], [0.4, 0.8]], [[0, 0], [-1, -1]]
    maker = make_maker(n=2)
    out = maker.compute_advantages_and_returns(make_experiences(quality, labels, [4], quality_only={1}))
    rewards = by_place(out, lambda e: e.rewards.tolist())
    assert [round(rewards[k], 4) for k in range(4)] == [0.03, 0.06, 0.4, 0.8]
    step, records = maker.darling_step
    assert step[metrics.QUALITY_ONLY] == 1.0
    assert step[metrics.DIVERSITY] == 0.0 and step[metrics.ONE_CLASS] == 1.0, "only of the group that has a partition"
    assert [record["labels"] for record in records] == [[0, 0], None]
    assert records[1]["diversity"] is None
    assert records[1]["reward"] == pytest.approx([0.4, 0.8])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"advantage": "diversity_weighted", "reward": "quality"}, [-0.5, 0.5]),
        ({"reward": "additive"}, [-(0.5**0.5), 0.5**0.5]),
        ({}, [-0.5, 0.5]),
    ],
)
def test_a_quality_only_group_is_weighted_like_no_other_and_scaled_like_all(installed, configured, flags, expected):
    configured(on_error="quality_only", **flags)
    out = make_maker(n=2).compute_advantages_and_returns(
        make_experiences([[0.0, 1.0]], [[-1, -1]], [2], quality_only={0})
    )
    found = response_advantages(out)
    assert [found[0], found[1]] == pytest.approx(expected, abs=1e-6)


def test_rewards_as_openrlhfs_reward_server_sends_them(installed, configured):
    configured()
    experiences = make_experiences([[1.0, 0.5]], [[0, 1]], [1, 1])
    for experience in experiences:
        experience.rewards = experience.rewards[:, None]  # a list of one a response becomes (1, 1)
    out = make_maker(n=2).compute_advantages_and_returns(experiences)
    assert by_place(out, lambda e: e.rewards.tolist()) == {0: 1.0, 1: 0.5}


def test_an_advantage_that_is_not_finite_is_named(installed, configured):
    register_advantage("nan")(lambda reward, diversity: reward / 0 - reward / 0)
    configured(advantage="nan")
    with pytest.raises(DarlingError, match="from the advantage 'nan'"):
        make_maker(n=2).compute_advantages_and_returns(make_experiences([[1.0, 0.5]], [[0, 1]], [2]))


def test_every_metric_of_a_step(installed, configured):
    configured(diversity_floor=0.5)
    quality, labels = [[1.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]], [[0, 0, 0, 1], [0, 0, 0, 0]]
    maker = make_maker()
    maker.compute_advantages_and_returns(make_experiences(quality, labels, [8]))
    found, _ = maker.darling_step
    assert found == pytest.approx(
        {
            "darling/quality": 5 / 8,
            "darling/diversity": (3 * 1 / 3 + 1) / 8,
            "darling/classes_per_group": 1.5,
            "darling/one_class_share": 0.5,
            "darling/floor_share": 7 / 8,
            "darling/reward": (0.5 + 0 + 0.5 + 1 + 4 * 0.25) / 8,
            "darling/quality_only_groups": 0.0,
            "darling/scoring_seconds": 0.5,
            "darling/scoring_wait_seconds": 2.5,
        }
    )


def test_without_a_floor_the_share_at_it_is_that_of_no_diversity(installed, configured):
    configured(diversity_floor=0.0)
    maker = make_maker(n=2)
    maker.compute_advantages_and_returns(make_experiences([[1.0, 0.0], [1.0, 0.0]], [[0, 1], [0, 0]], [4]))
    assert maker.darling_step[0][metrics.FLOOR] == 0.5


def test_responses_left_out_count_for_quality_alone(installed, configured):
    configured(correct_only=True)
    maker = make_maker()
    experiences = make_experiences([[1.0, 1.0, 1.0, 0.0]], [[0, 1, 2, -1]], [4])
    experiences[0].info[carried.DIVERSITY] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    out = maker.compute_advantages_and_returns(experiences)
    found, _ = maker.darling_step
    assert (found[metrics.DIVERSITY], found[metrics.CLASSES], found[metrics.FLOOR]) == (1.0, 3.0, 0.0)
    assert by_place(out, lambda e: e.rewards.tolist()) == {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0}


@pytest.mark.parametrize("seam", [seams.EVALUATION, seams.TRAIN_STEP], ids=lambda seam: seam.name)
def test_a_hook_pickles_by_name_as_rays_export_of_actor_classes_needs(installed, seam):
    # The async trainer's process, hooked itself, sends the classes of its actors by value, methods they inherit too.
    hook = worker.resolve(seam)
    assert seams.is_hooked(hook)
    dumped = cloudpickle.dumps(hook)
    assert seam.function.encode() in dumped and len(dumped) < 200
    assert cloudpickle.loads(dumped) is hook


def test_a_negative_quality_under_multiply_stops(installed, configured):
    configured()
    with pytest.raises(DarlingError, match=r"(?s)1 of 4.*--darling.quality_transform \{raw,sigmoid,group_min\}"):
        make_maker().compute_advantages_and_returns(make_experiences([[1.0, -0.5, 0.0, 1.0]], [[0, 1, 2, 3]], [4]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_quality_that_is_not_finite_stops_and_names_the_group(installed, configured, bad):
    configured(on_error="quality_only")  # covers partitions alone
    quality = [[1.0, 0.5], [0.5, bad]]
    with pytest.raises(DarlingError, match="train prompt 101"):
        make_maker(n=2).compute_advantages_and_returns(make_experiences(quality, [[0, 1], [0, 1]], [2, 2]))


def test_samples_that_never_met_a_partition_actor_stop(installed, configured):
    configured()
    experiences = make_experiences([[1.0, 0.5]], [[0, 1]], [2], drop=[carried.LABEL])
    with pytest.raises(DarlingError, match="without darling_label"):
        make_maker(n=2).compute_advantages_and_returns(experiences)


def test_mixed_up_groups_stop(installed, configured):
    configured()
    experiences = make_experiences([[1.0, 0.5], [0.2, 0.4]], [[0, 1], [0, 1]], [4])
    experiences[0].info[carried.GROUP] = torch.tensor([0, 1, 1, 0])
    with pytest.raises(DarlingError, match=r"groups made of \[\[0, 1\], \[1, 0\]\]"):
        make_maker(n=2).compute_advantages_and_returns(experiences)


def test_half_a_group_stops(installed, configured):
    configured()
    experiences = make_experiences([[1.0, 0.5, 0.2]], [[0, 1, 2]], [3])
    with pytest.raises(DarlingError, match="whole groups of 2"):
        make_maker(n=2).compute_advantages_and_returns(experiences)


def test_the_step_is_logged_with_openrlhfs_number(installed, configured, tmp_path):
    configured(log_dir=str(tmp_path), diversity_floor=0.0)

    class Trainer(ppo_trainer.BasePPOTrainer):
        def __init__(self):
            self.args = SimpleNamespace(
                train=SimpleNamespace(dynamic_batch_enable=False),
                rollout=SimpleNamespace(batch_size=1, n_samples_per_prompt=3),
            )
            self.tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: [""])
            self.experience_maker = make_maker(n=3)
            self.experience_maker.make_experience_batch = self.experience_maker.compute_advantages_and_returns
            self.actor_model_group = SimpleNamespace(async_run_method_batch=lambda **kwargs: [])
            self.critic_model_group = self.vllm_engines = None

        def ppo_train(self, global_step):
            return {"policy_loss": 0.5}

    import ray

    class NoRay:
        get = staticmethod(lambda refs: refs)

    assert ppo_trainer.ray is ray
    ppo_trainer.ray = NoRay
    try:
        experiences = make_experiences([[1.0, 0.5, 0.25]], [[0, 1, 1]], [2, 1], order=[2, 0, 1])
        status, step = Trainer().train_step(experiences, 6)
    finally:
        ppo_trainer.ray = ray
    assert step == 7 and status["policy_loss"] == 0.5
    assert status["darling/diversity"] == pytest.approx(2 / 3)
    (line,) = (tmp_path / "partitions.jsonl").read_text().splitlines()
    record = json.loads(line)
    mean = 1.375 / 3
    assert record.pop("advantage") == pytest.approx([1 - mean, 0.25 - mean, 0.125 - mean])
    assert record == {
        "step": 7,
        "split": "train",
        "prompt": "prompt 0",
        "responses": ["1", "11 12", "21 22 23"],  # the tokens under the action mask, in the group's order
        "labels": [0, 1, 1],
        "quality": [1.0, 0.5, 0.25],
        "diversity": [1.0, 0.5, 0.5],
        "reward": [1.0, 0.25, 0.125],
        "length_penalty": [0.0, 0.0, 0.0],
        "response_length": [1, 2, 3],
        "truncated": [False, False, False],
    }


def test_evaluation_keeps_its_rewards_and_logs_its_diversity(installed, configured, tmp_path, monkeypatch):
    configured(log_dir=str(tmp_path))
    monkeypatch.setattr(hooks, "_tokenizer", Tokenizer())
    samples = make_experiences([[1.0, 0.0], [0.5, 0.5]], [[0, 1], [0, 0]], [1, 1, 1, 1])
    loader = [(["default"], [f"prompt {k}"], [""], [None]) for k in range(2)]
    logs = ppo_trainer.compute_eval_metrics(loader, samples, 2)
    assert logs["eval_default_pass1"] == 0.5 and logs["eval_default_pass2"] == 0.75, "OpenRLHF's own, unshaped"
    assert logs["darling/diversity"] == 0.5 and logs["darling/classes_per_group"] == 1.5
    assert logs["darling/quality_only_groups"] == 0.0
    assert not (tmp_path / "partitions.jsonl").exists(), "the step is known to the trainer alone"
    arrived = cloudpickle.loads(cloudpickle.dumps(logs))  # the async trainer's goes through a queue
    trainer = SimpleNamespace(_detect_eval_metric_key=lambda metrics: None)
    ppo_trainer.BasePPOTrainer.save_best_checkpoint(trainer, arrived, 3, {})
    lines = [json.loads(line) for line in (tmp_path / "partitions.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"], line["reward"], line["advantage"]) for line in lines] == [
        (3, "eval", [1.0, 0.0], None),
        (3, "eval", [0.5, 0.5], None),
    ]


class TensorboardLogger:
    """OpenRLHF's own, as far as a trainer that resumes touches it, without its flags."""

    def __new__(cls, folder):
        args = SimpleNamespace(
            logger=SimpleNamespace(tensorboard_dir=str(folder), wandb=SimpleNamespace(run_name="run"))
        )
        return logging_utils.TensorboardLogger(args)


def scalars(folder, name):
    reader = EventAccumulator(str(folder / "run"))
    reader.Reload()
    return [(point.step, round(point.value, 6)) for point in reader.Scalars(name)]


def make_trainer(tensorboard_logger, checkpoints, step=0, *, resumes, is_async=False):
    ckpt = SimpleNamespace(load_enable=resumes, path=str(checkpoints))
    args = SimpleNamespace(ckpt=ckpt, train=SimpleNamespace(async_enable=is_async))
    trainer = SimpleNamespace(args=args, tensorboard_logger=tensorboard_logger)
    if step:
        (checkpoints / "_actor").mkdir(parents=True)
        trainer.actor_model_group = SimpleNamespace(async_run_method=lambda method_name: [{"global_step": step}])
    return trainer


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("checkpoint", [2, 0])
def test_a_run_that_resumes_logs_no_step_twice(installed, configured, tmp_path, monkeypatch, checkpoint, is_async):
    configured(log_dir=str(tmp_path))
    first = TensorboardLogger(tmp_path / "tensorboard")
    ppo_trainer.BasePPOTrainer.init_checkpoint_states(make_trainer(first, tmp_path, resumes=False))
    for step in (1, 2, 3, 4):
        first.log_train(step, {"reward": step / 10})
        append_partitions(str(tmp_path), [{"step": step, "split": split} for split in ("train", "eval")])
    first.writer.flush()
    assert [step for step, _ in scalars(tmp_path / "tensorboard", "train/reward")] == [1, 2, 3, 4]
    torn = '{"step": 5, "prompt": "é'.encode()[:-1]  # killed within a character
    with (tmp_path / "partitions.jsonl").open("ab") as file:
        file.write(torn)

    monkeypatch.setattr(ppo_trainer, "ray", SimpleNamespace(get=lambda refs: refs))
    second = TensorboardLogger(tmp_path / "tensorboard")
    states = ppo_trainer.BasePPOTrainer.init_checkpoint_states(
        make_trainer(second, tmp_path, checkpoint, resumes=True, is_async=is_async)
    )
    assert states["global_step"] == checkpoint
    for step in range(checkpoint + 1, 6):
        second.log_train(step, {"reward": 7.0})
        append_partitions(str(tmp_path), [{"step": step, "split": "train"}])
    second.writer.flush()
    kept = [(step, step / 10) for step in range(1, checkpoint + 1)]
    found = scalars(tmp_path / "tensorboard", "train/reward")
    assert found == kept + [(step, 7.0) for step in range(checkpoint + 1, 6)]
    lines = [json.loads(line) for line in (tmp_path / "partitions.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5]
    # The async trainer begins with the evaluation of the step it resumes at, the other does not.
    again = int(is_async and checkpoint > 0)
    assert [line["step"] for line in lines if line["split"] == "eval"] == list(range(1, checkpoint + 1 - again))
    superseded = (tmp_path / "partitions.superseded.jsonl").read_bytes().splitlines()
    assert len(superseded) == 2 * (4 - checkpoint) + 1 + again and superseded[-1] == torn


def test_a_run_that_does_not_resume_rewinds_nothing(installed, configured, tmp_path):
    configured(log_dir=str(tmp_path))
    append_partitions(str(tmp_path), [{"step": 1}])
    ppo_trainer.BasePPOTrainer.init_checkpoint_states(make_trainer(None, tmp_path, resumes=False))
    assert (tmp_path / "partitions.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    ("flags", "penalty"),
    [
        # Lengths are 1, 2, 3, 4 of at most 4: the last two exceed 4 - 2, by 1 and 2.
        ({"overlong_buffer_len": 2, "overlong_penalty_factor": 0.5}, lambda shaped: [0, 0, -0.25, -0.5]),
        ({"stop_properly_penalty_coef": 0.5}, lambda shaped: [0, 0, 0, -0.5 * shaped[3]]),
        ({"stop_properly_penalty_coef": -0.7}, lambda shaped: [0, 0, 0, -0.7 - shaped[3]]),
    ],
)
def test_length_penalties_come_after_darling_and_are_logged(installed, configured, tmp_path, flags, penalty):
    configured(log_dir=str(tmp_path), diversity_floor=0.0)
    maker = make_maker(**flags)
    maker.args.rollout.max_new_tokens = 4
    experiences = make_experiences([[1.0, 1.0, 0.5, 1.0]], [[0, 0, 1, 2]], [3, 1], order=[3, 1, 0, 2])
    experiences[0].truncated[0] = True  # place 3
    out = maker.compute_advantages_and_returns(experiences)
    shaped = [2 / 3, 2 / 3, 0.5, 1.0]
    expected = [a + b for a, b in zip(shaped, penalty(shaped), strict=True)]
    (record,) = maker.darling_step[1]
    assert record["quality"] == [1.0, 1.0, 0.5, 1.0], "before everything"
    assert record["length_penalty"] == pytest.approx(penalty(shaped), abs=1e-6)
    assert record["reward"] == pytest.approx(expected, abs=1e-6)
    assert record["response_length"] == [1, 2, 3, 4] and record["truncated"] == [False, False, False, True]
    mean = sum(expected) / 4
    assert record["advantage"] == pytest.approx([value - mean for value in expected], abs=1e-6)
    found = response_advantages(out)
    assert [found[k] for k in range(4)] == pytest.approx(record["advantage"], abs=1e-6)


def test_dynamic_batches_split_groups_by_length_and_change_nothing(installed, configured):
    # OpenRLHF's own split, which needs flash attention only later: its micro-batches mix the groups' responses.
    configured(diversity_floor=0.0)
    quality = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).tolist()
    labels = [[0, 0, 1, 2], [0, 0, 0, 0], [0, 1, 2, 3], [0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 2, 2]]

    def train_on(dynamic, max_tokens=1000):
        maker = make_maker()
        maker.args.train = SimpleNamespace(dynamic_batch_enable=dynamic)
        maker.args.rollout.micro_batch_size, maker.args.rollout.max_tokens_per_gpu = 24, max_tokens
        maker.args.actor = SimpleNamespace(num_nodes=1, num_gpus_per_node=2)
        maker.args.ds = SimpleNamespace(ring_attn_size=1, tensor_parallel_size=1)
        maker.tokenizer.pad_token_id = 0
        samples = make_experiences(quality, labels, [1] * 24)
        for place, sample in enumerate(samples):
            sample.index, sample.total_length = None, torch.tensor([1 + place % 7])
        return maker.compute_advantages_and_returns(maker.split_rollout_samples(samples))

    whole, dynamic = train_on(False), train_on(True, max_tokens=16)
    assert len(whole) == 1 and len(dynamic) > 4
    assert any({place // 4 for place in a.index} & {place // 4 for place in b.index} for a, b in pairwise(dynamic))
    assert [place for e in dynamic for place in e.index] != list(range(24)), "groups are split, and out of order"
    for read in (lambda e: e.rewards.tolist(), lambda e: e.advantages.tolist()):
        expected, found = by_place(whole, read), by_place(dynamic, read)
        assert found.keys() == expected.keys()
        for place in expected:
            assert found[place] == pytest.approx(expected[place], abs=1e-6)
    # What goes on to the actors is OpenRLHF's: balance_experiences cuts and merges the micro-batches again.
    args = SimpleNamespace(
        actor=SimpleNamespace(num_nodes=1, num_gpus_per_node=2),
        ds=SimpleNamespace(ring_attn_size=1, tensor_parallel_size=1),
    )
    balanced = [e for part in balance_experiences(dynamic, args) for e in (part if isinstance(part, list) else [part])]
    assert sum(len(e.rewards) for e in balanced) == 24


def test_duplicate_prompts_are_groups_of_their_own(installed, configured, tmp_path):
    configured(log_dir=str(tmp_path), diversity_floor=0.0)
    maker = make_maker(n=2)
    experiences = make_experiences([[1.0, 0.5], [0.2, 0.4]], [[0, 1], [0, 0]], [3, 1], order=[2, 0, 3, 1])
    for experience in experiences:
        experience.prompts = ["the same prompt"] * len(experience.prompts)
    out = maker.compute_advantages_and_returns(experiences)
    assert by_place(out, lambda e: e.rewards.tolist()) == pytest.approx({0: 1.0, 1: 0.5, 2: 0.0, 3: 0.0})
    assert [record["labels"] for record in maker.darling_step[1]] == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("colocate_all", "gpus", "expected"), [(True, 0.2, "the shared one"), (True, 0.0, None), (False, 0.2, None)]
)
def test_partition_actors_go_where_the_models_are(configured, monkeypatch, colocate_all, gpus, expected):
    configured(gpus_per_partition_actor=gpus)
    started = []
    monkeypatch.setattr(hooks, "PartitionPool", lambda config, tokenizer, **options: started.append(options))
    monkeypatch.setattr(hooks, "shared_placement_group", lambda: "by name")
    monkeypatch.setattr(hooks.ray.util, "get_placement_group", {"by name": "the shared one"}.__getitem__)
    args = SimpleNamespace(
        train=SimpleNamespace(colocate_all=colocate_all, agent_func_path=None),
        reward=SimpleNamespace(remote_url=None),
    )
    hooks.install(samples_generator)
    try:
        samples_generator.SamplesGenerator(SimpleNamespace(args=args), [], None, Tokenizer(), [])
    finally:
        hooks.uninstall(samples_generator)
    assert started == [{"quality_expected": False, "colocate_with": expected}]


def test_evaluation_with_one_sample_a_prompt_has_no_diversity(installed, configured):
    configured()
    samples = make_experiences([[1.0], [0.0]], [[0], [0]], [1, 1])
    loader = [(["default"], [f"prompt {k}"], [""], [None]) for k in range(2)]
    logs = ppo_trainer.compute_eval_metrics(loader, samples, 1)
    assert logs["eval_default_pass1"] == 0.5
    assert not [key for key in logs if key.startswith("darling")]


def test_install_is_idempotent_and_removable(configured):
    configured()
    seam = seams.ADVANTAGES
    original = worker.resolve(seam)
    assert not seams.is_hooked(original)
    hooks.install(experience_maker)
    wrapped = worker.resolve(seam)
    assert seams.is_hooked(wrapped) and wrapped.darling_original is original
    hooks.install(experience_maker)
    assert worker.resolve(seam) is wrapped
    hooks.uninstall(experience_maker)
    hooks.uninstall(experience_maker)
    assert worker.resolve(seam) is original


def test_the_guard_stops_a_process_without_hooks(configured, monkeypatch):
    configured()
    monkeypatch.setattr(worker, "_ran", False)
    with pytest.raises(DarlingError, match="the worker's setup hook did not run"):
        worker.require_hooks()
    monkeypatch.setattr(worker, "_ran", True)
    assert seams.ADVANTAGES.module in sys.modules
    with pytest.raises(DarlingError, match="compute_advantages_and_returns is not hooked"):
        worker.require_hooks()
