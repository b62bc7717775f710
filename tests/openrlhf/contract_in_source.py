"""Looks the contract with OpenRLHF up in a release's source, without importing it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from darling_plugin.openrlhf import contract
from darling_plugin.openrlhf.seams import (
    FIRST,
    SUPPORTED_OPENRLHF,
    Seam,
    find_in_source,
    parameters_in_source,
    seams_of,
)

COMMAND = "openrlhf.cli.train_ppo_ray"


def broken(root: Path, release: str = SUPPORTED_OPENRLHF[-1]) -> list[str]:
    """A line for each point of the contract that `release` in `root`, a folder `openrlhf/`, does not keep.

    Where a point is of a seam, it is looked up under the seam's name in that release: a renamed seam is one line.
    """
    lines = []
    seams = {(seam.module, seam.name): now for seam, now in zip(FIRST, seams_of(release), strict=True)}
    for names in contract.NAMES:
        seam = seams.get((names.module, names.scope))
        module, scope = (seam.module, seam.name) if seam else (names.module, names.scope)
        where = f"{module}.{scope}"
        try:
            there = FORMS[names.form](find_in_source(str(root), module, scope))
        except LookupError as missing:
            lines.append(f"{where}: {missing.args[0]}")
            continue
        lines += [f"{where}: no {name!r} among its {names.form}" for name in names.names if name not in there]
    for (module, name), parameters in contract.CALLED.items():
        there = parameters_in_source(str(root), Seam("", module, name, parameters))
        if there != parameters:
            lines.append(f"{module}.{name}: parameters {', '.join(there)}, not {', '.join(parameters)}")
    functions = {seam.role: seam.function for seam in seams_of(release)}
    return [*lines, *_broken_flags(root), *_broken_between_functions(root, functions)]


def flags(root: Path) -> dict[str, dict[str, Any]]:
    """The flags of `train_ppo_ray`, each with those arguments of its `add_argument` that are literals."""
    found = {}
    for node in ast.walk(ast.parse(root.joinpath(*COMMAND.split(".")[1:]).with_suffix(".py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            arguments = {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
            for model in ("actor", "critic"):  # the optimizers' flags are f"--{prefix}.…", in a loop over the two
                name = ast.unparse(node.args[0]).removeprefix("f").strip("'").replace("{prefix}", model)
                found[name] = arguments
    return found


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:  # a type, a path
        return ast.unparse(node)


def _broken_flags(root: Path) -> Iterator[str]:
    """Flags that are gone, and defaults that the launcher takes for others."""
    there = flags(root)
    for flag in contract.FLAGS:
        if f"--{flag}" not in there:
            yield f"{COMMAND}: no flag --{flag}"
    for flag, default in contract.COMMAND_LINE.values():
        arguments = there.get(f"--{flag}", {"default": default})
        found = arguments.get("default", False if arguments.get("action") == "store_true" else None)
        if found != default:
            yield f"{COMMAND}: --{flag} is {found!r} by default, not {default!r}"


def _broken_between_functions(root: Path, functions: dict[str, str]) -> Iterator[str]:
    """Which arguments OpenRLHF passes on, and what it calls after what: no signature shows that.

    Args:
        functions: the seams' names in this release, by role.
    """
    train = find_in_source(str(root), COMMAND, "train")
    passed = {keyword.arg for node in ast.walk(train) if isinstance(node, ast.Call) for keyword in node.keywords}
    if "max_len" not in passed:
        yield f"{COMMAND}: does not pass max_len to generation"
    if "n_samples_per_prompt" in passed:
        yield f"{COMMAND}: passes n_samples_per_prompt to training, too"
    for trainer in ("ppo_trainer", "ppo_trainer_async"):
        code = ast.unparse(ast.parse((root / "trainer" / f"{trainer}.py").read_text()))
        if "['n_samples_per_prompt'] = self.args.eval.n_samples_per_prompt" not in code:
            yield f"openrlhf.trainer.{trainer}: evaluation does not pass its n_samples_per_prompt"
        if f"logs = {functions['evaluation']}(" not in code or f"self.{functions['evaluated']}(eval_" not in code:
            yield f"openrlhf.trainer.{trainer}: an evaluation's metrics do not go to {functions['evaluated']}"


def fields(scope: ast.AST) -> set[str]:
    return {node.target.id for node in scope.body if isinstance(node, ast.AnnAssign)}


def attributes(scope: ast.AST) -> set[str]:
    """Methods, and what is assigned to self."""
    methods = {node.name for node in scope.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return methods | {
        node.attr
        for node in ast.walk(scope)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }


def keys(scope: ast.AST) -> set[str]:
    """Strings that are read from or written to a dict."""
    return {key for node in ast.walk(scope) for key in keys_of(node)}


def keys_of(node: ast.AST) -> list[str]:
    """Strings that this one node reads from or writes to a dict: d["x"], d.get("x"), {"x": …}, "x" in d."""
    candidates: list[ast.AST | None] = []
    if isinstance(node, ast.Subscript):
        candidates = [node.slice]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
        candidates = list(node.args[:1])
    elif isinstance(node, ast.Dict):
        candidates = list(node.keys)
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
        candidates = [node.left]
    return [each.value for each in candidates if isinstance(each, ast.Constant) and isinstance(each.value, str)]


FORMS = {"fields": fields, "attributes": attributes, "keys": keys}
