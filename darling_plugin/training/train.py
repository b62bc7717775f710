"""`darling-train-partition`: from labelled pairs to a folder that load_partition_model opens, with a report."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from darling_plugin import __version__
from darling_plugin.errors import DarlingError
from darling_plugin.partition.models.cross_encoder import CrossEncoder
from darling_plugin.training import cross_encoder, report
from darling_plugin.training.head import HeadTrainer
from darling_plugin.training.pairs import Columns, LabelledPair, folds_by_prompt, read_pairs

EXAMPLE = """\
a line in:  {"prompt": "Name a fruit", "generation_0": "Apple!", "generation_1": "An apple", "similar": 1}
or a group: {"prompt": "Name a fruit", "responses": ["Apple!", "An apple", "Kiwi"], "labels": [0, 0, 1]}

  darling-train-partition pairs.jsonl -o runs/head
  darling-train-partition pairs.jsonl -o runs/modernbert --kind cross-encoder --base answerdotai/ModernBERT-base --bf16
  accelerate launch --num_processes 8 -m darling_plugin.training.train pairs.jsonl -o runs/qwen --kind cross-encoder \\
     --base Qwen/Qwen3-Embedding-4B --lora_rank 16 --learning_rate 1e-4 --bf16

OUT is then a partition model, as in --darling.partition_model head:OUT or cross-encoder:OUT, with report.json,
predictions.jsonl, roc.png, reliability.png and scores.png beside it. The numbers are those of pairs whose prompts were
not trained on. A training that was killed goes on when the same command is given again, of a head with the folds that
are left.

exit status: 0; 2 for input or usage that was wrong; 130 after Ctrl-C
"""
CROSS_ENCODER = {
    "max_length": "tokens of a pair",
    "epochs": "over the pairs, each in both orders",
    "patience": "epochs without a lower validation loss after which training stops",
    "learning_rate": "at its peak",
    "batch_size": "rows of a device; a pair is two rows, one an order",
    "accumulate": "batches an optimizer step",
    "lora_rank": "of LoRA on all linear layers; 0 trains all weights",
}
HEAD_OPTIONS = ("encoder", "dtype")
CROSS_ENCODER_OPTIONS = ("base", *CROSS_ENCODER, "no_class_weights", "bf16")
STATE = "training.json"  # in OUT until the end: what was asked for, and the folds that are done


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        _run(arguments)
    except DarlingError as error:
        if PartialState().is_main_process:
            print(f"\n{error}\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darling-train-partition",
        description="Trains a partition model on labelled pairs of responses, and measures how good it is.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data", metavar="PAIRS.jsonl", help="labelled pairs; or a data set of the Hugging Face Hub, or its folder")
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the model and the report")
    add("--kind", choices=("head", "cross-encoder"), default="head", help="default: head, which costs n texts a group")
    add("--split", default="train", help="of a data set; default: train")
    for name, default in asdict(Columns()).items():
        add(f"--{name}_column", default=default, help=f"default: {default}")
    add("--folds", type=int, default=5, help="into which the prompts are split; default: 5")
    add("--test_folds", type=int, help="folds that are tested on, by a model trained on others; default: all of them "
        "for a head, 1 for a cross-encoder")  # fmt: skip
    add("--seed", type=int, default=0)
    head = parser.add_argument_group("head")
    head.add_argument("--encoder", help="a sentence encoder's path or Hub name; default: all-MiniLM-L6-v2's package")
    head.add_argument("--dtype", help="of the encoder's layers; default: the fastest that is native")
    cross = parser.add_argument_group("cross-encoder")
    cross.add_argument("--base", help="path or Hub name of the model to start from")
    defaults = {field.name: field.default for field in fields(cross_encoder.Settings)}
    for name, meaning in CROSS_ENCODER.items():
        default = defaults[name]
        cross.add_argument(f"--{name}", type=type(default), default=default, help=f"{meaning}; default: {default}")
    cross.add_argument("--no_class_weights", action="store_true", help="do not weigh both labels alike")
    cross.add_argument("--bf16", action="store_true", help="train in bfloat16 mixed precision")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    columns = Columns(**{name: getattr(arguments, f"{name}_column") for name in asdict(Columns())})
    pairs = read_pairs(arguments.data, columns, arguments.split)
    _say(f"{len(pairs)} pairs of {len({p.prompt for p in pairs})} prompts, {sum(p.similar for p in pairs)} similar")
    progress = _Progress(arguments, pairs)
    folds = folds_by_prompt(pairs, arguments.folds, arguments.seed)
    count = arguments.test_folds
    if count is None:
        count = arguments.folds if arguments.kind == "head" else 1
    if not 1 <= count <= arguments.folds:
        raise DarlingError(f"--test_folds from 1 to {arguments.folds}", f"{count}", "correct it, or --folds")
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
    _refuse_options(arguments, CROSS_ENCODER_OPTIONS)
    if PartialState().num_processes > 1:
        raise DarlingError("one process for a head", f"{PartialState().num_processes}", "leave out accelerate launch")
    for part in tested:  # each is left out in turn, and the rest is split again
        left_out = set(part)
        rest = [pair for k, pair in enumerate(pairs) if k not in left_out]
        folds_by_prompt(rest, arguments.folds, arguments.seed)


def _refuse_options(arguments: argparse.Namespace, names: Iterable[str]) -> None:
    """Options of the other kind would be asked for in vain."""
    given = [name for name in names if getattr(arguments, name) != _parser().get_default(name)]
    if given:
        found = ", ".join(f"--{name}" for name in given)
        raise DarlingError(f"options of --kind {arguments.kind}", found, "leave them out, or pass the other --kind")


def _check_cross_encoder(arguments: argparse.Namespace, pairs: list[LabelledPair], tested: list[list[int]]) -> None:
    _refuse_options(arguments, HEAD_OPTIONS)
    for name in ("max_length", "epochs", "patience", "batch_size", "accumulate"):
        if getattr(arguments, name) < 1:
            raise DarlingError(f"--{name} of 1 or more", f"{getattr(arguments, name)}", "correct it")
    if torch.cuda.device_count() > 1 and PartialState().num_processes == 1:
        do = "accelerate launch --num_processes N -m darling_plugin.training.train ..., or CUDA_VISIBLE_DEVICES=0"
        raise DarlingError("a process for each GPU", f"one, and {torch.cuda.device_count()} GPUs", do)
    sharded = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "false") != "false"]
    if sharded:
        do = "leave it out of accelerate launch and its config; where the base is too large, pass --lora_rank"
        raise DarlingError("the whole model on each GPU", f"accelerate set up for {sharded[0]}", do)
    if not arguments.base:
        raise DarlingError("--base, the model to start from", "none", "name one, such as answerdotai/ModernBERT-base")
    if arguments.folds < 3:
        needed = "three folds or more: to train on, to stop and calibrate by, to test on"
        raise DarlingError(needed, f"--folds {arguments.folds}", "raise it")
    if arguments.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DarlingError("a GPU that computes in bfloat16, for --bf16", torch.cuda.get_device_name(), "leave it out")


def _train_cross_encoder(
    arguments: argparse.Namespace, pairs: list[LabelledPair], folds: list[list[int]], count: int, progress: _Progress
) -> dict[str, Any]:
    own = {name: getattr(arguments, name) for name in CROSS_ENCODER}
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


if __name__ == "__main__":
    sys.exit(main())
