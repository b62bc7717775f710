"""The cross-encoders that the benchmarks measure, made here from what is installed: no download.

    python benchmarks/cross_encoders.py

- `minilm`: all-MiniLM-L6-v2's encoder (6 layers, hidden 384) under a classification head, fine-tuned on NoveltyBench's
  human-labelled pairs where ../shared/data has them, on the GPU where there is one. 200 pairs are held out: no base to
  train on these pairs again. For what depends on the decisions.
- `minilm-random`: the same under a random head, made at once. For timings.
- `modernbert-base`: answerdotai/ModernBERT-base's architecture (22 layers, hidden 768) with random weights.

All read a pair as the official code writes it, CLS first SEP second SEP, without segment ids, through MiniLM's
tokenizer. They are kept in models/benchmarks/, and made again when that folder is gone.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from darling_plugin.partition.models.embedding import _default_model_path

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models" / "benchmarks"
PAIRS = ROOT.parent / "shared/data/noveltybench/pairs_train.jsonl"
HELD_OUT, TOKENS = 200, 256


def path_of(name: str) -> Path:
    """The folder of the model `name`, a key of MAKERS; it is made where it is missing."""
    folder = MODELS / name
    if not (folder / "config.json").exists():
        Console().print(f"making models/benchmarks/{name}")
        MODELS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=MODELS) as unfinished:
            MAKERS[name](Path(unfinished))
            shutil.copytree(unfinished, folder, dirs_exist_ok=True)
    return folder


def tokenizer():
    """MiniLM's, which makes no segment ids: a server that is given the pair as one text makes none either."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        _default_model_path(), model_input_names=["input_ids", "attention_mask"], model_max_length=8192
    )


def make_minilm(folder: Path, *, tuned: bool = True) -> None:
    from transformers import AutoModelForSequenceClassification, set_seed

    set_seed(0)
    words = tokenizer()
    model = AutoModelForSequenceClassification.from_pretrained(_default_model_path(), num_labels=2)
    words.model_max_length = model.config.max_position_embeddings
    if tuned and PAIRS.exists():
        fine_tune(model, words)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def fine_tune(model, words) -> None:
    """One epoch over the labelled pairs in both orders, classes weighted by their rarity; prints the accuracy."""
    import torch
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    train = [example(words, row, order) for row in rows[HELD_OUT:] for order in (0, 1)]
    held_out = [example(words, row, 0) for row in rows[:HELD_OUT]]
    weight = torch.tensor([1.0, sum(1 - row["similar"] for row in rows) / sum(row["similar"] for row in rows)])

    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs["logits"].float(), labels, weight.to(labels.device))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=16, learning_rate=1e-4, warmup_steps=10,
            use_cpu=not torch.cuda.is_available(), bf16=True, seed=0, save_strategy="no", report_to="none",
            logging_steps=20,
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, data_collator=DataCollatorWithPadding(words), train_dataset=train,
            compute_loss_func=loss,
        )  # fmt: skip
        trainer.train()
        logits = torch.as_tensor(trainer.predict(held_out).predictions)
    labels = torch.tensor([row["labels"] for row in held_out])
    accuracy = (logits.argmax(-1) == labels).float().mean().item()
    Console().print(f"minilm: accuracy {accuracy:.2f} on {HELD_OUT} held-out pairs")


def example(words, row: dict, order: int) -> dict:
    first, second = (row["generation_0"], row["generation_1"])[:: -1 if order else 1]
    # Each side to half of the tokens: the longer one of a pair must not be all that the model learns from.
    return {**words(first, second, truncation="longest_first", max_length=TOKENS), "labels": row["similar"]}


def make_modernbert(folder: Path, **shape: int) -> None:
    """Args: shape: what of ModernBertConfig is to be other than ModernBERT-base's."""
    from transformers import ModernBertConfig, ModernBertForSequenceClassification, set_seed

    set_seed(0)
    words = tokenizer()
    special = {
        "pad_token_id": words.pad_token_id,
        "cls_token_id": words.cls_token_id,
        "bos_token_id": words.cls_token_id,
        "sep_token_id": words.sep_token_id,
        "eos_token_id": words.sep_token_id,
    }
    # The defaults of ModernBertConfig are ModernBERT-base's; its published configuration pools by the mean.
    model = ModernBertForSequenceClassification(
        ModernBertConfig(**special, **shape, classifier_pooling="mean", num_labels=2)
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "minilm": make_minilm,
    "minilm-random": partial(make_minilm, tuned=False),
    "modernbert-base": make_modernbert,
}

if __name__ == "__main__":
    for name in MAKERS:
        path_of(name)
