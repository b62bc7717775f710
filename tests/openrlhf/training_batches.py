"""OpenRLHF's experience maker and experiences, for tests of the hooks on its own classes, without Ray."""

import itertools
from types import SimpleNamespace

import torch
from openrlhf.trainer.ppo_utils import experience_maker
from openrlhf.trainer.ppo_utils.experience import Experience

from darling_plugin.openrlhf import responses

TOKENS = 5


class Tokenizer:
    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))

    def batch_decode(self, all_ids, skip_special_tokens):
        return [self.decode(ids, skip_special_tokens) for ids in all_ids]


def make_maker(estimator="dr_grpo", n=4, kl=0.0, **reward_flags):
    reward = {
        "clip_range": (-10, 10),
        "remote_url": "reward.py",
        "overlong_buffer_len": None,
        "stop_properly_penalty_coef": None,
        **reward_flags,
    }
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=n),
        algo=SimpleNamespace(
            advantage=SimpleNamespace(estimator=estimator, gamma=1.0, lambd=1.0, no_std_norm=False),
            kl=SimpleNamespace(use_loss=False),
        ),
        reward=SimpleNamespace(**reward),
        train=SimpleNamespace(agent_func_path=None),
        data=SimpleNamespace(max_len=64),
    )
    maker = experience_maker.RemoteExperienceMaker(
        None, None, None, None, SimpleNamespace(value=kl), SimpleNamespace(args=args), Tokenizer()
    )
    maker.darling_step = 1  # as the hook of train_step sets it
    return maker


def make_experiences(
    quality, labels, sizes, order=None, *, quality_only=(), kl=0.0, drop=(), similarity=None, told=""
):
    """Experiences of `sizes` samples each, holding the samples of (P, n) `quality` and `labels` in `order`.

    similarity: (P, n, n), where the actors send it along; threshold 0.5, union_find. told: the data set's label of
    each group, or of all.
    """
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
            responses.LABEL: labels.flatten()[places],
            responses.DIVERSITY: diversity.flatten()[places],
            responses.GROUP: group + 100,
            responses.QUALITY_ONLY: torch.tensor([int(g in quality_only) for g in group.tolist()]),
            responses.GENERATED_AT: 10_000_000 + 1_000_000 * group,
            responses.SCORED_AT: 12_500_000 + 1_000_000 * group,
            responses.SCORING_SECONDS: torch.full((size,), 0.25),
            "reward": quality.flatten()[places],
        }
        if similarity is not None:
            info[responses.SIMILARITY] = torch.as_tensor(similarity).flatten(0, 1)[places]
            info[responses.THRESHOLD] = torch.full((size,), 0.5)
            info[responses.CLUSTERING] = torch.zeros(size, dtype=torch.long)
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
                labels=[told if isinstance(told, str) else told[place // n] for place in places],
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
