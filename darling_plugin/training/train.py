"""The entrance of training: from labelled pairs to a folder that load_partition_model opens, with a report."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from dataclasses import asdict
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
from darling_plugin.training import cross_encoder, report
from darling_plugin.training.head import HeadTrainer
from darling_plugin.training.pairs import Columns, LabelledPair, folds_by_prompt, read_pairs

STATE = "training.json"  # in OUT until the end: what was asked for, and the folds that are done


def train_partition(arguments: argparse.Namespace) -> None:
    """Trains, tests on prompts that were not trained on, and writes model and report to `arguments.output`.

    Args:
        arguments: as the command's parser names them.

    Raises DarlingError for what cannot work, before anything is trained.
    """
    columns = Columns(**{name: getattr(arguments, f"{name}_column") for name in asdict(Columns())})
    pairs = read_pairs(arguments.data, columns, arguments.split)
    _say(f"{len(pairs)} pairs of {len({p.prompt for p in pairs})} prompts, {sum(p.similar for p in pairs)} similar")
    progress = _Progress(arguments, pairs)
    folds = folds_by_prompt(pairs, arguments.folds, arguments.seed)
    count = arguments.test_folds
    if count is None:
        count = arguments.folds if arguments.kind == "head" else 1
    if not 1 <= count <= arguments.folds:
        raise DarlingError(
            f"{spelled('test_folds')} from 1 to {arguments.folds}", f"{count}", "correct it, or the folds"
        )
    train, check = {"head": (_train_head, _check_head), "cross-encoder": (_train_cross_encoder, _check_cross_encoder)}[
        arguments.kind
    ]
    check(arguments, pairs, folds[:count])
    progress.begin()
    more = train(arguments, pairs, folds, count, progress)
    if PartialState().is_main_process:
        tested = [k for part in folds[:count] for k in part]
        probabilities = np.concatenate([progress.folds[str(k)]["probabilities"] for k in range(count)])
        thresholds = np.repeat([progress.folds[str(k)]["threshold"] for k in range(count)], [*map(len, folds[:count])])
        facts = {
            "arguments": progress.arguments,
            "tested": f"{count} of {arguments.folds} folds by prompt, each by a model trained without it",
            **more,
            "versions": {name: version(name) for name in ("torch", "transformers", "scikit-learn")}
            | {"darling-plugin": __version__},
        }
        lines = report.write(
            arguments.output, [pairs[k] for k in tested], probabilities, thresholds, facts, arguments.seed
        )
        shutil.rmtree(arguments.output / cross_encoder.CHECKPOINTS, ignore_errors=True)
        progress.path.unlink()
        _say(f"on {len(tested)} pairs, {facts['tested']}; in brackets 95 % intervals:\n\n{lines}\n")
        _say(f"--darling.partition_model {arguments.kind}:{arguments.output}")


class _Progress:
    """What was asked for and the folds that are done, in OUT, so that a run that was killed goes on."""

    def __init__(self, arguments: argparse.Namespace, pairs: list[LabelledPair]) -> None:
        self.path = arguments.output / STATE
        self.arguments = {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
        }
        # Folds that are done say nothing of other pairs than theirs.
        self.arguments["pairs_sha256"] = hashlib.sha256(repr(pairs).encode(errors="replace")).hexdigest()
        self.folds: dict[str, dict[str, Any]] = {}
        begun = arguments.output.glob(f"**/{cross_encoder.CHECKPOINTS}/checkpoint-*")
        needed, do = "a folder for the model that is new, or an unfinished one of the same command", "name another -o"
        if self.path.exists():
            state = json.loads(self.path.read_text())
            # What ended before anything was trained was a wrong command, and its correction may go on there.
            if state["arguments"] != self.arguments and (state["folds"] or any(begun)):
                before = {k: v for k, v in state["arguments"].items() if self.arguments.get(k) != v}
                raise DarlingError(needed, f"{arguments.output}, begun with {before}", do)
            self.folds = state["folds"]  # none, where the command is another
        elif arguments.output.exists() and any(arguments.output.iterdir()):
            raise DarlingError(needed, f"{arguments.output} with files in it", do)
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
    arguments: argparse.Namespace, pairs: list[LabelledPair], folds: list[list[int]], count: int, progress: _Progress
) -> dict[str, Any]:
    # A folder's path goes into the head, and has to mean the same wherever that is opened.
    encoder = arguments.encoder and (
        str(Path(arguments.encoder).resolve()) if Path(arguments.encoder).is_dir() else arguments.encoder
    )
    trainer = HeadTrainer(pairs, encoder, folds=arguments.folds, seed=arguments.seed, dtype=arguments.dtype)
    everything = np.arange(len(pairs))
    for k, part in enumerate(tqdm(folds[:count], desc="folds", dynamic_ncols=True)):
        if str(k) in progress.folds:
            continue
        head = trainer.fit(np.setdiff1d(everything, part))
        progress.add(k, trainer.predict(head, part), head.threshold)
    head = trainer.fit(everything)
    head.save(arguments.output, encoder)
    for kind, (right, count) in head.packaged.items():
        _say(f"packaged pairs of {kind}: {right} of {count} told right, by cross-validation over their prompts")
    return {"packaged": {kind: {"right": right, "pairs": count} for kind, (right, count) in head.packaged.items()}}


def _check_head(arguments: argparse.Namespace, pairs: list[LabelledPair], tested: list[list[int]]) -> None:
    if PartialState().num_processes > 1:
        raise DarlingError("one process for a head", f"{PartialState().num_processes}", "leave out accelerate launch")
    for part in tested:  # each is left out in turn, and the rest is split again
        left_out = set(part)
        rest = [pair for k, pair in enumerate(pairs) if k not in left_out]
        folds_by_prompt(rest, arguments.folds, arguments.seed)


def _check_cross_encoder(arguments: argparse.Namespace, pairs: list[LabelledPair], tested: list[list[int]]) -> None:
    for name in ("max_length", "epochs", "patience", "batch_size", "accumulate"):
        if getattr(arguments, name) < 1:
            raise DarlingError(f"{spelled(name)} of 1 or more", f"{getattr(arguments, name)}", "correct it")
    if torch.cuda.device_count() > 1 and PartialState().num_processes == 1:
        launch = "accelerate launch --num_processes N -m darling_plugin.commands.train_partition"
        do = f"{launch} ..., or CUDA_VISIBLE_DEVICES=0"
        raise DarlingError("a process for each GPU", f"one, and {torch.cuda.device_count()} GPUs", do)
    sharded = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "false") != "false"]
    if sharded:
        do = "leave it out of accelerate launch and its config; where the base is too large, pass --lora_rank"
        raise DarlingError("the whole model on each GPU", f"accelerate set up for {sharded[0]}", do)
    if not arguments.base:
        raise DarlingError(
            f"{spelled('base')}, the model to start from", "none", "name one, such as answerdotai/ModernBERT-base"
        )
    if arguments.folds < 3:
        needed = "three folds or more: to train on, to stop and calibrate by, to test on"
        raise DarlingError(needed, f"{spelled('folds')} {arguments.folds}", "raise it")
    if arguments.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DarlingError("a GPU that computes in bfloat16, for --bf16", torch.cuda.get_device_name(), "leave it out")


def _train_cross_encoder(
    arguments: argparse.Namespace, pairs: list[LabelledPair], folds: list[list[int]], count: int, progress: _Progress
) -> dict[str, Any]:
    own = {field: getattr(arguments, field) for field in cross_encoder.OPTIONS}
    settings = cross_encoder.Settings(
        arguments.base, **own, class_weights=not arguments.no_class_weights, bf16=arguments.bf16, seed=arguments.seed
    )

    def train(validation: int, left_out: int | None, folder: Path) -> None:
        rest = [k for fold, part in enumerate(folds) if fold not in (validation, left_out) for k in part]
        cross_encoder.train([pairs[k] for k in rest], [pairs[k] for k in folds[validation]], settings, folder)

    for fold in range(count):
        if str(fold) in progress.folds:
            continue
        _say(f"fold {fold + 1} of {count}")
        folder = arguments.output if count == 1 else arguments.output / f"fold_{fold}"
        train((fold + 1) % len(folds), fold, folder)
        engine = CrossEncoder(str(folder))
        progress.add(fold, cross_encoder.predict(engine, [pairs[k] for k in folds[fold]]), engine.threshold)
        PartialState().wait_for_everyone()
        if count > 1 and PartialState().is_main_process:
            shutil.rmtree(folder)
    if count > 1:
        _say("the model to keep")
        train(0, None, arguments.output)
    return {}


def _say(text: str) -> None:
    if PartialState().is_main_process:
        print(text, flush=True)
