"""`darling-train-partition --adapt`: a head whose encoder is fine-tuned for responses that it reads whole."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from training_inputs import story

from darling_plugin.commands.train_partition import main
from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, load_partition_model
from darling_plugin.partition.models.embedding import _default_model_path
from darling_plugin.partition.models.head.adapter import MIDDLE, SHARE, SLOPE, read_whole
from darling_plugin.partition.models.head.model import SHIPPED, read_head
from darling_plugin.training import adapter, head
from darling_plugin.training.head import HeadTrainer
from darling_plugin.training.pairs import LabelledPair, read_pairs

pytestmark = pytest.mark.usefixtures("few_resamples", "few_packaged_pairs")

# Two ways to say each of two things, of which the words tell nothing: the pairs within a way look alike and differ.
WET, DRY = ("river", "lake"), ("desert", "dune")
FRAMES = (
    "Long after midnight the two of them still sat by the {}, talked of old times and did not think of going home, "
    "for there was nobody who waited for them, and the night was as warm as the day before had been.",
    "When summer came she drove out to the {} alone, took a few photographs there and returned in the evening, tired "
    "and glad, to write a long letter to her sister, who had asked her so often what it looked like.",
)
# Of more than 8 words, which an adapted encoder reads, and too few for it to have a say of the two.
SENTENCES = "We sat by the old lake until it was late.", "We sat by the old lake, and soon it was dark."


def groups(path, count):
    rows = []
    for k in range(count):
        first, second = FRAMES[k % 2], FRAMES[1 - k % 2]
        responses = [first.format(WET[0]), second.format(WET[1]), first.format(DRY[0]), second.format(DRY[1])]
        rows.append({"prompt": f"Prompt {k}", "responses": responses, "labels": [0, 0, 1, 1]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A head trained on 16 prompts, and its folder; the trainer has 24, in the order of the file, and SENTENCES."""
    folder = tmp_path_factory.mktemp("adapter")
    pairs = [*read_pairs(groups(folder / "groups.jsonl", 24)), LabelledPair("Where was it?", *SENTENCES, 1, 25)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "EPOCHS", 10)
        patch.setattr(head, "PACKAGED", folder / "groups.jsonl")  # of whose prompts all are among the pairs
        trainer = HeadTrainer(pairs, None, folds=3, seed=0, dtype="float32", adapt=pairs)
        found = trainer.fit(range(96))
    found.save(folder / "head", None)
    return trainer, found, folder


def opened(folder):
    return load_partition_model(f"head:{folder}?dtype=float32")


def test_an_adapter_learns_what_the_features_do_not_show(trained):
    trainer, found, _ = trained
    at = range(96, 144)
    similar = torch.tensor([float(trainer.pairs[k].similar) for k in at])
    plain = replace(found, weights={name: each for name, each in found.weights.items() if "adapter" not in name})
    losses = [
        float(torch.nn.functional.binary_cross_entropy(torch.tensor(trainer.predict(each, at)).float(), similar))
        for each in (plain, found)
    ]
    assert losses[1] < 0.6 * losses[0], losses
    own = {name: each for name, each in found.weights.items() if name.startswith("adapter.")}
    # Six layers of six matrices, and none of the pooler, whose output nobody reads.
    assert len(own) == 2 * 36 and {each.dtype for each in own.values()} == {torch.float16}


def test_the_folder_says_what_the_trainer_predicts(trained):
    trainer, found, folder = trained
    model = opened(folder / "head")
    for at in (range(96, 102), [144]):
        rows = [trainer.pairs[k] for k in at]
        texts = list(dict.fromkeys(text for pair in rows for text in (pair.first, pair.second)))
        said = model.similarities([Group(rows[0].prompt, texts)])[0]
        for pair, expected in zip(rows, trainer.predict(found, at), strict=True):
            assert float(said[texts.index(pair.first), texts.index(pair.second)]) == pytest.approx(expected, abs=2e-4)


