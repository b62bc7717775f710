"""Careful readings of NoveltyBench's groups: how far the labels, and the partition models, agree with them.

make default-model PAIRS=... GROUPS=...; python benchmarks/readings.py

(--write GROUPS OUT writes the groups with the readings as their labels, and nothing else.) The 500 groups of
groups_odd.jsonl have the classes of NoveltyBench's DeBERTa classifier as labels. A large language model, another kind
of judge, read them by the guidelines below without seeing any label: each group once, 60 of them a second time, in
another order and without the first reading. It also read 160 of the 1000 pairs that humans labelled. `default` is held
out by prompt, in the five folds of its training (seed 0): its head learned from the labels, its adapter from the
readings, of other prompts. Correlation is the mean of the groups' own, push, error and flat as
evaluation/within_group.py has them, in brackets 95 % intervals of a bootstrap over prompts; the error of no signal at
all stands beside it. Alike is the share of the groups' pairs that both say the same of; average: classes by average
linkage.

The guidelines: two responses are in one class if a user who has seen one would gain nearly nothing from seeing the
other as well. Where a choice, fact, name, number or recommendation is asked for, the choice decides; other wording,
greetings, formatting or explanations of the same choice make no other class. Of lists in place of one choice, a pick
that mentions others is its pick; lists that pick none are one class if most of their content is the same. Another
plot, joke or idea is another class, small changes of words are not. Advice and opinions are one class if they say the
same main things. Refusals that say the same are one class, apart from answers. Each response is to be read in full, of
very long ones at least 300 words.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import NOVELTYBENCH, ROOT, save

from darling_plugin.diversity import class_diversity, expected_diversity
from darling_plugin.evaluation.within_group import within_group
from darling_plugin.partition import Group, load_partition_model
from darling_plugin.training import report
from darling_plugin.training.group_report import group_diversities
from darling_plugin.training.pairs import Input, LabelledGroup, LabelledPair, folds_by_prompt, read_inputs

READINGS = ROOT / "benchmarks/readings.json"  # of each group its readings; P(equivalent) of pairs, by their line
GROUPS = NOVELTYBENCH.with_name("groups_odd.jsonl")
PREDICTIONS = ROOT / "runs/default-model/predictions.jsonl"
WEIGHT, FOLDS, SEED = 0.1, 5, 0  # as `default` is trained
RESAMPLES = 300

Labels = Sequence[Sequence[int]]  # of each group the class of each response


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        write(*map(Path, sys.argv[2:]))
        return
    if not (NOVELTYBENCH.exists() and GROUPS.exists()):
        sys.exit(f"needs NoveltyBench's pairs in {NOVELTYBENCH} and its groups in {GROUPS}")
    pairs, groups = read_inputs([Input(str(NOVELTYBENCH)), Input(str(GROUPS), WEIGHT)])
    readings = json.loads(READINGS.read_text())
    judged = held_out(pairs)
    save(
        "readings",
        "Labels and partition models against careful readings",
        __doc__,
        of_groups(groups, readings, pairs, *judged),
    )
    save(
        "readings_of_pairs",
        "The same reader, and `default`, against 160 human labels",
        PAIRS,
        of_pairs(readings, pairs, *judged),
    )


def write(groups: Path, out: Path) -> None:
    """Line by line the groups, labelled by the first reading; `source` says so."""
    readings = json.loads(READINGS.read_text())["groups"]
    rows = [json.loads(line) for line in groups.read_text(encoding="utf-8").splitlines()]
    read = [row | {"labels": readings[str(k)][0], "source": f"{row['source']}, read"} for k, row in enumerate(rows)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in read), encoding="utf-8")


PAIRS = """

make default-model PAIRS=... GROUPS=...; python benchmarks/readings.py

