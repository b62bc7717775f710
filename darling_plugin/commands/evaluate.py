"""`darling-evaluate`: quality and diversity of a model's samples, with intervals; several models side by side."""

from __future__ import annotations

import argparse
import inspect
import math
import re
import sys
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from darling_plugin.commands.ending import exit_status
from darling_plugin.config import DarlingConfig, add_flag
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.comparison import (
    SAMPLES,
    Evaluated,
    check_output,
    check_scores,
    differences,
    evaluate,
    ks_of,
    summaries_of,
    write,
)
from darling_plugin.evaluation.cosine import ENCODER, Cosines
from darling_plugin.evaluation.measures import LEVEL, PATIENCE, RESAMPLES, Interval, in_order
from darling_plugin.evaluation.quality import by_function, by_model, fill_in
from darling_plugin.evaluation.samples import Samples, classes_of, read_samples
from darling_plugin.partition import (
    CLUSTERINGS,
    PartitionModel,
    SimilarityModel,
    check_partition_spec,
    load_partition_model,
)
from darling_plugin.partition.text import read_partition_text
from darling_plugin.user_code import import_user_code

OF_CLASSES = ("partition_model", "threshold", "clustering", "partition_text")
FLAGS = ("partition_model", "threshold", "partition_text", "import_path")
AGAIN = ("classes", "quality")
CLUSTERING = "greedy"  # NoveltyBench's
SAMPLING = ("model", "url", "model_name", "prompts", "prompts_split", "n", "temperature", "max_tokens")