def test_both_logits_count_for_responses_read_whole_and_the_heads_own_for_others(trained, tmp_path):
    _, found, _ = trained
    own_adapter = {name: each for name, each in found.weights.items() if name.startswith("adapter.")}
    shipped = read_head(SHIPPED)[0]
    plain_weights = {name: each for name, each in shipped.items() if not name.startswith("adapter.")}
    for name, weights in (("plain", plain_weights), ("head", plain_weights | own_adapter)):
        replace(found, weights=weights).save(tmp_path / name, None)
    short, middle = "A lake.", [FRAMES[0].format("lake"), FRAMES[1].format("river"), story("fox", "slept")]
    texts = [short, *middle, " ".join(middle * 4), *SENTENCES]
    adapted, plain = opened(tmp_path / "head"), opened(tmp_path / "plain")
    prompt = "Where did they sit?"
    both, own = (model.similarities([Group(prompt, texts)])[0].double().logit() for model in (adapted, plain))
    model = SentenceTransformer(_default_model_path(), device="cpu")
    for name, layer in model[0].auto_model.named_modules():
        if f"adapter.{name}.up" in own_adapter:
            up, down = (own_adapter[f"adapter.{name}.{which}"].float() for which in ("up", "down"))
            layer.weight.data += up @ down
    vectors = model.encode(texts, convert_to_tensor=True, normalize_embeddings=True).double()
    for i in range(7):
        for j in range(i):
            if {i, j} <= {1, 2, 3, 5, 6} and {i, j} != {5, 6}:  # of two that are read whole one is long
                expected = SHARE * (own[i, j] + SLOPE * (vectors[i] @ vectors[j] - MIDDLE))
                assert abs(float(expected - own[i, j])) > 0.01
            else:
                expected = own[i, j]
            assert float(both[i, j]) == pytest.approx(float(expected), abs=2e-3), (i, j)
    again = Group(prompt, texts[::-1])
    adapted.sleep()
    adapted.wake()
    assert torch.equal(adapted.similarities([again])[0].flip(0, 1), adapted.similarities([Group(prompt, texts)])[0])


@pytest.mark.parametrize(
    ("words", "tokens", "whole"), [(8, 20, False), (9, 20, True), (100, 160, True), (100, 161, False)]
)
def test_which_responses_are_read_whole(words, tokens, whole):
    assert read_whole(" ".join(["word"] * words), range(tokens)) is whole


def test_an_adapter_reads_responses_alone_and_those_of_sentences_not(trained, monkeypatch):
    model = opened(trained[2] / "head")
    read = []
    embed_ids = model.adapted.embed_ids
    monkeypatch.setattr(model.adapted, "embed_ids", lambda ids: read.extend(map(len, ids)) or embed_ids(ids))
    prompt = "Where did the two of them sit, and what did they talk about until it was late?"
    sentences = Group(prompt, [*SENTENCES, "A lake."])
    alone = model.similarities([sentences])[0]
    assert read == []
    story_of = Group("Tell me a story.", [FRAMES[0].format("lake"), SENTENCES[0], "A lake."])
    assert torch.equal(model.similarities([sentences, story_of])[0], alone)
    lengths = [len(ids) for ids in model.encoder.token_ids([story_of.responses[0], SENTENCES[0]])]
    assert sorted(read) == sorted(lengths)


def test_another_encoder_than_the_adapters_is_refused(trained, tmp_path):
    _, found, _ = trained
    name = next(iter(name for name in found.weights if name.endswith(".up")))
    changed = found.weights | {name: found.weights[name][:-1]}
    replace(found, weights=changed).save(tmp_path / "head", None)
    with pytest.raises(DarlingError, match="of another shape"):
        opened(tmp_path / "head")


def test_no_prompt_that_is_tested_adapts_the_encoder(tmp_path, monkeypatch):
    data, other = (groups(tmp_path / f"{name}.jsonl", 9) for name in ("data", "other"))
    calls = []

    def recorded(encoder, pairs, inputs, seed):
        calls.append({pair.prompt for pair in pairs})
        assert all(text in inputs for pair in pairs if "Prompt" in pair.prompt for text in (pair.first, pair.second))
        return {}

    monkeypatch.setattr(head, "train_adapter", recorded)
    out = tmp_path / "out"
    command = [data, "-o", str(out), "--folds", "3", "--dtype", "float32", "--adapt", f"{other}:0.5"]
    assert main(command) == 0
    prompts = {f"Prompt {k}" for k in range(9)}
    *folds, last = (call & prompts for call in calls)
    assert last == prompts and [len(fold) for fold in folds] == [6, 6, 6]
    assert set.union(*(prompts - fold for fold in folds)) == prompts
    assert json.loads((out / "report.json").read_text())["arguments"]["adapt"] == [{"data": other, "weight": 0.5}]


