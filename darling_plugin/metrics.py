"""Every metric that the plugin logs: one function each. OpenRLHF shows them as `train/darling/…` and `eval/darling/…`.

Those of the monitor, the signs of gaming, are defined in `evaluation/monitor.py`.

A function that returns None has nothing to say about this step; its key is then left out.

Another one is a function here, its name in IN_BOTH or IN_TRAINING, and a row in docs/how-it-works.md. To be a curve of
darling-report it also needs a line in evaluation/report/curves.py and its title in charts.js.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darling_plugin.errors import spelled
from darling_plugin.evaluation import monitor
from darling_plugin.evaluation.within_group import FLAT

if TYPE_CHECKING:
    import torch

    from darling_plugin.shaping import Groups, Shaped

PREFIX = "darling/"
GROUPS_TABLE = f"train/{PREFIX}groups"  # a table and no number: openrlhf/group_tables.py sends it itself


@dataclass
class Scoring:
    """When and how long P groups were partitioned.

    Attributes:
        generated_at, scored_at: (P,) int64 microseconds on the partition actors' clocks.
        seconds: (P,) each group's part of the time of the batch it was in.
    """

    generated_at: torch.Tensor
    scored_at: torch.Tensor
    seconds: torch.Tensor


# ── Of training and of evaluation ──


def quality(groups: Groups) -> float:
    """Mean quality, as the reward function or reward model gave it."""
    return groups.quality.mean().item()


def diversity(groups: Groups) -> float | None:
    """Mean diversity of the responses that take part, by --darling.diversity, before weight and floor."""
    takes_part = groups.labels >= 0
    return groups.diversity[takes_part].mean().item() if takes_part.any() else None


def classes_per_group(groups: Groups) -> float | None:
    """Mean number of classes among a prompt's responses."""
    classes = _classes(groups)
    return classes.mean().item() if len(classes) else None


def one_class_share(groups: Groups) -> float | None:
    """Share of groups in which all responses that take part say the same, of those in which two or more do."""
    several = (groups.labels >= 0).sum(-1) > 1
    classes = (groups.labels.amax(-1) + 1)[several].float()
    return (classes == 1).float().mean().item() if len(classes) else None


def flat_share(groups: Groups) -> float | None:
    """Share of groups whose responses all have one diversity, by --darling.diversity: the advantage sees none of it,
    unless reward or advantage read the similarities themselves.

    What a quality gate leaves out has diversity 0: a group is flat where all are left out, and not where some are.
    """
    given = groups.diversity[~groups.quality_only]
    return (given.amax(-1) - given.amin(-1) < FLAT).float().mean().item() if len(given) else None


def text_missing(groups: Groups) -> float | None:
    """Share of responses that lack the text that is compared (--darling.partition_text), and so count as empty."""
    return None if groups.text_missing is None else groups.text_missing.float().mean().item()


def cut_share(groups: Groups) -> float | None:
    """Share of the responses, or pairs, that the partition model did not read to their end; none if it reads all."""
    return None if groups.cut_share is None else groups.cut_share.mean().item()


def quality_only_groups(groups: Groups) -> float:
    """Number of groups that could not be partitioned: in training these are trained on their quality alone."""
    return float(groups.quality_only.sum().item())


# ── Of training ──


def floor_share(shaped: Shaped, scoring: Scoring) -> float | None:
    """Share of responses whose diversity is the floor's or less."""
    takes_part = shaped.groups.labels >= 0
    at_floor = shaped.counted_diversity[takes_part] <= shaped.diversity_floor
    return at_floor.float().mean().item() if takes_part.any() else None


def weight(shaped: Shaped, scoring: Scoring) -> float:
    """Mean weight of diversity over the groups: --darling.weight, or what schedule and prompts make of it."""
    return shaped.weight.mean().item()


def reward(shaped: Shaped, scoring: Scoring) -> float:
    """Mean reward that OpenRLHF trains on, after its length penalties."""
    return shaped.reward.mean().item()


def signal(shaped: Shaped, scoring: Scoring) -> float | None:
    """Mean over the groups of the standard deviation, within the group, of what diversity makes of the reward.

    That is the reward minus the one that all the group would have with their mean diversity. 0: diversity is not
    trained on.
    """
    part = shaped.diversity_part
    return None if part is None else part.std(dim=-1, correction=0).mean().item()


def scoring_seconds(shaped: Shaped, scoring: Scoring) -> float:
    """Time the partition actors spent on this step's groups, summed."""
    return scoring.seconds.sum().item()


