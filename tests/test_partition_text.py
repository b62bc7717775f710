"""--darling.partition_text: what of a response is compared."""

import pytest

from darling_plugin.errors import DarlingError
from darling_plugin.partition.text import read_partition_text

THOUGHT = "<think>one</think> two </think> three"


@pytest.mark.parametrize(
    ("spec", "response", "expected"),
    [
        ("whole", THOUGHT, THOUGHT),
        ("whole", "", ""),
        ("after:</think>", THOUGHT, " three"),
        ("after:</think>", "cut off while <think>ing", None),
        ("after:</think>", "thought and nothing said</think>", ""),
        ("before:</think>", THOUGHT, "<think>one"),
        ("before:</think>", "none", None),
        ("after:a:b", "x a:b y", " y"),
        (r"regex:\\boxed\{(.*?)\}", r"first \boxed{1}, then \boxed{2}", "1"),
        (r"regex:(?s)<answer>(.*)</answer>", "<answer>a\nb</answer>", "a\nb"),
        (r"regex:<answer>(.*)</answer>", "no mark", None),
        (r"regex:x(y)?", "x", None),
    ],
)
def test_what_is_compared(spec, response, expected):
    assert read_partition_text(spec)("a prompt", response) == expected


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("", "none of them"),
        ("half", "none of them"),
        ("after:", "nothing after after:"),
        ("before:", "nothing after before:"),
        ("regex:", "nothing after regex:"),
        ("regex:(", "unterminated"),
        ("regex:abc", "a pattern without a group"),
        ("json:loads:", "none of them"),
        ("json:no_such_function", "no function of prompt and response"),
        ("os.path:sep", "no function of prompt and response"),
        ("os.path:basename", "too many positional arguments"),
        ("no_such_module_at_all:f", "no module named 'no_such_module_at_all'"),
        ("nowhere.py:f", "no such file"),
    ],
)
def test_what_cannot_be_read_is_refused(spec, found):
    with pytest.raises(DarlingError) as caught:
        read_partition_text(spec)
    assert found in str(caught.value)


def test_a_function_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def after_the_prompt(prompt, response):\n    return response.removeprefix(prompt) or None\n"
        "def number(prompt, response):\n    return 7\n"
        "def leaves(prompt, response):\n    raise SystemExit(3)\n"
        "def stops(prompt, response):\n    return next(iter(()))\n"
    )
    part = read_partition_text(f"{file}:after_the_prompt")
    assert part("Name: ", "Name: Ada") == "Ada"
    assert part("Name: ", "Name: ") is None
    with pytest.raises(DarlingError, match=r"(?s)a str or None from .*mine.py:number.*int"):
        read_partition_text(f"{file}:number")("p", "r")
    for name, raised in (("leaves", "SystemExit.3."), ("stops", "StopIteration")):
        with pytest.raises(RuntimeError, match=rf"mine.py:{name} raised {raised}"):  # an Exception: a group's, no more
            read_partition_text(f"{file}:{name}")("p", "r")
