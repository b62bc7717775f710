"""Partition models: groups of responses -> classes that say the same. The names that others use, and no more."""

from darling_plugin.partition.base import (
    EmbeddingModel,
    Group,
    Pair,
    PairwiseModel,
    PartitionModel,
    SimilarityModel,
)
from darling_plugin.partition.clustering import CLUSTERINGS
from darling_plugin.partition.measure import Measurement, check_diversity, measure, measure_each
from darling_plugin.partition.options import Between, OneOf
from darling_plugin.partition.progress import alive
from darling_plugin.partition.spec import check_partition_spec, load_partition_model

__all__ = [
    "CLUSTERINGS",
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
