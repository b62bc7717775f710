"""DARLING for OpenRLHF: train a language model for quality and diversity together (arXiv 2509.02534).

responses of one prompt -> partition model -> labels (n,) -> diversity (n,) -+
                                                                             +-> reward -> advantage -> OpenRLHF
quality from OpenRLHF's reward function or reward model (n,) ----------------+

partition/       sorts the n responses of a prompt into classes that say the same thing
quality_gate.py  which responses take part in that
diversity.py     labels, or similarities -> how far each response stands apart from the others
reward.py        quality and diversity -> reward
advantage.py     reward -> advantage
methods/         the field's other rewards and advantages, which may see similarities and classes, too
weight.py        how strongly diversity counts, by the step and the prompt
shaping.py       the order of it all: gate, quality-only groups, weight, floor, reward, OpenRLHF's penalties, advantage
metrics.py       what is logged about all of it
log.py           partitions.jsonl and run.json, written and read again
openrlhf/        the only folder that knows OpenRLHF and Ray: it carries the above into the training loop

commands/        darling-partition, -evaluate, -report, -show, -compare-methods, -train-partition, -label-pairs
training/        partition models from labels, labels from a judge
evaluation/      a model's samples measured, runs as a page, the signs that diversity is gamed, the methods compared
check.py         what a run with DARLING needs of a machine or cluster, tried out

queries.py       a prompt and its response in one text -> the response, for reward functions
final_answer.py  a response to a maths problem -> the part of it that is the final answer
answer_form.py   that part -> the form in which math-verify reads it
maths.py         whether two such answers are equal, by math-verify in processes that can be stopped

config.py        every --darling.* flag
registry.py      names -> partition models, rewards, advantages and quality gates, built in or a user's
user_code.py     a user's own code, imported by its path or dotted name
errors.py        the one error that is raised on purpose
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "DarlingError": "errors",
    "Group": "partition",
    "Pair": "partition",
    "PartitionModel": "partition",
    "PairwiseModel": "partition",
    "EmbeddingModel": "partition",
    "load_partition_model": "partition",
    "register_partition_model": "registry",
    "register_reward": "registry",
    "register_advantage": "registry",
    "register_quality_gate": "registry",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    # Lazily, so that the launcher and Ray's workers can import the package without what they do not need.
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
