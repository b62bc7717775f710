"""The partition model `default`: which responses it takes for the same, and what does not change that."""

import json
import re
from collections import Counter
from itertools import combinations, permutations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from short_answers import PAIRS, SENTENCES

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, load_partition_model
from darling_plugin.partition.models.head import features
from darling_plugin.partition.models.head import model as head_model
from darling_plugin.partition.models.head.features import (
    CHUNK_TOKENS,
    FEATURES,
    KINDS,
    Encoded,
    encode,
    kinds,
    pair_features,
)
from darling_plugin.partition.models.head.model import FILE, SHIPPED
from darling_plugin.partition.models.head.order import framed


@pytest.fixture(scope="module")
def default():
    return load_partition_model("default")


@pytest.fixture(scope="module")
def exact():
    return load_partition_model("default", dtype="float32")


@pytest.mark.parametrize(("prompt", "first", "second", "same"), PAIRS)
def test_short_answers_are_one_class_or_two(default, prompt, first, second, same):
    labels = default.partition([Group(prompt, [first, second])])[0].tolist()
    assert labels == ([0, 0] if same else [0, 1])


TEMPLATES = [
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n",
    "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{} [/INST]",
    "<｜begin▁of▁sentence｜><｜User｜>{}<｜Assistant｜>",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_short_answers_to_prompts_in_a_chat_template(default, template):
    found = default.partition([Group(template.format(prompt), [first, second]) for prompt, first, second, _ in PAIRS])
    assert [pair for pair, labels in zip(PAIRS, found, strict=True) if (labels[1] == 0) != pair[-1]] == []


@pytest.mark.parametrize(("prompt", "sentence", "answers"), SENTENCES)
def test_different_answers_in_one_sentence_are_classes_of_their_own(default, prompt, sentence, answers):
    labels = default.partition([Group(prompt, [sentence.format(answer) for answer in answers])])[0]
    assert labels.tolist() == list(range(len(answers)))


def test_sentences_of_a_small_model_are_told_apart_as_the_card_says(exact):
    groups = [json.loads(line) for line in (Path(__file__).parent / "sentences.jsonl").read_text().splitlines()]
    found = exact.similarities([Group(group["prompt"], group["responses"]) for group in groups])
    wrong, count = Counter(), Counter()
    for group, similarities in zip(groups, found, strict=True):
        for i, j in combinations(range(len(group["labels"])), 2):
            same = group["labels"][i] == group["labels"][j]
            kind = "about" if group["prompt"].startswith("Write") else "same" if same else "different"
            count[kind] += 1
            wrong[kind] += (float(similarities[i, j]) > exact.threshold) != same
    card = (SHIPPED / "README.md").read_text()
    for kind, row in (
        ("same", "same answer, split"),
        ("different", "different answers, joined"),
        ("about", "different sentences about something, joined"),
    ):
        said, of = map(int, re.search(rf"\| {row} \| (\d+) of (\d+) pairs", card).groups())
        assert count[kind] == of and abs(wrong[kind] - said) <= 3  # other processors round otherwise


WORDS = [
    ("As far as I know from living with two of them, dogs don't like rain.", "don't", "do not", True),
    ("The number that I would choose is 5, because it is my lucky number.", "5", "15", False),
    ("The type that I would use for this in C++ is vector<int>.", "int", "float", False),
]


@pytest.mark.parametrize(("sentence", "word", "other", "same"), WORDS)
def test_a_word_in_a_sentence_that_counts_or_does_not(default, sentence, word, other, same):
    labels = default.partition([Group("What do you think?", [sentence, sentence.replace(word, other)])])[0]
    assert labels.tolist() == [0, 0 if same else 1]


@pytest.mark.parametrize(
    ("shorter", "longer", "kind"),
    [
        (8, 24, "short answers"),
        (9, 24, "sentences"),
        (8, 25, "sentences"),
        (24, 32, "sentences"),
        (25, 32, "long responses"),
        (24, 33, "long responses"),
        (1, 33, "long responses"),
    ],
)
def test_the_kind_of_a_pair_is_that_of_its_lengths(shorter, longer, kind):
    texts = [Encoded(" ".join(["word"] * count), None, None, None) for count in (longer, shorter)]
    found = kinds(texts)
    assert torch.equal(found, found.T) and list(KINDS)[found[0, 1]] == kind


def test_a_response_compared_with_itself_is_on_the_diagonal(exact):
    for text in ("Fig", "One fruit that many people like to eat in summer is the fig.", " ".join(STORIES)):
        encoded = encode(exact.encoder, ["Name a fruit.", text])
        found = pair_features(encoded["Name a fruit."], [encoded[text]] * 2, exact._weights["idf"])
        assert torch.allclose(found[0, 1], found[0, 0])


def test_the_table_of_short_answers_is_long_and_no_prompt_of_the_tests_is_trained_on():
    trained_on = {json.loads(line)["prompt"] for line in (SHIPPED / "pairs.jsonl").read_text().splitlines()}
    sentences = [json.loads(line) for line in (Path(__file__).parent / "sentences.jsonl").read_text().splitlines()]
    assert len(PAIRS) >= 60 and len(trained_on) > 100
    tested = {prompt for prompt, *_ in (*PAIRS, *SENTENCES)} | {group["prompt"] for group in sentences}
    assert not trained_on & tested


STORIES = [
    "A fox crossed the frozen river at night, looking for the den where her cubs waited, and found it empty. She "
    "followed the tracks through the snow until morning came and they ran out from beneath a fallen oak.",
    "At night a fox went over the frozen river to the den where her cubs waited, but it was empty. She followed their "
    "tracks through the snow until, in the morning, they ran out from under a fallen oak.",
    "Captain Adaeze Obi had steered freighters past Saturn for thirty years before the company replaced her with a "
    "program. She bought the oldest tug in Titan's harbour, and on the first day of her retirement stole it back.",
]


FEW_WORDS = [" ".join(STORIES), "Don't leave now.", "Unabracusabook", "her cubs"]


def test_a_few_words_beside_a_long_response_are_judged_as_long_ones_are(default):
    assert default.partition([Group("Tell me something.", FEW_WORDS)])[0].tolist() == [0, 1, 2, 3]


FRAME = (
    "Dear customer, thank you for the order that you placed with our shop last week. The number of the invoice is {}, "
    "and you find it on the label of the parcel, too. Please keep it until everything has reached you safely. {}"
)


@pytest.mark.parametrize("more", ["", " ".join(STORIES)])
def test_long_responses_in_one_frame_differ_where_their_numbers_or_codes_do(default, more):
    different = ("4711", "4712"), ("4711", "#00ff00"), ("C-17", "B-17"), ("mail@one.org", "post@two.com")
    different += (("section 2.1", "section 2.10"),)
    for first, second in (*different, ("4711", "4,711"), ("1 km", "1000 m"), ("$ 2.1", "$ 2.10")):
        group = Group("Write a note.", [FRAME.format(each, more) for each in (first, second)])
        assert default.partition([group])[0].tolist() == [0, int((first, second) in different)], (first, second)


def test_frames_are_found_word_for_word():
    texts = ["a 1 b", "a 2 b", "a 1 c", "a 1  b", "a 1.0 b", "a b 1", "a x b"]
    assert sorted(framed(texts)) == [(0, 1), (1, 3), (1, 4)]


def test_a_paraphrase_is_one_class_and_another_story_is_not(default):
    assert default.partition([Group("Write a very short story.", STORIES)])[0].tolist() == [0, 0, 1]


def test_the_order_of_two_responses_makes_no_difference(exact):
    prompt, responses = "Write a very short story.", [*STORIES, "A fox.", "Captain Obi", "seven foxes"]
    responses += [" ".join(STORIES), " ".join(reversed(STORIES))]  # of several chunks
    whole = exact.similarities([Group(prompt, responses)])[0]
    assert torch.equal(whole, whole.T) and whole.min() >= 0 and whole.max() <= 1
    for i, j in permutations(range(len(responses)), 2):
        alone = exact.similarities([Group(prompt, [responses[i], responses[j]])])[0]
        # Alone, a pair is encoded in another batch: the same to rounding.
        assert alone[0, 1] == pytest.approx(float(whole[i, j]), abs=1e-4)


def test_a_group_in_another_order_has_the_same_similarities_to_the_last_bit(default, exact, monkeypatch):
    prompt, responses = "Write a very short story.", [*STORIES, "A fox.", "Captain Obi", " ".join(STORIES)]
    for model in (default, exact):
        whole = model.similarities([Group(prompt, responses)])[0]
        for order in ([5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4]):
            other = model.similarities([Group(prompt, [responses[k] for k in order])])[0]
            assert torch.equal(other, whole[order][:, order])
    # On this CPU equal batches may hide an encoder's order; what it is given shows it on any.
    given = []
    embed = exact.encoder.embed_ids
    monkeypatch.setattr(exact.encoder, "embed_ids", lambda ids: given.append([*map(tuple, ids)]) or embed(ids))
    exact.similarities([Group(prompt, responses)])
    exact.similarities([Group(prompt, responses[::-1])])
    assert given[0] == given[1]


def test_of_a_pairs_two_orders_one_counts_whatever_a_cpu_rounds(exact, monkeypatch):
    # A CPU that rounds [i, j] otherwise than [j, i], as one did.
    noise = 1e-3 * torch.randn(8, 8, 1, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        features, "pair_features", lambda *args: (found := pair_features(*args)) + noise[: len(found), : len(found)]
    )
    prompt, responses = "Write a very short story.", [*STORIES, "A fox.", "Captain Obi"]
    whole = exact.similarities([Group(prompt, responses)])[0]
    assert torch.equal(whole, whole.T)
    assert torch.equal(exact.similarities([Group(prompt, responses[::-1])])[0], whole.flip(0, 1))


def test_each_chunk_of_each_distinct_text_is_encoded_once(exact, monkeypatch):
    asked = []
    embed = exact.encoder.embed_ids
    monkeypatch.setattr(exact.encoder, "embed_ids", lambda ids: asked.extend(map(tuple, ids)) or embed(ids))
    long = " ".join(f"word{k}" for k in range(200))
    groups = [Group("A prompt.", ["one", "two", long]), Group("A prompt.", ["two", "three"])]
    exact.partition(groups)
    texts = exact.encoder.token_ids(["A prompt.", "one", "two", long, "three"])
    assert sum(map(len, asked)) == sum(map(len, texts))  # no token is left out or read twice
    assert max(map(len, asked)) <= CHUNK_TOKENS
    assert len(asked) == 4 + -(-len(texts[3]) // CHUNK_TOKENS)


def test_a_gpu_encodes_while_texts_are_tokenised_and_features_computed(exact, monkeypatch):
    groups = [Group(f"Name a {kind}.", [f"{kind} {k}" for k in range(3)]) for kind in ("fox", "tree", "river")]
    expected = exact.similarities(groups)
    monkeypatch.setattr(exact.encoder._forward, "part", 4)  # as on a GPU, here a group at a time
    happened, embed, features_of = [], exact.encoder.embed_ids, features.pair_features

    def queued(ids):
        happened.append("queued")
        rows = embed(ids)
        return lambda: happened.append("waited for") or rows()

    tokenise = exact.encoder.token_ids
    monkeypatch.setattr(exact.encoder, "token_ids", lambda texts: happened.append("tokenised") or tokenise(texts))
    monkeypatch.setattr(exact.encoder, "embed_ids", queued)
    monkeypatch.setattr(features, "pair_features", lambda *args: happened.append("features") or features_of(*args))
    found = exact.similarities(groups)
    # What is tokenised is the next group's; what is queued then, too, and the features are of the one waited for.
    ahead = ["tokenised", "waited for", "queued", "features"]
    assert happened == ["tokenised", "queued", *ahead, *ahead, "waited for", "features"]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_what_a_chunk_becomes_is_what_sentence_transformers_makes_of_its_text(exact):
    texts = ["Rain over the harbour.", "seven"]
    ours = torch.nn.functional.normalize(exact.encoder.embed_ids(exact.encoder.token_ids(texts))(), dim=-1)
    theirs = torch.nn.functional.normalize(exact.encoder.embed(texts), dim=-1)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_texts_that_have_no_words_are_compared_too(default):
    odd = ["🙂", "🙂🙂🙂🙂", "...", "\u200b", "x" * 3000, "的是不了"]
    labels = default.partition([Group("", odd), Group("?!", odd)])
    assert [len(each) for each in labels] == [6, 6]
    assert default.partition([Group("Reply with an emoji.", ["🙂", "😢"])])[0].tolist() == [0, 1]


def test_the_shipped_weights_are_small_and_the_card_gives_their_figures(default):
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 5e6
    report = json.loads((SHIPPED / "report.json").read_text())
    card = " ".join((SHIPPED / "README.md").read_text().split())
    assert f"threshold is {default.threshold:.3f}" in card
    for name, measured in report["measures"].items():
        row = (
            f"| {name.replace('_', ' ')} | {measured['value']:.3f} | {measured['low']:.3f} to {measured['high']:.3f} |"
        )
        assert row in card, row
    assert report["measures"]["calibration_error"]["value"] < 0.07  # of the labels; the adapter's are readings
    pairs = [json.loads(line) for line in (SHIPPED / "pairs.jsonl").read_text().splitlines()]
    prompts, similar = {pair["prompt"] for pair in pairs}, sum(pair["similar"] for pair in pairs)
    assert f"{len(pairs)} pairs of short answers and sentences to {len(prompts)} prompts, {similar} similar" in card
    for kind, told in report["packaged"].items():
        assert f"{told['right']} of the {told['pairs']} packaged pairs of {kind}" in card
    assert f"All {len(PAIRS)} pairs in" in card
    joined = {
        row["threshold"]: (f"{row['similar_joined']:.0%}", f"{row['different_joined']:.0%}")
        for row in report["thresholds"]
    }
    rows = re.findall(r"^\| (0\.\d+) \| (\d+%) \| (\d+%) \|$", (SHIPPED / "README.md").read_text(), re.MULTILINE)
    assert len(rows) > 3
    for threshold, *shares in rows:
        assert tuple(shares) == joined[float(threshold)]
    weights = load_file(SHIPPED / FILE)
    assert weights["weight"].shape == (len(KINDS), len(FEATURES))
    for row, names in enumerate(KINDS.values()):
        assert {name for name, w in zip(FEATURES, weights["weight"][row], strict=True) if w} <= set(names)


def test_a_folder_without_a_head_is_refused(tmp_path):
    with pytest.raises(DarlingError, match=r"a folder with head\.safetensors"):
        load_partition_model(f"head:{tmp_path}")
    (tmp_path / FILE).write_bytes(b"nonsense")
    with pytest.raises(DarlingError, match=r"a folder with head\.safetensors"):
        load_partition_model(f"head:{tmp_path}")


def test_a_head_for_other_features_is_refused(tmp_path):
    save_file(load_file(SHIPPED / FILE), tmp_path / FILE, {"features": json.dumps(["length"]), "threshold": "0.5"})
    with pytest.raises(DarlingError, match=re.escape("with the features ['length']")):
        load_partition_model(f"head:{tmp_path}")


def test_an_encoder_whose_ids_cannot_be_handed_over_is_refused(exact, monkeypatch):
    monkeypatch.setattr(exact.encoder, "_forward", None)
    with pytest.raises(DarlingError, match="an encoder whose token ids can be handed over"):
        exact.partition([Group("A prompt.", ["one", "two"])])


def test_what_one_response_may_cost_has_an_end(caplog, monkeypatch):
    monkeypatch.setattr(head_model, "MOST_CHARACTERS", 60)
    model = load_partition_model("default")
    long = "The capital of France is Paris, as everybody knows by heart. "
    groups = [Group("Name a capital.", [long + "But I like Rome.", long + "And the Louvre is there.", "Oslo."])]
    whole = model.similarities([Group("Name a capital.", [long[:60], "Oslo."])])[0]
    found = model.similarities(groups)[0]
    assert found[0, 1] == found[0, 0] and found[0, 2] == whole[0, 1], "what comes after is not read"
    assert "2 of 3 (67 %) are cut: the first 60 characters" in caplog.text and model.cuts.cut == 2
    assert groups[0].responses[0].endswith("Rome."), "nobody else's text is changed"
