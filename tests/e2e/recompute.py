"""Every number of a partitions.jsonl, computed again from labels and quality, in plain Python and on its own.

It shares no code with the package: loops over responses, straight from the equations of arXiv 2509.02534.
"""

import json
import math
from pathlib import Path

TOLERANCE = 2e-5  # the run computes in float32


def read(log_dir: Path) -> tuple[list[dict], dict]:
    lines = (log_dir / "partitions.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line], json.loads((log_dir / "run.json").read_text(encoding="utf-8"))


def check(log_dir: Path) -> list[dict]:
    """Asserts every line of the run's log; returns the lines."""
    records, run = read(log_dir)
    assert records, "an empty partitions.jsonl proves nothing"
    for record in records:
        check_record(record, run["darling"], run["openrlhf"], run["partition_model"])
    return records


def check_record(record: dict, flags: dict, openrlhf: dict, partition_model: dict) -> None:
    n = len(record["responses"])
    assert record["labels"] is not None, "no run here has a group that could not be partitioned"
    for key in ("labels", "quality", "diversity", "reward"):
        assert len(record[key]) == n, key
    threshold = partition_model["threshold"]
    assert ("similarity" in record) == (flags["diversity"] != "classes" or partition_model["clustering"] == "average")
    differs = [[float(a != b) for b in record["labels"]] for a in record["labels"]]
    if flags["diversity"] == "expected":
        differs = [[1 - min(max(p, 0), 1) for p in row] for row in record["similarity"]]
    elif flags["diversity"] == "pairs":
        differs = [[float(p <= threshold) for p in row] for row in record["similarity"]]
    if flags["diversity"] == "pairs" and partition_model["clustering"] == "union_find":
        check_components(record["labels"], record["similarity"], threshold)
    close(record["diversity"], diversity(record["labels"], differs))
    if record["split"] == "eval":
        assert record["reward"] == record["quality"], "evaluation keeps its raw rewards"
        assert record["advantage"] is None
        return
    assert [label >= 0 for label in record["labels"]] == passes(record["quality"], flags["quality_gate"])
    weight = flags["weight"]
    floored = [max(1 - weight + weight * value, flags["diversity_floor"]) for value in record["diversity"]]
    quality = transformed(record["quality"], flags["quality_transform"])
    if flags["reward"] == "multiply":
        shaped = [q * d for q, d in zip(quality, floored, strict=True)]
    elif flags["reward"] == "additive":
        shaped = [a + b for a, b in zip(z_scores(quality), z_scores(floored), strict=True)]
    else:
        assert flags["reward"] == "quality"
        shaped = quality
    penalized = [
        length_penalized(value, length, truncated, openrlhf)
        for value, length, truncated in zip(shaped, record["response_length"], record["truncated"], strict=True)
    ]
    close(record["reward"], penalized)
    close(record["length_penalty"], [after - before for before, after in zip(shaped, penalized, strict=True)])
    if record["advantage"] is None:
        return
    mean = math.fsum(record["reward"]) / n
    centered = [value - mean for value in record["reward"]]
    if flags["advantage"] == "diversity_weighted":
        centered = [d * a for d, a in zip(floored, centered, strict=True)]
    elif flags["advantage"] == "centered_std":
        centered = z_scores(record["reward"])
    close(record["advantage"], centered)


def length_penalized(reward: float, length: int, truncated: bool, openrlhf: dict) -> float:
    """DAPO's overlong penalty, then ProRL's for truncated responses, as OpenRLHF documents its flags."""
    flags = openrlhf["reward"]
    if flags["overlong_buffer_len"] is not None:
        longest = openrlhf["rollout"]["max_new_tokens"] or openrlhf["data"]["max_len"]
        excess = min(length - (longest - flags["overlong_buffer_len"]), flags["overlong_buffer_len"])
        reward -= max(excess, 0) / flags["overlong_buffer_len"] * flags["overlong_penalty_factor"]
    if truncated and flags["stop_properly_penalty_coef"] is not None:
        coefficient = flags["stop_properly_penalty_coef"]
        reward = coefficient if coefficient < 0 else reward * coefficient
    return reward


def passes(quality: list[float], gate: str) -> list[bool]:
    if gate == "none":
        return [True] * len(quality)
    name, number = gate.split(":")
    needed = {
        "above": lambda: math.nextafter(float(number), math.inf),
        "top": lambda: sorted(quality, reverse=True)[math.ceil(float(number) * len(quality)) - 1],
        "reference": lambda: (
            min(quality) + float(number) * (max(quality) - math.fsum(quality) / len(quality)) - TOLERANCE
        ),
    }[name]()
    return [value >= needed for value in quality]


def check_components(labels: list[int], similarity: list[list[float]], threshold: float) -> None:
    """Two responses are one class if and only if a chain of pairs above the threshold leads from one to the other."""
    taking_part = [k for k, label in enumerate(labels) if label >= 0]
    for first in taking_part:
        reached, new = {first}, [first]
        while new:
            here = new.pop()
            found = [j for j in taking_part if j not in reached and similarity[here][j] > threshold]
            reached.update(found)
            new += found
        assert reached == {j for j in taking_part if labels[j] == labels[first]}


def diversity(labels: list[int], differs: list[list[float]]) -> list[float]:
    taking_part = [k for k, label in enumerate(labels) if label >= 0]
    values = []
    for i in range(len(labels)):
        others = [j for j in taking_part if j != i]
        if i not in taking_part:
            values.append(0.0)
        elif not others:
            values.append(1.0)
        else:
            values.append(sum(differs[i][j] for j in others) / len(others))
    return values


def transformed(quality: list[float], transform: str | None) -> list[float]:
    if transform == "sigmoid":
        return [1 / (1 + math.exp(-value)) for value in quality]
    if transform == "group_min":
        return [value - min(quality) for value in quality]
    return quality


def z_scores(values: list[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [0.0 if std == 0 else (value - mean) / std for value in values]


def close(found: list[float], expected: list[float]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE), (found, expected)
