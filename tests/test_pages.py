"""The README and docs/: their links lead somewhere, the listing of folders is complete, the example is the file."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading_of_it(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_the_listing_of_folders_is_complete():
    listing = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8").split("## Where things live")[1]
    listed = set(re.findall(r"^\| `([\w/]+)/` \|", listing, re.MULTILINE))
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not files:
        pytest.skip("not a checkout")
    tops = {file.split("/")[0] for file in files if "/" in file and not file.startswith(".")}
    rooms = {"/".join(file.split("/")[:2]) for file in files if re.match(r"darling_plugin/\w+/", file)}
    assert listed == tops | rooms


def test_the_page_shows_the_example_as_it_is():
    shown = (ROOT / "examples" / "own_partition_model.py").read_text(encoding="utf-8").split('"""')[2].strip()
    assert shown in (ROOT / "docs" / "add-a-partition-model.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("room", ["", "partition", "openrlhf"])
def test_a_room_lists_its_files_and_folders(room):
    folder = ROOT / "darling_plugin" / room
    listing = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    listed = re.findall(r"^ *(\w+/)|(\w+\.py)\b", listing, re.MULTILINE)
    assert sorted("".join(each) for each in listed) == sorted(
        [file.name for file in folder.glob("[!_]*.py")]
        + [f"{each.name}/" for each in folder.glob("[!_]*/") if each.is_dir()]
    )
