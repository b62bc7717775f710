"""Errors name an option as the user of the process writes it: in Python, of a command, of the launcher."""

import ast
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import darling_plugin
from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError, options_begin_with, spelled
from darling_plugin.evaluation import sampling
from darling_plugin.training import cross_encoder
from darling_plugin.training.pairs import folds_by_prompt

PACKAGE = Path(darling_plugin.__file__).parent


@pytest.mark.parametrize(("prefix", "written"), [("", "folds"), ("--", "--folds"), ("--darling.", "--darling.folds")])
def test_an_option_is_written_as_the_entry_point_says(prefix, written):
    options_begin_with(prefix)
    assert spelled("folds") == written
    with pytest.raises(DarlingError, match=f"do:     correct {written}$"):
        folds_by_prompt([], 1, 0)


def test_without_a_package_the_samples_name_the_options_of_the_command(monkeypatch):
    options_begin_with("--")
    for package in ("vllm", "openai"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DarlingError, match=r"vLLM, for --model(.|\n)*install it, or use --url of a server"):
        sampling.OwnVllm("model")
    with pytest.raises(DarlingError, match="openai, for --url"):
        sampling.Server("http://127.0.0.1:9", None)


def test_no_text_of_the_library_writes_out_how_a_command_calls_an_option():
    flags = re.compile(r"""["']--([a-z0-9_]+)["']""")
    options = {name for file in (PACKAGE / "commands").glob("*.py") for name in flags.findall(file.read_text())}
    options |= {*cross_encoder.OPTIONS, *(field.name for field in fields(DarlingConfig))}
    written = re.compile(rf"(?<![\w-])--(?:{'|'.join(sorted(options))})(?![\w.-])")
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in PACKAGE.rglob("*.py"):
        # These know how theirs are written.
        if {"commands", "openrlhf", "check.py"} & set(file.relative_to(PACKAGE).parts):
            continue
        nodes = list(ast.walk(ast.parse(file.read_text())))
        texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        texts -= {ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, scopes)}
        texts = {text for text in texts if "python3 -m vllm" not in text}  # a command line of another program
        assert not [text for text in texts if written.search(text)], file
