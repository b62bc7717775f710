"""The monitor: each figure on texts and groups whose value is known, and runs gamed in each way that it looks for."""

import math
import time

import pytest
import torch
from made_up_runs import as_groups, run
from scipy.stats import pearsonr, rankdata

from darling_plugin.evaluation import monitor
from darling_plugin.evaluation.monitor import MonitorWatch
from darling_plugin.final_answer import final_answer
from darling_plugin.metrics import monitor_figures, monitor_metrics
from darling_plugin.shaping import Groups

ENGLISH = "<|user|>\nPlease write a short story about the lighthouse keeper and his dog.<|end|>\n<|assistant|>\n"


def warned(records, texts=True):
    """The figures that a run warned of, with the step."""
    watch, found = MonitorWatch(), {}
    for step, groups in enumerate(records):
        found |= dict.fromkeys(watch.see(monitor_figures(monitor_metrics(as_groups(groups, texts=texts)))), step)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_run_is_not_warned_of(seed):
    assert warned(run(seed)) == {}


@pytest.mark.parametrize(
    ("gamed", "figure"),
    [
        ("length", "diversity_with_length"),
        ("classes", "other_class_length"),
        ("quality", "diversity_with_quality"),
        ("repetition", "repetition"),
        ("noise", "compression"),
        ("language", "other_language"),
        ("after", "after_answer"),
    ],
)
def test_a_run_that_is_gamed_is_warned_of(gamed, figure):
    if gamed == "language":
        pytest.importorskip("lingua", reason="the extra `monitor` is not installed")
    of_texts = figure in {sign.__name__ for sign in monitor.TEXT_SIGNS}
    found = warned(run(7, gamed, groups=4 if of_texts else 16), texts=of_texts)
    assert figure in found and 15 <= found[figure] < 28, found
    alike = {"length": {"other_class_length"}, "classes": {"diversity_with_length"}, "noise": {"other_language"}}
    alike["language"] = {"repetition"}  # whose words are characters, few of them in a made-up text
    assert set(found) <= {figure} | alike.get(gamed, set()) | {"compression"}, "and of nothing else"


def test_every_figure_has_a_move_that_is_warned_of():
    assert [figure.__name__ for figure in monitor.FIGURES] == list(monitor.MOVES)


def test_a_figure_is_warned_of_once_and_not_where_it_moves_the_other_way():
    def seen(watch, values):
        return [bool(watch.see({"repetition": value})) for value in values]

    jitter = [0.2, 0.21] * 5
    assert seen(MonitorWatch(), jitter + [0.4, 0.41] * 20).count(True) == 1
    assert not any(seen(MonitorWatch(), jitter + [0.0, 0.01] * 20))
    assert not any(seen(MonitorWatch(), jitter + [0.23, 0.24] * 20)), "too small a move"
    assert not any(seen(MonitorWatch(), [0.1, 0.7] * 5 + [0.3, 0.8] * 20)), "within what the steps spread"
    assert not any(seen(MonitorWatch(), jitter + [0.4] * 9)), "ten steps make a move"


def test_steps_without_the_figure_do_not_count():
    watch = MonitorWatch()
    for value in [0.2, 0.21] * 5 + [0.4, 0.41] * 4 + [0.4]:
        assert not watch.see({"repetition": value}) and not watch.see({})
    assert (
        "repetition was 0.20 over the first 10 steps and is 0.40 over the last"
        in watch.see({"repetition": 0.4})["repetition"]
    )


# ── Of groups ──


def groups_of(labels, diversity, quality, length):
    return Groups(
        torch.tensor(quality),
        torch.tensor(labels),
        torch.tensor(diversity),
        torch.tensor([False] * len(labels)),
        length=torch.tensor(length),
    )


