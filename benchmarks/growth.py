"""Growth: time against the number of responses and of groups, and the pairs that the rounds save.

    python benchmarks/growth.py

Time is of measure() with the fine-tuned MiniLM cross-encoder and with `embedding`, layers compiled, responses of up to
32 tokens, half of each group in one class, a quarter in another, and so on. `average` scores all pairs, `union_find`
and `greedy` leave out what earlier rounds made needless.

Pairs are counted with a model that knows the classes, over 200 shuffled groups, each partitioned alone, or `together`
with the others: then union_find takes more rounds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import Any

from common import RESULTS, console, make_groups, save, side_by_side, sizes
from cross_encoders import path_of

from darling_plugin.partition import Group, Pair, PairwiseModel, load_partition_model, measure

RESPONSES, GROUPS = (4, 8, 16, 32), (1, 4, 16)
MIXES = {
    8: [(8,), (7, 1), (4, 4), (4, 3, 1), (4, 2, 1, 1), (2, 2, 2, 2), (3, 1, 1, 1, 1, 1), (1,) * 8],
    32: [(32,), (16, 16), (16, 8, 4, 2, 1, 1), (8, 8, 8, 8), (2,) * 16, (1,) * 32],
}
TOKENS, ROUNDS, SHUFFLES = 32, 3, 200
RULES = ("average", "union_find", "greedy")


class Known(PairwiseModel):
    """Knows the class, a response's first word, and counts what it is asked."""

    threshold, asked = 0.5, 0

    def similarity(self, pairs: Sequence[Pair]) -> list[float]:
        self.asked += len(pairs)
        return [float(pair.first.split()[0] == pair.second.split()[0]) for pair in pairs]


def pairs_asked(classes: Sequence[int], clustering: str, together: bool = False) -> float:
    """Mean over shuffled groups with classes of these sizes, partitioned one by one or together."""
    rng, model = random.Random(0), Known(clustering=clustering)
    responses = [f"{label} {version}" for label, size in enumerate(classes) for version in range(size)]
    groups = [Group("prompt", rng.sample(responses, len(responses))) for _ in range(SHUFFLES)]
    for some in [groups] if together else [[group] for group in groups]:
        measure(model, some)
    return model.asked / SHUFFLES


def halves(n: int) -> tuple[int, ...]:
    """Class sizes n/2, n/4, ..., 1, 1 of a power of two."""
    return (n,) if n == 1 else (n // 2, *halves(n // 2))


def saved() -> list[dict[str, Any]]:
    rows = []
    for n, mixes in MIXES.items():
        for classes in mixes:
            total = len(list(combinations(range(n), 2)))
            row = {"responses": n, "class sizes": " ".join(map(str, classes)), "pairs": total}
            asked = {
                "union_find alone": pairs_asked(classes, "union_find"),
                "union_find together": pairs_asked(classes, "union_find", together=True),
                "greedy": pairs_asked(classes, "greedy"),
            }
            for name, count in asked.items():
                row |= {f"{name} scores": count, f"{name} saves": f"{1 - count / total:.0%}"}
            rows.append(row)
    return rows


def seconds_of(models: dict[str, Any], groups: list[Group]) -> dict[str, float]:
    runs = {name: lambda model=model: measure(model, groups) for name, model in models.items()}
    return {f"{name}, s": median(times) for name, times in side_by_side(runs, ROUNDS).items()}


def draw(by_responses: list[dict[str, Any]], by_groups: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    for axis, rows, across in zip(axes, (by_responses, by_groups), ("responses", "groups"), strict=True):
        for column in (name for name in rows[0] if name.endswith(", s")):
            axis.loglog([row[across] for row in rows], [row[column] for row in rows], "o-", label=column[:-3])
        axis.set_xlabel(across)
        axis.set_xticks([row[across] for row in rows], [row[across] for row in rows], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[0].legend(frameon=False, fontsize=8)
    axes[0].set_title("4 groups", fontsize=9)
    axes[1].set_title("8 responses a group", fontsize=9)
    figure.savefig(RESULTS / "growth.png", dpi=100)


def main() -> None:
    path = path_of("minilm")
    models = {rule: load_partition_model(f"cross-encoder:{path}", clustering=rule, compile_after=0) for rule in RULES}
    models["embedding"] = load_partition_model("embedding", compile_after=0)
    tokenizer = models["average"].tokenizer

    def timed(count: int, n: int) -> dict[str, Any]:
        console.print(f"{count} groups of {n}")
        groups = make_groups(tokenizer, count, sizes(TOKENS), halves(n))
        return {"groups": count, "responses": n, "pairs": count * n * (n - 1) // 2} | seconds_of(models, groups)

    by_responses = [timed(4, n) for n in RESPONSES]
    by_groups = [timed(count, 8) for count in GROUPS]
    RESULTS.mkdir(exist_ok=True)
    draw(by_responses, by_groups)
    rows = by_responses + [row for row in by_groups if row["groups"] != 4]
    save("growth", "Growth with responses and groups", __doc__, rows, picture="growth.png")
    title, command, _, of_pairs = __doc__.split("\n\n")
    save("pairs_saved", "Pairs saved by scoring in rounds", "\n\n".join([title, command, of_pairs]), saved())


if __name__ == "__main__":
    main()
