"""The built-in partition models, one file each. Importing this registers their names."""

from darling_plugin.partition.models import (  # noqa: F401
    answer,
    cross_encoder,
    embedding,
    judge,
    lexical,
    released,
    served,
    vllm_classifier,
)
from darling_plugin.partition.models.head import model  # noqa: F401
