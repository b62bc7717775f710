"""The advantages hook on OpenRLHF's own classes, without Ray: rewards and advantages that are trained on."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from openrlhf.trainer.ppo_utils.experience import balance_experiences
from training_batches import by_place, make_experiences, make_maker, response_advantages

from darling_plugin import DarlingError, registry
from darling_plugin.advantage import centered
from darling_plugin.openrlhf import responses
from darling_plugin.registry import register_advantage


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


def some_groups(groups=200, n=4, kl=0.5):
    """Experiences of random qualities and partitions, in micro-batches that split the groups."""
    generator = torch.Generator().manual_seed(0)
    quality = torch.randint(0, 9, (groups, n), generator=generator) / 8
    labels = torch.randint(0, 3, (groups, n), generator=generator)
    order = torch.randperm(groups * n, generator=generator).tolist()
    return make_experiences(quality, labels, [3, 5] * (groups * n // 8), order, kl=kl)


@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_centered_is_to_the_bit_what_dr_grpo_makes_itself(installed, configured, kl):
    configured(advantage=None)
    theirs = make_maker(kl=kl).compute_advantages_and_returns(some_groups())
    configured(advantage="centered")
    ours = make_maker(kl=kl).compute_advantages_and_returns(some_groups())
    rewards = torch.tensor([reward for _, reward in sorted(by_place(ours, lambda e: e.rewards.tolist()).items())])
    all_equal = {k for k, group in enumerate(rewards.reshape(-1, 4).tolist()) if len(set(group)) == 1}
    assert 0 < len(all_equal) < 100
    for a, b in zip(theirs, ours, strict=True):
        other = torch.tensor([place // 4 not in all_equal for place in a.index])
        for name in ("advantages", "returns"):
            assert torch.equal(getattr(a, name)[other], getattr(b, name)[other])
            # Where all rewards of a group are equal, OpenRLHF's mean may be a rounding step off; ours gives 0.
            assert torch.allclose(getattr(a, name), getattr(b, name), atol=1e-7, rtol=0)
        assert torch.allclose(a.info["return"], b.info["return"], atol=1e-7, rtol=0)


def test_whoever_edits_a_registered_advantage_changes_what_is_trained_on(installed, configured, monkeypatch):
    before = make_maker().compute_advantages_and_returns(some_groups())
    monkeypatch.setitem(
        registry.advantages._entries, "centered", lambda reward, diversity: 2 * centered(reward, diversity)
    )
    after = make_maker().compute_advantages_and_returns(some_groups())
    assert any(e.advantages.abs().max() > 0 for e in before)
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(2 * a.advantages, b.advantages)
        assert torch.equal(a.rewards, b.rewards)


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
    records = maker.darling_records
    assert maker.darling_metrics["darling/quality_only_groups"] == 1.0
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


def test_a_negative_quality_under_multiply_stops(installed, configured):
    configured()
    with pytest.raises(DarlingError, match=r"(?s)1 of 4.*quality_transform \{raw,sigmoid,group_min\}"):
        make_maker().compute_advantages_and_returns(make_experiences([[1.0, -0.5, 0.0, 1.0]], [[0, 1, 2, 3]], [4]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_quality_that_is_not_finite_stops_and_names_the_group(installed, configured, bad):
    configured(on_error="quality_only")  # covers partitions alone
    quality = [[1.0, 0.5], [0.5, bad]]
    with pytest.raises(DarlingError, match="train prompt 101"):
        make_maker(n=2).compute_advantages_and_returns(make_experiences(quality, [[0, 1], [0, 1]], [2, 2]))


def test_samples_that_never_met_a_partition_actor_stop(installed, configured):
    configured()
    experiences = make_experiences([[1.0, 0.5]], [[0, 1]], [2], drop=[responses.LABEL])
    with pytest.raises(DarlingError, match="without darling_label"):
        make_maker(n=2).compute_advantages_and_returns(experiences)


def test_mixed_up_groups_stop(installed, configured):
    configured()
    experiences = make_experiences([[1.0, 0.5], [0.2, 0.4]], [[0, 1], [0, 1]], [4])
    experiences[0].info[responses.GROUP] = torch.tensor([0, 1, 1, 0])
    with pytest.raises(DarlingError, match=r"groups made of \[\[0, 1\], \[1, 0\]\]"):
        make_maker(n=2).compute_advantages_and_returns(experiences)


def test_half_a_group_stops(installed, configured):
    configured()
    experiences = make_experiences([[1.0, 0.5, 0.2]], [[0, 1, 2]], [3])
    with pytest.raises(DarlingError, match="whole groups of 2"):
        make_maker(n=2).compute_advantages_and_returns(experiences)


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
    (record,) = maker.darling_records
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
    assert [record["labels"] for record in maker.darling_records] == [[0, 1], [0, 0]]
