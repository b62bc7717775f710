"""Partition models of a few lines that the tests of several files ask."""

import torch

from darling_plugin.partition import (
    EmbeddingModel,
    PairwiseModel,
    PartitionModel,
)


class FirstLetter(PairwiseModel):
    """Equivalent if the first letters are; remembers every call."""

    threshold = 0.5

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = []

    def similarity(self, pairs):
        self.calls.append(list(pairs))
        return torch.tensor([float(pair.first[0] == pair.second[0]) for pair in pairs])


class Scripted(PairwiseModel):
    """Returns what it was given."""

    threshold = 0.5

    def __init__(self, result, **options):
        super().__init__(**options)
        self.result = result

    def similarity(self, pairs):
        return self.result


class Listed(PairwiseModel):
    """Pairs of letters are equivalent where they are in the list."""

    threshold = 0.5

    def __init__(self, pairs, **options):
        super().__init__(**options)
        self.pairs, self.asked, self.calls = pairs, [], 0

    def similarity(self, pairs):
        self.calls += 1
        self.asked += [pair.first + pair.second for pair in pairs]
        return [float(pair.first + pair.second in self.pairs) for pair in pairs]


class Labels(PartitionModel):
    def __init__(self, result):
        self.result = result

    def partition(self, groups):
        return self.result


class Angles(EmbeddingModel):
    """A text is a number of degrees; its length grows with it, which a cosine must not see."""

    threshold = 0.9

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = []

    def embed(self, texts):
        self.calls.append(list(texts))
        degrees = torch.tensor([float(text) for text in texts])
        return torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=-1) * (1 + degrees)[:, None]


def decisions(model, groups):
    """(n, n) bool a group: what the model's similarities decide."""
    return [each > model.threshold for each in model.all_similarities(groups)]


def error(caught):
    return str(caught.value)
