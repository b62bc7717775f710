"""One HTML file of runs: an index that the browser reads at once, and the groups' texts packed in small parts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

from darling_plugin.errors import DarlingError
from darling_plugin.evaluation import monitor
from darling_plugin.evaluation.methods import METHODS, compare_methods
from darling_plugin.evaluation.report.curves import Curves, curves
from darling_plugin.evaluation.report.runs import Run, Step
from darling_plugin.evaluation.within_group import FLAT
from darling_plugin.log import NOT_LOGGED
from darling_plugin.queries import asked

HERE = Path(__file__).parent
SCRIPTS = ("data.js", "charts.js", "groups.js", "methods.js", "main.js")
PART = 16  # groups that are unpacked together: twenty groups of anywhere on the page are then a few megabytes
FIRST = 2  # parts before the script: the twenty groups that are shown at first
HIGHLIGHTS = 4  # most gained, most lost
DISAGREEMENTS = 5  # groups on which the methods disagree most


def render(runs: list[Run]) -> str:
    """The page. What a prompt or response holds is in it as JSON, in ASCII and without a `<`, or packed."""
    groups = [
        (place, step, k) for place, run in enumerate(runs) for step in run.steps for k in range(len(step.records))
    ]
    parts = [groups[start : start + PART] for start in range(0, len(groups), PART)]
    style, script = _file("page.css"), "\n".join(map(_file, SCRIPTS))
    filled = {
        "title": html.escape(", ".join(run.name for run in runs)).encode("ascii", "xmlcharrefreplace").decode(),
        "policy": f"default-src 'none'; style-src {_hashed(style)}; script-src {_hashed(script)}",
        "style": style,
        "script": script,
        "index": _json(_index(runs, groups)).replace("<", "\\u003c"),
    }
    packed = [
        f'<script type="text/plain" id="part{k}">{_packed([_group(step, g) for _, step, g in part])}</script>'
        for k, part in enumerate(parts)
    ]
    # The script draws the first groups while the browser still reads the rest.
    filled |= {"first": "\n".join(packed[:FIRST]), "rest": "\n".join(packed[FIRST:])}
    return re.sub(r"\{\{(\w+)\}\}", lambda field: filled[field[1]], _file("page.html"))


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hashed(text: str) -> str:
    """What a Content-Security-Policy calls a text that may run; nothing else in the page may."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(_json(value).encode(), 6)).decode()


def _index(runs: list[Run], groups: list[tuple[int, Step, int]]) -> dict[str, Any]:
    prompts: dict[str, int] = {}
    columns: dict[str, list] = {
        name: []
        for name in ("run", "step", "split", "prompt", "classes", "one", "flat", "quality", "reward", "gained", "lost")
    }
    for place, step, k in groups:
        record, gain = step.records[k], None if step.gain is None else step.gain[k].tolist()
        labels = [label for label in record["labels"] or [] if label >= 0]
        diversity = record["diversity"] if record["labels"] is not None else None  # else trained on quality alone
        question = asked(record["prompt"])
        values = {
            "run": place,
            "step": step.number,
            "split": int(step.split == "eval"),
            "prompt": prompts.setdefault(question, len(prompts)),
            "classes": len(set(labels)),
            "one": int(len(set(labels)) == 1 and len(labels) > 1),
            "flat": int(bool(diversity) and len(diversity) > 1 and max(diversity) - min(diversity) < FLAT),
            "quality": _short(math.fsum(record["quality"]) / len(record["quality"])),
            "reward": _short(math.fsum(record["reward"]) / len(record["reward"])),
            "gained": gain and _short(max(gain)),
            "lost": gain and _short(min(gain)),
        }
        for name, value in values.items():
            columns[name].append(value)
    return {
        "runs": [_run(run) | {"methods": _methods(run, place, groups)} for place, run in enumerate(runs)],
        "prompts": list(prompts),
        "groups": columns,
        "part": PART,
        "notLogged": NOT_LOGGED,
        "highlights": _highlights(groups),
        "watched": monitor.MonitorWatch.STEPS,
        "moves": {name: move.means for name, move in monitor.MOVES.items()},
    }


