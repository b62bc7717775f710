"""Trains a cross-encoder: any sequence classifier that reads both responses, on Hugging Face's Trainer."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.partition.base import Pair
from darling_plugin.partition.engine.pair_tokens import PairTokens
from darling_plugin.partition.models.cross_encoder import ClassifierSettings, CrossEncoder, longest_pair
from darling_plugin.training.pairs import LabelledPair
from darling_plugin.training.report import best_threshold

CHECKPOINTS = "checkpoints"  # folder in that of the classifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a cross-encoder is trained. Both orders of every pair are trained on.

    learning_rate falls to 0 on a cosine after a tenth of the steps. batch_size is of a device, in rows; a pair is two.
    class_weights weighs both labels alike, however rare one is. lora_rank 0 trains all weights, else the linear layers
    through LoRA, whose product is added to the weights in the end. patience: epochs without a lower loss on the
    validation pairs after which training stops; the best epoch is kept. threshold_for: one of report.AIMS.
    """

    base: str
    max_length: int = 2048
    epochs: int = 4
    patience: int = 1
    learning_rate: float = 2e-5
    batch_size: int = 8
    accumulate: int = 4
    class_weights: bool = True
    lora_rank: int = 0
    bf16: bool = False
    seed: int = 0
    threshold_for: str = "balanced_accuracy"


OPTIONS = ("max_length", "epochs", "patience", "learning_rate", "batch_size", "accumulate", "lora_rank")  # as given


def train(
    train_pairs: Sequence[LabelledPair], validation_pairs: Sequence[LabelledPair], settings: Settings, folder: Path
) -> None:
    """Writes a classifier that `cross-encoder:<folder>` opens, with threshold and max_length in its config.json.

    The validation pairs end the training, calibrate the probabilities and choose the threshold. A training that was
    killed goes on from its last epoch when it is called again with the same arguments and folder, whose checkpoints
    are for the caller to remove once what came of it is written down.
    """
    from accelerate import PartialState
    from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    set_seed(settings.seed)
    tokenizer, model = _load(settings)
    classifier = ClassifierSettings(
        threshold=0.5,
        max_length=longest_pair(tokenizer, model.config, settings.max_length),
        special_tokens=_special_tokens(tokenizer),
    )
    tokens = PairTokens(tokenizer, classifier.max_length, special_tokens=classifier.special_tokens)
    if settings.lora_rank:
        model = _with_lora(model, settings.lora_rank)
    weights = _class_weights(train_pairs) if settings.class_weights else None

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        # In training the Trainer sums over the batches of a step, and says how many labels these have together: of a
        # row two, its weight at the one that it has and 0 at the other.
        logits = outputs.logits.float()
        rows = torch.nn.functional.cross_entropy(
            logits, labels.to(logits), None if weights is None else weights.to(logits), reduction="none"
        )
        return rows.sum() / (len(labels) if num_items_in_batch is None else num_items_in_batch / 2)

    checkpoints = folder / CHECKPOINTS
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # of all
        weight_decay=0.01,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        bf16=settings.bf16,
        # Large bases are trained through LoRA: their activations are computed again rather than kept.
        gradient_checkpointing=settings.lora_rank > 0,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=PartialState().device.type == "cpu",  # else bf16 is refused without a GPU
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=10,
        seed=settings.seed,
        remove_unused_columns=False,
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_examples(train_pairs, tokens),
        eval_dataset=_examples(validation_pairs, tokens),
        data_collator=_Collator(tokenizer),
        compute_loss_func=loss,
        callbacks=[EarlyStoppingCallback(settings.patience)],
    )
    if PartialState().is_main_process:
        # What a kill left half written; the Trainer writes its state last.
        for each in checkpoints.glob("checkpoint-*"):
            try:
                json.loads((each / "trainer_state.json").read_text())
            except (FileNotFoundError, ValueError):
                shutil.rmtree(each)
    PartialState().wait_for_everyone()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if settings.lora_rank:
        model = model.merge_and_unload()
    model = model.cpu()
    del trainer  # and the optimizer's state, before the model is loaded once more
    state = PartialState()
    if state.is_main_process:
        _save(folder, model, tokenizer, classifier)
    state.wait_for_everyone()
    # By the engine that will use it, with its dtype, its order and its cutting.
    engine = CrossEncoder(str(folder))
    labels = np.array([pair.similar for pair in validation_pairs])
    weight = np.array([pair.weight for pair in validation_pairs])
    probabilities = predict(engine, validation_pairs)
    if not np.isfinite(probabilities).all():
        raise DarlingError(
            "a training that converges", "weights that are no numbers", f"lower {spelled('learning_rate')}"
        )
    slope, intercept = _calibration(labels, probabilities, weight)
    if state.is_main_process:
        shift = _calibrate(_last_layer(model), slope, intercept)
        calibrated = _sigmoid(slope * _logit(probabilities) + intercept)
        threshold = best_threshold(labels, calibrated, weight, settings.threshold_for)
        _save(folder, model, tokenizer, replace(classifier, threshold=threshold, logit_shift=shift))
    state.wait_for_everyone()


