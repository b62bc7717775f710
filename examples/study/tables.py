"""Makes the study's tables and picture of examples/study/results: between marks in docs, and docs/study/*.png.

python examples/study/tables.py
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

from arms import ARMS, YEARS

from darling_plugin.evaluation.measures import Interval, expected_distinct, interval, pass_at

STUDY = Path(__file__).resolve().parent
DOCS = STUDY.parents[1] / "docs"
BEGIN, END = "<!-- made by examples/study/tables.py -->", "<!-- end -->"
FIGURES = {
    "quality": "quality",
    "distinct_8": "distinct valid of 8",
    "distinct_32": "distinct valid of 32",
    "by_default_8": "classes of 8 by its model",
    "pass@8": "pass@8",
}
DIFFERENCES = ("quality", "distinct_8", "distinct_32")
# Of the second task: pass@1 is the quality.
PASSES = {f"pass@{k}": f"pass@{k}" for k in (1, 2, 4, 8, 16, 32)}
VERIFIABLE = {**PASSES, "distinct_32": "distinct right of 32"}
# The arms that train with another method: docs/methods.md sets them beside DARLING.
METHODS = ("quality", "marginal-relevance", "nearest-neighbour", "reasoning-novelty")
COLOURS = {"untrained": "0", "quality": "0.35", "classes": "C0", "expected": "C1", "oracle": "C2"}
OTHERS = ("C3", "C4", "C5", "C6", "C8", "C9")  # without a second grey


def figures_of(group: dict) -> dict[str, float]:
    """Of one held-out prompt's samples: a valid answer earned its reward, and names itself."""
    correct = [answer is not None for answer in group["answers"]]
    answers = [-1 if answer is None else answer for answer in group["answers"]]
    return {
        "quality": sum(correct) / len(correct),
        "distinct_8": expected_distinct(8, answers, correct),
        "distinct_32": expected_distinct(32, answers, correct),
        "by_default_8": expected_distinct(8, group["labels"]),
        **{name: pass_at(int(name.removeprefix("pass@")), correct) for name in PASSES},
    }


def read() -> dict[str, list[dict]]:
    """The results by arm, each with `curve`: at each evaluated step the prompts' figures and the vocabulary."""
    by_arm: dict[str, list[dict]] = {}
    for path in sorted((STUDY / "results").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        run["curve"] = [
            {
                "step": evaluation["step"],
                "prompts": [figures_of(group) for group in evaluation["groups"]],
                "vocabulary": len({a for group in evaluation["groups"] for a in group["answers"] if a is not None}),
            }
            for evaluation in run["evaluations"]
        ]
        by_arm.setdefault(run["arm"], []).append(run)
    return {arm: by_arm[arm] for arm in ARMS if arm in by_arm}


def of_arm(runs: list[dict], figure: str, at: int = -1) -> Interval:
    return pooled([[each[figure] for each in run["curve"][at]["prompts"]] for run in runs])


def pooled(seeds: list[list[float]]) -> Interval:
    """Over seeds where there are several (their mean, and 1.96 standard errors), else over the seed's prompts."""
    if len(seeds) == 1:
        return interval(seeds[0])
    means = [mean(prompts) for prompts in seeds]
    error = 1.96 * stdev(means) / math.sqrt(len(means))
    return Interval(mean(means), mean(means) - error, mean(means) + error, len(seeds[0]))


def differences(
    by_arm: dict[str, list[dict]], arms: Iterable[str], base: str, names: Iterable[str] = DIFFERENCES
) -> str:
    """A table of arms less `base`, at the end, on the same held-out prompts of the seeds that both have."""
    titles = [(FIGURES | VERIFIABLE if base.startswith(YEARS) else FIGURES)[name] for name in names]
    lines = [f"| less `{base}` | seeds | " + " | ".join(titles) + " |", "|---" * (2 + len(titles)) + "|"]
    bases = {run["seed"]: run["curve"][-1]["prompts"] for run in by_arm.get(base, [])}
    for arm in arms:
        ends = {run["seed"]: run["curve"][-1]["prompts"] for run in by_arm.get(arm, []) if run["seed"] in bases}
        if arm == base or not ends:
            continue
        cells = []
        for name in names:
            less = [
                [of_arm[name] - of_base[name] for of_arm, of_base in zip(prompts, bases[seed], strict=True)]
                for seed, prompts in ends.items()
            ]
            difference = pooled(less)
            cells.append(f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})")
        lines.append(f"| `{arm}` | {', '.join(map(str, ends))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(by_arm: dict[str, list[dict]], figures: dict[str, str] = FIGURES) -> str:
    lines = [
        "| arm | seeds | " + " | ".join(figures.values()) + " | vocabulary |",
        "|" + "---|" * (len(figures) + 3),
    ]
    for arm, runs in by_arm.items():
        cells = [of_arm(runs, figure) for figure in figures]
        shown = [f"{each.mean:.3f} ({each.low:.3f} to {each.high:.3f})" for each in cells]
        vocabulary = mean(run["curve"][-1]["vocabulary"] for run in runs)
        seeds = ", ".join(str(run["seed"]) for run in runs)
        lines.append(f"| `{arm}` | {seeds} | " + " | ".join(shown) + f" | {vocabulary:.0f} |")
    made = sorted({(run["commit"], run["machine"]) for runs in by_arm.values() for run in runs})
    steps = sorted({run["curve"][-1]["step"] for runs in by_arm.values() for run in runs})
    lines += ["", f"After step {', '.join(map(str, steps))}. Made at {', '.join(commit for commit, _ in made)}."]
    return "\n".join(lines)


def frontier(by_arm: dict[str, list[dict]], path: Path) -> None:
    """Quality against distinct valid answers of 8: an arm's evaluations as a line, its end with error bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    for k, (arm, runs) in enumerate(by_arm.items()):
        colour = COLOURS.get(arm.split("-")[0], OTHERS[k % len(OTHERS)])
        steps = range(min(len(run["curve"]) for run in runs))
        points = [(of_arm(runs, "distinct_8", at), of_arm(runs, "quality", at)) for at in steps]
        axis.plot([x.mean for x, _ in points], [y.mean for _, y in points], "-", color=colour, alpha=0.35)
        x, y = points[-1]
        errors = {"xerr": [[x.mean - x.low], [x.high - x.mean]], "yerr": [[y.mean - y.low], [y.high - y.mean]]}
        axis.errorbar(x.mean, y.mean, **errors, fmt="o", color=colour, capsize=3, label=f"{arm} ({len(runs)})")
    axis.set(xlabel="distinct valid answers among 8 samples", ylabel="quality: share of valid answers")
    axis.grid(alpha=0.3)
    axis.legend(title="arm (seeds)", fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    by_arm = read()
    if not by_arm:
        raise SystemExit("no results yet: make study")
    years = {arm: by_arm.pop(arm) for arm in list(by_arm) if arm.startswith(YEARS)}
    tables = [table(by_arm), differences(by_arm, by_arm, "quality")]
    if years:
        less = differences(years, years, f"{YEARS}quality", VERIFIABLE)
        tables += ["The second task:", table(years, VERIFIABLE), less]
    put("study.md", "\n\n".join(tables))
    put("methods.md", differences(by_arm, METHODS, "classes"))
    frontier(by_arm, DOCS / "study" / "frontier.png")


def put(name: str, made: str) -> None:
    """Between the marks of a page of docs/."""
    before, rest = (DOCS / name).read_text(encoding="utf-8").split(BEGIN)
    (DOCS / name).write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
