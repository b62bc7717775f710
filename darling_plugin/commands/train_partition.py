"""`darling-train-partition`: trains a partition model on labelled pairs, and measures how good it is."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path

from darling_plugin.errors import DarlingError, options_begin_with
from darling_plugin.training import cross_encoder
from darling_plugin.training.pairs import Columns, Input
from darling_plugin.training.report import AIMS
from darling_plugin.training.settings import TrainingSettings

EXTRA = ("accelerate", "datasets", "matplotlib", "peft", "sklearn")  # modules of the extra `train`
EXAMPLE = """\
a line in:  {"prompt": "Name a fruit", "generation_0": "Apple!", "generation_1": "An apple", "similar": 1}
or a group: {"prompt": "Name a fruit", "responses": ["Apple!", "An apple", "Kiwi"], "labels": [0, 0, 1]}

  darling-train-partition pairs.jsonl -o runs/head
  darling-train-partition pairs.jsonl groups.jsonl:0.1 -o runs/head
  darling-train-partition pairs.jsonl -o runs/modernbert --kind cross-encoder --base answerdotai/ModernBERT-base --bf16
  accelerate launch --num_processes 8 -m darling_plugin.commands.train_partition pairs.jsonl -o runs/qwen \\
     --kind cross-encoder --base Qwen/Qwen3-Embedding-4B --lora_rank 16 --learning_rate 1e-4 --bf16

OUT is then a partition model, as in --darling.partition_model head:OUT or cross-encoder:OUT, with report.json,
predictions.jsonl, roc.png, reliability.png and scores.png beside it. The numbers are those of pairs whose prompts were
not trained on; of groups it has the error, correlation and push of their diversity too, by `source` where lines have
one. A training that was killed goes on when the same command is given again, of a head with the folds that
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
HEAD_OPTIONS = ("encoder", "dtype", "adapt")
CROSS_ENCODER_OPTIONS = ("base", *CROSS_ENCODER, "no_class_weights", "bf16")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options_begin_with("--")
    arguments = _parser().parse_args(argv)
    try:
        _check_installed()
        _refuse_options_of_the_other_kind(arguments)
        from darling_plugin.training.train import train_partition

        train_partition(_settings(arguments))
    except DarlingError as error:
        if os.environ.get("RANK", "0") == "0":  # of the processes that accelerate launches one speaks
            print(f"\n{error}\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _check_installed() -> None:
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        needed = "the packages that train a partition model"
        raise DarlingError(needed, f"no module {', '.join(missing)}", "pip install 'darling-plugin[train]'")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darling-train-partition",
        description="Trains a partition model on labelled pairs of responses, and measures how good it is.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data", metavar="DATA[:WEIGHT]", nargs="+", help="labelled pairs or groups: a JSONL file, a data set of "
        "the Hugging Face Hub, or its folder; what each of its pairs weighs in training; default: 1")  # fmt: skip
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the model and the report")
    add("--kind", choices=("head", "cross-encoder"), default="head", help="default: head, which costs n texts a group")
    add("--split", default="train", help="of a data set; default: train")
    for name, default in asdict(Columns()).items():
        add(f"--{name}_column", default=default, help=f"default: {default}")
    add("--folds", type=int, default=5, help="into which the prompts are split; default: 5")
    add("--test_folds", type=int, help="folds that are tested on, by a model trained on others; default: all of them "
        "for a head, 1 for a cross-encoder")  # fmt: skip
    add("--threshold_for", choices=AIMS, default="balanced_accuracy", help="what the threshold is best for: to be "
        "right about similar pairs and about others alike, or about most pairs of these data; "
        "default: balanced_accuracy")  # fmt: skip
    add("--seed", type=int, default=0)
    head = parser.add_argument_group("head")
    head.add_argument("--encoder", help="a sentence encoder's path or Hub name; default: all-MiniLM-L6-v2's package")
    head.add_argument("--dtype", help="of the encoder's layers; default: the fastest that is native")
    head.add_argument("--adapt", metavar="DATA[:WEIGHT]", nargs="*", help="fine-tune the encoder too, by LoRA, for "
        "responses of 9 words and more and at most 160 tokens, on these data, or where none are named on those of the "
        "head: minutes a fold on a CPU")  # fmt: skip
    cross = parser.add_argument_group("cross-encoder")
    cross.add_argument("--base", help="path or Hub name of the model to start from")
    defaults = {field.name: field.default for field in fields(cross_encoder.Settings)}
    for name, meaning in CROSS_ENCODER.items():
        default = defaults[name]
        cross.add_argument(f"--{name}", type=type(default), default=default, help=f"{meaning}; default: {default}")
    cross.add_argument("--no_class_weights", action="store_true", help="do not weigh both labels alike")
    cross.add_argument("--bf16", action="store_true", help="train in bfloat16 mixed precision")
    return parser


def _settings(arguments: argparse.Namespace) -> TrainingSettings:
    own = {name: getattr(arguments, name) for name in cross_encoder.OPTIONS}
    shared = ("output", "kind", "split", "folds", "test_folds", "seed", "threshold_for", "encoder", "dtype")
    return TrainingSettings(
        inputs=tuple(map(Input.parse, arguments.data)),
        adapt=None if arguments.adapt is None else tuple(map(Input.parse, arguments.adapt)),
        columns=Columns(**{name: getattr(arguments, f"{name}_column") for name in asdict(Columns())}),
        cross_encoder=cross_encoder.Settings(
            arguments.base or "",
            **own,
            class_weights=not arguments.no_class_weights,
            bf16=arguments.bf16,
            seed=arguments.seed,
            threshold_for=arguments.threshold_for,
        ),
        **{name: getattr(arguments, name) for name in shared},
    )


def _refuse_options_of_the_other_kind(arguments: argparse.Namespace) -> None:
    """They would be asked for in vain."""
    others = CROSS_ENCODER_OPTIONS if arguments.kind == "head" else HEAD_OPTIONS
    given = [name for name in others if getattr(arguments, name) != _parser().get_default(name)]
    if given:
        found = ", ".join(f"--{name}" for name in given)
        raise DarlingError(f"options of --kind {arguments.kind}", found, "leave them out, or pass the other --kind")


if __name__ == "__main__":
    sys.exit(main())