def _run(run: Run) -> dict[str, Any]:
    made = {split: curves(run, split) for split in ("train", "eval")}
    return {
        "name": run.name,
        "settings": {name: value for name, value in run.settings.items() if value is not None},
        "curves": {split: _curve(each) for split, each in made.items() if each.steps},
        "warnings": [(step, name, said) for step, name, said in made["train"].warnings],
        "gain": any(step.gain is not None for step in run.steps),
    }


def _methods(run: Run, place: int, groups: list[tuple[int, Step, int]]) -> dict[str, Any]:
    """What the methods make of the run's training groups; or why that cannot be said, as `missing`."""
    number = {id(step.records[k]): g for g, (of, step, k) in enumerate(groups) if of == place}
    try:
        compared = compare_methods([record for step in run.steps for record in step.records], run.settings)
    except DarlingError as error:
        needed, found, do = error.args
        return {"missing": f"Not compared: it needs {needed}; found: {found}. To do: {do}."}
    return {
        "names": list(METHODS),
        "count": len(compared.groups),
        "of_classes": not compared.of_similarities,
        "correlation": [[_short(value) for value in row] for row in compared.rank_correlation.tolist()],
        "silent": list(compared.silent.values()),
        "groups": [
            {
                "group": number[id(each.record)],
                "agreement": _short(each.agreement),
                "rewards": [[_short(value) for value in values] for values in each.reward.values()],
                "advantages": [[_short(value) for value in values] for values in each.advantage.values()],
            }
            for each in compared.groups[:DISAGREEMENTS]
            if not math.isnan(each.agreement)
        ],
    }


def _curve(made: Curves) -> dict[str, Any]:
    return {"steps": made.steps, "figures": {name: [_short(v) for v in each] for name, each in made.figures.items()}}


def _highlights(groups: list[tuple[int, Step, int]]) -> dict[str, list[tuple[int, int]]]:
    """(group, response) of those whose reward diversity raised and lowered most, each of another prompt."""
    found = [
        (gain, step.number, g, k, step.records[row]["prompt"])
        for g, (_, step, row) in enumerate(groups)
        if step.gain is not None
        for k, gain in enumerate(step.gain[row].tolist())
        if step.records[row]["responses"][k] != NOT_LOGGED
    ]
    return {"gained": _of_other_prompts(found, 1), "lost": _of_other_prompts(found, -1)}


def _of_other_prompts(found: list[tuple[float, int, int, int, str]], sign: int) -> list[tuple[int, int]]:
    chosen: dict[str, tuple[int, int]] = {}
    # Of equal ones the later.
    for gain, _, group, k, prompt in sorted(found, key=lambda each: (-sign * round(each[0], 6), -each[1])):
        if sign * gain <= 1e-6 or len(chosen) == HIGHLIGHTS:
            break
        chosen.setdefault(prompt, (group, k))
    return list(chosen.values())


def _group(step: Step, k: int) -> dict[str, Any]:
    record = step.records[k]
    group = {"prompt": record["prompt"], "responses": record["responses"], "labels": record["labels"]}
    for name in ("quality", "diversity", "reward", "advantage"):
        group[name] = record.get(name) and [_short(value) for value in record[name]]
    group["tokens"], group["truncated"] = record.get("response_length"), record.get("truncated")
    if step.gain is not None:
        group["gain"] = [_short(value) for value in step.gain[k].tolist()]
    if record.get("similarity"):
        group["similarity"] = [[round(value, 2) for value in row] for row in record["similarity"]]
    if any(record.get("compared") or []):
        group["compared"] = record["compared"]
    group["signs"] = {name: [_short(value) for value in values] for name, values in record["signs"].items()}
    return group


def _short(value: float | None) -> float | None:
    """Four digits, which is more than the page shows; JSON has no NaN and no infinity."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
