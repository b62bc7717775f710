"""Careful readings of NoveltyBench's groups: how far the labels, and the partition models, agree with them.

python benchmarks/readings.py

The 500 groups of groups_odd.jsonl have the classes of NoveltyBench's DeBERTa classifier as labels. A large language
model, another kind of judge, read them by the guidelines below without seeing any label: each group once, 60 of them a
second time, in another order and without the first reading. It also read 160 of the 1000 pairs that humans labelled.
`default` is held out by prompt, in the five folds of darling-train-partition (seed 0), with its labels, not with the
readings. Correlation is the mean of the groups' own, push, error and flat as evaluation/within_group.py has them; the
error of no signal at all stands beside it. Alike is the share of the groups' pairs that both say the same of;
average: classes by average linkage.

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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import NOVELTYBENCH, ROOT, save

from darling_plugin.diversity import class_diversity, expected_diversity
from darling_plugin.evaluation.within_group import WithinGroup, within_group
from darling_plugin.partition import Group, load_partition_model
from darling_plugin.training import report
from darling_plugin.training.group_report import ALL, group_figures
from darling_plugin.training.head import HeadTrainer
from darling_plugin.training.pairs import Input, LabelledGroup, LabelledPair, folds_by_prompt, read_inputs

READINGS = ROOT / "benchmarks/readings.json"  # of each group its readings; P(equivalent) of pairs, by their line
GROUPS = NOVELTYBENCH.with_name("groups_odd.jsonl")
WEIGHT, FOLDS, SEED = 0.1, 5, 0  # as `default` is trained

Labels = Sequence[Sequence[int]]  # of each group the class of each response


def main() -> None:
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


PAIRS = """

python benchmarks/readings.py

Of 160 of NoveltyBench's human-labelled pairs, drawn at random, read as the groups are: what the reader said, at a
probability of a half, and what `default` says, held out by prompt, at its folds' thresholds.
"""


def held_out(pairs: Sequence[LabelledPair]) -> tuple[np.ndarray, np.ndarray]:
    """P(similar) of each pair, and the threshold, by a head that was trained without its prompt."""
    trainer = HeadTrainer(pairs, None, folds=FOLDS, seed=SEED, dtype="float32")
    probabilities, thresholds = np.empty(len(pairs)), np.empty(len(pairs))
    for part in folds_by_prompt(pairs, FOLDS, SEED):
        head = trainer.fit(np.setdiff1d(np.arange(len(pairs)), part))
        probabilities[part], thresholds[part] = trainer.predict(head, part), head.threshold
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

    yield row("the labels' classifier", "first reading", labels, first)
    yield row("the labels' classifier", "first reading, those read twice", some(labels), some(first))
    yield row("second reading", "first reading", [read[k][1] for k in twice], some(first))
    lexical = [
        expected_diversity(each)
        for each in load_partition_model("lexical").similarities(
            [Group(group.prompt, group.responses) for group in groups]
        )
    ]
    for against, true in (("first reading", first), ("the labels", labels)):
        relabelled = [replace(group, labels=tuple(own)) for group, own in zip(groups, true, strict=True)]
        figures = group_figures(relabelled, pairs, probabilities, thresholds)[ALL]
        for kind in ("classes", "average", "pairs", "expected"):
            own = {name: np.nan if value is None else value for name, value in figures[kind].items()}
            yield shown(f"`default`, {kind}", against, WithinGroup(**own))
        yield shown("`lexical`, expected", against, within_group(lexical, diversities(true)))


def row(said: str, against: str, given: Labels, true: Labels) -> dict[str, Any]:
    return shown(said, against, within_group(diversities(given), diversities(true)), *alike(given, true))


def shown(
    said: str, against: str, found: WithinGroup, share: float | None = None, kappa: float | None = None
) -> dict[str, Any]:
    return {
        "said by": said,
        "compared with": against,
        "groups": found.groups,
        "correlation": round(found.correlation_of_groups, 3),
        "push": round(found.push, 3),
        "error": round(found.error, 3),
        "of no signal": round(found.error_of_none, 3),
        "flat": found.flat,
        "alike": "–" if share is None else round(share, 3),
        "kappa": "–" if kappa is None else round(kappa, 3),
    }


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