def test_the_correlation_is_that_of_the_ranks_of_who_takes_part():
    torch.manual_seed(0)
    labels = torch.randint(-1, 3, (6, 8))
    diversity, quality = torch.rand(6, 8).round(decimals=1), torch.rand(6, 8).round(decimals=1)
    groups = Groups(quality, labels, diversity, torch.zeros(6, dtype=torch.bool), length=100 * quality)
    x, y = [], []
    for k in range(6):
        part = labels[k] >= 0
        for values, ranks in ((diversity, x), (quality, y)):
            rank = rankdata(values[k][part])
            ranks.extend(rank - rank.mean())
    expected = pearsonr(x, y).statistic
    assert monitor.diversity_with_quality(groups) == pytest.approx(expected)
    assert monitor.diversity_with_length(groups) == pytest.approx(expected)


def test_a_group_that_is_level_in_one_of_the_two_does_not_count():
    two = groups_of(
        [[0, 0, 1], [0, 0, 0]], [[0.5, 0.5, 1.0], [0.0] * 3], [[0.0, 0.0, 1.0], [0.1, 0.5, 0.9]], [[1.0] * 3] * 2
    )
    assert monitor.diversity_with_quality(two) == pytest.approx(1.0)


def test_without_any_spread_there_is_no_correlation():
    level = groups_of([[0, 1]], [[0.5, 0.5]], [[0.0, 1.0]], [[1.0, 2.0]])
    assert monitor.diversity_with_quality(level) is None and monitor.diversity_with_length(level) is None
    level.length = None
    assert monitor.diversity_with_length(level) is None and monitor.other_class_length(level) is None


def test_length_outside_the_largest_class():
    groups = groups_of(
        [[0, 0, 1, 2, -1], [0, 0, 0, 1, 1], [0, 0, 1, 1, 2], [0] * 5],
        [[0.0] * 5] * 4,
        [[0.0] * 5] * 4,
        [[10.0, 10.0, 30.0, 50.0, 900.0], [10.0, 10.0, 10.0, 10.0, 10.0], [1.0, 1.0, 9.0, 9.0, 9.0], [5.0] * 5],
    )
    assert monitor.other_class_length(groups) == pytest.approx(math.sqrt(4.0 * 1.0))  # the others have no largest


def test_a_sign_that_no_text_has_is_left_out():
    groups = groups_of([[0, 1]], [[1.0, 1.0]], [[0.0, 1.0]], [[1.0, 2.0]])
    groups.signs = {sign.__name__: torch.tensor([[math.nan, math.nan]]) for sign in monitor.TEXT_SIGNS}
    groups.signs["repetition"] = torch.tensor([[0.5, math.nan]])
    found = monitor_figures(monitor_metrics(groups))
    assert found["repetition"] == 0.5 and not {"compression", "other_language", "after_answer"} & set(found)


# ── Of texts ──


def test_repetition():
    assert monitor.repetition("", "one two three four five six seven") == 0.0
    assert monitor.repetition("", "a b c d a b c d a b c d") == pytest.approx(1 - 4 / 9)
    assert monitor.repetition("", "红白红白" * 9) == pytest.approx(1 - 2 / 33)
    tail = " ".join(map(str, range(1200)))
    assert monitor.repetition("", "again " * 3000 + tail) == 0.0, "a response that came out of its loop"
    assert monitor.repetition("", "!" * 500) > 0.9 and monitor.repetition("", "😀" * 300) > 0.9
    clause = "一个守夜人每天晚上都会慢慢走上高高的楼梯，"
    assert monitor.repetition("", clause * 20) > 0.9, "also with punctuation"
    assert math.isnan(monitor.repetition("", "a b c d")) and math.isnan(monitor.repetition("", ""))


def test_compression():
    loop, prose = "again and again " * 60, "Seven keepers rowed past the reef while gulls cried over quiet water."
    assert monitor.compression("", loop) < 0.1 < 0.6 < monitor.compression("", prose)
    assert monitor.compression("", loop * 9 + prose * 80) == monitor.compression("", prose * 80), "the last characters"
    assert math.isnan(monitor.compression("", ""))
    assert monitor.compression("", "\ud800 lone") > 0, "a lone surrogate is no error"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("The old keeper climbed the stairs every evening, and the dog slept by the lamp.", 0.0),
        ("Der alte Wärter stieg jeden Abend die Treppe hinauf, und der Hund schlief an der Lampe.", 1.0),
        (
            "The keeper climbed the stairs, and the dog slept by the lamp. " * 6
            + "守夜人每天晚上都会走上楼梯，他的狗睡在灯旁边。" * 9,
            1.0,
        ),
        ("The old keeper climbed the stairs every evening, \ud800 and the dog slept by the lamp.", 0.0),
        ("Rex", math.nan),
        ("$x^2 + \\frac{alphabetagammadelta}{epsilonzetaeta} = thetaiotakappa$", math.nan),
    ],
)
def test_other_language(response, expected):
    pytest.importorskip("lingua", reason="the extra `monitor` is not installed")
    assert monitor.other_language(ENGLISH, response) == pytest.approx(expected, nan_ok=True)


