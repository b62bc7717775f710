"""`make demo`, with fewer steps: the real SmolLM2-135M-Instruct, and every number that it leaves behind."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import recompute

REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / "models" / "SmolLM2-135M-Instruct"
STEPS = 2


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "examples/demo.py", "--model", str(MODEL), "--out", str(out), "--steps", str(STEPS)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return out, done.stdout


def test_the_demo_says_how_far_it_is_where_it_draws_no_bar(demo):
    lines = demo[1].splitlines()
    assert all(lines.count(f"step {step} done") == 1 for step in range(1, STEPS)), demo[1]


# The log has no special tokens. Where a response goes on with a turn of the user's, "gold<|im_start|>user" is
# "golduser" there, and names no gold.
NEXT_TURN = re.compile(r"(system|user|assistant)\n")


def test_the_demos_partitions_recomputed(demo):
    records = recompute.check(demo[0])
    assert [record["step"] for record in records] == [1] * 8 + [2] * 8
    spec = importlib.util.spec_from_file_location("demo_reward", REPOSITORY / "examples" / "reward_named_answer.py")
    reward = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reward)
    rows = map(json.loads, (REPOSITORY / "examples/data/many_answers.jsonl").read_text().splitlines())
    answers = {row["input"]: row["answers"] for row in rows}
    compared = 0
    for record in records:
        (mine,) = (accepted for prompt, accepted in answers.items() if f"\n{prompt}<|im_end|>" in record["prompt"])
        for text, quality in zip(record["responses"], record["quality"], strict=True):
            if NEXT_TURN.search(text):
                continue
            named = 1 <= len(reward.named_answers(text, mine)) <= reward.MAX_NAMED_ANSWERS
            assert quality == (named and not reward.lists_a_wrong_one(text, mine)), text
            compared += 1
    assert compared > 100


def test_the_untrained_model_earns_something_and_not_everything(demo):
    records, _ = recompute.read(demo[0])
    first = [value for record in records if record["step"] == 1 for value in record["quality"]]
    assert 0 < sum(first) < len(first) == 64, "about a quarter of them do; fewer than a tenth in a run of a hundred"


def test_the_demo_ends_with_its_tables(demo):
    out, said = demo
    records, _ = recompute.read(out)
    assert said.count("per training step") == 1
    for step in range(1, STEPS + 1):
        groups = [record for record in records if record["step"] == step]
        classes = sum(len(set(record["labels"])) for record in groups) / len(groups)
        assert f"{classes:.2f}" in said
    assert said.count(f"step {STEPS}: ") == 3, "three example groups"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert records[0]["prompt"].splitlines()[-2].removesuffix("<|im_end|>").split("?")[0] in page
    assert f"made by darling-report {out} -o {out / 'report.html'}\n" in said
    assert (out / "run.json").is_file() and (out / "model" / "model.safetensors").is_file()
