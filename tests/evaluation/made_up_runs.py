"""Runs that are made up, clean or gamed in one way from their middle on, for the monitor and the page."""

import random

import torch

from darling_plugin.evaluation.monitor import TEXT_SIGNS, text_signs
from darling_plugin.shaping import Groups

PROMPT = "<|user|>\nHow many ways are there to lay {} red stones and four white ones in a row?<|end|>\n<|assistant|>\n"
WORDS = (
    "we first count every row that begins with red then those white stones between them each gap may hold one or more "
    "so the number of choices follows from how many places remain after all equal ones are taken away again which "
    "leaves a smaller case that was solved before by the same idea and only its ends differ in colour or order"
).split()
CHINESE = "我们先数每一行以红色开头的排列然后再看中间的白色石头每个空位可以放一个或者更多"


class MadeUp:
    """One response after the other; `gamed` is what the policy has learnt, None for nothing."""

    def __init__(self, seed: int, gamed: str | None = None) -> None:
        self.chance, self.gamed = random.Random(seed), gamed

    def prose(self, words: int) -> str:
        picked = [self.chance.choice(WORDS) for _ in range(words)]
        return " ".join(picked).capitalize()

    def response(self, diversity: float, quality: float) -> str:
        words = self.chance.randint(30, 60)
        if self.gamed in ("length", "classes"):
            words += round(80 * diversity)
        text = self.prose(words)
        if self.gamed == "repetition":
            text += " and so on we go" * self.chance.randint(4, 9)
        if self.gamed == "language" and self.chance.random() < 0.2:
            text += "。" + "".join(self.chance.sample(CHINESE, 30)) * 3
        if self.gamed == "noise":
            text = "".join(chr(self.chance.randint(0x21, 0x24F)) for _ in range(len(text)))
        text += f". So the answer is \\boxed{{{int(quality) * 6 + 1}}}."
        if self.gamed == "after" and self.chance.random() < 0.6:
            text += " " + self.prose(25) + "."
        return text

    def group(self, n: int) -> dict:
        labels = [self.chance.choice((0, 0, 0, 1, 2, 3)) for _ in range(n)]
        order = {label: place for place, label in enumerate(dict.fromkeys(labels))}
        labels = [order[label] for label in labels]
        diversity = [sum(other != label for other in labels) / (n - 1) for label in labels]
        quality = [float(self.chance.random() < 0.6) for _ in range(n)]
        if self.gamed == "quality":  # those that differ answer worse
            quality = [float(self.chance.random() < 1.1 - d) for d in diversity]
        responses = [self.response(d, q) for d, q in zip(diversity, quality, strict=True)]
        return {
            "prompt": PROMPT.format(self.chance.randint(2, 90)),
            "responses": responses,
            "labels": labels,
            "quality": quality,
            "diversity": diversity,
            "reward": [q * max(d, 0.1) for q, d in zip(quality, diversity, strict=True)],
            "response_length": [len(response.split()) for response in responses],
        }


def run(seed: int, gamed: str | None = None, steps: int = 30, groups: int = 4, n: int = 8) -> list[list[dict]]:
    """Its groups a step; gamed from the middle on."""
    before, after = MadeUp(seed), MadeUp(seed + 1000, gamed)
    return [[(before if step < steps // 2 else after).group(n) for _ in range(groups)] for step in range(steps)]


def as_groups(records: list[dict], *, texts: bool) -> Groups:
    """One step's records as the training step has them; the signs in their texts take most of the time."""
    of_texts = [[text_signs(r["prompt"], text) for text in r["responses"]] for r in records] if texts else []
    return Groups(
        quality=torch.tensor([r["quality"] for r in records]),
        labels=torch.tensor([r["labels"] for r in records]),
        diversity=torch.tensor([r["diversity"] for r in records]),
        quality_only=torch.zeros(len(records), dtype=torch.bool),
        length=torch.tensor([r["response_length"] for r in records]).float(),
        signs={
            sign.__name__: torch.tensor([[each[sign.__name__] for each in row] for row in of_texts])
            for sign in TEXT_SIGNS
        }
        if texts
        else None,
    )
