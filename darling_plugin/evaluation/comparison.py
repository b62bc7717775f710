"""Models side by side: the figures of each one's samples, and the differences over the prompts that they share."""

from __future__ import annotations

import json
import logging
import platform
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from darling_plugin.diversity import expected_diversity
from darling_plugin.errors import DarlingError, spelled
from darling_plugin.evaluation import noveltybench
from darling_plugin.evaluation.measures import Interval, figures, is_verifiable, of_like_length, paired, summary
from darling_plugin.evaluation.samples import Samples
from darling_plugin.log import installed_versions
from darling_plugin.partition import Group, measure
from darling_plugin.partition.text import PartitionText, read_partition_text
from darling_plugin.queries import asked

if TYPE_CHECKING:
    from darling_plugin.partition import PartitionModel

logger = logging.getLogger(__name__)

Key = tuple[str, int]  # a prompt, and how often it came before: files number their prompts differently
Differences = dict[str, tuple[dict[str, Interval], dict[str, Interval]]]  # of all responses, and at matched length

MADE_BY = "darling-evaluate"
WRITTEN = {"summary.json", "summary.png"}  # beside the models' folders
SAMPLES = "samples.jsonl"  # of its own, in the folder of the results
GROUPS_AT_ONCE = 64
# At matched length: what does not depend on how many responses are left of each prompt.
AT_MATCHED_LENGTH = ("quality", "diversity", "words")


@dataclass
class Evaluated:
    """One model: its P prompts' samples, the class of each response and what made them, each prompt's figures.

    Attributes:
        model: the partition model, where classes were made and not read.
    """

    name: str
    samples: list[Samples]
    labels: list[list[int]]
    classes: str
    of_prompts: dict[Key, dict[str, float]]
    model: PartitionModel | None = None

    @property
    def quality_from(self) -> str | None:
        """What the quality was read from, or who gave it; None without any."""
        found = dict.fromkeys(each.quality_from for each in self.samples if each.quality is not None)
        return ", ".join(filter(None, found)) or None

    @property
    def split(self) -> str | None:
        """That of all prompts; None where they have none, or several."""
        found = {each.split for each in self.samples}
        return found.pop() if len(found) == 1 else None

    @property
    def step(self) -> int | None:
        """The one that was read: prompts have no other, though some may have none."""
        return next((each.step for each in self.samples if each.step is not None), None)


def folder_of(name: str) -> str:
    """The folder of a model of that name."""
    return name.replace("/", "_").lstrip(".") or "_"


def ks_of(inputs: dict[str, list[Samples]], wanted: Sequence[int] | None) -> list[int]:
    """For the figures of k responses: what is wanted, else the powers of two up to the largest group.

    Raises DarlingError for a k that is larger than every group: there would be no figure of it.
    """
    longest = max(len(each.responses) for samples in inputs.values() for each in samples)
    too_large = [str(k) for k in wanted or () if k > longest]
    if too_large:
        most = f"{longest} response{'s' if longest != 1 else ''}"
        raise DarlingError(f"{spelled('k')} up to the {most} of the largest group", ", ".join(too_large), "lower it")
    return list(wanted or (2**power for power in range(longest.bit_length())))


def evaluate(
    inputs: dict[str, list[Samples]],
    load: Callable[[], PartitionModel],
    load_name: str,
    file_names: dict[str, str],
    *,
    ks: Sequence[int],
    partition_text: str = "whole",
    extra: Callable[[Sequence[str]], dict[str, float]] | None = None,
    again: bool = False,
) -> list[Evaluated]:
    """The figures of every input, by name.

    Args:
        load: loads the partition model, which is asked where samples have no classes; load_name: how it is named,
            before its clustering.
        partition_text: what of a response that model compares; all other figures are of the whole.
        file_names: by input, how the classes that its samples have are named.
        ks: for the figures of k responses.
        extra: more figures of a prompt's responses.
        again: makes classes anew where samples have them.
    """
    everything = [each for samples in inputs.values() for each in samples]
    labels, expected, model = _partition(everything, load, read_partition_text(partition_text), again)
    clustering = getattr(model, "clustering", None)
    load_name += (f", {clustering}" if clustering else "") + f", {partition_text}" * (partition_text != "whole")
    verifiable = is_verifiable(everything)
    found, start = [], 0
    for name, samples in inputs.items():
        of_prompts = {}
        bar = tqdm(samples, desc=name, unit="prompt")
        for k, (key, each) in enumerate(zip(_keys(samples), bar, strict=True), start):
            of_prompts[key] = figures(each, labels[k], ks, verifiable=verifiable)
            if k in expected:
                of_prompts[key]["expected_diversity"] = expected[k]
            if extra is not None:
                of_prompts[key] |= extra(each.responses)
        own = labels[start : start + len(samples)]
        kept = 0 if again else sum(each.labels is not None for each in samples)
        made = f"{len(samples) - kept} prompts' by {load_name}" if kept else f"by {load_name}"
        if kept:
            made = file_names[name] + (f", {made}" if kept < len(samples) else "")
        found.append(Evaluated(name, samples, own, made, of_prompts, model if kept < len(samples) else None))
        start += len(samples)
    return found


