"""How long scoring will take, measured where the partition actors run, before the first step, and how many hide it.

Generation's time is not known before it has happened, but it has a least: tokens of a response come one after the
other. So both are taken at their worst case, all responses as long as they may be, and grow together where responses
are shorter. What a step really waited is the metric scoring_wait_seconds.
"""

from __future__ import annotations

import platform
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, PartitionModel

# What generation is taken to need; assumed, not measured: an H100 reads the weights of an 8B model in half of it.
SECONDS_A_TOKEN = 0.01
LEAST_SECONDS = 1.0  # of a step's generation, its start and the reward included: what is less is not worth an actor
CHARACTERS_A_TOKEN = 4  # of English in a large vocabulary
FIRST_LENGTH, LENGTHEN, LONG_ENOUGH = 32, 4, 2.0  # tokens of the first made-up group, times so much, until seconds
LEAST, MOST = 2, 3  # repeats of each, fewer where one takes long; the fastest counts: another waits for torch.compile
MADE_UP = -1  # the number of a made-up group, which the run's own groups do not have
WORDS = (
    "the a of to and in that it is was for on are with as at be this have from or had by but some what there we can "
    "out other were all your when up use word how said each she which their time if will way about many then them "
    "would write like these long make thing see him two has look more day could go come did my sound no most number "
    "who over know water than call first people may down side been now find any new work part take get place made "
    "live where after back little only round man year came show every good me give our under name very through just"
).split()


@dataclass(frozen=True)
class Step:
    """A training step's groups, and the most that a response may be, in tokens."""

    prompts: int
    responses: int
    tokens: int

    @classmethod
    def of(cls, args: Any) -> Step:
        """That of a run with these arguments of OpenRLHF."""
        tokens = args.rollout.max_new_tokens or args.data.max_len
        return cls(args.rollout.batch_size, args.rollout.n_samples_per_prompt, tokens)

    @property
    def generation_seconds(self) -> float:
        return max(self.tokens * SECONDS_A_TOKEN, LEAST_SECONDS)

    def scoring_seconds(self, seconds_a_group: float, actors: int) -> float:
        return -(-self.prompts // actors) * seconds_a_group

    def actors(self, seconds_a_group: float) -> int:
        """The fewest actors whose scoring takes no longer than generation; where none do, one for each prompt."""
        groups_an_actor = int(self.generation_seconds / max(seconds_a_group, 1e-9))
        return -(-self.prompts // groups_an_actor) if groups_an_actor else self.prompts


@dataclass(frozen=True)
class Timed:
    """What a made-up group of the run's shape takes, in seconds, and the tokens a response that were measured."""

    seconds: float
    tokens: int
    node: str


def made_up(responses: int, tokens: int) -> Group:
    """A group of so many different responses of about so many tokens each, in sentences."""
    rng, texts = random.Random(0), []
    for k in range(responses):
        text, length = [f"Answer {k}."], tokens * CHARACTERS_A_TOKEN
        while sum(map(len, text)) + len(text) < length:
            text.append(" ".join(rng.choices(WORDS, k=rng.randint(6, 18))).capitalize() + ".")
        texts.append(" ".join(text)[:length])
    return Group("Tell me something.", texts)


async def time_group(
    model: PartitionModel, measure: Callable[[int, Group], Awaitable[tuple[Any, float]]], step: Step
) -> Timed:
    """Times made-up groups, ever longer ones, until they are as long as can be or one takes LONG_ENOUGH.

    What is left to the full length is extrapolated, in proportion to the tokens; nothing, where the model cuts all
    texts already. The slowest length counts: a head with an adapter takes longer for texts that this reads whole.

    Args:
        measure: number and group -> what was measured, and the seconds that it took.
    """
    tokens, slowest = min(FIRST_LENGTH, step.tokens), 0.0
    if model.cuts:
        model.cuts.made_up = True
    try:
        await measure(MADE_UP, made_up(step.responses, tokens))  # warms up
        while True:
            group, seconds = made_up(step.responses, tokens), []
            while len(seconds) < LEAST or (len(seconds) < MOST and sum(seconds) < LONG_ENOUGH):
                seconds.append((await measure(MADE_UP, group))[1])
            slowest = max(slowest, min(seconds))
            if model.cuts and model.cuts.all_cut:
                return Timed(slowest, step.tokens, platform.node())
            if tokens == step.tokens or min(seconds) >= LONG_ENOUGH:
                return Timed(max(slowest, min(seconds) * step.tokens / tokens), tokens, platform.node())
            tokens = min(tokens * LENGTHEN, step.tokens)
    finally:
        if model.cuts:
            model.cuts.made_up = False


def said(step: Step, timed: Timed, actors: int) -> str:
    """The line of the log."""
    total, hidden = step.scoring_seconds(timed.seconds, actors), step.generation_seconds
    enough = step.actors(timed.seconds)
    line = (
        f"Scoring takes {total:.3g} s a step with {actors} partition actor(s), were each of its {step.prompts} x "
        f"{step.responses} responses as long as {step.tokens} tokens: {timed.seconds:.3g} s a group, measured on "
        f"{timed.node}"
    )
    if timed.tokens < step.tokens:
        line += f" at {timed.tokens} tokens and extrapolated"
    line += (
        f". Generating them, taken to need {1000 * SECONDS_A_TOKEN:g} ms a token and {LEAST_SECONDS:g} s at least, "
        f"hides {hidden:.3g} s of it"
    )
    if total <= hidden:
        line += ", that is all"
    elif step.scoring_seconds(timed.seconds, enough) <= hidden:
        line += f": {enough} actors would hide it (--darling.num_partition_actors)"
    else:
        line += ", less than one group takes: more actors are not enough, a GPU or a faster partition model is"
    return line + ". What a step really waits is the metric scoring_wait_seconds."


def choose(step: Step, timed: Timed, most: int) -> tuple[int, str]:
    """How many actors --darling.num_partition_actors auto takes, and why; `most`: for how many there is room."""
    wanted = step.actors(timed.seconds)
    number = min(wanted, most)
    why = "as many as hide scoring behind generation, at most one a prompt"
    if number < wanted:
        why = f"for no more is there room, though {wanted} are wanted"
    return number, f"--darling.num_partition_actors auto takes {number}: {why}."


def cannot_be_timed(error: BaseException) -> DarlingError:
    """The error of --darling.num_partition_actors auto."""
    return DarlingError(
        "the time of a made-up group, for --darling.num_partition_actors auto",
        f"{type(error).__name__}: {error}",
        "give --darling.num_partition_actors a number, or mend what failed",
    )