EXAMPLE = """\
  darling-evaluate generations.jsonl --reward_func reward_math.py -o results
  darling-evaluate before=runs/a/partitions.jsonl after=runs/b/partitions.jsonl
  darling-evaluate --model models/policy --prompts prompts.jsonl --n 10 -o results

An input is FILE or NAME=FILE; what a file holds is told from its contents: NoveltyBench's generations, partitions and
scores, lm-eval's samples, verl's, TRL's (parquet) and ms-swift's dumps, a run's partitions.jsonl, darling-partition's
lines. Quality and classes that a file has are taken as they are, unless --again.

exit status: 0; 1 if lines or prompts were left out; 2 for wrong usage; 130 after Ctrl-C
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return exit_status(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darling-evaluate",
        description="Measures the quality and diversity of a model's samples, with intervals over the prompts.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("inputs", nargs="*", metavar="[NAME=]FILE", help="samples of a model; several are compared")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for the files and the picture")
    sampling = parser.add_argument_group("samples of its own")
    sampling.add_argument("--model", help="path or Hub name of a model, sampled with vLLM here")
    sampling.add_argument("--url", help="an OpenAI-compatible server to sample from")
    sampling.add_argument("--model_name", help="of the server's models; default: the only one")
    sampling.add_argument("--prompts", help="JSONL file, or a data set of the Hugging Face Hub or in a folder")
    sampling.add_argument("--prompts_split", default="train", help="of the data set; default: train")
    sampling.add_argument("--n", type=_count, default=10, help="samples a prompt; default: 10")
    sampling.add_argument("--temperature", type=_temperature, default=1.0, help="default: 1")
    sampling.add_argument("--max_tokens", type=_count, default=512, help="of a sample; default: 512")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--split", help="of a training log; default: its evaluation where it has one")
    reading.add_argument("--step", type=int, help="of a training log; default: the last")
    reading.add_argument("--quality_key", help="what the file calls the quality; default: what its tool does")
    quality = parser.add_argument_group("quality, where the file has none")
    quality.add_argument("--reward_func", metavar="FILE.py", help="with OpenRLHF's reward_func")
    quality.add_argument("--reward_model", help="path or Hub name of a sequence classifier")
    quality.add_argument("--reward_label", help="of one with several: the quality is this label's probability")
    quality.add_argument("--deciles", action="store_true", help="its scores as 1 to 10, by NoveltyBench's deciles")
    classes = parser.add_argument_group("classes, where the file has none")
    for flag in fields(DarlingConfig):
        if flag.name in FLAGS:
            add_flag(classes, flag, f"--{flag.name}", flag.name)
    classes.add_argument(
        "--clustering",
        choices=CLUSTERINGS,
        help=f"default: {CLUSTERING}, NoveltyBench's, where the model takes one; training has the model's own",
    )
    parser.add_argument("--k", type=_k, nargs="*", help="for the figures of k responses; default: powers of two")
    parser.add_argument("--no_cosine", action="store_true", help="leave out the cosine of embeddings")
    parser.add_argument(
        "--again",
        nargs="?",
        type=_again,
        const=AGAIN,
        default=(),
        metavar="classes|quality",
        help="make classes or quality anew, whatever the file has; without a word both; files go before it",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of the bootstrap and of --model's samples; default: 0")
    return parser


def _again(text: str) -> tuple[str, ...]:
    if text not in AGAIN:
        raise argparse.ArgumentTypeError(f"takes classes, quality or nothing, found {text}; name files before it")
    return (text,)


def _count(text: str) -> int:
    return _integer(text, 1)


def _k(text: str) -> int:
    return _integer(text, 1, "; name files before it")


def _seed(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, least: int, hint: str = "") -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"needs an integer from {least}, found {text}{hint}")
    return int(text)


def _temperature(text: str) -> float:
    try:
        if 0 <= float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"needs a number from 0, found {text}")


def _run(arguments: argparse.Namespace) -> int:
    _check_quality(arguments)
    read_partition_text(arguments.partition_text)
    if arguments.import_path:
        import_user_code(arguments.import_path)
    check_partition_spec(arguments.partition_model, threshold=arguments.threshold, clustering=arguments.clustering)
    inputs = dict(_named(text) for text in arguments.inputs)
    samples_itself, refused = bool(arguments.model or arguments.url), 0
    if arguments.output:
        check_output(arguments.output, inputs, sampled=samples_itself)
    if samples_itself:
        name, path, refused = _sample(arguments)
        inputs[name] = path
    if not inputs:
        raise DarlingError("samples to evaluate", "neither a file nor --model nor --url", "name one; see --help")
    if len(inputs) < len(arguments.inputs) + samples_itself:
        raise DarlingError("inputs with different names", ", ".join(arguments.inputs), "write NAME=FILE")
    read, bad_lines = _read(inputs, arguments)
    ks = ks_of(read, arguments.k)
    _fill_in_quality(read, arguments)
    if arguments.output:
        check_scores(arguments.output, read)
    evaluated = evaluate(
        read,
        lambda: _load(arguments),
        arguments.partition_model,
        {name: classes_of(path, read[name]) for name, path in inputs.items()},
        ks=ks,
        partition_text=arguments.partition_text,
        extra=None if arguments.no_cosine else Cosines(),
        again="classes" in arguments.again,
    )
    summaries = summaries_of(evaluated, arguments.seed)
    compared = differences(evaluated, arguments.seed)
    table, console = _table(summaries, evaluated), Console()
    if not console.is_terminal:  # a file has room for it all
        wide = console.options.update(width=100_000)
        console = Console(width=max(console.width, console.measure(table, options=wide).maximum))
    console.print(table)
    for key, (whole, matched) in compared.items():
        if whole:
            console.print(_differences_table(key, whole, matched))
        else:
            console.print(f"{key}: no prompt in common", style="bold red", markup=False, highlight=False)
    if arguments.output:
        from darling_plugin.evaluation.pictures import draw

        settings = _settings(arguments, samples_itself) | _in_effect(evaluated, ks)
        settings["cosine_model"] = None if arguments.no_cosine else ENCODER
        write(arguments.output, evaluated, summaries, compared, settings, bad_lines, inputs)
        drawn = draw(arguments.output / "summary.png", summaries)
        holds = f"{arguments.output}/ holds the files, summary.json" + " and summary.png" * drawn
        console.print(holds, soft_wrap=True, markup=False)
    default = _parser().get_default
    unheard = [f"--{name}" for name in OF_CLASSES if getattr(arguments, name) != default(name)]
    if unheard and not any(each.model for each in evaluated):
        said = f"{', '.join(unheard)} changed nothing: all prompts have classes (--again classes makes them anew)"
        console.print(said, style="bold", markup=False, highlight=False)
    if refused:
        missing = f"{_prompts(refused)} of {arguments.prompts} missing, as said above"
        console.print(missing, style="bold red", markup=False)
    return int(any(bad_lines.values()) or refused > 0)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return name, Path(path)
    path = Path(text)
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    return (path.parent.name if stem in ("partitions", "generations", "scores") else stem) or text, path


def _sample(arguments: argparse.Namespace) -> tuple[str, Path, int]:
    """The model's name, the file of its samples, and how many prompts it refused."""
    from darling_plugin.evaluation.sampling import OwnVllm, Server, Settings, read_prompts, sample

    if not (arguments.prompts and arguments.output) or (arguments.model and arguments.url):
        raise DarlingError(
            "one of --model and --url, with --prompts and -o",
            f"model {arguments.model}, url {arguments.url}, prompts {arguments.prompts}, output {arguments.output}",
            "give what is missing",
        )
    if arguments.temperature == 0 and arguments.n > 1:
        raise DarlingError("--n 1 at --temperature 0", f"--n {arguments.n}", "raise the temperature")
    prompts = read_prompts(arguments.prompts, arguments.prompts_split)
    settings = Settings(arguments.n, arguments.temperature, arguments.max_tokens, arguments.seed)
    generate: Any = OwnVllm(arguments.model) if arguments.model else Server(arguments.url, arguments.model_name)
    name = Path(arguments.model).name if arguments.model else generate.model
    path = arguments.output / SAMPLES
    with closing(generate):
        return name, path, sample(prompts, generate, settings, path, name)


