"""`darling-evaluate`: quality and diversity of a model's samples, with intervals; several models side by side."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import Counter
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from darling_plugin.config import DarlingConfig, add_flag
from darling_plugin.errors import DarlingError, options_begin_with
from darling_plugin.evaluation import noveltybench
from darling_plugin.evaluation.cosine import Cosines
from darling_plugin.evaluation.measures import (
    Interval,
    figures,
    is_verifiable,
    of_like_length,
    paired,
    summary,
)
from darling_plugin.evaluation.quality import by_function, by_model, fill_in
from darling_plugin.evaluation.samples import Samples, read_samples
from darling_plugin.log import installed_versions
from darling_plugin.partition import Group, load_partition_model, measure
from darling_plugin.user_code import import_user_code

FLAGS = ("partition_model", "threshold", "import_path")
GROUPS_AT_ONCE = 64
# At matched length: what does not depend on how many responses are left of each prompt.
AT_MATCHED_LENGTH = ("quality", "diversity", "words")

EXAMPLE = """\
  darling-evaluate generations.jsonl --reward_func reward_math.py -o results
  darling-evaluate before=runs/a/partitions.jsonl after=runs/b/partitions.jsonl
  darling-evaluate --model models/policy --prompts prompts.jsonl --n 10 -o results

An input is FILE or NAME=FILE; what a file holds is told from its contents: NoveltyBench's generations, partitions and
scores, lm-eval's samples, verl's, TRL's (parquet) and ms-swift's dumps, a run's partitions.jsonl, darling-partition's
lines. Quality and classes that a file has are taken as they are, unless --again.

exit status: 0; 1 if lines were left out; 2 for wrong usage; 130 after Ctrl-C
"""


@dataclass
class Evaluated:
    """One input: its samples, the classes of each prompt's and what made them, its figures, its bad lines."""

    name: str
    samples: list[Samples]
    labels: list[list[int]]
    of_prompts: dict[tuple[str, int], dict[str, float]]
    bad_lines: int
    classes: str


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options_begin_with("--")
    try:
        return _run(_parser().parse_args(argv))
    except DarlingError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


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
    sampling.add_argument("--prompts", help="JSONL file, or a data set of the Hugging Face Hub")
    sampling.add_argument("--prompts_split", default="train", help="of the data set; default: train")
    sampling.add_argument("--n", type=int, default=10, help="samples a prompt; default: 10")
    sampling.add_argument("--temperature", type=float, default=1.0, help="default: 1")
    sampling.add_argument("--max_tokens", type=int, default=512, help="of a sample; default: 512")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--split", help="of a training log; default: its evaluation where it has one")
    reading.add_argument("--step", type=int, help="of a training log; default: the last")
    reading.add_argument("--quality_key", help="what the file calls the quality; default: what its tool does")
    quality = parser.add_argument_group("quality, where the file has none")
    quality.add_argument("--reward_func", metavar="FILE.py", help="with OpenRLHF's reward_func")
    quality.add_argument("--reward_model", help="path or Hub name of a sequence classifier with one label")
    quality.add_argument("--deciles", action="store_true", help="its scores as 1 to 10, by NoveltyBench's deciles")
    classes = parser.add_argument_group("classes, where the file has none")
    for flag in fields(DarlingConfig):
        if flag.name in FLAGS:
            add_flag(classes, flag, f"--{flag.name}", flag.name)
    classes.add_argument(
        "--clustering",
        default="greedy",
        choices=("greedy", "union_find", "average"),
        help="default: greedy, NoveltyBench's; training has union_find",
    )
    parser.add_argument("--k", type=int, nargs="*", help="for the figures of k responses; default: powers of two")
    parser.add_argument("--no_cosine", action="store_true", help="leave out the cosine of embeddings")
    parser.add_argument("--again", action="store_true", help="make classes and quality anew, whatever the file has")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of --model's samples; default: 0")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    inputs = dict(_named(text) for text in arguments.inputs)
    if arguments.model or arguments.url:
        name, path = _sample(arguments)
        inputs[name] = path
    if not inputs:
        raise DarlingError("samples to evaluate", "neither a file nor --model nor --url", "name one; see --help")
    if len(inputs) < len(arguments.inputs) + bool(arguments.model or arguments.url):
        raise DarlingError("inputs with different names", ", ".join(arguments.inputs), "write NAME=FILE")
    evaluated = _evaluate(inputs, arguments)
    summaries = {each.name: summary(list(each.of_prompts.values()), arguments.seed) for each in evaluated}
    console = Console()
    console.print(_table(summaries, evaluated))
    differences = {}
    for first, second in pairwise(evaluated):
        key = f"{second.name} - {first.name}"
        differences[key] = paired(first.of_prompts, second.of_prompts, arguments.seed)
        matched = _at_matched_length(first, second, arguments)
        differences[f"{key}, at matched length"] = matched
        console.print(_differences_table(key, differences[key], matched))
    if arguments.output:
        drawn = _write(arguments, evaluated, summaries, differences)
        console.print(f"{arguments.output}/ holds the files, summary.json" + " and summary.png" * drawn)
    return int(any(each.bad_lines for each in evaluated))


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return name, Path(path)
    path = Path(text)
    return (path.parent.name if path.stem in ("partitions", "generations", "scores") else path.stem) or text, path


