"""Figures a step: those that training logs, computed from a run's log by the same functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from darling_plugin import metrics
from darling_plugin.evaluation import monitor
from darling_plugin.evaluation.report.runs import Run, Step


def _signal(step: Step) -> float | None:
    return None if step.shaped is None else metrics.signal(step.shaped, None)


def _length(step: Step) -> float | None:
    return None if step.groups.length is None else step.groups.length.mean().item()


FIGURES: dict[str, Callable[[Step], float | None]] = {
    "quality": lambda step: metrics.quality(step.groups),
    "diversity": lambda step: metrics.diversity(step.groups),
    "classes_per_group": lambda step: metrics.classes_per_group(step.groups),
    "reward": lambda step: step.reward.mean().item(),
    "signal": _signal,
    "response_length": _length,
    "one_class_share": lambda step: metrics.one_class_share(step.groups),
    "flat_share": lambda step: metrics.flat_share(step.groups),
}


@dataclass
class Curves:
    """The figures of one run and split.

    Attributes:
        steps: (S,) the steps in order.
        figures: by name, one value a step or None; first those of training, then the monitor's as monitor/NAME.
        warnings: (step, figure, what is said), of the monitor.
    """

    steps: list[int] = field(default_factory=list)
    figures: dict[str, list[float | None]] = field(default_factory=dict)
    warnings: list[tuple[int, str, str]] = field(default_factory=list)


def curves(run: Run, split: str) -> Curves:
    """The curves of the run's steps of that split; of one response a group the quality, reward and length alone."""
    made, watch = Curves(), monitor.MonitorWatch()
    names = [*FIGURES, *(monitor.PREFIX + figure.__name__ for figure in monitor.FIGURES)]
    made.figures = {name: [] for name in names}
    for step in (step for step in run.steps if step.split == split):
        made.steps.append(step.number)
        alone = step.reward.shape[1] == 1
        signs = {} if alone else metrics.monitor_figures(metrics.monitor_metrics(step.groups))
        for name, figure in FIGURES.items():
            defined = not alone or name in ("quality", "reward", "response_length")
            made.figures[name].append(figure(step) if defined else None)
        for figure in monitor.FIGURES:
            made.figures[monitor.PREFIX + figure.__name__].append(signs.get(figure.__name__))
        made.warnings += [(step.number, name, said) for name, said in watch.see(signs).items()]
    made.figures = {name: values for name, values in made.figures.items() if any(v is not None for v in values)}
    return made
