"""docs/flags.md, and the README's few: every flag with its default and its choices, and none that is not there."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from darling_plugin.config import PREFIX, DarlingConfig
from darling_plugin.registry import advantages, quality_gates, rewards

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| `--darling\.(\w+)` \| (.*?) \| (.*) \|$", re.MULTILINE)
FLAGS = {flag.name: flag for flag in fields(DarlingConfig)}
# What a flag that is not set stands for, where that is not "none".
UNSET = {"threshold": "the model's own", "clustering": "the model's own", "advantage": "`centered`"}
REGISTERED = {"reward": rewards, "advantage": advantages, "quality_gate": quality_gates}


def rows(page):
    return ROW.findall((ROOT / page).read_text(encoding="utf-8"))


def default_as_shown(flag):
    if flag.default is None:
        return UNSET.get(flag.name, "none")
    if flag.metadata["type"] is bool:
        return {False: "off", True: "on"}[flag.default]
    return f"`{flag.default}`" if flag.metadata["type"] is str else f"{flag.default:g}"


def test_the_page_has_a_row_for_each_flag():
    assert sorted(name for name, _, _ in rows("docs/flags.md")) == sorted(FLAGS)


@pytest.mark.parametrize("page", ["README.md", "docs/flags.md"])
def test_each_row_has_the_flags_default(page):
    shown = {name: default for name, default, _ in rows(page)}
    assert shown and shown == {name: default_as_shown(FLAGS[name]) for name in shown}


@pytest.mark.parametrize(("name", "default", "text"), rows("docs/flags.md"))
def test_each_row_has_the_flags_choices(name, default, text):
    choices = REGISTERED[name].names() if name in REGISTERED else FLAGS[name].metadata["choices"] or ()
    assert [choice for choice in choices if not re.search(rf"`{choice}[`:]", text)] == []


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
)
def test_every_flag_named_on_a_page_is_a_flag(page):
    named = set(re.findall(re.escape(PREFIX) + r"(\w+)", (ROOT / page).read_text(encoding="utf-8")))
    assert named <= set(FLAGS)