def _read(inputs: dict[str, Path], arguments: argparse.Namespace) -> tuple[dict[str, list[Samples]], dict[str, int]]:
    """The samples of each input, and how many of its lines could not be read."""
    read, bad_lines = {}, dict.fromkeys(inputs, 0)
    for name, path in inputs.items():

        def report(line: int, fault: str, name: str = name, path: Path = path) -> None:
            bad_lines[name] += 1
            tqdm.write(f"{path}, line {line}: {fault}", file=sys.stderr)

        read[name] = read_samples(
            path, report, quality_key=arguments.quality_key, split=arguments.split, step=arguments.step
        )
    return read, bad_lines


def _load(arguments: argparse.Namespace) -> PartitionModel:
    spec, options = arguments.partition_model, {name: getattr(arguments, name) for name in ("threshold", "clustering")}
    cls = check_partition_spec(spec, **options)
    if options["clustering"] is None and _takes_clustering(cls) and not re.search(r"[?&]clustering=", spec):
        options["clustering"] = CLUSTERING
    return load_partition_model(spec, **options)


def _takes_clustering(cls: type[PartitionModel]) -> bool:
    parameters = inspect.signature(cls).parameters
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return "clustering" in parameters or (hands_on and issubclass(cls, SimilarityModel))


def _settings(arguments: argparse.Namespace, samples_itself: bool) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in sorted(vars(arguments).items())
        if samples_itself or name not in SAMPLING
    }


def _in_effect(evaluated: list[Evaluated], ks: list[int]) -> dict[str, Any]:
    """What flags that were not given stand for, and what no flag sets."""
    model = next((each.model for each in evaluated if each.model is not None), None)
    of_model = {name: getattr(model, name, None) for name in ("threshold", "clustering")} if model else {}
    return {**of_model, "k": ks, "patience": PATIENCE, "resamples": RESAMPLES, "level": LEVEL}


