"""The reward function of verifiable maths, loaded and called as OpenRLHF does it."""

import asyncio
import contextlib
import importlib.util
import json
import logging
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import final_answers
import psutil
import pytest
import torch

from darling_plugin import DarlingError, maths

REWARD_FILE = Path(__file__).resolve().parents[1] / "examples" / "reward_math.py"
MATH_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "math"
PROMPT = "<|im_start|>user\nIs it \\boxed{1} or 2?<|im_end|>\n<|im_start|>assistant\n"
HANGS = r"It is \boxed{9^{9^{9^{9}}}}."


def load_reward_module():
    spec = importlib.util.spec_from_file_location("reward_func", REWARD_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reward_math = load_reward_module()


def check(responses: list[str], labels: list) -> tuple[list[float], list[float]]:
    result = reward_math.reward_func([PROMPT + response for response in responses], [PROMPT] * len(responses), labels)
    assert set(result) == {"rewards", "scores", "extra_logs"}
    assert set(result["extra_logs"]) == {"math_unchecked"}
    assert result["rewards"].dtype == torch.float32
    assert result["rewards"].tolist() == result["scores"].tolist()
    return result["rewards"].tolist(), result["extra_logs"]["math_unchecked"].tolist()


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # of an earlier test
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
    return found


def busy_worker() -> psutil.Process:
    for _ in range(50):
        found = workers()
        before = [sum(worker.cpu_times()[:2]) for worker in found]
        time.sleep(0.3)
        for worker, seconds in zip(found, before, strict=True):
            if sum(worker.cpu_times()[:2]) > seconds + 0.05:
                return worker
    raise AssertionError("no worker is busy")


@pytest.mark.parametrize(
    "response, label, expected",
    [
        (r"So the answer is \boxed{42}.", "42", 1),
        (r"So the answer is \boxed{42}.<|im_end|>", "42", 1),
        (r"So the answer is \boxed{43}.", "42", 0),
        (r"First \boxed{41}, no:" + "\n\n" + r"$\boxed{42}$", "42", 1),
        (r"\boxed{42}, which is 6 times 7.", "42", 1),
        ("It is 41, no, it is 42.", "42", 1),
        ("It is 42, no, it is 41.", "42", 0),
        ("6 * 7 = 42", "42", 1),
        ("#### 42", "42", 1),
        ("42", "$42$", 1),
        ("42", r"\boxed{42}", 1),
        ("42", r"6 times 7 is \boxed{42}.", 1),
        ("42", r"\(42\)", 1),
        ("42", 42, 1),
        ("42", 42.0, 1),
        ("43", 42.0, 0),
        (r"\boxed{0.00001}", 1e-5, 1),
        (r"\boxed{42.0}", "42", 1),
        ("-42", "42", 0),
        (r"\boxed{1,234}", "1234", 1),
        ("1234", "1,234", 1),
        (r"$\frac{1}{2}$", "0.5", 1),
        (r"\boxed{\frac12}", r"\frac{2}{4}", 1),
        ("The answer is 1/2", r"$\frac{1}{2}$", 1),
        ("The answer is 1/2<|im_end|>", "0.5", 1),
        ("The answer is 1/2</s>\n", "0.5", 1),
        (r"\boxed{3 \frac{1}{2}}", "3.5", 1),
        (r"\boxed{0.333333}", r"\frac13", 1),
        (r"\boxed{0.33}", r"\frac13", 0),
        (r"\boxed{50\%}", "0.5", 1),
        (r"\boxed{50\%}", "50", 1),
        ("50%", r"50\%", 1),
        (r"\boxed{5}", "50%", 0),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", 1),
        (r"\boxed{\sqrt{8}}", "2", 0),
        (r"\boxed{\{2,1\}}", r"\{1,2\}", 1),
        (r"\boxed{\{1,2,3\}}", r"\{1,2\}", 0),
        (r"$x=1$ or $x=2$", "1,2", 1),
        (r"\boxed{(1,2)}", "(1,2)", 1),
        (r"\boxed{(2,1)}", "(1,2)", 0),
        (r"\boxed{[1,2)}", "[1,2)", 1),
        (r"\boxed{[1,2]}", "[1,2)", 0),
        (r"\boxed{(-\infty,3]\cup[5,\infty)}", r"$(-\infty,3]\cup[5,\infty)$", 1),
        (r"\boxed{x=5}", "5", 1),
        (r"\boxed{y=5}", "x=5", 0),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1),
        (r"\boxed{6\text{ cm}}", "6", 1),
        (r"\boxed{\text{B}}", "B", 1),
        (r"\boxed{C}", "B", 0),
        # Several answers, one of them right.
        (r"\boxed{41}, \boxed{42}", "42", 0),
        (r"\boxed{41, 42}", "42", 0),
        (r"\boxed{1/0}", "42", 0),
        (r"\boxed{}", "42", 0),
        (r"\boxed{", "42", 0),
        (r"\boxed{" * 300, "42", 0),
        ("I do not know.", "42", 0),
        ("", "42", 0),
    ],
)
def test_answers(response, label, expected):
    assert check([response], [label]) == ([expected], [0])


