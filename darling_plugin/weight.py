"""How strongly diversity counts in each group: the weight, or its schedule by the step, and the prompt's own."""

from __future__ import annotations

import inspect
import json
import math
import numbers
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.user_code import import_user_code

Schedule = Callable[[int], float]
PromptWeight = Callable[[str, Any], float]


def read_weight_schedule(spec: str) -> Schedule:
    """The weight at each of OpenRLHF's global steps, of points STEP:WEIGHT[,STEP:WEIGHT...] as "0:0,100:1".

    Linear between two points; before the first and after the last it is theirs. Steps grow; weights are 0 or more.

    Raises DarlingError for anything else.
    """
    points = _points(spec)
    steps, weights = [step for step, _ in points], [weight for _, weight in points]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise _unusable("weight_schedule", spec, "steps that do not grow")
    if not all(_is_weight(weight) for weight in weights):
        raise _unusable("weight_schedule", spec, "a weight that is below 0 or not finite")

    def at(step: int) -> float:
        import numpy

        return float(numpy.interp(step, steps, weights))

    return at


def schedule_steps(spec: str) -> list[int]:
    """The steps of its points: among these is that of its largest weight."""
    return [step for step, _ in _points(spec)]


def _points(spec: str) -> list[tuple[int, float]]:
    try:
        return [(int(step), float(weight)) for step, weight in (point.split(":") for point in spec.split(","))]
    except ValueError as error:
        raise _unusable("weight_schedule", spec, f"{error}") from error


def read_prompt_weight(spec: str) -> PromptWeight:
    """The function that `spec` names, of a prompt and its label, which gives a number of 0 or more.

    - "package.module:function", "file.py:function": a function of your own.
    - any other text: a key of the label, which is then a JSON object with that key.

    Raises DarlingError where there is no such function of two arguments; the function it returns, where the weight is
    no number of 0 or more, or the label has none.
    """
    source, colon, name = spec.rpartition(":")
    if colon:
        function = getattr(import_user_code(source), name, None) if source else None
        try:
            inspect.signature(function).bind("prompt", "label")
        except (TypeError, ValueError) as error:
            found = f"{name} there is no function of prompt and label: {error}"
            raise _unusable("prompt_weight", spec, found) from error
    else:
        function = _of_label(spec)

    def checked(prompt: str, label: Any) -> float:
        weight = function(prompt, label)
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not _is_weight(weight):
            raise DarlingError(
                f"a number of 0 or more from {spelled('prompt_weight')} {spec}",
                f"{weight!r} for the prompt that ends {prompt[-80:]!r}",
                "correct it",
            )
        return float(weight)

    return checked


def group_weights(
    weight: float, schedule: str | None, prompt_weight: str | None, *, step: int, asked: Sequence[tuple[str, Any]]
) -> list[float]:
    """The weight of each group: the constant's or the schedule's at this step, times that of its prompt.

    Args:
        step: OpenRLHF's global step, as it is logged: the first is 1.
        asked: prompt and label of each group.
    """
    now = weight if schedule is None else read_weight_schedule(schedule)(step)
    if prompt_weight is None:
        return [now] * len(asked)
    of_prompt = read_prompt_weight(prompt_weight)
    return [now * of_prompt(prompt, label) for prompt, label in asked]


def _of_label(key: str) -> PromptWeight:
    def weight(prompt: str, label: Any) -> Any:
        try:
            return (json.loads(label) if isinstance(label, str) else label)[key]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DarlingError(
                f"a label that is a JSON object with the key {key!r}, for {spelled('prompt_weight')} {key}",
                f"{str(label)[:200]!r}, of the prompt that ends {prompt[-80:]!r}",
                "add the key to the labels of the data set, or name a function as file.py:function",
            ) from error

    return weight


def _is_weight(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _unusable(option: str, spec: str, found: str) -> DarlingError:
    forms = {
        "weight_schedule": "STEP:WEIGHT[,STEP:WEIGHT...], as 0:0,100:1",
        "prompt_weight": "KEY, package.module:function or file.py:function",
    }
    return DarlingError(f"{spelled(option)} {forms[option]}", f"{spec!r}: {found}", "correct it")
