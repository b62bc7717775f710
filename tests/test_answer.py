"""The partition model `answer`: equal final answers are one class, and what fails in its processes stays there."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import final_answers
import psutil
import pytest

from darling_plugin import maths
from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, check_partition_spec, load_partition_model, measure
from darling_plugin.partition.models import answer

HANGS_ALWAYS = r"It is \boxed{9^{9^{9^{9}}}}."


@pytest.fixture(scope="module")
def model():
    return load_partition_model("answer")


def labels(model, *responses):
    (found,) = model.partition([Group("What is it?", list(responses))])
    return found.tolist()


def workers():
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
    return found


# --- which answers are one class

SOLUTIONS = [
    # Each list is one class, and no two lists are the same class.
    [
        "Half of the marbles are red, so the probability is \\boxed{\\frac{1}{2}}.",
        "Let $p$ be the share. Then $2p = 1$, hence $p = 0.5$.\n\nThe answer is 0.5.",
        "There are 3 of 6.\n\n**Answer:** 1/2",
        "The answer is 1/2<|im_end|>",
        "$$\\frac{3}{6} = \\frac{1}{2}$$",
        "First I thought \\boxed{3}. That is wrong: \\boxed{\\dfrac12}<|im_end|>",
    ],
    [
        "Adding them up gives \\boxed{1,234}.",
        "So the total is 1234.",
        "#### 1234",
        "He pays \\boxed{\\$1234}.",
        "The rope is \\boxed{1234\\text{ cm}} long.",
    ],
    ["x^2 = 9 and x > 0, so $x = 3$.", "Therefore \\boxed{x=3}", "The answer is 3."],
    ["Both roots work: \\boxed{\\{-2, 5\\}}", "\\boxed{5, -2}", "Thus $x = 5$ or $x = -2$."],
    ["The inequality holds on \\boxed{[1,4)}.", "\\boxed{\\left[1, 4\\right)}"],
    ["The inequality holds on \\boxed{[1,4]}."],
    ["The inequality holds on \\boxed{(-\\infty,1)\\cup(4,\\infty)}."],
    ["\\boxed{2\\sqrt{2}}", "The diagonal is $\\sqrt{8}$."],
    ["\\boxed{(x+1)^2}", "Expanding, \\boxed{x^2+2x+1}."],
    ["It was \\boxed{\\text{Tuesday}}.", "\\boxed{Tuesday}"],
    ["The correct choice is \\boxed{\\text{(C)}}.", "\\boxed{C}"],
    ["\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}"],
    ["I am not sure how to go on.", "", "Let us think step by step about it.", " \n", "\\boxed{}"],
    ["\\boxed{1/0}"],
    ["\\boxed{12:00}", "It is 12:00."],
]


def test_equal_answers_are_one_class_and_others_are_not(model):
    responses = [response for same in SOLUTIONS for response in same]
    expected = [k for k, same in enumerate(SOLUTIONS) for _ in same]
    assert len(responses) > 30
    assert labels(model, *responses) == expected
    assert labels(model, *responses[::-1]) == [max(expected) - k for k in expected[::-1]]


TABLE = [*final_answers.CASES, *final_answers.GRID]


def test_a_label_and_a_response_are_one_class_if_they_are_equal(model):
    labelled = [(text, label if "boxed" in label else f"\\boxed{{{label}}}", same) for text, label, same in TABLE]
    rows = labelled + final_answers.PAIRS
    found = model.partition([Group("p", [first, second]) for first, second, _ in rows])
    assert [row for row, (one, other) in zip(rows, found, strict=True) if (one == other) != row[2]] == []


def test_responses_without_an_answer_gain_no_diversity_by_it(model):
    responses = ["\\boxed{7}", "no", "blah blah", "", "\\boxed{7}", "who knows"]
    (found,) = measure(model, [Group("p", responses)])
    assert found.labels.tolist() == [0, 1, 1, 1, 0, 1]
    assert found.diversity.tolist() == pytest.approx([0.8, 0.4, 0.4, 0.4, 0.8, 0.4])
    assert labels(model, "no", "blah", "") == [0, 0, 0]


def test_groups_do_not_mix(model):
    groups = [Group("p", ["\\boxed{1}", "\\boxed{2}"]), Group("q", ["\\boxed{2}", "so 2", "none"]), Group("r", ["2"])]
    assert [found.tolist() for found in model.partition(groups)] == [[0, 1], [0, 0, 1], [0]]
    assert model.partition([]) == []


def test_either_direction_of_the_comparison_is_enough(model):
    equation = "So $\\frac{3}{6} = \\frac{1}{2}$"
    assert labels(model, equation, "1/2") == labels(model, "1/2", equation) == [0, 0]


def test_the_clustering_matters_where_equality_is_not_transitive(model):
    responses = ["\\boxed{50}", "\\boxed{0.5}", "\\boxed{50\\%}"]
    assert labels(model, *responses[:2]) == [0, 1]
    assert labels(model, *responses) == [0, 0, 0]
    assert labels(load_partition_model("answer", clustering="greedy"), *responses) == [0, 1, 0]


# --- what goes wrong


def test_an_answer_that_hangs_costs_its_response_alone(model, monkeypatch, caplog):
    monkeypatch.setattr(answer, "DEADLINE", 2.0)
    started = time.monotonic()
    assert labels(model, "\\boxed{1}", HANGS_ALWAYS, "\\boxed{2}", "no answer", "so 1") == [0, 1, 2, 1, 0]
    assert time.monotonic() - started < 20, "it is found out once, and not in each comparison"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "1 responses could not be read" in record.message and "TimeoutError" in record.message
    assert repr(HANGS_ALWAYS) in record.message


def _raise_on_nines(text):
    if "9" in text:
        raise ArithmeticError("not today")
    return maths.read_answer(text)


def test_responses_that_math_verify_raises_on_are_counted(model, monkeypatch, caplog):
    monkeypatch.setattr(answer, "read_answer", _raise_on_nines)
    assert labels(model, "\\boxed{9}", "5", "no answer", "so \\boxed{9}") == [0, 1, 0, 0]
    (record,) = caplog.records
    assert "2 responses could not be read" in record.message and "not today" in record.message


def test_a_comparison_that_fails_leaves_two_answers_different(model, monkeypatch, caplog):
    monkeypatch.setattr(answer, "equal_answers", _raise)
    assert labels(model, "\\boxed{1}", "\\boxed{2/2}", "1") == [0, 1, 0]
    (record,) = caplog.records
    assert "1 comparisons of answers failed" in record.message and "ArithmeticError('not today')" in record.message
    assert "[1, '1']" in record.message


def _raise(first, second):
    raise ArithmeticError("not today")


def _exit(*arguments):
    os._exit(3)


def test_a_worker_that_dies_at_work_costs_that_response_alone(model, monkeypatch, caplog):
    monkeypatch.setattr(answer, "read_answer", _die_of_poison)
    assert labels(model, "\\boxed{1}", "poison \\boxed{2}", "\\boxed{3}", "none") == [0, 1, 2, 1]
    assert "1 responses could not be read" in caplog.text and "ProcessExpired" in caplog.text


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def _raise_what_cannot_be_unpickled(text):
    if "poison" in text:
        raise Unpicklable("this", "that")
    return maths.read_answer(text)


def test_an_exception_that_cannot_be_unpickled_costs_that_response_alone(model, monkeypatch, caplog):
    monkeypatch.setattr(answer, "read_answer", _raise_what_cannot_be_unpickled)
    assert labels(model, "\\boxed{1}", "poison \\boxed{2}", "\\boxed{3}", "none") == [0, 1, 2, 1]
    assert "1 responses could not be read" in caplog.text and "this and that" in caplog.text


def _die_of_poison(text):
    from darling_plugin.maths import read_answer

    return _exit() if "poison" in text else read_answer(text)


def test_a_worker_killed_at_rest_is_replaced(model, caplog):
    assert labels(model, "\\boxed{1}", "\\boxed{2}") == [0, 1]
    for worker in workers():
        worker.send_signal(signal.SIGKILL)
    time.sleep(0.5)
    assert labels(model, "\\boxed{1}", "so 1", "\\boxed{2}") == [0, 0, 1]
    assert not caplog.records


def test_workers_that_die_as_they_start_stop_the_run(monkeypatch):
    monkeypatch.setattr(maths, "_prepare", _exit)
    with pytest.raises(DarlingError, match="they die as they start, 3 times"):
        load_partition_model("answer")


def test_a_math_verify_that_does_not_work_is_found_out_at_the_start(monkeypatch):
    monkeypatch.setattr(answer, "read_answer", _die_of_poison_always)
    with pytest.raises(DarlingError, match="math-verify to find 1/2(.|\n)*ImportError"):
        load_partition_model("answer")


def _die_of_poison_always(text):
    raise ImportError("antlr4 is another one")


@pytest.mark.parametrize("missing", ["math_verify", "pebble"])
def test_a_missing_package_says_what_to_install(monkeypatch, missing):
    find_spec = maths.importlib.util.find_spec
    monkeypatch.setattr(maths.importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(DarlingError, match=f"no module {missing}(.|\n)*pip install math-verify pebble"):
        load_partition_model("answer")


# --- threads and processes


def test_it_works_in_several_threads_at_once(model):
    found = {}

    def score(k):
        found[k] = labels(model, f"\\boxed{{{k}}}", f"\\boxed{{{2 * k}/2}}", "none", f"\\boxed{{{k}.5}}")

    threads = [threading.Thread(target=score, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {k: [0, 0, 1, 2] for k in range(8)}


def test_workers_live_on_between_groups_and_past_their_alarm(model, monkeypatch):
    labels(model, "\\boxed{1}")
    before = {worker.pid for worker in workers()}
    time.sleep(0.5)
    labels(model, "\\boxed{2}")
    assert before and before == {worker.pid for worker in workers()}
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert maths._in_worker(maths.read_answer, ("so 2",), 5.0) == "[2, '2']"  # here, to look at its alarm
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


SCRIPT = """
from darling_plugin.partition import Group, load_partition_model

