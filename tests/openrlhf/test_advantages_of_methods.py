"""The advantages hook where a gate, similarities, classes or weights take part, on OpenRLHF's own classes."""

import pytest
import torch
from training_batches import by_place, make_experiences, make_maker, response_advantages

from darling_plugin import DarlingError

# Responses 0 and 1, 1 and 2 are equivalent, 3 to nothing.
CHAIN = [[1.0, 0.9, 0.1, 0.2], [0.9, 1.0, 0.9, 0.0], [0.1, 0.9, 1.0, 0.3], [0.2, 0.0, 0.3, 1.0]]


@pytest.mark.parametrize("sizes", [[8], [3, 5], [1] * 8])
def test_a_reward_models_quality_is_gated_here(installed, configured, sizes):
    configured(quality_gate="above:0", log_dir="somewhere")
    quality = [[1.0, -1.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0]]
    order = [7, 0, 3, 2, 4, 1, 6, 5]
    experiences = make_experiences(quality, [[0, 0, 0, 1]] * 2, sizes, order, similarity=[CHAIN, CHAIN])
    configured(quality_gate="above:0", quality_transform="raw", diversity_floor=0.0, log_dir="somewhere")
    maker = make_maker(remote_url=None)
    out = maker.compute_advantages_and_returns(experiences)
    rewards = by_place(out, lambda e: e.rewards.tolist())
    # Without the link between them the first and third are two classes; left out: diversity 0.
    expected = [1.0, 0.0, 1.0, 0.5, 1 / 3, 1 / 3, 1 / 3, 1.0]
    assert [rewards[k] for k in range(8)] == pytest.approx(expected)
    assert [record["labels"] for record in maker.darling_records] == [[0, -1, 1, 2], [0, 0, 0, 1]]
    assert maker.darling_records[0]["similarity"] == CHAIN, "as decimals, all of it"
    assert maker.darling_metrics["darling/classes_per_group"] == 2.5


def test_a_reward_functions_quality_was_gated_before(installed, configured):
    configured(quality_gate="above:0", quality_transform="raw", diversity_floor=0.0)
    experiences = make_experiences([[1.0, -1.0, 1.0, 0.5]], [[0, -1, 0, 1]], [4], similarity=[CHAIN])
    out = make_maker().compute_advantages_and_returns(experiences)
    found = by_place(out, lambda e: e.rewards.tolist())
    assert [found[k] for k in range(4)] == pytest.approx([2 / 3, 0, 2 / 3, 0.5]), "by the diversity that was sent"


SMOOTH = [[1.0, 0.9, 0.1, 0.2], [0.9, 1.0, 0.3, 0.0], [0.1, 0.3, 1.0, 0.4], [0.2, 0.0, 0.4, 1.0]]


@pytest.mark.parametrize("sizes", [[8], [3, 5], [1] * 8])
def test_a_reward_of_similarities_whatever_the_micro_batches(installed, configured, sizes):
    configured(reward="redundancy", log_dir="somewhere", on_error="quality_only")
    similarity = torch.tensor([SMOOTH, [[0.0] * 4] * 4]).half()
    experiences = make_experiences(
        *([[1.0, 1.0, 0.5, 0.0], [1.0, 0.0, 0.0, 0.5]], [[0, 0, 1, 2], [-1] * 4], sizes, [7, 0, 3, 2, 4, 1, 6, 5]),
        similarity=similarity,
        quality_only={1},
    )
    maker = make_maker()
    out = maker.compute_advantages_and_returns(experiences)
    rewards, found = by_place(out, lambda e: e.rewards.tolist()), response_advantages(out)
    sums = [sum(row) for row in similarity[0].double().tolist()]
    expected = [1 / sums[0], 1 / sums[1], 0.5 / sums[2], 0.0, 1.0, 0.0, 0.0, 0.5]
    assert [rewards[k] for k in range(8)] == pytest.approx(expected)
    means = [sum(expected[:4]) / 4] * 4 + [sum(expected[4:]) / 4] * 4
    assert [found[k] for k in range(8)] == pytest.approx(
        [a - b for a, b in zip(expected, means, strict=True)], abs=1e-6
    )
    logged = maker.darling_records[0]["similarity"]
    assert logged == [[round(value, 6) for value in row] for row in similarity[0].tolist()], "what was computed with"
    assert maker.darling_records[1]["similarity"] is None