def _sample(arguments: argparse.Namespace) -> tuple[str, Path]:
    from darling_plugin.evaluation.sampling import OwnVllm, Server, Settings, read_prompts, sample

    if not (arguments.prompts and arguments.output) or (arguments.model and arguments.url):
        raise DarlingError(
            "one of --model and --url, with --prompts and -o",
            f"model {arguments.model}, url {arguments.url}, prompts {arguments.prompts}, output {arguments.output}",
            "give what is missing",
        )
    prompts = read_prompts(arguments.prompts, arguments.prompts_split)
    settings = Settings(arguments.n, arguments.temperature, arguments.max_tokens, arguments.seed)
    generate: Any = OwnVllm(arguments.model) if arguments.model else Server(arguments.url, arguments.model_name)
    name = Path(arguments.model).name if arguments.model else generate.model
    path = arguments.output / "samples.jsonl"
    sample(prompts, generate, settings, path, name)
    return name, path


def _evaluate(inputs: dict[str, Path], arguments: argparse.Namespace) -> list[Evaluated]:
    if arguments.import_path:
        import_user_code(arguments.import_path)
    read, bad_lines = {}, {}
    for name, path in inputs.items():
        bad: list[int] = []

        def report(line: int, fault: str, path: Path = path, bad: list[int] = bad) -> None:
            bad.append(line)
            tqdm.write(f"{path}, line {line}: {fault}", file=sys.stderr)

        read[name] = read_samples(
            path, report, quality_key=arguments.quality_key, split=arguments.split, step=arguments.step
        )
        bad_lines[name] = len(bad)
    everything = [each for samples in read.values() for each in samples]
    if arguments.reward_func or arguments.reward_model:
        score = (
            by_function(arguments.reward_func)
            if arguments.reward_func
            else by_model(arguments.reward_model, deciles=arguments.deciles)
        )
        fill_in(everything, score, again=arguments.again)
    labels = _labels(everything, arguments)
    verifiable = is_verifiable(everything)
    longest = max(len(each.responses) for each in everything)
    ks = arguments.k or [2**power for power in range(longest.bit_length()) if 2**power <= longest]
    cosines = None if arguments.no_cosine else Cosines()
    by = f"by {arguments.partition_model}, {arguments.clustering}"
    found, start = [], 0
    for name, samples in read.items():
        own = labels[start : start + len(samples)]
        start += len(samples)
        keys = _keys(samples)
        of_prompts = {
            key: figures(each, classes, ks, verifiable=verifiable)
            for key, each, classes in zip(keys, samples, own, strict=True)
        }
        if cosines is not None:
            for key, each in zip(keys, samples, strict=True):
                of_prompts[key] |= cosines(each.responses)
        made = "as its file has them" if not arguments.again and all(each.labels for each in samples) else by
        found.append(Evaluated(name, samples, own, of_prompts, bad_lines[name], made))
    return found


def _keys(samples: list[Samples]) -> list[tuple[str, int]]:
    """What models are compared by: the prompt, and how often it came before; files number prompts differently."""
    before: Counter[str] = Counter()
    keys = []
    for each in samples:
        keys.append((each.prompt, before[each.prompt]))
        before[each.prompt] += 1
    return keys


