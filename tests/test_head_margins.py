"""How far from the threshold lies what the tests assert of `default`: further than another CPU or dtype moves it."""

import pytest
import torch
from short_answers import PAIRS, SENTENCES
from test_head import FEW_WORDS, STORIES, TEMPLATES, WORDS
from test_head_short_pairs import FRAMES, PADDED, SPELLINGS

from darling_plugin.partition import Group, load_partition_model

MARGIN = 0.1  # of logits; between dtypes and CPUs' instructions the pairs here moved by up to 0.032 (the model card)
NEARER = {"Make up a password.": 0.05}  # by prompt: two of its passwords lie 0.078 below the threshold


def asserted():
    """(prompt, responses, classes) of all that is asserted one by one; the tables with floors are not."""
    for template in ("{}", *TEMPLATES):
        for prompt, first, second, same in PAIRS:
            yield template.format(prompt), [first, second], [0, 0 if same else 1]
    for text, word, other, same in WORDS:
        yield "What do you think?", [text, text.replace(word, other)], [0, 0 if same else 1]
    for prompt, frame, values in (*SENTENCES, *FRAMES):
        yield prompt, [frame.format(each) for each in values], list(range(len(values)))
    for prompt, frame, values in SPELLINGS:
        yield prompt, [frame.format(each) for each in values], [0] * len(values)
    for prompt, answer, many in PADDED["lists"]:
        yield prompt, [answer, many], [0, 1]
    yield "Write a very short story.", STORIES, [0, 0, 1]
    yield "Tell me something.", FEW_WORDS, [0, 1, 2, 3]
    yield "Reply with an emoji.", ["🙂", "😢"], [0, 1]


def margin(similarities, labels, threshold):
    """By how much all logits may move before union-find gives other classes than `labels`."""
    logits = similarities.double().logit() - torch.tensor(threshold, dtype=torch.float64).logit()
    labels = torch.tensor(labels)
    apart = labels[:, None] != labels
    found = -logits[apart].max().item() if apart.any() else float("inf")
    for label in labels.unique():
        # The pairs that hold a class together: from one member on, each time the strongest to one that is not reached.
        members = (labels == label).nonzero()[:, 0].tolist()
        reached, rest = members[:1], members[1:]
        while rest:
            strongest, following = max((logits[i, j].item(), j) for i in reached for j in rest)
            found = min(found, strongest)
            reached.append(following)
            rest.remove(following)
    return found


def margins(model):
    cases = list(asserted())
    found = model.similarities([Group(prompt, responses) for prompt, responses, _ in cases])
    return {
        (prompt, tuple(responses)): margin(similarities, labels, model.threshold)
        for (prompt, responses, labels), similarities in zip(cases, found, strict=True)
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_asserted_lies_further_from_the_threshold_than_another_cpu_or_dtype_moves_it(dtype):
    found = margins(load_partition_model("default", dtype=dtype))
    assert len(found) > 550
    assert {case: each for case, each in found.items() if each <= NEARER.get(case[0], MARGIN)} == {}


def test_the_margin_is_that_of_the_pairs_that_hold_a_class_together_or_would_join_two():
    def logit(p):
        return torch.tensor(p, dtype=torch.float64).logit().item()

    similarities = torch.eye(4)
    for (i, j), p in {(0, 1): 0.9, (1, 2): 0.8, (0, 2): 0.1, (2, 3): 0.3, (0, 3): 0.2, (1, 3): 0.01}.items():
        similarities[i, j] = similarities[j, i] = p
    assert margin(similarities, [0, 0, 0, 1], 0.5) == pytest.approx(-logit(0.3), abs=1e-5)
    assert margin(similarities, [0, 0, 0, 1], 0.35) == pytest.approx(logit(0.35) - logit(0.3), abs=1e-5)
    assert margin(similarities, [0, 0, 0, 1], 0.75) == pytest.approx(logit(0.8) - logit(0.75), abs=1e-5)
    assert margin(similarities, [0, 0, 0, 0], 0.25) == pytest.approx(logit(0.3) - logit(0.25), abs=1e-5)
    assert margin(similarities, [0, 0, 1, 2], 0.5) < 0
