"""Every `--darling.*` flag: one field of one frozen dataclass, with its type, default, help and check."""

import argparse
import json
import math
import os
import re
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from darling_plugin.diversity import DIVERSITIES
from darling_plugin.errors import DarlingError, spelled
from darling_plugin.log import groups_with_text
from darling_plugin.partition.clustering import CLUSTERINGS, check_clustering
from darling_plugin.partition.text import read_partition_text
from darling_plugin.quality_gate import NONE, read_quality_gate
from darling_plugin.registry import advantages, nearest, rewards
from darling_plugin.reward import FOR_POSITIVE_QUALITY, QUALITY_TRANSFORMS
from darling_plugin.weight import read_prompt_weight, read_weight_schedule, schedule_steps

PREFIX = "--darling."
# Partition models whose argument may be a folder.
TAKES_A_PATH = (
    *("head", "embedding", "cross-encoder", "vllm"),
    *("darling-modernbert", "darling-qwen3-math", "noveltybench-deberta"),
)
# Advantages; most rewards would count it twice.
HOLD_DIVERSITY = ("diversity_weighted", "inverse_class_size", "leave_one_out")
WITHOUT_DIVERSITY = ("centered", "centered_std")
# Beyond all of these a response that is like many would be paid for being wrong, or punished for being right.
AT_MOST_ALL = ("redundancy", "marginal_relevance", "reasoning_novelty", "inverse_class_size")
# Flags of earlier versions, and what to write in their place.
REPLACED = {"correct_only": "quality_gate above:0"}
AUTO = "auto"  # --darling.num_partition_actors
ENVIRONMENT_VARIABLE = "DARLING_PLUGIN_CONFIG"


def _flag(default: Any, help: str, *, type: type = str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "type": type, "choices": choices})


def number_or_auto(text: str) -> int | str:
    return AUTO if text == AUTO else int(text)


