"""The pictures of darling-evaluate (quality against diversity, pass@k) and of darling-compare-methods."""

from __future__ import annotations

from pathlib import Path

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.evaluation.measures import Interval
from darling_plugin.evaluation.methods import Comparison, shown


def draw(path: Path, summaries: dict[str, dict[str, Interval]]) -> bool:
    """Quality against diversity where there is a quality, pass@k where correctness is known; False if neither is.

    Raises DarlingError without matplotlib.
    """
    names = {name for each in summaries.values() for name in each}
    panels = [
        panel
        for name, panel in (("quality", _frontier), ("pass@", _passes))
        if any(each.startswith(name) for each in names)
    ]
    if not panels:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DarlingError("matplotlib, for the picture", f"{error}", "pip install matplotlib, or drop -o") from error
    figure = Figure(figsize=(5.6 * len(panels), 4.6), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axis, summaries)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:  # of one response there is no diversity
            for text in axis.legend().get_texts():
                text.set_parse_math(False)  # a model's name may have two $
    figure.savefig(path, dpi=120)
    return True


def _frontier(axis, summaries: dict[str, dict[str, Interval]]) -> None:
    for k, (name, found) in enumerate(summaries.items()):
        if "quality" in found and "diversity" in found:
            _point(axis, found["diversity"], found["quality"], f"C{k % 10}", _label(name))
    axis.set(xlabel="diversity", ylabel="quality", title="Quality and variety")


def _passes(axis, summaries: dict[str, dict[str, Interval]]) -> None:
    all_ks = sorted({int(each[5:]) for found in summaries.values() for each in found if each.startswith("pass@")})
    for place, (name, found) in enumerate(summaries.items()):
        # Those that all of its prompts have: further on the curve would be of others.
        most = max((each.prompts for name, each in found.items() if name.startswith("pass@")), default=0)
        ks = [k for k in all_ks if f"pass@{k}" in found and found[f"pass@{k}"].prompts == most]
        values = [found[f"pass@{k}"] for k in ks]
        colour = f"C{place % 10}"
        if ks:
            axis.plot(ks, [each.mean for each in values], "o-", color=colour, label=_label(name))
            axis.fill_between(ks, [v.low for v in values], [v.high for v in values], color=colour, alpha=0.15)
    axis.set(xlabel="k", ylabel="pass@k", title="Any of k correct", xscale="log", ylim=(0, 1.02))
    axis.set_xticks(all_ks, [str(k) for k in all_ks])
    axis.minorticks_off()


def _label(name: str) -> str:
    return f" {name}" if name.startswith("_") else name  # else the legend leaves it out


def _point(axis, x: Interval, y: Interval, colour: str, name: str) -> None:
    errors = {"xerr": [[x.mean - x.low], [x.high - x.mean]], "yerr": [[y.mean - y.low], [y.high - y.mean]]}
    axis.errorbar(x.mean, y.mean, **errors, fmt="o", color=colour, capsize=3, label=name)


def draw_correlations(file: Path, comparison: Comparison) -> None:
    """Writes a comparison of the methods as a picture, in a format that the file's name ends in, as .png or .svg.

    Raises DarlingError where it cannot be drawn or written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DarlingError(f"matplotlib, for {spelled('picture')}", f"{error}", "pip install matplotlib") from error
    names = list(comparison.silent)
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    plot = figure.add_subplot(title=f"Rank correlation within a group, mean of {len(comparison.groups)}")
    picture = plot.imshow(comparison.rank_correlation, vmin=-1, vmax=1, cmap="RdBu")
    plot.set_xticks(range(len(names)), names, rotation=45, ha="right")
    plot.set_yticks(range(len(names)), names)
    for row, values in enumerate(comparison.rank_correlation):
        for column, value in enumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            plot.text(column, row, shown(value), ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(picture, shrink=0.8)
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:  # another folder, or another ending
        raise DarlingError("a picture's file, as methods.png", f"{file}: {error}", "name another") from error
