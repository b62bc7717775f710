"""The entrance of training: from labelled pairs to a folder that load_partition_model opens, with a report."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from darling_plugin import __version__
from darling_plugin.errors import DarlingError, spelled
from darling_plugin.partition.models.cross_encoder import CrossEncoder
from darling_plugin.partition.models.head.model import Head
from darling_plugin.training import cross_encoder, report
from darling_plugin.training.head import HeadTrainer
from darling_plugin.training.pairs import LabelledPair, folds_by_prompt, read_inputs
from darling_plugin.training.settings import TrainingSettings

FEW_TO_ADAPT = 1000  # pairs; `default`'s adapter learned from nine thousand
STATE = "training.json"  # in OUT until the end: what was asked for, and the folds that are done


def train_partition(settings: TrainingSettings) -> None:
    """Trains, tests on prompts that were not trained on, and writes model and report to `settings.output`.

    Raises DarlingError for what cannot work, before anything is trained.
    """
    pairs, groups = read_inputs(settings.inputs, settings.columns, settings.split)
    _say(
        f"{len(pairs)} pairs of {len({p.prompt for p in pairs})} prompts, {sum(p.similar for p in pairs)} similar"
        + (f"; {len(groups)} groups" if groups else "")
    )
    adapt = _pairs_to_adapt(settings, pairs)
    progress = _Progress(settings, (pairs, adapt))
    folds = folds_by_prompt(pairs, settings.folds, settings.seed)
    count = settings.tested
    train, check = {
        "head": (partial(_train_head, adapt), _check_head),
        "cross-encoder": (_train_cross_encoder, _check_cross_encoder),
    }[settings.kind]
    check(settings, pairs, folds[:count])
    progress.begin()
    more = train(settings, pairs, folds, count, progress)
    if PartialState().is_main_process:
        tested = [k for part in folds[:count] for k in part]
        probabilities = np.concatenate([progress.folds[str(k)]["probabilities"] for k in range(count)])
        thresholds = np.repeat([progress.folds[str(k)]["threshold"] for k in range(count)], [*map(len, folds[:count])])
        weights = np.array([pair.weight for pair in pairs])
        labels = np.array([pair.similar for pair in pairs])
        facts = {
            "arguments": progress.arguments,
            "tested": f"{count} of {settings.folds} folds by prompt, each by a model trained without it",
            "base_rate": float((weights * labels).sum() / weights.sum()),
            **more,
            "versions": {name: version(name) for name in ("torch", "transformers", "scikit-learn")}
            | {"darling-plugin": __version__},
        }
        lines = report.write(
            settings.output,
            [pairs[k] for k in tested],
            probabilities,
            thresholds,
            facts,
            settings.seed,
            groups,
            {"head": Head, "cross-encoder": CrossEncoder}[settings.kind].clustering,
        )
        shutil.rmtree(settings.output / cross_encoder.CHECKPOINTS, ignore_errors=True)
        progress.path.unlink()
        _say(f"on {len(tested)} pairs, {facts['tested']}; in brackets 95 % intervals:\n\n{lines}\n")
        _say(f"--darling.partition_model {settings.kind}:{settings.output}")


class _Progress:
    """What was asked for and the folds that are done, in OUT, so that a run that was killed goes on."""

    def __init__(self, settings: TrainingSettings, pairs: Any) -> None:
        self.path = settings.output / STATE
        # As they come back from the file.
        self.arguments = json.loads(json.dumps(asdict(settings), default=str))
        # Folds that are done say nothing of other pairs than theirs.
        self.arguments["pairs_sha256"] = hashlib.sha256(repr(pairs).encode(errors="replace")).hexdigest()
        self.folds: dict[str, dict[str, Any]] = {}
        begun = settings.output.glob(f"**/{cross_encoder.CHECKPOINTS}/checkpoint-*")
        needed, do = "a folder for the model that is new, or an unfinished one of the same command", "name another -o"
        if self.path.exists():
            state = json.loads(self.path.read_text())
            # What ended before anything was trained was a wrong command, and its correction may go on there.
            if state["arguments"] != self.arguments and (state["folds"] or any(begun)):
                before = {k: v for k, v in state["arguments"].items() if self.arguments.get(k) != v}
                raise DarlingError(needed, f"{settings.output}, begun with {before}", do)
            self.folds = state["folds"]  # none, where the command is another
        elif settings.output.exists() and not settings.output.is_dir():
            raise DarlingError(needed, f"{settings.output}, a file", do)
        elif settings.output.exists() and any(settings.output.iterdir()):
            raise DarlingError(needed, f"{settings.output} with files in it", do)
        PartialState().wait_for_everyone()

    def begin(self) -> None:
        """To be called once nothing that was asked for can be wrong any more."""
        self._write()

    def add(self, fold: int, probabilities: np.ndarray, threshold: float) -> None:
        self.folds[str(fold)] = {"probabilities": probabilities.tolist(), "threshold": threshold}
        self._write()

    def _write(self) -> None:
        if PartialState().is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(".tmp")
            unfinished.write_text(json.dumps({"arguments": self.arguments, "folds": self.folds}))
            unfinished.replace(self.path)


def _train_head(
    adapt: list[LabelledPair] | None,
    settings: TrainingSettings,
    pairs: list[LabelledPair],
    folds: list[list[int]],
    count: int,
    progress: _Progress,
) -> dict[str, Any]:
    # A folder's path goes into the head, and has to mean the same wherever that is opened.
    encoder = settings.encoder and (
        str(Path(settings.encoder).resolve()) if Path(settings.encoder).is_dir() else settings.encoder
    )
    trainer = HeadTrainer(
        pairs,
        encoder,
        folds=settings.folds,
        seed=settings.seed,
        dtype=settings.dtype,
        adapt=adapt,
        threshold_for=settings.threshold_for,
    )
    adapted = {}
    if adapt is not None:
        adapted["adapted_pairs"] = trainer.check_adapt(folds[:count])
        few = ", which is few: compare with a head without it" if adapted["adapted_pairs"] < FEW_TO_ADAPT else ""
        _say(f"the adapter learns from {adapted['adapted_pairs']} of {len(adapt)} pairs, both of whose it reads{few}")
    everything = np.arange(len(pairs))
    for k, part in enumerate(tqdm(folds[:count], desc="folds", dynamic_ncols=True)):
        if str(k) in progress.folds:
            continue
        head = trainer.fit(np.setdiff1d(everything, part))
        progress.add(k, trainer.predict(head, part), head.threshold)
    head = trainer.fit(everything)
    head.save(settings.output, encoder)
    for kind, (right, count) in head.packaged.items():
        _say(f"packaged pairs of {kind}: {right} of {count} told right, by cross-validation over their prompts")
    packaged = {kind: {"right": right, "pairs": count} for kind, (right, count) in head.packaged.items()}
    return {"packaged": packaged, **adapted}


def _pairs_to_adapt(settings: TrainingSettings, pairs: list[LabelledPair]) -> list[LabelledPair] | None:
    if settings.adapt:
        return read_inputs(settings.adapt, settings.columns, settings.split)[0]
    return pairs if settings.adapt is not None else None


def _check_head(settings: TrainingSettings, pairs: list[LabelledPair], tested: list[list[int]]) -> None:
    if PartialState().num_processes > 1:
        raise DarlingError("one process for a head", f"{PartialState().num_processes}", "leave out accelerate launch")
    if settings.adapt is not None and torch.cuda.device_count() > 1:
        needed, found = f"one GPU, for {spelled('adapt')}", f"{torch.cuda.device_count()}"
        raise DarlingError(needed, found, "set CUDA_VISIBLE_DEVICES=0")
    for part in tested:  # each is left out in turn, and the rest is split again
        left_out = set(part)
        rest = [pair for k, pair in enumerate(pairs) if k not in left_out]
        folds_by_prompt(rest, settings.folds, settings.seed)


def _check_cross_encoder(settings: TrainingSettings, pairs: list[LabelledPair], tested: list[list[int]]) -> None:
    own = settings.cross_encoder
    for name in ("max_length", "epochs", "patience", "batch_size", "accumulate"):
        if getattr(own, name) < 1:
            raise DarlingError(f"{spelled(name)} of 1 or more", f"{getattr(own, name)}", "correct it")
    if torch.cuda.device_count() > 1 and PartialState().num_processes == 1:
        launch = "accelerate launch --num_processes N -m darling_plugin.commands.train_partition"
        do = f"{launch} ..., or CUDA_VISIBLE_DEVICES=0"
        raise DarlingError("a process for each GPU", f"one, and {torch.cuda.device_count()} GPUs", do)
    sharded = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "false") != "false"]
    if sharded:
        raise DarlingError(
            "the whole model on each GPU",
            f"accelerate set up for {sharded[0]}",
            "leave it out of accelerate launch and its config; where the base is too large, pass "
            f"{spelled('lora_rank')}",
        )
    if not own.base:
        raise DarlingError(
            f"{spelled('base')}, the model to start from", "none", "name one, such as answerdotai/ModernBERT-base"
        )
    if settings.folds < 3:
        needed = "three folds or more: to train on, to stop and calibrate by, to test on"
        raise DarlingError(needed, f"{spelled('folds')} {settings.folds}", "raise it")
    if own.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        needed = f"a GPU that computes in bfloat16, for {spelled('bf16')}"
        raise DarlingError(needed, torch.cuda.get_device_name(), "leave it out")


def _train_cross_encoder(
    settings: TrainingSettings, pairs: list[LabelledPair], folds: list[list[int]], count: int, progress: _Progress
) -> dict[str, Any]:
    def train(validation: int, left_out: int | None, folder: Path) -> None:
        rest = [k for fold, part in enumerate(folds) if fold not in (validation, left_out) for k in part]
        kept_apart = [pairs[k] for k in folds[validation]]
        cross_encoder.train([pairs[k] for k in rest], kept_apart, settings.cross_encoder, folder)

    for fold in range(count):
        if str(fold) in progress.folds:
            continue
        _say(f"fold {fold + 1} of {count}")
        folder = settings.output if count == 1 else settings.output / f"fold_{fold}"
        train((fold + 1) % len(folds), fold, folder)
        engine = CrossEncoder(str(folder))
        progress.add(fold, cross_encoder.predict(engine, [pairs[k] for k in folds[fold]]), engine.threshold)
        PartialState().wait_for_everyone()
        if count > 1 and PartialState().is_main_process:
            shutil.rmtree(folder)
    if count > 1:
        _say("the model to keep")
        train(0, None, settings.output)
    return {}


def _say(text: str) -> None:
    if PartialState().is_main_process:
        print(text, flush=True)