@pytest.mark.parametrize(
    "label",
    [None, "", "  \n", [], ["42"], float("nan"), r"\foo{2}", r"\frac10", "$", "?", r"\boxed{}", "no answer: ]["],
)
def test_a_label_that_is_no_answer_raises_and_is_named(label):
    with pytest.raises(ValueError) as caught:
        check(["42", "42"], ["42", label])
    assert f"label {label!r}" in str(caught.value)


def test_the_prompt_is_not_checked():
    assert check(["I do not know."], ["2"]) == ([0], [0])
    with pytest.raises(ValueError, match="does not start with its prompt"):
        reward_math.reward_func(["42"], [PROMPT], ["42"])


def test_lengths_that_differ_raise():
    with pytest.raises(ValueError):
        reward_math.reward_func([PROMPT], [PROMPT, PROMPT], ["42"])


def test_each_answer_of_the_competitions_equals_itself():
    if not MATH_DATA.is_dir():
        pytest.skip("../shared/data/math is not there")
    files = sorted(MATH_DATA.glob("*.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) >= 100
    rewards, unchecked = check([rf"So it is $\boxed{{{answer}}}$.<|im_end|>" for answer in answers], answers)
    assert [answer for answer, reward in zip(answers, rewards, strict=True) if reward != 1] == []
    assert sum(unchecked) == 0


def test_a_check_that_hangs_costs_its_sample_alone(monkeypatch, caplog):
    monkeypatch.setattr(reward_math, "DEADLINE", 2.0)
    check(["3"], ["3"])  # starts the workers
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert check([r"\boxed{3}", HANGS, "4", r"\boxed{5}"], ["3", "3", "3", "5"]) == ([1, 0, 0, 1], [0, 1, 0, 0])
    assert time.monotonic() - start < 6
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "9^{9^{9^{9}}}" in caplog.text and "label '3'" in caplog.text and "more than 2 s" in caplog.text
    assert check(["3", "4"], ["3", "3"]) == ([1, 0], [0, 0])


def _raise_on_nines(response, label):
    if "9" in response:
        raise ArithmeticError("not today")
    return maths.equals_label(response, label)


def test_a_response_on_which_math_verify_raises_is_unchecked(monkeypatch, caplog):
    monkeypatch.setattr(reward_math, "equals_label", _raise_on_nines)
    assert check(["9", "The answer is 9", "3"], ["3", "3", "3"]) == ([0, 0, 1], [1, 1, 0])
    assert caplog.text.count("math-verify raised ArithmeticError") == 2


def test_numbers_of_thousands_of_digits_are_checked():
    assert check(["9" * 5000, "9" * 5000, r"\boxed{%s}" % ("9" * 5000)], ["3", "9", "9"]) == ([0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize("rows", [final_answers.CASES, final_answers.GRID], ids=["cases", "grid"])
def test_final_answers_as_people_write_them(rows):
    assert len(rows) >= 150
    rewards, unchecked = check([response for response, _, _ in rows], [label for _, label, _ in rows])
    wrong = [row for row, reward in zip(rows, rewards, strict=True) if (reward == 1) != row[2]]
    assert (wrong, sum(unchecked)) == ([], 0)


def test_a_worker_killed_in_its_check_costs_that_check_alone(monkeypatch, caplog):
    monkeypatch.setattr(reward_math, "DEADLINE", 60.0)
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(check, ["3", HANGS, "4"], ["3", "3", "3"])
        busy_worker().kill()
        assert future.result(timeout=30) == ([1, 0, 0], [0, 1, 0])
    assert "its process died" in caplog.text
    assert check(["3", "4"], ["3", "3"]) == ([1, 0], [0, 0])


def test_workers_killed_while_idle_are_replaced():
    assert check(["3"], ["3"]) == ([1], [0])
    for worker in workers():
        worker.kill()
    assert check(["3", "4"] * 10, ["3"] * 20) == ([1, 0] * 10, [0] * 20)
    time.sleep(0.3)  # pebble has now seen it
    assert check(["3", "4"] * 10, ["3"] * 20) == ([1, 0] * 10, [0] * 20)


def _fail():
    raise ImportError("no math-verify here")


def _prepare_slowly():
    from darling_plugin import maths

    time.sleep(2.5)
    maths._prepare()


def test_workers_that_cannot_start_raise(monkeypatch):
    module = load_reward_module()
    monkeypatch.setattr(maths, "_prepare", _fail)
    with pytest.raises(RuntimeError, match="die as they start"):
        module.reward_func([PROMPT + "3"] * 40, [PROMPT] * 40, ["3"] * 40)


def test_without_its_packages_the_file_does_not_load(monkeypatch):
    monkeypatch.setattr(maths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DarlingError, match="reward_math.py(.|\n)*pip install math-verify pebble"):
        load_reward_module()


def test_the_first_deadline_does_not_count_the_imports(monkeypatch):
    module = load_reward_module()
    monkeypatch.setattr(maths, "_prepare", _prepare_slowly)
    monkeypatch.setattr(module, "DEADLINE", 2.0)
    assert module.check_answer("3", "3") == (True, False)
    module.workers.stop()


def test_many_threads_share_one_pool():
    module = load_reward_module()
    threads = 16
    barrier = threading.Barrier(threads)

    def call(number: int) -> list[float]:
        barrier.wait()  # all find that there is no pool yet
        queries = [PROMPT + str(number), PROMPT + "-1"]
        return module.reward_func(queries, [PROMPT] * 2, [str(number)] * 2)["rewards"].tolist()

    before = {worker.pid for worker in workers()}
    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(call, range(threads))) == [[1, 0]] * threads
    assert len({worker.pid for worker in workers()} - before) == module.WORKERS
    module.workers.stop()


def test_openrlhf_calls_it_for_many_responses_at_once():
    agent = pytest.importorskip("openrlhf.utils.agent")
    executor = agent.SingleTurnAgentExecutor(str(REWARD_FILE))

    async def rollout():
        calls = [executor._fetch_rewards_via_func([PROMPT + str(i % 2)], [PROMPT], ["1"]) for i in range(40)]
        return await asyncio.gather(*calls)

    results = [result for (result,) in asyncio.run(rollout())]
    assert [result["rewards"].item() for result in results] == [0.0, 1.0] * 20
    assert all(result["extra_logs"]["math_unchecked"].item() == 0.0 for result in results)


SCRIPT = """
    import importlib.util, sys, threading, time, psutil
    if __name__ == "__main__":
        spec = importlib.util.spec_from_file_location("reward_func", sys.argv[1])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.DEADLINE = 2.0
        assert module.reward_func(["3"], [""], ["3"])["rewards"].item() == 1
        print(*(child.pid for child in psutil.Process().children()), flush=True)
        if sys.argv[2] == "killed":
            threading.Thread(target=module.check_answer, args=(sys.argv[3], "3"), daemon=True).start()
            time.sleep(0.5)
            psutil.Process().kill()
"""


@pytest.mark.parametrize("end, returncode", [("ends", 0), ("killed", -9)])
def test_no_worker_outlives_its_process(tmp_path, end, returncode):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    # To a file: a worker left over would hold a pipe open.
    with (tmp_path / "out").open("w+") as out:
        command = [sys.executable, script, REWARD_FILE, end, HANGS]
        assert subprocess.run(command, stdout=out, timeout=40).returncode == returncode
        out.seek(0)
        pids = [int(pid) for pid in out.read().split()]
    assert len(pids) > 1
    limit = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.2)