def predict(engine: CrossEncoder, pairs: Sequence[LabelledPair]) -> np.ndarray:
    """(M,) P(equivalent), read in the order of the file."""
    return engine.similarity([Pair(pair.prompt, pair.first, pair.second) for pair in pairs]).double().numpy()


def _load(settings: Settings) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.base)
        model = AutoModelForSequenceClassification.from_pretrained(
            settings.base, num_labels=2, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        raise DarlingError(
            "a model that transformers can put a classification head on, with its tokenizer",
            f"{settings.base}: {error}",
            f"correct {spelled('base')}, or download it first: hf download <Hub name>",
        ) from error
    if ClassifierSettings.written(model.config):
        logger.warning(
            "%s has itself been trained by darling-train-partition: if it was on any of these pairs, what is reported "
            "of this training is worth nothing",
            settings.base,
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return tokenizer, model


def _special_tokens(tokenizer: Any) -> tuple[str, str, str] | None:
    """Before, between and after two responses where the tokenizer itself would put nothing between them."""
    pair = tokenizer("One.", "another")
    sides = pair.sequence_ids(0)
    if None in sides[sides.index(0) : sides.index(1)]:
        return None
    first = tokenizer.bos_token or tokenizer.eos_token
    return first, tokenizer.eos_token, tokenizer.eos_token


def _with_lora(model: Any, rank: int) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    return get_peft_model(
        model, LoraConfig(task_type=TaskType.SEQ_CLS, r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    )


def _class_weights(pairs: Sequence[LabelledPair]) -> torch.FloatTensor:
    """(2,) such that both labels count for as much: W / (2 W_label), of the pairs' weights."""
    of_label = torch.tensor([sum(p.weight for p in pairs if p.similar == label) for label in (0, 1)])
    return of_label.sum() / (2 * of_label)


def _examples(pairs: Sequence[LabelledPair], tokens: PairTokens) -> list[dict[str, Any]]:
    """Each pair in both orders; labels: of its two, the pair's weight at its own, on average 1."""
    ordered = [Pair(p.prompt, *two) for p in pairs for two in ((p.first, p.second), (p.second, p.first))]
    mean = sum(pair.weight for pair in pairs) / len(pairs)
    labels = [[pair.weight / mean * (pair.similar == k) for k in (0, 1)] for pair in pairs for _ in range(2)]
    return [
        {"input_ids": each.ids, "token_type_ids": each.types, "labels": label}
        for each, label in zip(tokens(ordered), labels, strict=True)
    ]


@dataclass(frozen=True)
class _Collator:
    tokenizer: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        keys = [key for key in ("input_ids", "token_type_ids") if rows[0][key] is not None]
        batch = self.tokenizer.pad([{key: row[key].tolist() for key in keys} for row in rows], return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def _save(folder: Path, model: Any, tokenizer: Any, classifier: ClassifierSettings) -> None:
    classifier.write(model.config)
    model.config.label2id, model.config.id2label = {"different": 0, "similar": 1}, {0: "different", 1: "similar"}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _last_layer(model: Any) -> torch.nn.Linear:
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == 2][-1]


def _calibration(labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Platt's slope and intercept of the logit, fitted to his targets, which are never quite 0 or 1."""
    from sklearn.linear_model import LogisticRegression

    similar = int(labels.sum())
    targets = np.where(labels == 1, (similar + 1) / (similar + 2), 1 / (len(labels) - similar + 2))
    # Each pair once as similar and once as different, with the weights of its target.
    fitted = LogisticRegression(C=1e6).fit(
        np.tile(_logit(probabilities), 2)[:, None],
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([weight * targets, weight * (1 - targets)]),
    )
    slope = float(fitted.coef_[0, 0])
    if slope <= 0:
        logger.warning("The classifier is no better than chance on the validation pairs: not calibrated")
        return 1.0, 0.0
    return slope, float(fitted.intercept_[0])


def _calibrate(layer: torch.nn.Linear, slope: float, intercept: float) -> float:
    """Puts slope and intercept into the last layer, so that whatever reads the classifier gives the same P.

    Returns the intercept where that layer has no bias to take it, as in causal classifiers, else 0. cross-encoder: and
    vllm: read it from config.json, the servers of served: do not.
    """
    with torch.no_grad():
        layer.weight *= slope
        if layer.bias is None:
            return intercept
        layer.bias *= slope
        layer.bias[1] += intercept
    return 0.0


def _logit(probabilities: np.ndarray) -> np.ndarray:
    inside = probabilities.clip(1e-6, 1 - 1e-6)
    return np.log(inside / (1 - inside))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))
