"""Looks the contract with OpenRLHF up in a release's source, without importing it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from darling_plugin.openrlhf import contract
from darling_plugin.openrlhf.seams import (
    FIRST,
    SUPPORTED_OPENRLHF,
    Seam,
    find_in_source,
    parameters_in_source,
    seams_of,
)


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
    return lines + list(_broken_between_functions(root))


def _broken_between_functions(root: Path) -> Iterator[str]:
    """Which arguments OpenRLHF passes on, and what it calls after what: no signature shows that."""
    train = find_in_source(str(root), "openrlhf.cli.train_ppo_ray", "train")
    passed = {keyword.arg for node in ast.walk(train) if isinstance(node, ast.Call) for keyword in node.keywords}
    if "max_len" not in passed:
        yield "openrlhf.cli.train_ppo_ray: does not pass max_len to generation"
    if "n_samples_per_prompt" in passed:
        yield "openrlhf.cli.train_ppo_ray: passes n_samples_per_prompt to training, too"
    for trainer in ("ppo_trainer", "ppo_trainer_async"):
        code = ast.unparse(ast.parse((root / "trainer" / f"{trainer}.py").read_text()))
        if "['n_samples_per_prompt'] = self.args.eval.n_samples_per_prompt" not in code:
            yield f"openrlhf.trainer.{trainer}: evaluation does not pass its n_samples_per_prompt"
        if "logs = compute_eval_metrics(" not in code or "self.save_best_checkpoint(eval_" not in code:
            yield f"openrlhf.trainer.{trainer}: an evaluation's metrics do not go to save_best_checkpoint"


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