def _labels(everything: list[Samples], arguments: argparse.Namespace) -> list[list[int]]:
    labels: list[list[int] | None] = [None if arguments.again else each.labels for each in everything]
    missing = [k for k, own in enumerate(labels) if own is None]
    if missing:
        model = load_partition_model(
            arguments.partition_model, threshold=arguments.threshold, clustering=arguments.clustering
        )
        for start in tqdm(range(0, len(missing), GROUPS_AT_ONCE), desc="classes", unit=f" {GROUPS_AT_ONCE} prompts"):
            some = missing[start : start + GROUPS_AT_ONCE]
            groups = [Group(everything[k].prompt, everything[k].responses) for k in some]
            for k, measurement in zip(some, measure(model, groups), strict=True):
                labels[k] = measurement.labels.tolist()
    return labels


def _at_matched_length(first: Evaluated, second: Evaluated, arguments: argparse.Namespace) -> dict[str, Interval]:
    sides: tuple[dict, dict] = ({}, {})
    there = dict(zip(_keys(second.samples), zip(second.samples, second.labels, strict=True), strict=True))
    for key, samples, labels in zip(_keys(first.samples), first.samples, first.labels, strict=True):
        if key not in there:
            continue
        other, other_labels = there[key]
        for side, each, own, kept in zip(
            sides, (samples, other), (labels, other_labels), of_like_length(samples, other), strict=True
        ):
            if len(kept) < 2:
                continue
            some = Samples(
                each.id,
                each.prompt,
                [each.responses[k] for k in kept],
                None if each.quality is None else [each.quality[k] for k in kept],
            )
            all_figures = figures(some, [own[k] for k in kept], [], verifiable=False)
            side[key] = {name: value for name, value in all_figures.items() if name in AT_MATCHED_LENGTH}
    return paired(*sides, arguments.seed)


def _table(summaries: dict[str, dict[str, Interval]], evaluated: list[Evaluated]) -> Table:
    made = "\n".join(f"classes of {each.name}: {each.classes}" for each in evaluated)
    table = Table(title="mean over the prompts, and its 95 % interval (bootstrap)", caption=made)
    table.add_column("")
    for each in evaluated:
        table.add_column(f"{each.name}\n{len(each.samples)} prompts", justify="right")
    for name in dict.fromkeys(name for found in summaries.values() for name in found):
        table.add_row(name, *(_shown(found.get(name)) for found in summaries.values()))
    return table


def _differences_table(title: str, whole: dict[str, Interval], matched: dict[str, Interval]) -> Table:
    prompts = next((each.prompts for each in whole.values()), 0)
    table = Table(title=f"{title}: paired, over {prompts} prompts that both have")
    left = next((each.prompts for each in matched.values()), 0)
    for column in ("", "difference", f"at matched length, {left} prompts"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in whole.items():
        table.add_row(name, _shown(value, sign=True), _shown(matched.get(name), sign=True))
    return table


def _shown(value: Interval | None, *, sign: bool = False) -> str:
    if value is None:
        return "–"
    form = "{:+.3f}" if sign else "{:.3f}"
    return f"{form.format(value.mean)}  [{value.low:.3f}, {value.high:.3f}]"


def _write(
    arguments: argparse.Namespace,
    evaluated: list[Evaluated],
    summaries: dict[str, dict[str, Interval]],
    differences: dict[str, dict[str, Interval]],
) -> bool:
    from darling_plugin.evaluation.pictures import draw

    for each in evaluated:
        folder = arguments.output if len(evaluated) == 1 else arguments.output / each.name
        of_prompts = [noveltybench.lines(*both, each.name) for both in zip(each.samples, each.labels, strict=True)]
        noveltybench.write(folder, of_prompts)
    settings = {
        name: str(value) if isinstance(value, Path) else value for name, value in sorted(vars(arguments).items())
    }
    one = summaries[evaluated[0].name] if len(evaluated) == 1 else {}
    written = {
        # NoveltyBench's own keys, of one model.
        **({"mean_distinct": one["distinct"].mean} if one else {}),
        **({"mean_utility": one["utility"].mean} if "utility" in one else {}),
        "models": {
            each.name: {
                "prompts": len(each.samples),
                "bad_lines": each.bad_lines,
                "classes": each.classes,
                "figures": {name: asdict(value) for name, value in summaries[each.name].items()},
            }
            for each in evaluated
        },
        "differences": {
            key: {name: asdict(value) for name, value in found.items()} for key, found in differences.items()
        },
        "settings": settings,
        "versions": installed_versions(),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "summary.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return draw(arguments.output / "summary.png", summaries)


if __name__ == "__main__":
    sys.exit(main())
