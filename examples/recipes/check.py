"""`make check-recipes`: whether OpenRLHF and the launcher accept the command of each recipe and variant, and whether
it trains a step in CPU mode with small stand-ins for its models and data.

The command line is what bash makes of the recipe, taken from a stand-in for `python3`. OpenRLHF's own parser and all
its checks run on it, up to the start of vLLM, but Ray does not start. In the runs, STAND_INS names all that is
replaced; the launcher says what --darling.cpu itself changes.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from darling_plugin.config import DarlingConfig
from darling_plugin.config import parse as parse_darling
from darling_plugin.errors import DarlingError

FOLDER = Path(__file__).resolve().parent
RECIPES = tuple(sorted(path.stem for path in FOLDER.glob("*.sh") if path.stem != "slurm"))
VARIANTS = ("darling", "quality", "with_std", "additive", "ngram")


# ── The command ──


def command(recipe: str, variant: str, *more: str, data: str = "data.jsonl", out: str = "out") -> list[str]:
    """The arguments with which the recipe calls `python3 -m darling_plugin`. Raises DarlingError where bash fails."""
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "python3"
        dump.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
        dump.chmod(0o755)
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", "DATA": data, "OUT": out}
        done = subprocess.run(
            ["bash", FOLDER / f"{recipe}.sh", variant, *more],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise DarlingError(
            f"a command from {recipe}.sh {variant}", f"status {done.returncode}: {done.stderr}", "mend it"
        )
    module, name, *arguments = json.loads(done.stdout)
    assert (module, name) == ("-m", "darling_plugin"), done.stdout
    return arguments


@dataclass
class Parsed:
    openrlhf: Any  # OpenRLHF's arguments, after its own checks
    darling: DarlingConfig
    gpus: int  # in the placement group that OpenRLHF asked Ray for


class _Accepted(Exception):
    """Nothing is left to check: vLLM would start now."""


def parse(arguments: list[str]) -> Parsed:
    """Runs the launcher and OpenRLHF's `train` as far as the start of vLLM, without Ray.

    Raises DarlingError when either refuses the arguments.
    """
    from darling_plugin.openrlhf import cpu, launch

    cpu.stand_in_for_flash_attn()  # what is parsed here is not run here
    import openrlhf.trainer.ray
    import openrlhf.utils

    seen = SimpleNamespace(openrlhf=None, gpus=0)
    get_strategy = openrlhf.utils.get_strategy

    def remember(args: Any) -> Any:
        seen.openrlhf = args
        return get_strategy(args)

    def place(bundles: list[dict], **kwargs: Any) -> Any:
        seen.gpus += sum(bundle["GPU"] for bundle in bundles)
        return mock.MagicMock()

    def accept(*args: Any, **kwargs: Any) -> None:
        raise _Accepted

    said = io.StringIO()
    try:
        with (
            mock.patch("ray.init"),
            mock.patch("ray.get"),
            mock.patch("ray.get_runtime_context"),
            mock.patch.object(sys.modules["ray.util.placement_group"], "placement_group", place),
            mock.patch.object(openrlhf.trainer.ray, "create_vllm_engines", accept),
            mock.patch.object(openrlhf.utils, "get_strategy", remember),
            mock.patch.object(sys, "argv", sys.argv),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            launch.main(arguments)
    except _Accepted:
        return Parsed(seen.openrlhf, parse_darling(arguments)[0], seen.gpus)
    except DarlingError:
        raise
    except (AssertionError, SystemExit) as error:
        needed = "flags that OpenRLHF accepts"
        raise DarlingError(needed, f"{error}\n{said.getvalue()[-2000:]}", "mend the recipe") from error
    raise AssertionError("OpenRLHF ended without starting vLLM")


# ── The run ──

PROMPTS = 4
CLASSIFIER_SEED = 4  # of random classifiers that answer both ways
STAND_INS = {  # flag: value, or None for a file or model that `make_stand_ins` builds
    "--actor.model_name_or_path": None,
    "--data.prompt_dataset": None,
    "--darling.partition_model": None,
    "--actor.num_nodes": "1",
    "--actor.num_gpus_per_node": "1",
    "--ref.num_nodes": "1",
    "--ref.num_gpus_per_node": "1",
    "--vllm.num_engines": "1",
    "--darling.num_partition_actors": "1",
    "--data.max_len": "160",
    "--rollout.max_new_tokens": "16",
    "--rollout.batch_size": str(PROMPTS),
    "--train.batch_size": None,  # as many optimizer steps a rollout as in the recipe
    "--train.num_episodes": "1",
}
ABSENT = {  # flags that a recipe or a variant rightly lacks or keeps
    "deepscaler_qwen3_4b": {"--ref.num_nodes", "--ref.num_gpus_per_node"},
    "deepscaler_qwen3_14b": {"--ref.num_nodes", "--ref.num_gpus_per_node"},
    "ngram": {"--darling.partition_model"},
}


def make_stand_ins(folder: Path) -> None:
    """Random two-layer models of the recipes' own kinds, each with a byte-level tokenizer, and a few prompts."""
    import torch
    import transformers

    sys.path.insert(0, str(FOLDER.parents[1] / "tests" / "e2e"))
    import tiny_model

    transformers.utils.logging.disable_progress_bar()

    llama = tiny_model.build(folder / "llama", "llama")
    qwen3 = tiny_model.build(folder / "qwen3", "qwen3")

    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # as those of the real classifiers
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})  # as Qwen's
    modernbert = transformers.ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=0,
        sep_token_id=1,
        bos_token_id=None,
        initializer_range=0.1,
    )
    for name, config in (
        ("modernbert_classifier", modernbert),
        ("qwen3_classifier", transformers.AutoConfig.from_pretrained(qwen3, num_labels=2, vocab_size=len(tokenizer))),
    ):
        torch.manual_seed(CLASSIFIER_SEED)
        classifier = transformers.AutoModelForSequenceClassification.from_config(config)
        if name == "modernbert_classifier":
            classifier.classifier.bias.data = torch.tensor([1.5, 0.0])  # else nearly all are above its threshold
        classifier.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    tokenizer.add_special_tokens({"cls_token": "<CLS>"})
    config = transformers.AutoConfig.from_pretrained(llama, vocab_size=len(tokenizer))
    athene = _athene(config)
    ids = tokenizer("Name a bird, number 1.<CLS>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        # Negative scores, as raw ones of reward models often are: what reads them must cope.
        athene.v_head.weight *= -athene.v_head(athene.model(ids).last_hidden_state[0, -1]).sign()
    athene.save_pretrained(folder / "athene")
    tokenizer.save_pretrained(folder / "athene")

    _write(folder / "wildchat.jsonl", [{"input": f"Name a bird, number {k}."} for k in range(PROMPTS)])
    _write(
        folder / "deepscaler.jsonl", [{"input": f"What is {k} + {k}?", "answer": str(2 * k)} for k in range(PROMPTS)]
    )


def _athene(config: Any) -> Any:
    """Athene-RM's layout: a Llama without its head, and `v_head`."""
    import torch
    from transformers import LlamaModel, LlamaPreTrainedModel

    class Athene(LlamaPreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = LlamaModel(config)
            self.v_head = torch.nn.Linear(config.hidden_size, 1, bias=False)
            self.post_init()

    return Athene(config)


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def replaced(arguments: list[str], values: dict[str, str]) -> list[str]:
    """`arguments` with the value after each flag of `values` replaced; each flag must be there exactly once."""
    arguments = list(arguments)
    for flag, value in values.items():
        if arguments.count(flag) != 1:
            raise DarlingError(f"{flag} once in the recipe", f"{arguments.count(flag)} times", "correct STAND_INS")
        arguments[arguments.index(flag) + 1] = value
    return arguments


def small(recipe: str, variant: str, stand_ins: Path, out: Path) -> list[str]:
    """The recipe's arguments with the stand-ins in `stand_ins`, for a step in CPU mode."""
    data, model, preset, classifier = (
        ("wildchat.jsonl", "llama", "darling-modernbert", "modernbert_classifier")
        if recipe.startswith("wildchat")
        else ("deepscaler.jsonl", "qwen3", "darling-qwen3-math", "qwen3_classifier")
    )
    arguments = command(recipe, variant, out=str(out))
    prompts, responses = (
        int(arguments[arguments.index(flag) + 1]) for flag in ("--rollout.batch_size", "--train.batch_size")
    )
    values = STAND_INS | {
        "--actor.model_name_or_path": str(stand_ins / model),
        "--data.prompt_dataset": str(stand_ins / data),
        "--darling.partition_model": f"{preset}:{stand_ins / classifier}",
        "--train.batch_size": str(responses * PROMPTS // prompts),
    }
    for flag in ABSENT.get(recipe, set()) | ABSENT.get(variant, set()):
        del values[flag]
    return [*replaced(arguments, values), "--darling.cpu"]


def run(recipe: str, variant: str, stand_ins: Path, out: Path, timeout: float = 540) -> None:
    """A step in CPU mode; leaves all it prints in `out`/output.log.

    Raises DarlingError when it fails or its groups are not in partitions.jsonl.
    """
    out.mkdir(parents=True)
    log = out / "output.log"
    with log.open("w") as sink:
        status = subprocess.run(
            [sys.executable, "-m", "darling_plugin", *small(recipe, variant, stand_ins, out)],
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=out,
            env={**os.environ, "ATHENE_RM": str(stand_ins / "athene")},
            timeout=timeout,
            check=False,
        ).returncode
    if status:
        raise DarlingError("exit status 0", f"{status}: {log.read_text(errors='replace')[-3000:]}", f"read {log}")
    groups = [json.loads(line) for line in (out / "partitions.jsonl").read_text().splitlines()]
    found = [(group["step"], group["split"], len(group["labels"] or [])) for group in groups]
    if found != [(1, "train", 8)] * PROMPTS:
        raise DarlingError(f"{PROMPTS} groups of 8 in partitions.jsonl", f"(step, split, size) {found}", f"read {log}")


# ── The command line ──


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--parse-only", action="store_true", help="check the commands, train nothing")
    options.add_argument("--recipe", choices=RECIPES, action="append", help="only this one; may be repeated")
    options.add_argument("--variant", choices=VARIANTS, action="append", help="only this one; may be repeated")
    options.add_argument("--out", type=Path, default=Path("runs/check-recipes"), help="folder of the runs, made anew")
    chosen = options.parse_args()
    out = chosen.out.resolve()
    pairs = [(r, v) for r in chosen.recipe or RECIPES for v in chosen.variant or VARIANTS]
    console = Console()
    table = Table("recipe", "variant", "GPUs", "parsed", "ran a step", "seconds")
    failures = []
    if not chosen.parse_only:
        shutil.rmtree(out, ignore_errors=True)
        make_stand_ins(out / "stand_ins")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(pairs))
        for recipe, variant in pairs:
            progress.update(task, description=f"{recipe} {variant}")
            cells = {"GPUs": "", "parsed": "no", "ran": "-", "seconds": ""}
            try:
                cells |= {"GPUs": str(parse(command(recipe, variant)).gpus), "parsed": "yes"}
                if not chosen.parse_only:
                    cells["ran"] = "no"
                    started = time.monotonic()
                    run(recipe, variant, out / "stand_ins", out / f"{recipe}-{variant}")
                    cells |= {"ran": "yes", "seconds": f"{time.monotonic() - started:.0f}"}
            except (DarlingError, OSError, subprocess.TimeoutExpired) as error:
                failures.append(f"{recipe} {variant}: {error}")
            table.add_row(recipe, variant, *cells.values())
            progress.advance(task)
    console.print(table)
    for failure in failures:
        console.print(failure, markup=False, highlight=False)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