def _keys(samples: Sequence[Samples]) -> list[Key]:
    # A run's log has it within a chat template; conversations that end with the same question are told apart whole.
    wholes = defaultdict(set)
    for each in samples:
        wholes[_asked(each.prompt)].add(each.prompt)
    before: Counter[str] = Counter()
    keys = []
    for each in samples:
        prompt = _asked(each.prompt)
        prompt = prompt if len(wholes[prompt]) == 1 else each.prompt
        keys.append((prompt, before[prompt]))
        before[prompt] += 1
    return keys


def _asked(prompt: str) -> str:
    """One spelling: chat templates strip it, and tokenizers that decoded it may have composed its characters."""
    return unicodedata.normalize("NFC", asked(prompt).strip())


def _partition(
    everything: Sequence[Samples], load: Callable[[], PartitionModel], part: PartitionText, again: bool
) -> tuple[list[list[int]], dict[int, float], PartitionModel | None]:
    """The labels of each group; by its place the expected diversity, where a calibrated model was asked; the model."""
    labels = [None if again else each.labels for each in everything]
    expected: dict[int, float] = {}
    missing, lacking = [k for k, own in enumerate(labels) if own is None], 0
    model = load() if missing else None
    with tqdm(total=len(missing), desc="classes", unit="prompt", disable=not missing) as bar:
        for start in range(0, len(missing), GROUPS_AT_ONCE):
            some = missing[start : start + GROUPS_AT_ONCE]
            compared = [_compared(everything[k], part) for k in some]
            lacking += sum(texts.count(None) for texts in compared)
            groups = [
                Group(everything[k].prompt, [text or "" for text in texts])
                for k, texts in zip(some, compared, strict=True)
            ]
            calibrated = getattr(model, "calibrated", False)
            for k, measured in zip(some, measure(model, groups, with_similarity=calibrated), strict=True):
                labels[k] = measured.labels.tolist()
                if calibrated and len(labels[k]) > 1:
                    expected[k] = float(expected_diversity(measured.similarity).mean())
            bar.update(len(some))
    if lacking:
        logger.warning("%d responses lack the text that is compared, and count as empty", lacking)
    return labels, expected, model


def _compared(samples: Samples, part: PartitionText) -> list[str | None]:
    try:
        return [part(samples.prompt, response) for response in samples.responses]
    except Exception as error:  # a user's own function
        raise DarlingError(
            f"a text of each response by {spelled('partition_text')}",
            f"{type(error).__name__}: {error}, for the prompt {samples.prompt!r:.80}",
            "mend that function",
        ) from error


def differences(evaluated: Sequence[Evaluated], seed: int = 0) -> Differences:
    """Each model's figures minus the first one's, paired, by "NAME - FIRST"."""
    first, *others = evaluated
    return {
        f"{each.name} - {first.name}": (
            paired(first.of_prompts, each.of_prompts, seed),
            at_matched_length(first, each, seed),
        )
        for each in others
    }


def at_matched_length(first: Evaluated, second: Evaluated, seed: int = 0) -> dict[str, Interval]:
    """second - first for AT_MATCHED_LENGTH, of the responses that of_like_length pairs; prompts with two pairs."""
    sides: tuple[dict, dict] = ({}, {})
    there = dict(zip(_keys(second.samples), zip(second.samples, second.labels, strict=True), strict=True))
    for key, samples, labels in zip(_keys(first.samples), first.samples, first.labels, strict=True):
        other, other_labels = there.get(key, (None, None))
        if other is None:
            continue
        kept = of_like_length(samples, other)
        if len(kept[0]) < 2:
            continue
        for side, each, own, places in zip(sides, (samples, other), (labels, other_labels), kept, strict=True):
            some = Samples(
                each.id,
                each.prompt,
                [each.responses[k] for k in places],
                None if each.quality is None else [each.quality[k] for k in places],
            )
            all_figures = figures(some, [own[k] for k in places], [], verifiable=False)
            side[key] = {name: value for name, value in all_figures.items() if name in AT_MATCHED_LENGTH}
    return paired(*sides, seed)


