"""`--darling.log_groups_every`: the best, the worst and a random group of a step, in W&B and TensorBoard."""

from __future__ import annotations

from typing import Any

from darling_plugin.evaluation.example_groups import COLUMNS, markdown, rows
from darling_plugin.metrics import GROUPS_TABLE
from darling_plugin.openrlhf import responses


def is_due(step: int, every: int) -> bool:
    """At the first step, and at each that `every` divides; 0 is never."""
    return every > 0 and (step == 1 or step % every == 0)


def log_groups(trainer: Any, records: dict[str, dict[str, Any]], step: int) -> None:
    """Sends the groups to those of OpenRLHF's loggers that the trainer has.

    Args:
        records: by name ("best", …), with each response as its token ids.
    """
    if trainer.wandb_logger is None and trainer.tensorboard_logger is None:
        return
    tables = []
    for name, record in records.items():
        texts = [responses.decode(trainer.tokenizer, token_ids) for token_ids in record["responses"]]
        tables.append(rows({**record, "responses": texts}, name, step))
    if trainer.wandb_logger is not None:
        wandb = trainer.wandb_logger.handle
        table = wandb.Table(columns=list(COLUMNS), data=[row for table in tables for row in table])
        wandb.log({GROUPS_TABLE: table, "train/global_step": step})
    if trainer.tensorboard_logger is not None:
        trainer.tensorboard_logger.writer.add_text(GROUPS_TABLE, markdown(tables), step)
