"""Response dicts and a partition actor without Ray, for tests of what the actor does with them."""

import asyncio
import uuid

import torch

from darling_plugin.openrlhf.partition_actor import PartitionActor


class Letters:
    """A tokenizer whose tokens are code points; 0 is special."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(token) for token in ids if token or not skip_special_tokens)


def responses(*texts, rewards=None, prompt="? "):
    rewards = [1.0] * len(texts) if rewards is None else rewards
    start = len(prompt)
    return [
        {
            "prompt": prompt,
            "observation_tokens": [ord(c) for c in prompt + text] + [0],
            "action_ranges": [(start, start + len(text) + 1)],
            "reward": reward,
            "extra_logs": {"theirs": 1.0},
        }
        for text, reward in zip(texts, rewards, strict=True)
    ]


def make_actor(configured, *, quality_expected=True, **flags):
    journal = f"darling-{uuid.uuid4().hex}"  # gone with each batch
    return PartitionActor(configured(**{"partition_model": "lexical", **flags}), Letters(), quality_expected, journal)


def score(actor, group, number=7, split="train", max_len=1000):
    return asyncio.run(actor.score(group, number, split, max_len))


def column(scored, key):
    return [response["extra_logs"][key] for response in scored]


def broken(self, groups):
    if any("bad" in group.prompt for group in groups):
        raise ZeroDivisionError("a bug of the model's")
    return [torch.zeros(len(group.responses), dtype=torch.long) for group in groups]
