"""A run's `--darling.log_dir` as the page needs it: groups, settings, and what diversity made of each reward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.monitor import TEXT_SIGNS, text_signs
from darling_plugin.log import read_logged_groups, read_run
from darling_plugin.partition import DEFAULT_CLUSTERING
from darling_plugin.shaping import Groups, Shaped, Similarities, shape

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3  # of a reward computed again, to be the one that was logged


@dataclass
class Step:
    """All groups of one step and split, P with n responses each.

    Attributes:
        records: their lines.
        groups: the same as tensors.
        reward: (P, n) as logged.
        shaped: the same made again by the run's own flags; None in evaluation, without them, and where they do not
            give the rewards that were logged (a reward of the user's own).
    """

    number: int
    split: str
    records: list[dict[str, Any]]
    groups: Groups
    reward: torch.Tensor
    shaped: Shaped | None

    @property
    def gain(self) -> torch.Tensor | None:
        """(P, n) what diversity made of each reward: it minus what the group's mean diversity would have made."""
        return None if self.shaped is None else self.shaped.diversity_part


@dataclass
class Run:
    """One run: its name on the page, its flags (empty where there is no run.json), its steps in order."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


def read_runs(log_dirs: list[Path], track: Callable[[list], Iterable] = iter) -> list[Run]:
    """The runs of these folders, named by as much of their paths as tells them apart.

    Args:
        track: passes a list's elements on, and may show how far it is; called once a run.

    Raises DarlingError for a folder without partitions.jsonl or groups in it, one that is named twice, and lines that
    are no groups.
    """
    # A run's own log is that run, which has its flags beside it.
    logs = ("partitions.jsonl", "partitions.jsonl.gz")
    paths = [path.parent.resolve() if path.name in logs else path.resolve() for path in log_dirs]
    for path in paths:
        if paths.count(path) > 1:
            raise DarlingError("different runs", f"{path} twice", "name each once")
    return [_read_run(path, name, track) for path, name in zip(paths, _names(paths), strict=True)]


def _names(paths: list[Path]) -> list[str]:
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    return ["/".join(path.parts[-length:]).strip("/") or "/" for path in paths]


def _read_run(path: Path, name: str, track: Callable[[list], Iterable]) -> Run:
    records = read_logged_groups(path)
    if not records:
        raise DarlingError("groups of a step", f"none yet in {path}", "wait for the first step")
    config, settings = _flags(path)
    together: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for record in records:
        together.setdefault((record["step"], record["split"]), []).append(record)
    run = Run(name, settings)
    for (number, split), group_records in track(sorted(together.items(), key=_order)):
        sizes = {len(record["responses"]) for record in group_records}
        if len(sizes) > 1:
            raise DarlingError(
                "groups of one size in a step", f"{sorted(sizes)} in {path}, step {number}", "name a run's own log_dir"
            )
        groups, reward = as_groups(group_records)
        shaped = _shaped(groups, reward, group_records, config) if split == "train" and config else None
        run.steps.append(Step(number, split, group_records, groups, reward, shaped))
    return run


def _order(item: tuple[tuple[int, str], list]) -> tuple[int, bool]:
    (step, split), _ = item
    return step, split == "eval"  # a step's evaluation comes after its training


def _flags(path: Path) -> tuple[DarlingConfig | None, dict[str, Any]]:
    """The run's flags as its configuration, None without a run.json; and as the page lists them, with the versions."""
    run = read_run(path)
    if not run:
        return None, {}
    flags, known = run["darling"], {each.name for each in fields(DarlingConfig)}
    config = DarlingConfig(**{name: value for name, value in flags.items() if name in known})
    return config, {**flags, **{f"version of {name}": found for name, found in run.get("versions", {}).items()}}


def as_groups(records: list[dict[str, Any]]) -> tuple[Groups, torch.Tensor]:
    """P lines of n responses each as tensors; and the rewards, (P, n).

    Signs that an older log lacks are looked for in the texts, and put into the lines.
    """
    import torch

    n = len(records[0]["responses"])
    for record in records:
        if "signs" not in record:
            seen = [text_signs(record["prompt"], text) for text in record["responses"]]
            record["signs"] = {sign.__name__: [_or_none(each[sign.__name__]) for each in seen] for sign in TEXT_SIGNS}
    lengths, weights = ([record.get(key) for record in records] for key in ("response_length", "weight"))
    nothing = [[0.0] * n] * n
    similarity = [record.get("similarity") or nothing for record in records]
    groups = Groups(
        quality=torch.tensor([record["quality"] for record in records], dtype=torch.float32),
        labels=torch.tensor([record["labels"] or [-1] * n for record in records], dtype=torch.long),
        diversity=torch.tensor([record["diversity"] or [0.0] * n for record in records], dtype=torch.float32),
        quality_only=torch.tensor([record["labels"] is None for record in records]),
        # The step shapes by their values alone.
        similarities=Similarities(torch.tensor(similarity), threshold=0.5, clustering=DEFAULT_CLUSTERING)
        if any("similarity" in record for record in records)
        else None,
        length=None if None in lengths else torch.tensor(lengths, dtype=torch.float32),
        weight=None if None in weights else torch.tensor(weights, dtype=torch.float32),
        signs={
            sign.__name__: torch.tensor(
                [
                    [
                        float("nan") if value is None else value
                        for value in record["signs"].get(sign.__name__, [None] * n)
                    ]
                    for record in records
                ]
            )
            for sign in TEXT_SIGNS
        },
    )
    return groups, torch.tensor([record["reward"] for record in records], dtype=torch.float32)


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _shaped(
    groups: Groups, reward: torch.Tensor, records: list[dict[str, Any]], config: DarlingConfig
) -> Shaped | None:
    import torch

    try:
        shaped = shape(groups, config, lambda made: made)
    except DarlingError:  # a reward or an advantage that only the run's own --darling.import_path registers
        return None
    penalty = torch.tensor([record.get("length_penalty") or [0.0] * reward.shape[1] for record in records])
    same = torch.allclose(shaped.unpenalized_reward, reward - penalty, atol=TOLERANCE, rtol=TOLERANCE)
    return shaped if same else None