def check_output(folder: Path, inputs: dict[str, Path], *, sampled: bool = False) -> None:
    """Raises DarlingError where results in this folder would take the place of an input, or of files of others.

    Those of an earlier call with the same inputs are replaced.

    Args:
        sampled: whether this call makes samples, in the folder, beside the inputs.
    """
    if folder.exists() and not folder.is_dir():
        raise DarlingError("a folder for the results", f"the file {folder}", "name another")
    own = [folder_of(name) for name in inputs]
    written = {*WRITTEN, SAMPLES} if sampled else WRITTEN
    if len(set(own)) < len(own) or (len(own) + sampled > 1 and not written.isdisjoint(own)):
        raise DarlingError("inputs with a folder each", f"the folders {', '.join(own)}", "name them apart")
    folders = [folder, *(folder / each for each in own)]
    targets = [
        each / name for each in folders for name in (*map("{}.jsonl".format, noveltybench.FILES), "summary.json")
    ]
    given = {path.resolve() for path in (*inputs.values(), *([folder / SAMPLES] if sampled else []))}
    before = _inputs_of(folder / "summary.json")
    if before == {str(path) for path in given}:
        there = [path for path in targets if path.resolve() in given]
    else:
        there = [path for path in targets if path.exists()]
    if there:
        raise DarlingError(
            "a folder for the results without files that they would replace",
            ", ".join(dict.fromkeys(map(str, there))) + (f", of {', '.join(sorted(before))}" if before else ""),
            "name another",
        )


def _inputs_of(summary: Path) -> set[str]:
    """The files that an earlier call measured; none where the summary is somebody else's."""
    try:
        written = json.loads(summary.read_text(encoding="utf-8"))
        return {model["file"] for model in written["models"].values()} if written["made_by"] == MADE_BY else set()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def check_scores(folder: Path, inputs: dict[str, list[Samples]]) -> None:
    """Raises DarlingError where an earlier call left scores.jsonl, and this one has no quality to write it anew."""
    for name, samples in inputs.items():
        path = (folder if len(inputs) == 1 else folder / folder_of(name)) / "scores.jsonl"
        have = sum(each.quality is not None for each in samples)
        if have < len(samples) and path.exists():
            raise DarlingError(
                f"a quality for each prompt, as {path} of an earlier call has it",
                f"{have} of {len(samples)} prompts with one",
                "give the quality as that call did, or name another folder",
            )


def write(
    folder: Path,
    evaluated: Sequence[Evaluated],
    summaries: dict[str, dict[str, Interval]],
    compared: Differences,
    settings: dict[str, Any],
    bad_lines: dict[str, int],
    files: dict[str, Path],
) -> None:
    """summary.json, with NoveltyBench's keys too; its other files, of several models in a folder each.

    Args:
        bad_lines, files: by model, the lines left out, and the file that was read.
    """
    models = {}
    for each in evaluated:
        models[each.name] = {
            "prompts": len(each.samples),
            "file": str(files[each.name].resolve()),
            "bad_lines": bad_lines[each.name],
            "split": each.split,
            "step": each.step,
            "classes": each.classes,
            "quality": each.quality_from,
            "figures": {name: asdict(value) for name, value in summaries[each.name].items()},
        }
    alone = len(evaluated) == 1
    flat = {key: whole for key, (whole, _) in compared.items()}
    flat |= {f"{key}, at matched length": matched for key, (_, matched) in compared.items()}
    written = {
        **(_noveltybenchs(summaries[evaluated[0].name]) if alone else {}),
        "made_by": MADE_BY,
        "models": models,
        "differences": {key: {name: asdict(value) for name, value in found.items()} for key, found in flat.items()},
        "settings": settings,
        "versions": {"python": platform.python_version(), **installed_versions()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DarlingError("a folder for the results", f"{error}", "name another") from error
    (folder / "summary.png").unlink(missing_ok=True)  # an earlier call's
    _write_json(folder / "summary.json", written)
    for each in evaluated:
        own = folder if alone else folder / folder_of(each.name)
        of_prompts = [noveltybench.lines(*both, each.name) for both in zip(each.samples, each.labels, strict=True)]
        noveltybench.write(own, of_prompts)
        if not alone:
            _write_json(own / "summary.json", _noveltybenchs(summaries[each.name]))


def _noveltybenchs(found: dict[str, Interval]) -> dict[str, float]:
    distinct, utility = found["distinct"], found.get("utility")
    # Under its keys both means are of the same prompts.
    of_all = utility is not None and utility.prompts == distinct.prompts
    return {"mean_distinct": distinct.mean, **({"mean_utility": utility.mean} if of_all else {})}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def summaries_of(evaluated: Sequence[Evaluated], seed: int = 0) -> dict[str, dict[str, Interval]]:
    """The interval of each figure, by model."""
    return {each.name: summary(list(each.of_prompts.values()), seed) for each in evaluated}