def test_an_advantage_of_classes(installed, configured):
    configured(reward="quality", advantage="inverse_class_size")
    out = make_maker().compute_advantages_and_returns(make_experiences([[1.0, 1.0, 0.0, 1.0]], [[0, 0, 0, 1]], [3, 1]))
    found = response_advantages(out)
    assert [found[k] for k in range(4)] == pytest.approx([0.25 / 3, 0.25 / 3, -0.25, 0.25])


def test_the_weight_follows_the_step_and_the_prompt(installed, configured, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def weight(prompt, label):\n    return {'prompt 0': 1, 'prompt 1': 0}[prompt] + (label == 'open')\n"
    )
    quality, labels = [[1.0, 0.5], [1.0, 0.5], [1.0, 0.5]], [[0, 0]] * 3
    words, objects = ["", "", "open"], ['{"w": 1}', '{"answer": "7", "w": 0}', '{"w": 0.5}']
    cases = (  # flags, the data set's labels, and 1 - the weight of each group: diversity is 0, and there is no floor
        ({"weight_schedule": "0:0,10:1"}, words, [0.6, 0.6, 0.6]),
        ({"prompt_weight": f"{file}:weight", "weight": 0.5}, words, [0.5, 1.0, 0.0]),
        ({"prompt_weight": f"{file}:weight", "weight_schedule": "0:0,10:1"}, words, [0.6, 1.0, 0.2]),
        ({"prompt_weight": "w", "weight": 0.5}, objects, [0.5, 1.0, 0.75]),
        ({"prompt_weight": "w", "weight_schedule": "0:0,10:1"}, objects, [0.6, 1.0, 0.8]),
    )
    for flags, told, kept in cases:
        configured(diversity_floor=0.0, log_dir="somewhere", **flags)
        maker = make_maker(n=2)
        maker.darling_step = 4
        experiences = make_experiences(quality, labels, [1, 3, 2], [5, 0, 3, 2, 4, 1], told=told)
        for experience in experiences:
            experience.prompts = ["prompt 0" if prompt == "prompt 2" else prompt for prompt in experience.prompts]
        out = maker.compute_advantages_and_returns(experiences)
        rewards = by_place(out, lambda e: e.rewards.tolist())
        expected = [value * share for share in kept for value in (1.0, 0.5)]
        assert [rewards[k] for k in range(6)] == pytest.approx(expected, abs=1e-6)
        weights = [1 - share for share in kept]
        assert [record["weight"] for record in maker.darling_records] == pytest.approx(weights)
        assert maker.darling_metrics["darling/weight"] == pytest.approx(sum(weights) / 3)


def test_a_label_without_the_key_of_its_weight_stops(installed, configured):
    configured(prompt_weight="weight")
    maker = make_maker(n=2)
    maker.darling_step = 1
    with pytest.raises(DarlingError, match="a JSON object with the key 'weight'"):
        maker.compute_advantages_and_returns(make_experiences([[1.0, 0.5]], [[0, 1]], [2], told="7"))


@pytest.mark.parametrize(("reward", "refused"), [("redundancy", True), ("multiply", False)])
def test_a_prompts_weight_may_not_turn_the_sign_of_what_a_method_gives(installed, configured, reward, refused):
    configured(prompt_weight="w", reward=reward)
    maker = make_maker(n=2)
    maker.darling_step = 1
    similarity = [[[1.0, 0.25], [0.25, 1.0]]]
    experiences = make_experiences([[1.0, 0.5]], [[0, 1]], [2], told='{"w": 1.5}', similarity=similarity)
    if refused:
        with pytest.raises(DarlingError, match="(?s)at most 1, the whole of it, for redundancy.*1.5"):
            maker.compute_advantages_and_returns(experiences)
    else:
        maker.compute_advantages_and_returns(experiences)
