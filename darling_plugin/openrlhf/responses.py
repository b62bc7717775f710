"""OpenRLHF's response dicts: what the partition actor reads of them, and what it adds for the training step.

What is added to `extra_logs` OpenRLHF turns into `experience.info`, one value a response; `experiences.py` takes it
out again.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.monitor import TEXT_SIGNS
from darling_plugin.partition import CLUSTERINGS, DEFAULT_CLUSTERING, Measurement, PartitionModel, SimilarityModel

# OpenRLHF makes a tensor of each array of ours, and torch warns of long lists of them: this one has one element.
warnings.filterwarnings("ignore", "Creating a tensor from a list of numpy.ndarrays", UserWarning)

LABEL = "darling_label"  # class in its group; -1: left out of the partition
DIVERSITY = "darling_diversity"  # in [0, 1]
GROUP = "darling_group"  # how many groups this run had dispatched before this one
QUALITY_ONLY = "darling_quality_only"  # 1 where the group could not be partitioned and on_error is quality_only
GENERATED_AT = "darling_generated_at"  # microseconds since the epoch, as are all times: integers survive as int64
SCORED_AT = "darling_scored_at"
SCORING_SECONDS = "darling_scoring_seconds"  # this group's share of the batch it was scored in
ADDED = (LABEL, DIVERSITY, GROUP, QUALITY_ONLY, GENERATED_AT, SCORED_AT, SCORING_SECONDS)  # always
# Where the diversity, the clustering, a gate that is still due, the reward or the advantage needs them:
SIMILARITY = "darling_similarity"  # this response's row, (n,)
THRESHOLD = "darling_threshold"
CLUSTERING = "darling_clustering"  # its place in CLUSTERINGS
OF_SIMILARITY = (SIMILARITY, THRESHOLD, CLUSTERING)
TEXT_MISSING = (
    "darling_text_missing"  # 1 where a response lacks what --darling.partition_text names, unless it is whole
)
CUT_SHARE = "darling_cut_share"  # see Measurement.cut_share; of a group that could not be partitioned 0
OF_TEXT = {sign.__name__: f"darling_{sign.__name__}" for sign in TEXT_SIGNS}  # the monitor's; NaN: nothing to say


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """The text that is partitioned and logged: the response's own tokens, special ones left out."""
    return tokenizer.decode(token_ids, skip_special_tokens=True)


def decode_all(tokenizer: Any, token_ids: list[list[int]]) -> list[str]:
    """:func:`decode` of each, in one call: fast tokenizers use all cores for it."""
    return tokenizer.batch_decode(token_ids, skip_special_tokens=True) if token_ids else []


def prompt(response: dict[str, Any]) -> str:
    """The prompt as OpenRLHF formats it, chat template included."""
    return response["prompt"]


def text(response: dict[str, Any], tokenizer: Any, max_len: int) -> str:
    """The model's own text, of all its turns, as far as OpenRLHF keeps it: `max_len` tokens with the prompt."""
    tokens = response["observation_tokens"][:max_len]
    return decode(tokenizer, [token for start, end in response["action_ranges"] for token in tokens[start:end]])


def quality(response: dict[str, Any]) -> float | None:
    """The reward; None where it is missing. OpenRLHF takes a number, a tensor, or a list of one (reward servers)."""
    reward = response.get("reward")
    return None if reward is None else torch.as_tensor(reward).item()


def check_quality(responses: list[dict[str, Any]], which_group: str, *, expected: bool) -> None:
    """Raises DarlingError for a reward that is not finite, or missing where it is expected already.

    Never covered by on_error: without its quality there is nothing a response could be trained on.

    Args:
        expected: whether responses come with their reward; if not, a reward model scores them later.
    """
    for k, response in enumerate(responses):
        reward = quality(response)
        if reward is None and not expected:
            continue
        if reward is None or not math.isfinite(reward):
            cause = "no reward: OpenRLHF's fetch failed and only logged it" if reward is None else f"reward {reward}"
            raise DarlingError(
                "a finite reward for every response",
                f"{cause}, response {k} of {which_group}",
                "look for 'Failed to fetch reward' in the rollout actor's log and mend the reward function",
            )


@dataclass
class Made:
    """How a partition model makes classes of similarities: what the training step needs to make them again."""

    threshold: float
    clustering: str
    exact: bool = True  # whether classes are made of the similarities: else they travel as float16

    @classmethod
    def by(cls, model: PartitionModel, *, exact: bool = True) -> Made:
        """A model that gives classes alone has similarities of 1 within a class, else 0 (measure)."""
        if isinstance(model, SimilarityModel):
            return cls(model.threshold, model.clustering, exact)
        return cls(0.5, DEFAULT_CLUSTERING, exact)


def add_measurement(
    responses: list[dict[str, Any]],
    measurement: Measurement | None,
    taking_part: list[int],
    *,
    group: int,
    generated_at: float,
    scored_at: float,
    scoring_seconds: float,
    made: Made | None = None,
    missing: list[bool] | None = None,
    counts_cuts: bool = False,
    signs: list[dict[str, float]] | None = None,
) -> None:
    """Adds what was measured of one group to the `extra_logs` of its n responses.

    OpenRLHF needs the same keys on every sample: a group that could not be partitioned has rows of zeros.

    Args:
        measurement: of the responses `taking_part`; None where the group could not be partitioned.
        generated_at, scored_at: seconds since the epoch.
        made: adds the similarities, which the measurement then has, and this.
        missing: adds which responses lack the text that is compared.
        counts_cuts: whether the partition model counts what it cuts; adds the share.
        signs: of each response's text (`monitor.text_signs`); None says nothing of any.
    """
    n = len(responses)
    labels, diversity, similarity = torch.full((n,), -1), torch.zeros(n), torch.zeros(n, n)
    if measurement is not None and taking_part:
        labels[taking_part] = measurement.labels
        diversity[taking_part] = measurement.diversity
        if made is not None:
            similarity[torch.tensor(taking_part)[:, None], taking_part] = measurement.similarity
    for k, response in enumerate(responses):
        logs = {
            LABEL: int(labels[k]),
            DIVERSITY: float(diversity[k]),
            GROUP: group,
            QUALITY_ONLY: int(measurement is None),
            GENERATED_AT: int(generated_at * 1e6),
            SCORED_AT: int(scored_at * 1e6),
            SCORING_SECONDS: scoring_seconds,
        }
        if made is not None:
            # OpenRLHF keeps NumPy's float16, which is 60 % of a list in Ray's store; a tensor it cuts to one number.
            logs[SIMILARITY] = similarity[k].tolist() if made.exact else similarity[k].half().numpy()
            logs[THRESHOLD], logs[CLUSTERING] = float(made.threshold), CLUSTERINGS.index(made.clustering)
        if missing is not None:
            logs[TEXT_MISSING] = int(missing[k])
        if counts_cuts:
            logs[CUT_SHARE] = float(measurement.cut_share or 0.0) if measurement else 0.0
        logs |= {key: signs[k][name] if signs else math.nan for name, key in OF_TEXT.items()}
        response["extra_logs"] = {**(response.get("extra_logs") or {}), **logs}