def scoring_wait_seconds(shaped: Shaped, scoring: Scoring) -> float:
    """From the end of the last group's generation to the end of the last scoring."""
    return max(0.0, (scoring.scored_at.max() - scoring.generated_at.max()).item() / 1e6)


IN_BOTH: tuple[Callable, ...] = (
    *(quality, diversity, classes_per_group, one_class_share),
    *(flat_share, text_missing, cut_share, quality_only_groups),
)
IN_TRAINING: tuple[Callable, ...] = (floor_share, weight, reward, signal, scoring_seconds, scoring_wait_seconds)


def training_metrics(shaped: Shaped, scoring: Scoring) -> dict[str, float]:
    """The metrics of one training step, by key."""
    return _named(IN_BOTH, shaped.groups) | _named(IN_TRAINING, shaped, scoring) | monitor_metrics(shaped.groups)


def evaluation_metrics(groups: Groups) -> dict[str, float]:
    """The metrics of one evaluation, by key; none where a group is one response: it has no others to differ from."""
    return _named(IN_BOTH, groups) | monitor_metrics(groups) if groups.quality.shape[1] > 1 else {}


def monitor_metrics(groups: Groups) -> dict[str, float]:
    """The monitor's figures of one step, by key."""
    return _named(monitor.FIGURES, groups, prefix=PREFIX + monitor.PREFIX)


def monitor_figures(logged: dict[str, float]) -> dict[str, float]:
    """The monitor's figures among the metrics of one step, by their own names."""
    prefix = PREFIX + monitor.PREFIX
    return {key.removeprefix(prefix): value for key, value in logged.items() if key.startswith(prefix)}


class SignalWatch:
    """Says once that in MOST of the last STEPS steps diversity has told training nothing.

    Args:
        silent: where neither reward nor advantage goes by the diversity.
        gated: whether there is a quality gate. Then it goes by flat groups and the floor alone: who passes makes a
            difference, too, though all who do may have one diversity.
    """

    STEPS, MOST = 20, 18  # a step has few groups, and one of them with another number of classes is no signal yet

    def __init__(self, *, gated: bool, silent: bool = False) -> None:
        self._gated, self._silent = gated, silent
        self._seen: deque[tuple[bool, ...]] = deque(maxlen=self.STEPS)
        self._said = False

    def see(self, logged: dict[str, float]) -> str | None:
        """The warning, at the step at which it is due; None at all others.

        Args:
            logged: training_metrics of the next step. One without any partitioned group is no evidence of anything.
        """
        mean, flat = logged.get(PREFIX + "diversity"), logged.get(PREFIX + "flat_share")
        if flat is None or self._silent:
            return None
        says = mean is not None and not self._gated
        floored = logged.get(PREFIX + "floor_share", 0.0)
        self._seen.append((says and mean > 0.95, says and mean < 0.05, flat >= 0.9, floored >= 0.9))
        if self._said or len(self._seen) < self.STEPS:
            return None
        mostly = [sum(column) >= self.MOST for column in zip(*self._seen, strict=True)]
        if not any(mostly):
            return None
        self._said = True
        found = (
            "nearly every response counts as different from all others",
            "nearly all responses count as the same",
            "in nine groups of ten all responses have one diversity",
            f"nine responses of ten count with {spelled('diversity_floor')} alone",
        )[mostly.index(True)]
        lacking = logged.get(PREFIX + "text_missing", 0.0)
        return (
            f"In {self.MOST} of {self.STEPS} steps or more {found}, so diversity tells training next to nothing. Try "
            f"another partition model or {spelled('threshold')}, {spelled('diversity')} expected, "
            + (f"a {spelled('quality_gate')} that more responses pass, " if self._gated else "")
            + (f"a lower {spelled('weight')} or {spelled('diversity_floor')}, " if mostly.index(True) == 3 else "")
            + (f"another {spelled('partition_text')}, which {lacking:.0%} of them lack, " if lacking >= 0.5 else "")
            + "a longer look at the groups (darling-show), or more responses a prompt."
        )


def _named(functions: tuple[Callable, ...], *arguments: object, prefix: str = PREFIX) -> dict[str, float]:
    values = {prefix + function.__name__: function(*arguments) for function in functions}
    return {key: value for key, value in values.items() if value is not None}


def _classes(groups: Groups) -> torch.Tensor:
    """Number of classes of each group of which any response takes part, float32."""
    partitioned = (groups.labels >= 0).any(dim=-1)
    return (groups.labels.amax(dim=-1) + 1)[partitioned].float()
