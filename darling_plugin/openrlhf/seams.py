"""The seams: OpenRLHF's functions that the plugin wraps, as each release has them, and how one is wrapped.

Standard library only: the launcher checks the seams before anything heavy is imported.
"""

import ast
import functools
import importlib.util
import inspect
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from darling_plugin.errors import DarlingError

SUPPORTED_OPENRLHF = ("0.10.2", "0.10.3", "0.10.4", "0.11.0", "0.11.1", "0.11.2")


@dataclass(frozen=True)
class Seam:
    """A function or method of OpenRLHF that a hook wraps, as one release has it.

    Attributes:
        role: the plugin's name for it, the same in all releases.
        name: within the module, as `Class.method` or `function`.
        parameters: their names, in order.
        known_as: a parameter's name -> the one that its hook uses, where the two differ.
    """

    role: str
    module: str
    name: str
    parameters: tuple[str, ...]
    known_as: Mapping[str, str] = field(default_factory=dict)

    @property
    def function(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]

    def owner(self) -> Any:
        """The module or class of this process that holds the function; the module must be imported."""
        owner: Any = sys.modules[self.module]
        for part in self.name.split(".")[:-1]:
            owner = getattr(owner, part)
        return owner

    def resolve(self) -> Any:
        """The function as it stands in this process, read without binding it."""
        return vars(self.owner())[self.function]

    def check(self, parameters: tuple[str, ...]) -> None:
        """Raises DarlingError unless these are the parameters that the hook was written for."""
        if parameters != self.parameters:
            raise DarlingError(
                f"{self.module}.{self.name}({', '.join(self.parameters)}), as in OpenRLHF "
                f"{', '.join(SUPPORTED_OPENRLHF)}",
                f"({', '.join(parameters)})",
                "install a supported OpenRLHF, or undo the local change to that function",
            )

    def check_function(self, function: Callable) -> None:
        """Raises DarlingError unless `function`, the imported original, has the expected parameters."""
        # Ray writes a parameter of its own into the signatures of what it makes an actor of.
        self.check(tuple(name for name in inspect.signature(function).parameters if name != "_ray_trace_ctx"))

    def arguments(self, wrapped: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """One call's arguments by the names that the hook uses, defaults filled in; without `self`.

        Args:
            wrapped: the original, bound to its instance if it is a method.
        """
        bound = inspect.signature(wrapped).bind(*args, **kwargs)
        bound.apply_defaults()
        return {self.known_as.get(name, name): value for name, value in bound.arguments.items()}


# As the first supported release has them.
FIRST = (
    Seam(
        "start",
        "openrlhf.trainer.ppo_utils.samples_generator",
        "SamplesGenerator.__init__",
        ("self", "strategy", "prompts_dataloader", "eval_dataloader", "tokenizer", "vllm_engines"),
    ),
    Seam(
        "dispatch",
        "openrlhf.trainer.ppo_utils.samples_generator",
        "SamplesGenerator._dispatch_prompts_to_vllm",
        ("self", "prompts", "labels", "images", "generate_kwargs"),
    ),
    Seam(
        "advantages",
        "openrlhf.trainer.ppo_utils.experience_maker",
        "RemoteExperienceMaker.compute_advantages_and_returns",
        ("self", "experiences"),
    ),
    Seam(
        "train_step",
        "openrlhf.trainer.ppo_trainer",
        "BasePPOTrainer.train_step",
        ("self", "rollout_samples", "global_step"),
    ),
    Seam(
        "evaluation",
        "openrlhf.trainer.ppo_trainer",
        "compute_eval_metrics",
        ("eval_dataloader", "samples_list", "n_samples_per_prompt"),
    ),
    Seam(
        "evaluated",
        "openrlhf.trainer.ppo_trainer",
        "BasePPOTrainer.save_best_checkpoint",
        ("self", "eval_metrics", "global_step", "client_states"),
    ),
    Seam("resume", "openrlhf.trainer.ppo_trainer", "BasePPOTrainer.init_checkpoint_states", ("self",)),
)

# What is different from a release on: a line a seam, as
#     "0.12.0": {"dispatch": {"name": "SamplesGenerator._send_prompts"}},
CHANGES: dict[str, dict[str, dict[str, Any]]] = {}


def seams_of(release: str) -> tuple[Seam, ...]:
    """Every seam as `release` has it. One that is not supported (yet) is taken to be like the last that is."""
    until = SUPPORTED_OPENRLHF.index(release) if release in SUPPORTED_OPENRLHF else len(SUPPORTED_OPENRLHF)
    seams = {seam.role: seam for seam in FIRST}
    for changed in SUPPORTED_OPENRLHF[: until + 1]:
        for role, fields in CHANGES.get(changed, {}).items():
            seams[role] = replace(seams[role], **fields)
    return tuple(seams.values())


@functools.cache
def installed_seams() -> tuple[Seam, ...]:
    """Every seam as the installed OpenRLHF has it."""
    return seams_of(installed_release())


def installed_seam(role: str) -> Seam:
    return next(seam for seam in installed_seams() if seam.role == role)


def installed_release() -> str:
    """The release of the OpenRLHF that this process imports.

    Raises DarlingError where nothing names it. A worker on another node than the driver may have no OpenRLHF, or its
    code alone, from PYTHONPATH or the working_dir of a Ray job.
    """
    try:
        return version("openrlhf")
    except PackageNotFoundError:
        package = importlib.util.find_spec("openrlhf")
        code = list(package.submodule_search_locations or ()) if package else []
        found = (
            f"its code alone, in {code[0]}: no openrlhf-*.dist-info names its release" if code else "none installed"
        )
        raise DarlingError(
            f"OpenRLHF {' or '.join(SUPPORTED_OPENRLHF)}, installed",
            f"{found} (node {platform.node()}, Python in {sys.prefix})",
            "install OpenRLHF there with pip, as its README says; on a cluster on every node",
        ) from None


def check_installed_openrlhf() -> None:
    """Raises DarlingError unless the installed OpenRLHF is a supported release with every seam as expected.

    Reads the source files instead of importing them: importing OpenRLHF takes many seconds.
    """
    release = installed_release()
    if release not in SUPPORTED_OPENRLHF:
        raise DarlingError(
            f"an OpenRLHF this plugin was proven on: {', '.join(SUPPORTED_OPENRLHF)}",
            f"openrlhf {release}",
            f"pip install openrlhf=={SUPPORTED_OPENRLHF[-1]}",
        )
    package = importlib.util.find_spec("openrlhf")
    assert package is not None and package.submodule_search_locations is not None  # its version was just read
    check_source(next(iter(package.submodule_search_locations)), release)


def check_source(root: str, release: str) -> None:
    """Raises DarlingError unless `root`, a folder `openrlhf/`, has every seam as `release` is expected to have it."""
    for seam in seams_of(release):
        seam.check(parameters_in_source(root, seam))


def parameters_in_source(root: str, seam: Seam) -> tuple[str, ...]:
    """Its parameters in the source in `root`, a folder `openrlhf/`; what is missing, where something is."""
    try:
        node = find_in_source(root, seam.module, seam.name)
    except LookupError as missing:
        return (str(missing.args[0]),)
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return tuple(argument.arg for argument in [*named, *starred])


def find_in_source(root: str, module: str, name: str) -> ast.AST:
    """The syntax tree of a class or function, from the source in `root`, a folder `openrlhf/`; not imported.

    Raises LookupError that says which of the two is missing, "no such module" or "no such function".
    """
    path = os.path.join(root, *module.split(".")[1:]) + ".py"
    try:
        with open(path, encoding="utf-8") as file:
            node: ast.AST = ast.parse(file.read(), path)
    except OSError:
        raise LookupError("no such module") from None
    for part in name.split("."):
        children = {
            child.name: child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        if part not in children:
            raise LookupError("no such function")
        node = children[part]
    return node


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
