"""Where the plugin attaches to OpenRLHF, how it wraps a function, and the releases it was proven on.

Standard library only: the launcher checks the seams before anything heavy is imported.
"""

import ast
import functools
import importlib.util
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from darling_plugin.errors import DarlingError

SUPPORTED_OPENRLHF = ("0.10.2", "0.10.3", "0.10.4", "0.11.0", "0.11.1", "0.11.2")


@dataclass(frozen=True)
class Seam:
    """A function or method of OpenRLHF that a hook wraps, with the parameter names the hook was written for."""

    module: str
    name: str
    parameters: tuple[str, ...]

    @property
    def function(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]

    def check(self, found: tuple[str, ...]) -> None:
        if found != self.parameters:
            raise DarlingError(
                f"{self.module}.{self.name}({', '.join(self.parameters)}), as in OpenRLHF "
                f"{', '.join(SUPPORTED_OPENRLHF)}",
                f"({', '.join(found)})",
                "install a supported OpenRLHF, or undo the local change to that function",
            )

    def check_function(self, function: Callable) -> None:
        """Raises DarlingError unless `function`, the imported original, has the expected parameters."""
        # Ray writes a parameter of its own into the signatures of what it makes an actor of.
        self.check(tuple(name for name in inspect.signature(function).parameters if name != "_ray_trace_ctx"))


START = Seam(
    "openrlhf.trainer.ppo_utils.samples_generator",
    "SamplesGenerator.__init__",
    ("self", "strategy", "prompts_dataloader", "eval_dataloader", "tokenizer", "vllm_engines"),
)
DISPATCH = Seam(
    "openrlhf.trainer.ppo_utils.samples_generator",
    "SamplesGenerator._dispatch_prompts_to_vllm",
    ("self", "prompts", "labels", "images", "generate_kwargs"),
)
ADVANTAGES = Seam(
    "openrlhf.trainer.ppo_utils.experience_maker",
    "RemoteExperienceMaker.compute_advantages_and_returns",
    ("self", "experiences"),
)
TRAIN_STEP = Seam(
    "openrlhf.trainer.ppo_trainer", "BasePPOTrainer.train_step", ("self", "rollout_samples", "global_step")
)
EVALUATION = Seam(
    "openrlhf.trainer.ppo_trainer",
    "compute_eval_metrics",
    ("eval_dataloader", "samples_list", "n_samples_per_prompt"),
)
EVALUATED = Seam(
    "openrlhf.trainer.ppo_trainer",
    "BasePPOTrainer.save_best_checkpoint",
    ("self", "eval_metrics", "global_step", "client_states"),
)
RESUME = Seam("openrlhf.trainer.ppo_trainer", "BasePPOTrainer.init_checkpoint_states", ("self",))
SEAMS = (START, DISPATCH, ADVANTAGES, TRAIN_STEP, EVALUATION, EVALUATED, RESUME)


def check_installed_openrlhf() -> None:
    """Raises DarlingError unless the installed OpenRLHF is a supported release with every seam as expected.

    Reads the source files instead of importing them: importing OpenRLHF takes many seconds.
    """
    try:
        found = version("openrlhf")
    except PackageNotFoundError:
        raise DarlingError(
            f"OpenRLHF {' or '.join(SUPPORTED_OPENRLHF)}", "none installed", "install OpenRLHF as its README says"
        ) from None
    if found not in SUPPORTED_OPENRLHF:
        raise DarlingError(
            f"an OpenRLHF this plugin was proven on: {', '.join(SUPPORTED_OPENRLHF)}",
            f"openrlhf {found}",
            f"pip install openrlhf=={SUPPORTED_OPENRLHF[-1]}",
        )
    package = importlib.util.find_spec("openrlhf")
    assert package is not None and package.submodule_search_locations is not None  # its version was just read
    root = next(iter(package.submodule_search_locations))
    for seam in SEAMS:
        seam.check(_parameters_in_source(root, seam))


def _parameters_in_source(root: str, seam: Seam) -> tuple[str, ...]:
    path = os.path.join(root, *seam.module.split(".")[1:]) + ".py"
    try:
        with open(path, encoding="utf-8") as file:
            node: ast.AST = ast.parse(file.read(), path)
    except OSError:
        return ("no such module",)
    for part in seam.name.split("."):
        children = {
            child.name: child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        if part not in children:
            return ("no such function",)
        node = children[part]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return tuple(argument.arg for argument in [*named, *starred])


def wrap(owner: Any, name: str, wrapper: Callable, *, hook: bool = False) -> None:
    """Replaces `owner.name`, a method of a class or a function of a module; `hook` marks it for :func:`is_hooked`.

    `wrapper(wrapped, instance, args, kwargs)` is called in its place; `wrapped` is bound, `instance` None for a
    function. The replacement is a plain function under the original's own name, because Ray sends OpenRLHF's actor
    classes by value, with the functions they inherit and call: one that pickles by its name arrives as the receiving
    process has it, wrapped there; a proxy object would arrive as the bare original.
    """
    original = vars(owner)[name]

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if isinstance(owner, type):
            instance, *rest = args
            return wrapper(functools.partial(original, instance), instance, tuple(rest), kwargs)
        return wrapper(original, None, args, kwargs)

    replacement.darling_original = original
    if hook:  # functools.wraps hands the mark on to whatever is wrapped around it later
        replacement.darling_hook = True
    setattr(owner, name, replacement)


def is_hooked(function: Any) -> bool:
    """Whether one of our hooks stands around `function`; a CPU shim alone is none.

    In a run of `--plugin darling_plugin` an OpenRLHF with patches/ calls them itself, from what it marks as its seams.
    """
    native = os.environ.get("OPENRLHF_PLUGIN") == "darling_plugin" and hasattr(function, "plugin_seam")
    return native or getattr(function, "darling_hook", False)