@dataclass(frozen=True)
class DarlingConfig:
    """The resolved flags. Built once by the launcher, carried to every Ray worker in one environment variable."""

    enable: bool = _flag(False, "train with DARLING; without it nothing is patched", type=bool)
    partition_model: str = _flag(
        "default",
        "what sorts a prompt's responses into classes: default, head:PATH, lexical, lexical:N, embedding, "
        "embedding:PATH, cross-encoder:PATH, darling-modernbert, darling-qwen3-math, noveltybench-deberta, vllm:PATH, "
        "served:URL[,URL...], judge:URL, answer, a name you registered, package.module:Class, or file.py:Class; "
        "options of the model may follow, as in cross-encoder:PATH?max_length=4096&both_orders=true",
    )
    threshold: float | None = _flag(
        None, "similarity above which two responses are equivalent; default: the partition model's own", type=float
    )
    clustering: str | None = _flag(
        None,
        "similarities to classes: union_find (the official code), greedy (NoveltyBench's evaluation), average (by the "
        "mean similarity: one unsure pair joins no two classes); default: the partition model's own, average for "
        "default and heads, else union_find",
        type=check_clustering,
        choices=CLUSTERINGS,
    )
    diversity: str = _flag(
        "classes",
        "a response's diversity: classes (the paper: the share of the others in other classes), pairs (the share of "
        "the others decided to differ from it, whatever the classes), expected (the mean over the others of 1 minus "
        "the probability of being equivalent: less noise, and flatter)",
        choices=DIVERSITIES,
    )
    weight: float = _flag(
        1.0,
        "how strongly diversity counts: it enters as 1 - WEIGHT + WEIGHT * diversity, then the floor. 0 is quality "
        "alone, 1 the paper, more is allowed, except with redundancy, marginal_relevance, reasoning_novelty and "
        "inverse_class_size",
        type=float,
    )
    weight_schedule: str | None = _flag(
        None,
        "the weight by OpenRLHF's global step, in place of one for all: STEP:WEIGHT[,STEP:WEIGHT...], as "
        "0:0,100:1,1000:0.5; linear in between, constant before and after",
    )
    prompt_weight: str | None = _flag(
        None,
        "a prompt's own weight, a factor of the other: KEY (of its label, then a JSON object), "
        "package.module:function or file.py:function (of prompt and label). 0 trains a prompt on quality alone",
    )
    partition_text: str = _flag(
        "whole",
        "what of a response is compared: whole, after:STRING (what follows the last one, as after:</think>), "
        "before:STRING, regex:PATTERN (its first group), package.module:function or file.py:function (of prompt and "
        "response). A response without it counts as empty. Reward and training see all of it",
    )
    diversity_floor: float = _flag(
        0.1, "diversity below this counts as this (the official code's 0.1; 0 is the paper's equation)", type=float
    )
    reward: str = _flag(
        "multiply",
        "how quality and diversity make the reward: multiply, additive, quality, redundancy (DRA-GRPO), "
        "marginal_relevance (MMR-GRPO), nearest_neighbour (MoDA), reasoning_novelty (EVOL-RL), "
        "or yours",
    )
    advantage: str | None = _flag(
        None,
        "how a group's rewards make advantages, under --algo.advantage.estimator dr_grpo: centered (the paper; the "
        "default there), centered_std, diversity_weighted, inverse_class_size (uniqueness-aware RL), leave_one_out "
        "(SetPO), or yours. Other estimators make their own of DARLING's rewards",
    )
    quality_transform: str | None = _flag(
        None,
        "applied to quality first: raw (the official code), sigmoid, group_min (minus the group's minimum). "
        "Default: none, and a negative quality under multiply stops the run",
        choices=tuple(QUALITY_TRANSFORMS),
    )
    quality_gate: str = _flag(
        NONE,
        "who takes part in the partition; the others get diversity 0: none (all), above:VALUE (quality above VALUE; "
        "above:0 for correct ones), top:SHARE (the best of the group), reference:ALPHA (quality of at least the "
        "group's min + ALPHA * (max - mean)), or yours",
    )
    num_partition_actors: int | str = _flag(
        1,
        "Ray actors that hold a copy of the partition model; auto: as many as hide scoring behind generation, by what "
        "is measured at the start, at most half of the free CPUs, or the free GPUs",
        type=number_or_auto,
    )
    gpus_per_partition_actor: float = _flag(0.0, "GPU share of each; 0 partitions on the CPU", type=float)
    partition_sleep: bool = _flag(
        False,
        "move the partition model's weights off the GPU when no group has come for a second, as while training has "
        "the GPU; the next group waits for them",
        type=bool,
    )
    partition_timeout: float = _flag(
        1800.0,
        "seconds that the partition model may be silent over the groups it is given together, of a million characters "
        "at most (after each batch or server's answer default, head:, embedding, cross-encoder:, served: and judge: "
        "show that they are at work); after longer its process is started again and they are tried one by one, and "
        "one that takes longer alone cannot be partitioned",
        type=float,
    )
    start_timeout: float = _flag(
        600.0, "seconds for the partition actors to find room and load their model, at the start", type=float
    )
    on_error: str = _flag(
        "fail",
        "when a group cannot be partitioned: fail (stop the run) or quality_only (train it on quality, count it)",
        choices=("fail", "quality_only"),
    )
    quality_only_limit: float = _flag(
        0.5,
        "under --darling.on_error quality_only: the run stops when more than this share of the last 64 training "
        "groups could not be partitioned; 1 never stops it",
        type=float,
    )
    log_dir: str | None = _flag(None, "folder for partitions.jsonl (a line a group) and run.json (flags, versions)")
    log_responses: str = _flag(
        "all",
        "of which training groups partitions.jsonl has the responses' texts: all, none, or sample:N, of N groups a "
        "step at random; the numbers of all groups are there, and evaluation's texts always",
    )
    log_groups_every: int = _flag(
        10,
        "steps from one table to the next, in W&B and TensorBoard, of the groups with the highest and the lowest mean "
        "reward and of one at random, with classes; the first step has one, too; 0: none",
        type=int,
    )
    import_path: str | None = _flag(
        None, "Python file or module that registers partition models, rewards or advantages; imported first"
    )
    cpu: bool = _flag(
        False, "run OpenRLHF without a GPU, for trying a recipe out; works without --darling.enable too", type=bool
    )

    def check(self) -> None:
        """Raises DarlingError for a value no run can use. Names are looked up after the user's code is imported."""
        rewards.get(self.reward)
        read_partition_text(self.partition_text)
        read_quality_gate(self.quality_gate)
        self._check_weight()
        if self.advantage is not None:
            advantages.get(self.advantage)
        built_in = rewards.get(self.reward).__module__.startswith("darling_plugin.")
        if self.advantage in HOLD_DIVERSITY and built_in and self.reward != "quality":
            raise DarlingError(
                f"a reward without diversity for {spelled('advantage')} {self.advantage}, which has it",
                f"{spelled('reward')} {self.reward}, which would count it twice",
                f"set {spelled('reward')} quality",
            )
        if not 0.0 <= self.diversity_floor <= 1.0:
            raise _bad_value("diversity_floor", "a number from 0 to 1", self.diversity_floor)
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise _bad_value("threshold", "a finite number", self.threshold)
        if self.num_partition_actors != AUTO and self.num_partition_actors < 1:
            raise _bad_value("num_partition_actors", "at least 1", self.num_partition_actors)
        for name in ("partition_timeout", "start_timeout"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise _bad_value(name, "a finite number of seconds above 0", seconds)
        if not 0.0 <= self.quality_only_limit <= 1.0:
            raise _bad_value("quality_only_limit", "a share from 0 to 1", self.quality_only_limit)
        groups_with_text(self.log_responses, step=0, count=1)
        if self.log_groups_every < 0:
            raise _bad_value("log_groups_every", "a number of steps, or 0", self.log_groups_every)
        gpus = self.gpus_per_partition_actor
        if not (0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0)):  # Ray lends a share of one, or whole ones
            raise _bad_value("gpus_per_partition_actor", "a share of a GPU from 0 to 1, or a whole number", gpus)
        self._check_sleep()
        self._check_gate()
        self._check_correctness()

    def _check_sleep(self) -> None:
        if self.partition_sleep and not self.gpus_per_partition_actor:
            raise DarlingError(
                f"a GPU for {spelled('partition_sleep')} to give back",
                f"{spelled('gpus_per_partition_actor')} 0: the partition model is on the CPU",
                f"drop it, or set {spelled('gpus_per_partition_actor')}",
            )

    def _check_weight(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise _bad_value("weight", "a number of 0 or more", self.weight)
        largest = self.weight
        if self.weight_schedule is not None:
            largest = max(map(read_weight_schedule(self.weight_schedule), schedule_steps(self.weight_schedule)))
        if self.prompt_weight is not None:
            read_prompt_weight(self.prompt_weight)
        self.check_largest_weight(largest)
        if self.weight != 1 and self.weight_schedule is not None:
            raise DarlingError(
                f"{spelled('weight')} or {spelled('weight_schedule')}",
                f"{self.weight:g} and {self.weight_schedule}",
                "drop one: the schedule takes the other's place",
            )
        set_here = [name for name in ("weight_schedule", "prompt_weight") if getattr(self, name) is not None]
        changed = ["weight"] * (self.weight != 1) + set_here
        if changed and self.reward == "additive":
            raise DarlingError(
                f"a reward that {spelled(changed[0])} changes",
                f"{spelled('reward')} additive, which standardizes the diversity: all weights but 0 come to the same",
                f"drop {spelled(changed[0])}, or set {spelled('reward')} multiply; without diversity it is quality",
            )
        if changed and self.reward == "quality" and self.advantage in (None, *WITHOUT_DIVERSITY):
            raise DarlingError(
                f"a reward or an advantage that {spelled(changed[0])} changes",
                f"{spelled('reward')} quality without one of the advantages that diversity enters",
                f"drop {spelled(changed[0])}, or set {spelled('reward')} multiply",
            )

    def check_largest_weight(self, largest: float) -> None:
        """Raises DarlingError for a weight above 1 of a reward or an advantage whose sign it may turn."""
        bounded = [name for name in (self.reward, self.advantage) if name in AT_MOST_ALL]
        if bounded and largest > 1:
            raise DarlingError(
                f"a weight of diversity of at most 1, the whole of it, for {bounded[0]}: above it the sign of what a "
                "response earns may turn",
                f"{largest:g}",
                f"lower {spelled('weight')}, or what {spelled('weight_schedule')} or {spelled('prompt_weight')} make "
                f"of it; {spelled('reward')} multiply has a floor",
            )

    def _check_gate(self) -> None:
        """Raises DarlingError where what a gate leaves out, the worst, would be spared what it deserves."""
        if self.quality_gate != NONE and self.quality_transform == "raw" and self.reward in FOR_POSITIVE_QUALITY:
            raise DarlingError(
                f"qualities of at least 0 for {spelled('reward')} {self.reward} with {spelled('quality_gate')} "
                f"{self.quality_gate}: what it leaves out keeps a share of its quality, and a share of a negative one "
                "is more than all of it",
                f"{spelled('quality_transform')} raw",
                f"choose sigmoid or group_min; of qualities of at least 0 drop {spelled('quality_transform')}",
            )

    def _check_correctness(self) -> None:
        """reasoning_novelty takes a quality above 0 for right: a transformed one is no longer so."""
        if self.reward == "reasoning_novelty" and self.quality_transform not in (None, "raw"):
            raise DarlingError(
                f"{spelled('reward')} reasoning_novelty with the quality as it is: above 0 is right",
                f"{spelled('quality_transform')} {self.quality_transform}",
                f"drop {spelled('quality_transform')}",
            )

    def reads(self, one_of: str) -> bool:
        """Whether the reward or the advantage takes that input, as "similarity". After the user's code is imported."""
        advantage = self.advantage is not None and advantages.reads(self.advantage, one_of)
        return advantage or rewards.reads(self.reward, one_of)

    def goes_by_diversity(self) -> bool:
        """Whether reward or advantage take the diversity itself, and not similarity or labels, or none of them."""
        registries = ((rewards, self.reward, ("quality",)), (advantages, self.advantage, WITHOUT_DIVERSITY))
        return any(
            name not in (None, *without) and not (registry.reads(name, "similarity") or registry.reads(name, "labels"))
            for registry, name, without in registries
        )

    def with_absolute_paths(self) -> "DarlingConfig":
        """The same, with the user's files and folders resolved against the current folder.

        That is log_dir, path.py, path.py:name, and an existing folder after the name of a model that takes a path.
        What is in a model's query stays as it is.
        """
        changed = {"log_dir": self.log_dir and os.path.abspath(self.log_dir)}
        for name in ("import_path", "partition_model", "partition_text", "prompt_weight"):
            # path.py, path.py:Class?option=value
            file = re.fullmatch(r"([^:?]+\.py)(:.*)?", getattr(self, name) or "", re.DOTALL)
            if file:
                changed[name] = os.path.abspath(os.path.expanduser(file[1])) + (file[2] or "")
        kind, _, argument = self.partition_model.partition(":")
        folder, question, options = argument.partition("?")
        # What is not there may be a name on the Hub.
        if kind in TAKES_A_PATH and os.path.isdir(folder):
            changed["partition_model"] = f"{kind}:{os.path.abspath(folder)}{question}{options}"
        return replace(self, **changed)

    def to_environment(self) -> dict[str, str]:
        return {ENVIRONMENT_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> "DarlingConfig":
        """The launcher's configuration, in any process of the job; flags at their defaults where there is none."""
        return cls(**json.loads(os.environ.get(ENVIRONMENT_VARIABLE, "{}")))


def build_parser() -> argparse.ArgumentParser:
    """A parser of our flags alone. No abbreviations: they would swallow OpenRLHF's own flags."""
    parser = _Parser(prog="python3 -m darling_plugin", add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    add_flags(parser)
    return parser


def add_flags(parser: argparse.ArgumentParser, dest: str = "") -> None:
    """Adds our flags to a parser; the name of each in its namespace is `dest` and the field's."""
    group = parser.add_argument_group("DARLING (darling-plugin)")
    for flag in fields(DarlingConfig):
        add_flag(group, flag, PREFIX + flag.name, dest + flag.name)


def add_flag(group: Any, flag: Field, name: str, dest: str) -> None:
    """Adds the command-line option of one field of DarlingConfig to an argparse parser or group."""
    kwargs: dict[str, Any] = {"dest": dest, "default": flag.default}
    if flag.metadata["type"] is bool:
        kwargs |= {"action": "store_true", "help": flag.metadata["help"]}
    else:
        shown = "" if flag.default is None else f" (default: {flag.default})"
        kwargs |= {
            "type": flag.metadata["type"],
            "choices": flag.metadata["choices"],
            "help": flag.metadata["help"] + shown,
        }
        if flag.metadata["choices"] is None:
            kwargs["metavar"] = flag.metadata["type"].__name__.upper()
    group.add_argument(name, **kwargs)


def parse(argv: list[str]) -> tuple[DarlingConfig, list[str]]:
    """Splits argv into our flags and the rest, which is OpenRLHF's and keeps its order.

    Raises DarlingError for an unknown `--darling.*` flag (with the nearest known one), a value of the wrong type, or
    a flag that would do nothing because `--darling.enable` is missing.
    """
    known = [PREFIX + flag.name for flag in fields(DarlingConfig)]
    given = [word.split("=", 1)[0] for word in argv if word.startswith("--darling")]
    for word in given:
        if word.removeprefix(PREFIX) in REPLACED:
            raise DarlingError(
                "a flag of darling-plugin", word, f"it is {PREFIX}{REPLACED[word.removeprefix(PREFIX)]} now"
            )
        if word not in known:
            raise DarlingError("a flag of darling-plugin", word, f"{nearest(word, known)}known: {', '.join(known)}")
    namespace, rest = build_parser().parse_known_args(argv)
    config = DarlingConfig(**vars(namespace))
    needless = sorted(set(given) - {PREFIX + "enable", PREFIX + "cpu"})
    if needless and not config.enable:
        raise DarlingError(
            f"{PREFIX}enable beside the other {PREFIX}* flags",
            f"{', '.join(needless)} without it: the run would train without DARLING",
            f"add {PREFIX}enable, or drop the flags",
        )
    return config, rest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise DarlingError("flags of darling-plugin with values of their type", message, "see --help")


def _bad_value(option: str, needed: str, found: object) -> DarlingError:
    return DarlingError(f"{spelled(option)}: {needed}", repr(found), "change it")
