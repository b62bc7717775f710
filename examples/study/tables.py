"""Makes the study's tables and picture of examples/study/results: between marks in docs, and docs/study/*.png.

python examples/study/tables.py
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

import numpy as np
from arms import ARMS, LONG, STRENGTHS, UNTRAINED, YEARS

from darling_plugin.evaluation.measures import LEVEL, RESAMPLES, Interval, expected_distinct, pass_at

STUDY = Path(__file__).resolve().parent
DOCS = STUDY.parents[1] / "docs"
BEGIN, END = "<!-- made by examples/study/tables.py -->", "<!-- end -->"
FIGURES = {
    "quality": "quality",
    **{f"distinct_{k}": f"distinct valid of {k}" for k in (8, 32)},
    **{f"classes_{k}": f"classes of {k}" for k in (8, 32)},
    **{f"pass@{k}": f"pass@{k}" for k in (2, 8)},
}
DIFFERENCES = ("quality", "distinct_8", "distinct_32")
# Of the second task: pass@1 is the quality.
PASSES = {f"pass@{k}": f"pass@{k}" for k in (1, 2, 4, 8, 16, 32)}
VERIFIABLE = PASSES | {f"distinct_{k}": f"distinct right of {k}" for k in (8, 32)} | {"classes_8": "classes of 8"}
# Of a training step's groups of 8, see study.py.
PAIRS = ("one_answer", "one_answer_split", "two_answers", "two_answers_joined")
MADE_OF_ANSWERS = "What the classes made of a group's valid answers in training:"
# The arms that train with another method: docs/methods.md sets them beside DARLING.
METHODS = ("quality", "marginal-relevance", "nearest-neighbour", "reasoning-novelty")
# How strongly diversity counts, for each kind that is trained at several strengths: weight and arm.
WEIGHTS = {kind: ((0, "quality"), (0.5, f"{kind}-0.5"), (1, kind), (1.5, f"{kind}-1.5")) for kind in STRENGTHS}
COLOURS = {"quality": "0.35", "classes": "C0", "classes-average": "C3", "expected": "C1", "oracle": "C2"}
OTHERS = ("C4", "C5", "C6", "C8", "C9", "black")  # without a second grey


def figures_of(group: dict) -> dict[str, float]:
    """Of one held-out prompt's samples: a valid answer earned its reward, and names itself."""
    correct = [answer is not None for answer in group["answers"]]
    answers = [-1 if answer is None else answer for answer in group["answers"]]
    return {
        "quality": sum(correct) / len(correct),
        "distinct_8": expected_distinct(8, answers, correct),
        "distinct_32": expected_distinct(32, answers, correct),
        "classes_8": expected_distinct(8, group["labels"]),
        "classes_32": expected_distinct(32, group["labels"]),
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
    """The seeds' mean; its interval draws seeds again, and of each its prompts. Few seeds make it too narrow."""
    return drawn_again(lambda seed, at: np.mean(np.asarray(seeds[seed])[at]), [len(own) for own in seeds])


def drawn_again(
    of_seed: Callable[[int, np.ndarray], np.ndarray],
    prompts: list[int],
    figure: Callable[[np.ndarray], float] = float,
) -> Interval:
    """A figure of the mean over seeds of what `of_seed` makes of a seed and of which of its prompts."""
    rng = np.random.default_rng(0)
    everything = [np.arange(count) for count in prompts]

    def once() -> float:
        drawn = rng.integers(0, len(prompts), len(prompts))
        return figure(np.mean([of_seed(seed, rng.choice(everything[seed], prompts[seed])) for seed in drawn], 0))

    low, high = np.quantile([once() for _ in range(RESAMPLES)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found = figure(np.mean([of_seed(seed, own) for seed, own in enumerate(everything)], 0))
    return Interval(found, float(low), float(high), prompts[0])


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
        for run in by_arm[arm]:
            same = next((other["prompts"] for other in by_arm[base] if other["seed"] == run["seed"]), run["prompts"])
            if run["prompts"] != same:
                raise ValueError(f"{arm} and {base} of seed {run['seed']} hold out other prompts: make both again")
        for name in names:
            two = [[[each[name] for each in of[seed]] for seed in ends] for of in (ends, bases)]
            cells.append(less(*two))
        lines.append(f"| `{arm}` | {', '.join(map(str, ends))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at_equal_quality(by_arm: dict[str, list[dict]], base: str, figure: str = "distinct_8") -> str:
    """A table: of each arm's end, how much more variety it has than `base` had at the same quality.

    An arm that pushes less ends with more quality and less variety and is not the better one for it; so an arm is held
    against what `base` had when it was as good, earlier in its training, of the same seed. The last column counts the
    seeds whose quality lies between those of `base`'s evaluations: others are held against the nearest of these.
    """
    title = (VERIFIABLE if base.startswith(YEARS) else FIGURES)[figure]
    titles = ["arm", "seeds", "quality", title, f"`{base}` at that quality", "more", "times", "within its qualities"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    curves = {run["seed"]: curve_of(run, figure) for run in by_arm.get(base, [])}
    for arm, runs in by_arm.items():
        seeds = [(curve_of(run, figure)[-1:], curves[run["seed"]]) for run in runs if run["seed"] in curves]
        if arm in (base, f"{YEARS}{UNTRAINED}", UNTRAINED) or not seeds:
            continue
        ends = [end.mean(-1)[0] for end, _ in seeds]
        at_base = [distinct_at(quality, curve) for (quality, _), (_, curve) in zip(ends, seeds, strict=True)]

        def both(seed: int, at: np.ndarray, seeds: list = seeds) -> np.ndarray:
            end, curve = (each[..., at] for each in seeds[seed])
            quality, distinct = end[0].mean(-1)
            return np.array([distinct, distinct_at(quality, curve)])

        prompts = [end.shape[-1] for end, _ in seeds]
        more = drawn_again(both, prompts, lambda found: float(found[0] - found[1]))
        ratio = drawn_again(both, prompts, lambda found: float(found[0] / found[1]))
        within = sum(
            curve.mean(-1)[:, 0].min() <= quality <= curve.mean(-1)[:, 0].max()
            for (quality, _), (_, curve) in zip(ends, seeds, strict=True)
        )
        cells = [f"{mean(q for q, _ in ends):.3f}", f"{mean(d for _, d in ends):.2f}", f"{mean(at_base):.2f}"]
        cells += [shown(more, "+.2f"), shown(ratio, ".2f"), f"{within} of {len(seeds)}"]
        own = [run["seed"] for run in runs if run["seed"] in curves]
        lines.append(f"| `{arm}` | {', '.join(map(str, own))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curve_of(run: dict, figure: str) -> np.ndarray:
    """(evaluations, 2, prompts) quality and variety."""
    return np.array([[[p[name] for p in at["prompts"]] for name in ("quality", figure)] for at in run["curve"]])


def distinct_at(quality: float, curve: np.ndarray) -> float:
    """Variety of a curve_of at this quality: between its evaluations on a line, beyond them that of the nearest.

    An evaluation that another one exceeds in both is not on it.
    """
    qualities, distinct = (column for column in curve.mean(-1)[curve.mean(-1)[:, 0].argsort()].T)
    return float(np.interp(quality, qualities, np.maximum.accumulate(distinct[::-1])[::-1]))


def by_step(by_arm: dict[str, list[dict]], base: str) -> str:
    """A table of quality and variety at each evaluation, with intervals beside `base` of the same seeds and step."""
    bases = {(run["seed"], at["step"]): at["prompts"] for run in by_arm.get(base, []) for at in run["curve"]}
    rows = []
    for arm, runs in by_arm.items():
        seeds = [run["seed"] for run in runs]
        for at, step in enumerate([] if arm.endswith(UNTRAINED) else [each["step"] for each in runs[0]["curve"]]):
            beside = arm != base and all((seed, step) in bases for seed in seeds)
            others = [bases[seed, step] for seed in seeds] if beside else []
            rows.append((arm, seeds, step, [run["curve"][at]["prompts"] for run in runs], others))
    return held_beside("step", rows)


def by_weight(by_arm: dict[str, list[dict]]) -> str:
    """A table of the ends at each weight, beside weight 0, which is quality alone."""
    rows = []
    for kind in whole_kinds(by_arm):
        for weight, arm, runs in (ends := ends_by_weight(by_arm, kind)):
            own, base = ([run["curve"][-1]["prompts"] for run in of] for of in (runs, ends[0][2]))
            row = (arm, [run["seed"] for run in runs], weight, own, base if weight else [])
            rows += [row] if row not in rows else []
    return held_beside("weight", rows)


def beside_the_oracle(by_arm: dict[str, list[dict]]) -> str:
    """A table of the ends at each weight beside the oracle's at the same one, of the seeds that both have."""
    rows = []
    for kind in STRENGTHS[:-1]:
        for (weight, arm), (_, right) in zip(WEIGHTS[kind][1:], WEIGHTS["oracle"][1:], strict=True):
            own, others = (
                {run["seed"]: run["curve"][-1]["prompts"] for run in by_arm.get(of, [])} for of in (arm, right)
            )
            seeds = [seed for seed in own if seed in others]
            if seeds:
                rows.append((arm, seeds, weight, [own[seed] for seed in seeds], [others[seed] for seed in seeds]))
    return held_beside("weight", rows)


def whole_kinds(by_arm: dict[str, list[dict]]) -> list[str]:
    """The kinds of diversity of which each weight has results."""
    return [kind for kind in STRENGTHS if all(arm in by_arm for _, arm in WEIGHTS[kind])]


def ends_by_weight(by_arm: dict[str, list[dict]], kind: str) -> list[tuple[float, str, list[dict]]]:
    """(weight, arm, runs) of a kind of diversity, of the seeds that each weight has."""
    runs = {arm: {run["seed"]: run for run in by_arm[arm]} for _, arm in WEIGHTS[kind]}
    seeds = [seed for seed in runs[kind] if all(seed in own for own in runs.values())]
    return [(weight, arm, [runs[arm][seed] for seed in seeds]) for weight, arm in WEIGHTS[kind]]


def held_beside(what: str, rows: Iterable[tuple[str, list[int], float, list[list[dict]], list[list[dict]]]]) -> str:
    """A table of arm, seeds, a number, its seeds' prompts and those beside which they are held, if there are any."""
    titles = ["arm", "seeds", what, "quality", "less", "distinct of 8", "times", "distinct of 32", "times"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for arm, seeds, number, own, others in rows:
        cells = [f"`{arm}`", ", ".join(map(str, seeds)), str(number)]
        for name in DIFFERENCES:
            ours, theirs = ([[each[name] for each in prompts] for prompts in of] for of in (own, others))
            cells.append(f"{np.mean([*map(np.mean, ours)]):.{3 if name == 'quality' else 2}f}")
            cells.append((less if name == "quality" else times)(ours, theirs) if theirs else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def less(own: list[list[float]], others: list[list[float]]) -> str:
    """By how much the first exceeds the second, of seeds' prompts."""
    return shown(pooled([list(np.subtract(*both)) for both in zip(own, others, strict=True)]), "+.3f")


def times(own: list[list[float]], others: list[list[float]]) -> str:
    """How many times as much as the second the first has, of seeds' prompts."""
    pairs = [np.array(both) for both in zip(own, others, strict=True)]
    ratio = drawn_again(
        lambda seed, at: pairs[seed][:, at].mean(-1), [*map(len, own)], lambda found: float(found[0] / found[1])
    )
    return shown(ratio, ".2f")


def shown(interval: Interval, form: str) -> str:
    return f"{interval.mean:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def seen_in_training(by_arm: dict[str, list[dict]]) -> str:
    """A table, between evaluations: what the classes of the groups trained on make of valid answers, as named."""
    titles = ["arm", "seeds", "steps", "pairs of one answer", "in two classes", "pairs of two", "in one class"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for arm, runs in by_arm.items():
        ends = [at["step"] for at in runs[0]["curve"]]
        for begin, end in zip([0, *ends], ends, strict=False):
            steps = [step for run in runs for step in run["training"] if begin < step["step"] <= end]
            one, split, two, joined = (sum(step[name] for step in steps) for name in PAIRS)
            cells = [", ".join(str(run["seed"]) for run in runs), f"{begin + 1} to {end}"]
            for count, wrong in ((one, split), (two, joined)):
                cells += [f"{count / len(steps):.1f}", f"{wrong / count:.0%}" if count else "–"]
            lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(by_arm: dict[str, list[dict]], figures: dict[str, str] = FIGURES) -> str:
    lines = [
        "| arm | seeds | " + " | ".join(figures.values()) + " | vocabulary |",
        "|" + "---|" * (len(figures) + 3),
    ]
    for arm, runs in by_arm.items():
        cells = [shown(of_arm(runs, figure), ".3f") for figure in figures]
        vocabulary = mean(run["curve"][-1]["vocabulary"] for run in runs)
        seeds = ", ".join(str(run["seed"]) for run in runs)
        lines.append(f"| `{arm}` | {seeds} | " + " | ".join(cells) + f" | {vocabulary:.0f} |")
    made = sorted({(run["commit"], run["machine"]) for runs in by_arm.values() for run in runs})
    steps = sorted({run["curve"][-1]["step"] for runs in by_arm.values() for run in runs})
    lines += ["", f"After step {', '.join(map(str, steps))}. Made at {', '.join(commit for commit, _ in made)}."]
    return "\n".join(lines)


def frontier(by_arm: dict[str, list[dict]], path: Path) -> None:
    """Quality against distinct valid answers of 8: an arm's evaluations as a line, its end with error bars.

    Other weights than 1 have a picture of their own; what was not trained lies far off, and is said in words.
    """
    of_weights = {arm for kind in STRENGTHS for weight, arm in WEIGHTS[kind] if weight not in (0, 1)}
    with picture(path) as axis:
        for k, (arm, runs) in enumerate((arm, runs) for arm, runs in by_arm.items() if arm not in of_weights):
            if arm == UNTRAINED:
                distinct, quality = (of_arm(runs, name).mean for name in ("distinct_8", "quality"))
                said = f"untrained: quality {quality:.2f}, {distinct:.2f} distinct"
                axis.text(0.02, 0.02, said, transform=axis.transAxes, fontsize=9)
                continue
            colour = COLOURS.get(arm, OTHERS[k % len(OTHERS)])
            steps = range(min(len(run["curve"]) for run in runs))
            line = [[of_arm(runs, name, at).mean for at in steps] for name in ("distinct_8", "quality")]
            axis.plot(*line, "-", color=colour, alpha=0.35)
            mark_end(axis, runs, colour, f"{arm} ({len(runs)})")
        axis.legend(title="arm (seeds)", fontsize=8, loc="lower right")


def strengths(by_arm: dict[str, list[dict]], path: Path) -> None:
    """The ends of each kind of diversity by its weight, of the seeds that have all of them, a line from 0 on."""
    with picture(path) as axis:
        for kind in whole_kinds(by_arm):
            ends = ends_by_weight(by_arm, kind)
            line = [[of_arm(runs, name).mean for _, _, runs in ends] for name in ("distinct_8", "quality")]
            axis.plot(*line, "-", color=COLOURS[kind], alpha=0.5)
            for (weight, _, runs), *at in zip(ends, *line, strict=True):
                if weight == 0 and kind != whole_kinds(by_arm)[0]:
                    continue  # it is there already
                mark_end(axis, runs, COLOURS[kind] if weight else COLOURS["quality"], kind if weight == 1 else None)
                axis.annotate(f"{weight:g}", at, (4, 4), textcoords="offset points", fontsize=8)
        seeds = ", ".join(str(run["seed"]) for run in ends[0][2])
        axis.legend(title=f"weight beside the point, seed {seeds}", fontsize=8, loc="lower left")


@contextmanager
def picture(path: Path) -> Iterator:
    """An axis of quality against variety, saved at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel="distinct valid answers among 8 samples", ylabel="quality: share of valid answers")
    axis.grid(alpha=0.3)
    yield axis
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def mark_end(axis, runs: list[dict], colour: str, label: str | None) -> None:
    """The end of an arm's runs with error bars; hollow where it is one run."""
    x, y = (of_arm(runs, name) for name in ("distinct_8", "quality"))
    errors = {"xerr": [[x.mean - x.low], [x.high - x.mean]], "yerr": [[y.mean - y.low], [y.high - y.mean]]}
    style = {"color": colour, "capsize": 3, "label": label}
    style |= {} if len(runs) > 1 else {"markerfacecolor": "white", "elinewidth": 0.7}
    axis.errorbar(x.mean, y.mean, **errors, fmt="o", **style)


def main() -> None:
    by_arm = read()
    if not by_arm:
        raise SystemExit("no results yet: make study")
    parts = {prefix: {a: by_arm.pop(a) for a in list(by_arm) if a.startswith(prefix)} for prefix in (YEARS, LONG)}
    made = [compared(by_arm, "quality")]
    made.append(at_equal_quality(by_arm, "quality", "distinct_32"))
    of_default = {arm: runs for arm, runs in by_arm.items() if arm.startswith(("classes", "expected"))}
    made += ["Beside what `classes` had at the same quality:", at_equal_quality(of_default, "classes")]
    if "oracle" in by_arm:
        beside = of_default | {"oracle": by_arm["oracle"]}
        made += ["Beside what the oracle had at the same quality:", at_equal_quality(beside, "oracle")]
    if whole_kinds(by_arm):
        made += ["By weight, beside weight 0, which is quality alone, of the seeds that have each:", by_weight(by_arm)]
        if "oracle" in whole_kinds(by_arm):
            made += ["Beside the oracle at the same weight:", beside_the_oracle(by_arm)]
        strengths(by_arm, DOCS / "study" / "strengths.png")
        # The oracle's classes are the answers.
        kinds = [kind for kind in whole_kinds(by_arm) if kind != "oracle"]
        of_weights = {arm: by_arm[arm] for kind in kinds for _, arm in WEIGHTS[kind]}
        counted = {
            arm: runs for arm, runs in of_weights.items() if all(PAIRS[0] in run["training"][0] for run in runs)
        }
        if counted:
            made += [MADE_OF_ANSWERS, seen_in_training(counted)]
    if parts[YEARS]:
        made += ["The second task:", table(parts[YEARS], VERIFIABLE)]
        made.append(differences(parts[YEARS], parts[YEARS], f"{YEARS}quality", VERIFIABLE))
        made += [f"By step, beside `{YEARS}quality` at the same step:", by_step(parts[YEARS], f"{YEARS}quality")]
    if parts[LONG]:
        base = f"{LONG}quality"
        made += ["Four times as long:", compared(parts[LONG], base) if base in parts[LONG] else table(parts[LONG])]
        made += [f"By step, beside `{base}` at the same step:", by_step(parts[LONG], base)]
        made += [MADE_OF_ANSWERS, seen_in_training(parts[LONG])]
    put("study.md", "\n\n".join(made))
    put("methods.md", differences(by_arm, METHODS, "classes"))
    frontier(by_arm, DOCS / "study" / "frontier.png")


def compared(by_arm: dict[str, list[dict]], base: str) -> str:
    equal = f"More variety than `{base}` had at the same quality, earlier in its training:"
    return "\n\n".join([table(by_arm), differences(by_arm, by_arm, base), equal, at_equal_quality(by_arm, base)])


def put(name: str, made: str) -> None:
    """Between the marks of a page of docs/."""
    before, rest = (DOCS / name).read_text(encoding="utf-8").split(BEGIN)
    (DOCS / name).write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
