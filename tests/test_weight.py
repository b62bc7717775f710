"""How strongly diversity counts, by the step and by the prompt."""

import json

import pytest

from darling_plugin.errors import DarlingError
from darling_plugin.weight import group_weights, read_prompt_weight, read_weight_schedule


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("0:0,100:1,1000:0.5", {0: 0.0, 1: 0.01, 50: 0.5, 100: 1.0, 550: 0.75, 1000: 0.5, 5000: 0.5}),
        ("10:2", {1: 2.0, 10: 2.0, 11: 2.0}),
        ("100:1,101:0", {1: 1.0, 100: 1.0, 101: 0.0, 102: 0.0}),
    ],
)
def test_a_schedule_is_linear_between_its_points_and_constant_outside(spec, expected):
    at = read_weight_schedule(spec)
    assert {step: at(step) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("", "not enough values"),
        ("0.5", "not enough values"),
        ("0:1:2", "too many values"),
        ("0:0,half:1", "half"),
        ("0.5:1", "0.5"),
        ("0:0,", "not enough values"),
        ("10:0,10:1", "steps that do not grow"),
        ("10:0,5:1", "steps that do not grow"),
        ("0:-1", "below 0"),
        ("0:nan", "not finite"),
        ("0:inf", "not finite"),
    ],
)
def test_other_schedules_are_refused(spec, found):
    with pytest.raises(DarlingError, match=f"(?s)weight_schedule STEP:WEIGHT.*{found}"):
        read_weight_schedule(spec)


def function_of(tmp_path, body):
    file = tmp_path / "mine.py"
    file.write_text(f"def weight(prompt, label):\n    {body}\n\ndef one(prompt):\n    return 1\n\nnumber = 2\n")
    return f"{file}:weight"


def test_a_prompts_weight_by_a_function(tmp_path):
    spec = function_of(tmp_path, "return 0 if prompt.startswith('Who') else 0.5 * len(label)")
    weight = read_prompt_weight(spec)
    assert (weight("Who was it?", "abc"), weight("Name one", "abc")) == (0.0, 1.5)


@pytest.mark.parametrize("label", [json.dumps({"answer": "7", "weight": 0.25}), {"answer": "7", "weight": 0.25}])
def test_a_prompts_weight_by_a_key_of_its_label(label):
    assert read_prompt_weight("weight")("What is 3 + 4?", label) == 0.25


@pytest.mark.parametrize("label", ["", "7", '["weight"]', '{"answer": "7"}', "{weight: 1}", None, 7])
def test_a_label_without_the_key_is_named_with_its_prompt(label):
    with pytest.raises(DarlingError, match="(?s)a JSON object with the key 'weight'.*prompt that ends 'What is 3"):
        read_prompt_weight("weight")("What is 3 + 4?", label)


@pytest.mark.parametrize("result", ["-1", "None", "'1'", "True", "float('nan')", "[1]"])
def test_a_weight_that_is_none_is_named(tmp_path, result):
    weight = read_prompt_weight(function_of(tmp_path, f"return {result}"))
    with pytest.raises(DarlingError, match="(?s)a number of 0 or more from prompt_weight.*that ends 'Name one'"):
        weight("Name one", "")


def test_what_is_no_function_of_prompt_and_label_is_refused(tmp_path):
    file = function_of(tmp_path, "return 1").removesuffix(":weight")
    for name in ("one", "number", "none"):
        with pytest.raises(DarlingError, match=f"{name} there is no function of prompt and label"):
            read_prompt_weight(f"{file}:{name}")
    with pytest.raises(DarlingError, match="a Python file"):
        read_prompt_weight(f"{tmp_path}/missing.py:weight")
    with pytest.raises(DarlingError, match="KEY, package.module:function or file.py:function"):
        read_prompt_weight(":weight")


def test_step_and_prompt_together(tmp_path):
    asked = [("a", '{"w": 1}'), ("b", '{"w": 0}'), ("c", '{"w": 0.5}')]
    assert group_weights(1.5, None, None, step=3, asked=asked) == [1.5] * 3
    assert group_weights(1.0, "0:0,4:1", None, step=3, asked=asked) == [0.75] * 3
    assert group_weights(1.5, None, "w", step=3, asked=asked) == [1.5, 0.0, 0.75]
    assert group_weights(1.0, "0:0,4:1", "w", step=3, asked=asked) == [0.75, 0.0, 0.375]
