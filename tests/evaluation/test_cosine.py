"""The mean pairwise cosine, against the pairs one by one."""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from darling_plugin.evaluation.cosine import Cosines


def test_it_is_the_mean_over_the_pairs_whatever_the_vectors_length():
    vectors = {"right": [1.0, 0.0], "up": [0.0, 5.0], "between": [2.0, 2.0], "nowhere": [0.0, 0.0]}
    cosines = object.__new__(Cosines)
    cosines._encoder = SimpleNamespace(embed=lambda texts: torch.tensor([vectors[text] for text in texts]))
    assert cosines(["right", "up"]) == {"cosine": pytest.approx(0, abs=1e-12)}
    assert cosines(["right", "between", "up"]) == {"cosine": pytest.approx((0.5**0.5 + 0 + 0.5**0.5) / 3)}
    assert cosines(["right", "right", "up", "nowhere"]) == {"cosine": pytest.approx(1 / 6)}
    assert cosines(["right"]) == {}


def test_of_the_encoder_that_comes_along():
    cosines = Cosines()
    texts = ["A cat sleeps.", "The cat is asleep.", "Stocks fell on Monday."]
    vectors = cosines._encoder.embed(texts)
    expected = [float(torch.cosine_similarity(vectors[i], vectors[j], dim=0)) for i, j in combinations(range(3), 2)]
    assert expected[0] > max(expected[1:])
    assert cosines(texts)["cosine"] == pytest.approx(sum(expected) / 3, abs=1e-3)
    assert cosines([texts[0]] * 3)["cosine"] == pytest.approx(1, abs=1e-3)
