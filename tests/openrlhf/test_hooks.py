"""Seam 2 and the logging hooks, on OpenRLHF's own classes, without Ray."""

import itertools
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils import experience_maker
from openrlhf.trainer.ppo_utils.experience import Experience
from ray import cloudpickle

from darling_plugin import DarlingError, metrics
from darling_plugin.openrlhf import hooks, seams, worker
from darling_plugin.openrlhf import partition_actor as carried
from darling_plugin.registry import advantages, register_advantage

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


def test_openrlhfs_other_estimators_get_darlings_rewards(installed, configured):
    configured(diversity_floor=0.0, advantage=None)
    quality, labels = [[1.0, 1.0, 0.0, 1.0]], [[0, 0, 1, 2]]
    reward = [2 / 3, 2 / 3, 0.0, 1.0]
    maker = make_maker("rloo")
    found = response_advantages(maker.compute_advantages_and_returns(make_experiences(quality, labels, [4])))
    for k in range(4):
        others = sum(reward) - reward[k]
        assert math.isclose(found[k], reward[k] - others / 3, abs_tol=1e-6)


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
    try:
        configured(advantage="nan")
        with pytest.raises(DarlingError, match="from the advantage 'nan'"):
            make_maker(n=2).compute_advantages_and_returns(make_experiences([[1.0, 0.5]], [[0, 1]], [2]))
    finally:
        del advantages._entries["nan"]


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
    assert seams.is_wrapped(hook)
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
    }


def test_evaluation_keeps_its_rewards_and_logs_its_diversity(installed, configured, tmp_path, monkeypatch):
    configured(log_dir=str(tmp_path))
    monkeypatch.setattr(hooks, "_tokenizer", Tokenizer())
    monkeypatch.setattr(hooks, "_last_step", 3)
    samples = make_experiences([[1.0, 0.0], [0.5, 0.5]], [[0, 1], [0, 0]], [1, 1, 1, 1])
    loader = [(["default"], [f"prompt {k}"], [""], [None]) for k in range(2)]
    logs = ppo_trainer.compute_eval_metrics(loader, samples, 2)
    assert logs["eval_default_pass1"] == 0.5 and logs["eval_default_pass2"] == 0.75, "OpenRLHF's own, unshaped"
    assert logs["darling/diversity"] == 0.5 and logs["darling/classes_per_group"] == 1.5
    lines = [json.loads(line) for line in (tmp_path / "partitions.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"], line["reward"], line["advantage"]) for line in lines] == [
        (3, "eval", [1.0, 0.0], None),
        (3, "eval", [0.5, 0.5], None),
    ]


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
    assert not seams.is_wrapped(original)
    hooks.install(experience_maker)
    wrapped = worker.resolve(seam)
    assert seams.is_wrapped(wrapped) and wrapped.darling_original is original
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
    with pytest.raises(DarlingError, match="compute_advantages_and_returns is not wrapped"):
        worker.require_hooks()
