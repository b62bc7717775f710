"""The contract is what the code uses of OpenRLHF's objects, no less and no more; a release that breaks it is named."""

import ast
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import contract_in_source
import pytest

from darling_plugin.errors import DarlingError
from darling_plugin.openrlhf import contract, seams

INSTALLED = Path(next(iter(find_spec("openrlhf").submodule_search_locations)))
CODE = Path(contract.__file__).parent
# cpu.py replaces what needs a GPU by its own means, and each of its shims says what it stands in for.
FILES = sorted(set(CODE.glob("*.py")) - {CODE / "cpu.py"})


def called(node: ast.AST) -> str:
    """The last part of what an object is called: `experience` of experience.kl, `info` of experience.info."""
    return {ast.Name: "id", ast.Attribute: "attr"}.get(type(node), "") and getattr(
        node, "id" if isinstance(node, ast.Name) else "attr"
    )


def used_by_the_code() -> dict[str, set[str]]:
    """For every variable of the contract, the names that are used of it anywhere in openrlhf/."""
    used = {names.variable: set() for names in contract.NAMES}
    for node in (node for path in FILES for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Attribute) and called(node.value) in used:
            used[called(node.value)].add(node.attr)
        owner = node.value if isinstance(node, ast.Subscript) else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
        elif isinstance(node, ast.Compare):
            owner = node.comparators[0]
        if owner is not None and called(owner) in used:
            used[called(owner)].update(contract_in_source.keys_of(node))
    return used


@pytest.mark.parametrize("names", contract.NAMES, ids=lambda names: names.scope)
def test_the_contract_names_what_the_code_uses(names):
    used = {name for name in used_by_the_code()[names.variable] if not name.startswith("darling_")}
    assert used - {"get", "pop"} == set(names.names)


def test_the_contract_names_the_flags_that_the_code_reads():
    code = "\n".join(path.read_text() for path in FILES if path.name != "contract.py")
    code += "args.eval.n_samples_per_prompt"  # contract.split
    read = set(re.findall(r"\bargs\.([a-z_]+\.[a-z_]+)", code))
    read |= {flag for flag, _ in contract.COMMAND_LINE.values()}
    assert read == set(contract.FLAGS) and len(contract.FLAGS) == len(read)
    assert set(re.findall(r"\bflags\.(\w+)", code)) == set(contract.COMMAND_LINE)


def test_the_installed_release_keeps_the_contract():
    assert contract_in_source.broken(INSTALLED) == []


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("trainer/ppo_utils/experience.py", "    rewards: torch", "    reward: torch", "Experience: no 'rewards'"),
        ("trainer/ppo_utils/samples_generator.py", '"action_ranges"', '"ranges"', "no 'action_ranges' among its keys"),
        ("trainer/ppo_utils/experience_maker.py", "self.kl_ctl", "self.kl", "no 'kl_ctl' among its attributes"),
        (
            "models/utils.py",
            "    kl_coef: float,",
            "    coefficient: float,",
            "compute_reward: parameters r, coefficient",
        ),
        ("cli/train_ppo_ray.py", "max_len=max_len,", "", "does not pass max_len"),
        ("cli/train_ppo_ray.py", "max_len=max_len,", "max_len=max_len, n_samples_per_prompt=8,", "to training, too"),
        (
            "trainer/ppo_trainer.py",
            "self.args.eval.n_samples_per_prompt",
            "8",
            "does not pass its n_samples_per_prompt",
        ),
        (
            "trainer/ppo_trainer_async.py",
            "self.save_best_checkpoint(",
            "self.keep(",
            "do not go to save_best_checkpoint",
        ),
        ("cli/train_ppo_ray.py", "--data.label_key", "--data.labels_key", "no flag --data.label_key"),
        (
            "cli/train_ppo_ray.py",
            '"--algo.kl.init_coef", type=float, default=0.01',
            '"--algo.kl.init_coef", type=float, default=0.02',
            "--algo.kl.init_coef is 0.02 by default, not 0.01",
        ),
        (
            "cli/train_ppo_ray.py",
            '"--train.async_enable", action="store_true", default=False',
            '"--train.async_enable", action="store_true", default=True',
            "--train.async_enable is True by default, not False",
        ),
        ("trainer/ppo_utils/kl_controller.py", "class FixedKLController", "class Fixed", "no such function"),
    ],
)
def test_a_release_that_breaks_the_contract_is_named(tmp_path, file, before, after, said):
    copy = tmp_path / "openrlhf"
    shutil.copytree(INSTALLED, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text()
    assert before in text
    (copy / file).write_text(text.replace(before, after))
    (line,) = contract_in_source.broken(copy)
    assert said in line


@pytest.mark.parametrize("seam", seams.seams_of("99.0.0"), ids=lambda seam: seam.role)
def test_a_renamed_seam_costs_no_line_of_the_contract(tmp_path, monkeypatch, seam):
    copy = tmp_path / "openrlhf"
    shutil.copytree(INSTALLED, copy, ignore=shutil.ignore_patterns("__pycache__"))
    name = rf"\b{seam.function}\b"
    files = list(copy.rglob("*.py"))
    if seam.function.startswith("__"):  # other classes have it, too
        name, files = f"(?<=def ){seam.function}", [copy.joinpath(*seam.module.split(".")[1:]).with_suffix(".py")]
    for file in files:
        file.write_text(re.sub(name, "renamed", file.read_text()))
    monkeypatch.setattr(seams, "SUPPORTED_OPENRLHF", (*seams.SUPPORTED_OPENRLHF, "99.0.0"))
    with pytest.raises(DarlingError, match="no such function"):
        seams.check_source(str(copy), "99.0.0")
    renamed = {seam.role: {"name": ".".join([*seam.name.split(".")[:-1], "renamed"])}}
    monkeypatch.setattr(seams, "CHANGES", seams.CHANGES | {"99.0.0": renamed})
    seams.check_source(str(copy), "99.0.0")
    assert contract_in_source.broken(copy, "99.0.0") == []