def test_a_pairs_weight_counts_in_the_loss(tmp_path):
    pairs = read_pairs(groups(tmp_path / "groups.jsonl", 1))
    inputs = {text: torch.arange(3, 9).numpy() for pair in pairs for text in (pair.first, pair.second)}
    weighed = [replace(pair, weight=3.0 if pair.similar else 1.0) for pair in pairs]
    batch = adapter._Collator(inputs, 0, 2.0)([weighed])
    assert batch["weight"].tolist() == [1.5 if pair.similar else 0.5 for pair in pairs]

    class Encoder(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": torch.eye(len(features["input_ids"]))}

    loss = float(adapter._PairLoss(Encoder())(**batch)["loss"])
    # All cosines are 0: the logit of each pair is -SLOPE * MIDDLE.
    similar, count = sum(pair.similar for pair in pairs), len(pairs)
    of_similar, of_other = (torch.nn.functional.softplus(torch.tensor(z * SLOPE * MIDDLE)) for z in (1, -1))
    expected = (similar * 1.5 * of_similar + (count - similar) * 0.5 * of_other) / count
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_a_step_holds_few_texts_at_a_time():
    """What was computed for the loss is computed again for the gradient, batch by batch."""
    calls = []

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, features):
            calls.append(len(features["input_ids"]))
            return {"sentence_embedding": self.layer(features["input_ids"])}

    texts = [{"input_ids": torch.rand(3, 4)}, {"input_ids": torch.rand(2, 4)}]
    pairs = torch.tensor([0, 1]), torch.tensor([3, 4]), torch.ones(2), torch.ones(2)
    loss = adapter._PairLoss(Encoder())(texts, *pairs)["loss"]
    assert calls == [3, 2]
    loss.backward()
    assert sorted(calls) == [2, 2, 3, 3]


def test_data_that_an_adapter_cannot_learn_from_are_refused_before_it_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(head, "train_adapter", lambda *_: pytest.fail("trained"))
    data = groups(tmp_path / "data.jsonl", 9)
    row = {"prompt": "Prompt 0", "responses": ["A lake.", "A river.", "The lake."], "labels": [0, 1, 0]}
    (tmp_path / "short.jsonl").write_text(json.dumps(row))
    row |= {"responses": [*SENTENCES, "A river."], "labels": [0, 0, 1]}
    (tmp_path / "alike.jsonl").write_text(json.dumps(row))
    own = json.loads((tmp_path / "data.jsonl").read_text().splitlines()[0])
    (tmp_path / "one.jsonl").write_text(json.dumps(own))  # whose prompt is in one of the folds
    for name, said in (
        ("short", "0 similar and 0 different of 3 pairs"),
        ("alike", "1 similar and 0 different of 3 pairs"),
        ("one", "0 similar and 0 different of 6 pairs, those of the 3 prompts of a fold"),
    ):
        command = [data, "-o", str(tmp_path / name), "--folds", "3", "--adapt", str(tmp_path / f"{name}.jsonl")]
        assert main(command) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_an_encoder_with_too_few_positions_is_refused():
    class Short:
        path = "short"
        model = SentenceTransformer(_default_model_path(), device="cpu")

    adapter.check_positions(Short)
    Short.model[0].auto_model.config.max_position_embeddings = 161
    with pytest.raises(DarlingError, match="(?s)reads 162 tokens at once.*short, which reads 161"):
        adapter.check_positions(Short)


def test_other_data_for_the_adapter_are_another_training(tmp_path, monkeypatch, capsys):
    data, other = (groups(tmp_path / f"{name}.jsonl", 9) for name in ("data", "other"))
    calls = []

    def stopped(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stopped")
        return {}

    monkeypatch.setattr(head, "train_adapter", stopped)
    command = [data, "-o", str(tmp_path / "out"), "--folds", "3", "--dtype", "float32", "--adapt", other]
    with pytest.raises(RuntimeError, match="stopped"):
        main(command)
    text = Path(other).read_text()
    Path(other).write_text(text.replace("[0, 0, 1, 1]", "[0, 1, 0, 1]"))
    assert main(command) == 2
    assert "begun with" in capsys.readouterr().err
    Path(other).write_text(text)
    assert main(command) == 0
    assert len(calls) == 2 + 3, "the first fold was done"
    assert json.loads((tmp_path / "out/report.json").read_text())["adapted_pairs"] == 54


def test_what_cannot_be_adapted_to_is_refused(tmp_path, capsys):
    assert main(["pairs.jsonl", "-o", str(tmp_path / "o"), "--kind", "cross-encoder", "--base", "b", "--adapt"]) == 2
    assert "--adapt" in capsys.readouterr().err