def test_the_language_expected_is_that_of_the_question_and_not_of_the_template():
    pytest.importorskip("lingua", reason="the extra `monitor` is not installed")
    question = "Schreibe bitte eine kurze Geschichte über den Leuchtturm."
    prompt = f"<|system|>\nYou are a helpful assistant, answer briefly.<|end|>\n<|user|>\n{question}<|end|>\n"
    german = "Der alte Wärter stieg jeden Abend die Treppe hinauf, und der Hund schlief an der Lampe."
    assert monitor.other_language(prompt, german) == 0.0
    assert math.isnan(monitor.other_language("Hi", german))


def test_without_the_package_no_language_is_told(monkeypatch):
    monkeypatch.setattr(monitor, "_detector", lambda: None)
    monitor._language.cache_clear()
    assert math.isnan(monitor.other_language(ENGLISH, "The old keeper climbed the stairs every single evening."))
    monitor._language.cache_clear()


@pytest.mark.parametrize(
    ("response", "after"),
    [
        ("So \\boxed{42}.", ""),
        ("So $\\boxed{42}$ apples.\n\nI like trains a lot.", "I like trains a lot."),
        ("First \\boxed{7}. No: \\boxed{42}. Again, \\boxed{42}. Bye", "Again, \\boxed{42}. Bye"),
        ("The answer is 42. I hope that this answer helps you.", "I hope that this answer helps you."),
        ("The answer is 42", ""),
        ("**Answer:**\n\n3.5\n\nmore text here", "more text here"),
        ("42 is the answer. And more", "And more"),
        ("#### 42\nand more", "and more"),
        ("The final answer is:\n\n42", ""),
        ("The final answer is:\n\n42\n\nAnd more", "And more"),
        ("It is 41 or 42.", None),
        ("\\boxed{42", None),
        ("<think>The answer is 1. no</think>The answer is 2.", ""),
        ("", None),
    ],
)
def test_text_after_the_answer(response, after):
    found = monitor.after_answer("", response)
    assert found == pytest.approx(math.nan if after is None else len(after) / max(len(response), 1), nan_ok=True)


@pytest.mark.parametrize(
    "text",
    [
        "Answer: 12 R" + "-" * 900 + "3",
        "Answer: 12 x " + "- " * 900 + "3",
        "\\boxed{" * 4000,
        "\\boxed{1" * 4000,
        "\\boxed{1}" + " and" * 4000 + " x \\boxed{2}",
        "<br>" * 8000 + "<b",
        "<br>" * 8000,
        "The answer is " * 2000,
        "\ue0009\ue001 is the answer: \ue0009\ue001",
        "答案是²³\ue0000\ue001.²³°",
    ],
    ids=lambda text: text[:12],
)
def test_no_text_holds_a_partition_actor_or_breaks_it(text):
    """Some took minutes, or for ever, in an actor that does nothing else meanwhile."""
    start = time.process_time()
    assert monitor.text_signs(ENGLISH, text)
    final_answer(text)
    assert time.process_time() - start < 5


def test_texts_cost_milliseconds():
    texts = ["We add the two, and then the answer is near. " * 700 + f"The answer is {k}." for k in range(8)]
    monitor.text_signs(ENGLISH, texts[0])
    start = time.process_time()
    for text in texts:  # of 8000 tokens each
        monitor.text_signs(ENGLISH, text)
    assert time.process_time() - start < 0.4  # 8 to 30 ms each when measured; ten times that would be no surprise