if __name__ == "__main__":
    model = load_partition_model("answer")
    print(model.partition([Group("p", ["so 1/2", "0.5", "none"])])[0].tolist(), flush=True)
    {then}
"""


def run_script(tmp_path, then):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(then=then))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "[0, 0, 1]\n"
    return process


def still_there(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(60)  # one that was still starting sees the end of its parent only then
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_script_ends_and_leaves_no_process(tmp_path):
    process = run_script(tmp_path, "import psutil; print(*[p.pid for p in psutil.Process().children(recursive=True)])")
    left = [int(pid) for pid in process.communicate(timeout=60)[0].split()]
    assert process.returncode == 0
    assert len(left) > 1 and not any(still_there(pid) for pid in left)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    hanging = f"model.partition([Group('p', [{HANGS_ALWAYS!r}, 'x'])])"
    process = run_script(
        tmp_path, f"from darling_plugin.partition.models import answer; answer.DEADLINE = 8; {hanging}"
    )
    time.sleep(2)
    left = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)  # a worker that is left holds the pipe open
    _, alive = psutil.wait_procs(left, timeout=4 * answer.DEADLINE)
    for worker in alive:
        worker.kill()
    assert left and not alive


# --- options


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(DarlingError, match="union_find(.|\n)*'average'"):
        load_partition_model("answer", clustering="average")
    with pytest.raises(DarlingError, match="did you mean 'greedy'"):
        load_partition_model("answer", clustering="gredy")
    with pytest.raises(DarlingError, match="options that Answer takes: clustering(.|\n)*threshold=0.5"):
        check_partition_spec("answer", threshold=0.5)
    with pytest.raises(DarlingError, match="too many positional arguments"):
        check_partition_spec("answer:3")
