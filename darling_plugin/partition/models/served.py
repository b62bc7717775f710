"""Partition by a classifier behind HTTP: a pool of vLLM or text-embeddings-inference servers with the same model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

from darling_plugin.partition.base import Pair, PairwiseModel
from darling_plugin.partition.options import Between
from darling_plugin.partition.servers.classifiers import LEAST_LENGTH, START_COMMAND, choose_dialect, learn_classifier
from darling_plugin.partition.servers.pool import ServerPool
from darling_plugin.registry import register_partition_model


@register_partition_model("served")
class Served(PairwiseModel):
    """P(equivalent) from servers that all hold the same classifier: `served:<url>[,<url>...]`.

    A url is that of a vLLM server, started with `--runner pooling --convert classify` and for causal classifiers also
    with `--no-enable-chunked-prefill`, or of text-embeddings-inference, such as http://host:8000; OPENAI_API_KEY,
    where set, is sent as bearer token.

    The model reads what `cross-encoder` of the same weights would give it, CLS first SEP second SEP, the longer one
    cut first. What darling-train-partition wrote beside a vLLM server's weights (threshold, length, separators,
    calibration) counts where that folder is on this machine. The released classifiers are read as any other:
    `darling-qwen3-math` needs separators of its own, and is none for `served:`. Class 1 means equivalent; of three
    classes or more `label` says which does, by its number or, of text-embeddings-inference, its name:

    - vLLM gets token ids at /classify, made here by `tokenizer`, or else by the tokenizer of the path or Hub name that
      the server was started with, where that is on this machine. Pairs are cut at `max_length` tokens, by default as
      the classifier was trained, else at 2048, or at the server's max_model_len where that is less.
    - vLLM's /classify takes no segment ids (token_type_ids). A one-label model that reads them, as BERT does, and one
      whose tokenizer is not on this machine, is asked at /score, where the server's own tokenizer builds the pair and
      cuts it in the same way. With more labels vLLM has no /score: that is refused.
    - text-embeddings-inference gets the two texts, builds the pair in the same way, and cuts it at its own
      max_input_length: identical to `cross-encoder` only where no pair is longer than the smaller of the two limits.

    Requests that a server could not answer (no connection, HTTP 408, 424, 429 and 5xx) go to the others, and that
    server is tried again, ever less often, until it answers. DarlingError when all have been silent for `patience`
    seconds, when none answers a request or one request has failed again and again for that long, when a server refuses
    a request (other HTTP codes), and when an answer is not one distribution over the classes for each pair.
    """

    threshold = 0.5
    calibrated = True
    option_limits: ClassVar = {"max_length": Between(LEAST_LENGTH)}
    patience = 60.0

    def __init__(
        self,
        urls: str,
        *,
        threshold: float | None = None,
        clustering: str | None = None,
        tokenizer: str | None = None,
        max_length: int | None = None,
        label: str | None = None,
    ) -> None:
        self._pool = ServerPool(
            _without_v1(urls),
            learn_classifier,
            kind="a classify server",
            start_command=START_COMMAND,
            patience=self.patience,
            headers=_authorization(),
        )
        self._dialect = choose_dialect(self._pool.held, tokenizer, max_length, label)
        trained = self._dialect.settings.threshold
        super().__init__(threshold=trained if threshold is None else threshold, clustering=clustering)
        self.cuts = getattr(self._dialect, "cuts", None)  # of texts that the server cuts nobody here knows

    def similarity(self, pairs: Sequence[Pair]) -> list[float]:
        return self._pool.ask(self._dialect, pairs)


def _without_v1(urls: str) -> str:
    """The addresses without what clients of OpenAI's API write after them."""
    return ",".join(url.strip().rstrip("/").removesuffix("/v1") for url in urls.split(","))


def _authorization() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
