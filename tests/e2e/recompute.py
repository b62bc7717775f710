"""Every number of a partitions.jsonl, computed again from labels and quality, in plain Python and on its own.

It shares no code with the package: loops over responses, straight from the equations of arXiv 2509.02534.
"""

import json
import math
from pathlib import Path

from method_oracles import ORACLES

OF_SIMILARITY = set(ORACLES) - {"inverse_class_size"}
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
    needed = flags["diversity"] != "classes" or partition_model["clustering"] == "average"
    assert ("similarity" in record) == (needed or bool({flags["reward"], flags["advantage"]} & OF_SIMILARITY))
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
    weight = record["weight"]
    if flags["prompt_weight"] is None:  # else it is of the data set's label, which the log does not have
        close([weight], [scheduled(flags, record["step"])])
    floored = [max(1 - weight + weight * value, flags["diversity_floor"]) for value in record["diversity"]]
    quality = transformed(record["quality"], flags["quality_transform"])
    if flags["reward"] == "multiply":
        shaped = [q * d for q, d in zip(quality, floored, strict=True)]
    elif flags["reward"] == "additive":
        shaped = [a + b for a, b in zip(z_scores(quality), z_scores(floored), strict=True)]
    elif flags["reward"] == "quality":
        shaped = quality
    else:
        shaped = blended(flags["reward"], quality, quality, weight, record)
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
    elif flags["advantage"] in ORACLES:
        centered = blended(flags["advantage"], record["reward"], centered, weight, record)
    else:
        assert flags["advantage"] == "centered"
    close(record["advantage"], centered)


def scheduled(flags: dict, step: int) -> float:
    """The weight at a step: on the line from the last point at or before it to the next."""
    if flags["weight_schedule"] is None:
        return flags["weight"]
    points = [tuple(map(float, point.split(":"))) for point in flags["weight_schedule"].split(",")]
    before = [point for point in points if point[0] <= step] or points[:1]
    after = [point for point in points if point[0] > step] or before[-1:]
    (start, first), (end, last) = before[-1], after[0]
    return first if end <= start else first + (last - first) * (step - start) / (end - start)


def blended(method: str, values: list[float], without: list[float], weight: float, record: dict) -> list[float]:
    """What a method makes of quality or reward, as far as the weight goes; the rest as without diversity.

    What the gate left out is like nobody, and gets what the method gives to a group that says the same throughout.
    """
    labels, n = record["labels"], len(values)
    same = [[float(a == b) for b in labels] for a in labels]  # where a method reads classes alone
    similarity = [
        [1.0 if i == j else 0.0 if -1 in (labels[i], labels[j]) else min(max(row[j], 0.0), 1.0) for j in range(n)]
        for i, row in enumerate(record.get("similarity", same))
    ]
    given = ORACLES[method](values, similarity, labels)
    alike = ORACLES[method](values, [[1.0] * n] * n, [0] * n)
    return [
        (1 - weight) * base + weight * (all_alike if label < 0 else value)
        for base, value, all_alike, label in zip(without, given, alike, labels, strict=True)
    ]


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
    if len(set(values)) == 1:  # whose mean may be a rounding step off
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [(value - mean) / std for value in values]


def close(found: list[float], expected: list[float]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE), (found, expected)


def check_experiences(records: list[dict], steps: list[list[dict]]) -> None:
    """The samples that spy.py saw on their way to the trainer, by step, have the log's rewards and advantages."""
    for number, samples in enumerate(steps, start=1):
        logged = [r for r in records if (r["split"], r["step"]) == ("train", number)]
        n = len(logged[0]["responses"])
        samples.sort(key=lambda sample: sample["place"])
        assert [sample["place"] for sample in samples] == list(range(n * len(logged)))
        for place, sample in enumerate(samples):
            record, k = logged[place // n], place % n
            assert sample["prompt"] == record["prompt"]
            assert math.isclose(sample["reward"], record["reward"][k], abs_tol=1e-6)
            for token in sample["advantages"]:
                assert math.isclose(token, record["advantage"][k], abs_tol=1e-6)
    assert any(abs(token) > 0.01 for samples in steps for sample in samples for token in sample["advantages"])