Of 160 of NoveltyBench's human-labelled pairs, drawn at random, read as the groups are: what the reader said, at a
probability of a half, and what `default` says, held out by prompt, at its folds' thresholds.
"""


def held_out(pairs: Sequence[LabelledPair]) -> tuple[np.ndarray, np.ndarray]:
    """P(similar) of each pair, and the threshold, by a head that was trained without its prompt."""
    if not PREDICTIONS.exists():
        sys.exit(f"needs {PREDICTIONS}: make default-model PAIRS={NOVELTYBENCH} GROUPS={GROUPS}")
    rows = [json.loads(line) for line in PREDICTIONS.read_text().splitlines()]
    at = [k for part in folds_by_prompt(pairs, FOLDS, SEED) for k in part]
    if [(row["line"], row["similar"]) for row in rows] != [(pairs[k].line, pairs[k].similar) for k in at]:
        sys.exit(f"{PREDICTIONS} is of other pairs than {NOVELTYBENCH} and {GROUPS}: make default-model again")
    probabilities, thresholds = np.empty(len(pairs)), np.empty(len(pairs))
    probabilities[at], thresholds[at] = zip(*((row["probability"], row["threshold"]) for row in rows), strict=True)
    return probabilities, thresholds


def of_groups(
    groups: Sequence[LabelledGroup],
    readings: dict[str, Any],
    pairs: Sequence[LabelledPair],
    probabilities: np.ndarray,
    thresholds: np.ndarray,
) -> Iterator[dict[str, Any]]:
    read = [readings["groups"][str(group.number)] for group in groups]
    labels, first = [group.labels for group in groups], [each[0] for each in read]
    twice = [k for k, each in enumerate(read) if len(each) > 1]

    def some(of: Labels) -> Labels:
        return [of[k] for k in twice]

    prompts = [group.prompt for group in groups]
    yield row("the labels' classifier", "first reading", labels, first, prompts)
    yield row("the labels' classifier", "first reading, those read twice", some(labels), some(first), some(prompts))
    yield row("second reading", "first reading", [read[k][1] for k in twice], some(first), some(prompts))
    lexical = [
        expected_diversity(each)
        for each in load_partition_model("lexical").similarities(
            [Group(group.prompt, group.responses) for group in groups]
        )
    ]
    given = group_diversities(groups, pairs, probabilities, thresholds)
    for against, true in (("first reading", diversities(first)), ("the labels", diversities(labels))):
        for kind in ("classes", "average", "pairs", "expected"):
            yield shown(f"`default`, {kind}", against, [each[kind] for each in given], true, prompts)
        yield shown("`lexical`, expected", against, lexical, true, prompts)


def row(said: str, against: str, given: Labels, true: Labels, prompts: Sequence[str]) -> dict[str, Any]:
    return shown(said, against, diversities(given), diversities(true), prompts, *alike(given, true))


def shown(
    said: str,
    against: str,
    given: Sequence[torch.Tensor],
    true: Sequence[torch.Tensor],
    prompts: Sequence[str],
    share: float | None = None,
    kappa: float | None = None,
) -> dict[str, Any]:
    found = within_group(given, true)
    intervals = drawn_again(given, true, prompts)

    def cell(name: str) -> str:
        low, high = intervals[name]
        return f"{getattr(found, name):.3f} ({low:.3f}–{high:.3f})"

    return {
        "said by": said,
        "compared with": against,
        "groups": found.groups,
        "correlation": cell("correlation_of_groups"),
        "push": cell("push"),
        "error": cell("error"),
        "of no signal": round(found.error_of_none, 3),
        "flat": found.flat,
        "alike": "–" if share is None else round(share, 3),
        "kappa": "–" if kappa is None else round(kappa, 3),
    }


def drawn_again(
    given: Sequence[torch.Tensor], true: Sequence[torch.Tensor], prompts: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """95 % intervals of a bootstrap over prompts, of which each brings all its groups."""
    of_prompt: dict[str, list[int]] = defaultdict(list)
    for k, prompt in enumerate(prompts):
        of_prompt[prompt].append(k)
    own, rng = list(of_prompt.values()), np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        at = [k for which in rng.integers(0, len(own), len(own)) for k in own[which]]
        drawn.append(asdict(within_group([given[k] for k in at], [true[k] for k in at])))
    return {name: tuple(np.quantile([each[name] for each in drawn], (0.025, 0.975))) for name in drawn[0]}


def diversities(labels: Labels) -> list[torch.Tensor]:
    return [class_diversity(torch.tensor(own)) for own in labels]


def alike(given: Labels, true: Labels) -> tuple[float, float]:
    """Share of the groups' pairs of which both say the same, and Cohen's kappa of it."""
    from sklearn.metrics import cohen_kappa_score

    one, other = same(given), same(true)
    return float((one == other).mean()), float(cohen_kappa_score(one, other))


def same(labels: Labels) -> np.ndarray:
    """Of all pairs of responses of each group, one after the other, whether they are of one class."""
    return np.array([a == b for own in labels for k, a in enumerate(own) for b in own[:k]])


def of_pairs(
    readings: dict[str, Any], pairs: Sequence[LabelledPair], probabilities: np.ndarray, thresholds: np.ndarray
) -> Iterator[dict[str, Any]]:
    at = [k for k, pair in enumerate(pairs) if pair.group is None and str(pair.line) in readings["pairs"]]
    own = [pairs[k] for k in at]
    read = np.array([readings["pairs"][str(pair.line)] for pair in own])
    for name, said, threshold in (
        ("the reader", read, np.full(len(at), 0.5)),
        ("`default`", probabilities[at], thresholds[at]),
    ):
        found = report.measures(own, said, threshold)
        cells = {key.replace("_", " "): f"{m.value:.3f} ({m.low:.3f}–{m.high:.3f})" for key, m in found.items()}
        yield {"said by": name, "pairs": len(at), **cells}


if __name__ == "__main__":
    main()
