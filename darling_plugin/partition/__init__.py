"""Partition models: groups of responses -> classes that say the same. The names that others use, and no more.

base.py        what a partition model is, and the bases that make one short
models/        the built-in ones, one file each
engine/        token ids -> scores, for those that run a network
servers/       partition models behind HTTP
default/       the weights of `default`, what it was trained on, and its card
spec.py        "name:argument?option=value" -> a partition model
options.py     the options in it: their types and ranges
text.py        which part of a response is compared
clustering.py  similarities -> classes, and which pairs have to be judged for that
measure.py     groups -> labels and diversity, checked
cuts.py        what a partition model did not read to its end
progress.py    signs that it is at work
groups.py      groups from lines of JSON
"""

from darling_plugin.partition.base import (
    EmbeddingModel,
    Group,
    Pair,
    PairwiseModel,
    PartitionModel,
    SimilarityModel,
)
from darling_plugin.partition.clustering import CLUSTERINGS, DEFAULT_CLUSTERING
from darling_plugin.partition.measure import Measurement, check_diversity, measure, measure_each
from darling_plugin.partition.options import Between, OneOf
from darling_plugin.partition.progress import alive
from darling_plugin.partition.spec import check_partition_spec, load_partition_model

__all__ = [
    "CLUSTERINGS",
    "DEFAULT_CLUSTERING",
    "Between",
    "EmbeddingModel",
    "Group",
    "Measurement",
    "OneOf",
    "Pair",
    "PairwiseModel",
    "PartitionModel",
    "SimilarityModel",
    "alive",
    "check_diversity",
    "check_partition_spec",
    "load_partition_model",
    "measure",
    "measure_each",
]