def _check_quality(arguments: argparse.Namespace) -> None:
    """Raises DarlingError for flags of which one would go unheard, or make every score the same."""
    if arguments.reward_func and arguments.reward_model:
        raise DarlingError("one of --reward_func and --reward_model", "both", "drop one")
    given = [f"--{name}" for name in ("reward_label", "deciles") if getattr(arguments, name)]
    if given and not arguments.reward_model:
        raise DarlingError(f"--reward_model with {given[0]}", "none", "name one, or drop the flag")
    if len(given) > 1:
        raise DarlingError("--deciles of a logit", "of a label's probability", "drop --reward_label or --deciles")


def _fill_in_quality(read: dict[str, list[Samples]], arguments: argparse.Namespace) -> None:
    if arguments.reward_func:
        score, name = by_function(arguments.reward_func), Path(arguments.reward_func).name
    elif arguments.reward_model:
        score = by_model(arguments.reward_model, label=arguments.reward_label, deciles=arguments.deciles)
        name = Path(arguments.reward_model).name + (", deciles" if arguments.deciles else "")
    else:
        return
    fill_in([each for samples in read.values() for each in samples], score, name, again="quality" in arguments.again)


def _table(summaries: dict[str, dict[str, Interval]], evaluated: list[Evaluated]) -> Table:
    made = "\n".join(f"classes of {each.name}: {each.classes}" for each in evaluated)
    if len({each.classes for each in evaluated}) > 1:
        made += "\nthey were not made alike: figures of classes differ by that too (--again makes all of them anew)"
    qualities = [each.quality_from for each in evaluated]
    made += "".join(f"\nquality of {each.name}: {each.quality_from}" for each in evaluated if each.quality_from)
    if len(set(filter(None, qualities))) > 1:
        made += "\nthat is not one quality: compare it only if you know that it is (--again makes all of it anew)"
    names = in_order(name for found in summaries.values() for name in found)
    table = Table(title="mean over the prompts, and its 95 % interval (bootstrap)", caption=Text(made))
    table.add_column("", no_wrap=True, overflow="fold", min_width=max(map(len, names)))
    for each in evaluated:
        of_run = [each.split] * (each.split is not None) + [f"step {each.step}"] * (each.step is not None)
        head = [each.name, _prompts(len(each.samples)), *([", ".join(of_run)] if of_run else [])]
        table.add_column(Text("\n".join(head)), justify="right")
    for name in names:
        cells = zip(summaries.values(), evaluated, strict=True)
        table.add_row(name, *(_shown(found.get(name), of=len(each.samples)) for found, each in cells))
    return table


def _prompts(count: int) -> str:
    return f"{count} prompt{'s' if count != 1 else ''}"


def _differences_table(title: str, whole: dict[str, Interval], matched: dict[str, Interval]) -> Table:
    prompts = max(each.prompts for each in whole.values())
    table = Table(title=Text(f"{title}: paired, over {_prompts(prompts)} that both have"))
    left = max((each.prompts for each in matched.values()), default=0)
    for column in ("", "difference", f"at matched length, {_prompts(left)}"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in whole.items():
        of_matched = _shown(matched.get(name), sign=True, of=left)
        table.add_row(name, _shown(value, sign=True, of=prompts), of_matched)
    return table


def _shown(value: Interval | None, *, of: int, sign: bool = False) -> str:
    """The mean and its interval, which one prompt has not; their number where fewer prompts have that figure."""
    if value is None:
        return "–"
    form = "{:+.3f}" if sign else "{:.3f}"
    spread = f"[{value.low:.3f}, {value.high:.3f}]" if value.prompts > 1 else "[–]"
    fewer = f" ({value.prompts} of {of})" if value.prompts < of else ""
    return f"{form.format(value.mean)}  {spread}{fewer}"


if __name__ == "__main__":
    sys.exit(main())
