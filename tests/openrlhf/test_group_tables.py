"""`--darling.log_groups_every`, on OpenRLHF's own loggers: W&B offline, and TensorBoard."""

import json
from types import SimpleNamespace

import pytest
from openrlhf.utils import logging_utils
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_batches import Tokenizer, make_experiences, make_maker

from darling_plugin.openrlhf import hooks
from darling_plugin.openrlhf.group_tables import is_due

QUALITY = [[0.1, 0.2, 0.1], [1.0, 0.9, 1.0], [0.5, 0.5, 0.5]]
LABELS = [[0, 1, 1], [0, 0, 1], [0, 1, 2]]


@pytest.fixture
def trainer(installed, configured, tmp_path, monkeypatch):
    """A trainer after a step, with both of OpenRLHF's loggers."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    flags = SimpleNamespace(org=None, project="test", group=None, run_name="run", key="k" * 40)
    args = SimpleNamespace(logger=SimpleNamespace(wandb=flags, tensorboard_dir=str(tmp_path / "tensorboard")))
    monkeypatch.setattr(wandb, "login", lambda **key: True)  # which asks a server
    configured(log_groups_every=2)
    maker = make_maker(n=3)
    maker.compute_advantages_and_returns(make_experiences(QUALITY, LABELS, [5, 4], order=[3, 0, 1, 8, 2, 7, 4, 5, 6]))
    yield SimpleNamespace(
        experience_maker=maker,
        tokenizer=Tokenizer(),
        wandb_logger=logging_utils.WandbLogger(args),
        tensorboard_logger=logging_utils.TensorboardLogger(args),
    )
    wandb.finish()


def test_the_three_groups_are_in_both_loggers_every_so_many_steps(trainer, tmp_path):
    for step in (1, 2, 3, 4, 5):
        hooks._train_step(lambda step=step: ({}, step), trainer, {"global_step": step - 1})
    trainer.wandb_logger.close()
    trainer.tensorboard_logger.close()

    reader = EventAccumulator(str(tmp_path / "tensorboard" / "run"))
    reader.Reload()
    texts = reader.Tensors("train/darling/groups/text_summary")
    assert [text.step for text in texts] == [1, 2, 4]
    text = texts[0].tensor_proto.string_val[0].decode()
    assert text.index("**best**: prompt 1") < text.index("**worst**: prompt 0") < text.index("**random**: prompt 2")

    tables = sorted(tmp_path.glob("wandb/offline-run-*/files/media/table/train/darling/groups_*.table.json"))
    assert len(tables) == 3
    table = json.loads(tables[0].read_text())
    assert table["columns"][:5] == ["step", "group", "prompt", "class", "response"]
    best = [row for row in table["data"] if row[1] == "best"]
    # place 3, 4 and 5 of the batch: their own tokens, in the order of the classes
    assert [row[2:5] for row in best] == [
        ["prompt 1", 0, "31 32 33 34"],
        ["prompt 1", 0, "41"],
        ["prompt 1", 1, "51 52"],
    ]
    assert [row[5] for row in best] == pytest.approx([1.0, 0.9, 1.0])
    assert [len([row for row in table["data"] if row[1] == name]) for name in ("worst", "random")] == [3, 3]


def test_without_a_logger_or_with_0_nothing_is_decoded(installed, configured):
    configured(log_groups_every=0)
    maker = make_maker(n=3)
    maker.compute_advantages_and_returns(make_experiences(QUALITY, LABELS, [9]))
    assert maker.darling_examples == {}
    configured(log_groups_every=1)
    maker.compute_advantages_and_returns(make_experiences(QUALITY, LABELS, [9]))
    assert list(maker.darling_examples) == ["best", "worst", "random"]
    trainer = SimpleNamespace(experience_maker=maker, tokenizer=None, wandb_logger=None, tensorboard_logger=None)
    hooks._train_step(lambda: ({}, 1), trainer, {"global_step": 0})


def test_when_it_is_due():
    assert [step for step in range(1, 13) if is_due(step, 5)] == [1, 5, 10]
    assert not any(is_due(step, 0) for step in range(1, 13))
