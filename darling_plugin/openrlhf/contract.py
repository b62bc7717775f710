"""The contract with OpenRLHF: what the plugin reads, writes or calls of its objects, each name written down once.

Seams (`seams.py`) are functions that are wrapped; here is what the hooks do with the objects that they meet there.
`make compat` looks every entry up in the source of each release, and the tests compare the entries with the hooks.
Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from darling_plugin.errors import DarlingError

_TRAINER = "openrlhf.trainer.ppo_trainer"
_MAKER = "openrlhf.trainer.ppo_utils.experience_maker"
_SAMPLES = "openrlhf.trainer.ppo_utils.samples_generator"


@dataclass(frozen=True)
class Names:
    """Names that the plugin relies on in one class or function of OpenRLHF.

    Attributes:
        variable: what the hooks call such an object, so that a test can find what they use of it.
        form: how OpenRLHF has the names in the source of `scope`: "fields" of a dataclass, "attributes" (methods, or
            assigned to self), "keys" (read from or written to a dict).
    """

    variable: str
    module: str
    scope: str
    form: str
    names: tuple[str, ...]


# ── Generation ──

# A response dict, as a rollout actor returns it. `reward` may be missing, `extra_logs` empty.
RESPONSE = Names(
    "response",
    _SAMPLES,
    "SamplesGenerator._process_response_into_experience",
    "keys",
    ("prompt", "observation_tokens", "action_ranges", "reward", "extra_logs"),
)
# Keywords of one generation.
GENERATE = Names(
    "generate_kwargs",
    _SAMPLES,
    "SamplesGenerator._dispatch_prompts_to_vllm",
    "keys",
    ("max_len", "n_samples_per_prompt"),
)
GENERATOR = Names(
    "generator", _SAMPLES, "SamplesGenerator", "attributes", ("args", "tokenizer", "eval_dataloader", "vllm_engines")
)

# ── Training ──

EXPERIENCE = Names(
    "experience",
    "openrlhf.trainer.ppo_utils.experience",
    "Experience",
    "fields",
    (
        *("sequences", "action_mask", "kl", "returns", "advantages"),  # tensors (samples, tokens)
        *("rewards", "response_length", "truncated"),  # tensors (samples,)
        *("index", "prompts", "labels", "info"),  # lists, and a dict of tensors (samples,)
    ),
)
INFO = Names("info", _MAKER, "RemoteExperienceMaker.compute_advantages_and_returns", "keys", ("return",))
MAKER = Names(
    "maker",
    _MAKER,
    "RemoteExperienceMaker",
    "attributes",
    ("args", "tokenizer", "kl_ctl", "get_cumulative_returns"),
)
KL_CONTROLLERS = tuple(
    Names("kl_ctl", "openrlhf.trainer.ppo_utils.kl_controller", scope, "attributes", ("value",))
    for scope in ("FixedKLController", "AdaptiveKLController")
)
TRAINER = Names(
    "trainer",
    _TRAINER,
    "BasePPOTrainer",
    "attributes",
    (
        "args",
        "tokenizer",
        "experience_maker",
        "tensorboard_logger",
        "wandb_logger",
        "vllm_engines",
        "actor_model_group",
    ),
)
TENSORBOARD = Names(
    "tensorboard_logger", "openrlhf.utils.logging_utils", "TensorboardLogger", "attributes", ("writer",)
)
WANDB = Names("wandb_logger", "openrlhf.utils.logging_utils", "WandbLogger", "attributes", ("handle",))
CHECKPOINT_STATES = Names("states", _TRAINER, "BasePPOTrainer.init_checkpoint_states", "keys", ("global_step",))

NAMES = (
    *(RESPONSE, GENERATE, GENERATOR, EXPERIENCE, INFO, MAKER, *KL_CONTROLLERS),
    *(TRAINER, TENSORBOARD, WANDB, CHECKPOINT_STATES),
)

# Functions of OpenRLHF that the plugin calls, with the names of their parameters.
CALLED = {
    ("openrlhf.models.utils", "compute_reward"): ("r", "kl_coef", "kl", "action_mask", "reward_clip_range"),
    (_MAKER, "RemoteExperienceMaker.get_cumulative_returns"): ("self", "rewards", "action_mask", "gamma"),
}

# Flags that the launcher reads of the command line itself, for OpenRLHF's own parser is seconds away: by what the
# launcher calls each, and with the default that OpenRLHF gives it.
COMMAND_LINE: dict[str, tuple[str, Any]] = {
    "n_samples": ("rollout.n_samples_per_prompt", 1),
    "estimator": ("algo.advantage.estimator", "gae"),
    "remote_url": ("reward.remote_url", None),
    "agent_func_path": ("train.agent_func_path", None),
    "label_key": ("data.label_key", None),
    "resumes": ("ckpt.load_enable", False),
    "no_std_norm": ("algo.advantage.no_std_norm", False),
    "kl": ("algo.kl.init_coef", 0.01),
    "colocate_all": ("train.colocate_all", False),
    "critic_apart": ("train.colocate_critic_reward", False),
    "is_async": ("train.async_enable", False),
    "nodes": ("actor.num_nodes", 1),
    "gpus_per_node": ("actor.num_gpus_per_node", 8),
    "tensor_parallel": ("vllm.tensor_parallel_size", 1),
}
# These, and those that only the hooks read, from `args`, where each dot is a namespace.
FLAGS = (
    *(flag for flag, _ in COMMAND_LINE.values()),
    "data.max_len",
    "eval.n_samples_per_prompt",
    "reward.clip_range",
    "rollout.batch_size",
    "rollout.max_new_tokens",
)


# ── What no signature shows ──


def split(generate_kwargs: Mapping[str, Any], args: Any) -> str:
    """ "eval" or "train": only evaluation says how many samples it wants; training takes them from the arguments.

    Raises DarlingError when that number is not evaluation's.
    """
    if "n_samples_per_prompt" not in generate_kwargs:
        return "train"
    n = generate_kwargs["n_samples_per_prompt"]
    if n != args.eval.n_samples_per_prompt:
        raise _broken(
            f"n_samples_per_prompt to be passed by evaluation alone, as {args.eval.n_samples_per_prompt}", f"{n}"
        )
    return "eval"


def comes_with_quality(args: Any) -> bool:
    """Whether a response has its quality when it is generated, by a reward function or an agent.

    If not, a reward model gives it at the training step.
    """
    return bool(args.reward.remote_url or args.train.agent_func_path)


def max_len(generate_kwargs: Mapping[str, Any]) -> int:
    """How many tokens of prompt and response OpenRLHF keeps. It has a default of its own, which the plugin cannot see.

    Raises DarlingError when it is not passed, or no number.
    """
    tokens = generate_kwargs.get("max_len")
    if not isinstance(tokens, int):
        raise _broken("a number of tokens max_len among what OpenRLHF generates with", f"{dict(generate_kwargs)}")
    return tokens


def _broken(needed: str, found: str) -> DarlingError:
    return DarlingError(needed, found, "install a supported OpenRLHF, or undo the local change to its generation")
