"""The page of `darling-report` in a real browser: headless Chromium, where it is installed."""

import re
import sys
from pathlib import Path

import pytest
from logs import group, write

from darling_plugin.evaluation.report import page
from darling_plugin.evaluation.report.runs import read_runs

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # which measures the page with the same browser

import browser as chromium

pytestmark = pytest.mark.skipif(chromium.CHROMIUM is None, reason="no Chromium here to open the page in")

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked=1'>{{index}}"
SIMILAR = [[1.0, 0.9, 0.2], [0.9, 1.0, 0.1], [0.2, 0.1, 1.0]]
SHOWN = """new Promise((done) => {
    const look = () => document.querySelector(".group") ? done() : setTimeout(look, 5);
    look();
})"""


def records(steps):
    for step in range(1, steps + 1):
        for k in range(5):
            labels = [0, 0, 0] if k == 0 else [0, 0, 1]
            quality = [round(0.1 * k + 0.01 * step, 4)] * 3
            yield group(step, labels, quality, prompt=f"Question {k} of colours", similarity=SIMILAR)
    unlogged = group(steps, [0, 0, 1], [0.0, 0.1, 0.2], prompt="Left out", signs={})
    yield unlogged | {"responses": [None] * 3, "similarity": SIMILAR}
    yield group(steps, [0, 1, 1], [0.5] * 3, split="eval", prompt=HOSTILE, responses=[HOSTILE, "same", "same"])


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    second = [{**record, "similarity": None} for record in records(20)]
    runs = read_runs([write(folder / "first", records(30)), write(folder / "second", second)])
    (folder / "page.html").write_text(page.render(runs), encoding="utf-8")
    with chromium.Browser() as opened:
        opened.open(folder / "page.html")
        opened.evaluate(SHOWN)
        yield opened
        assert opened.problems == []


def after(tab, action):
    tab.evaluate(f"(async () => {{ await {action}; }})()")
    return tab.evaluate(
        "[matching.length, ...[...document.querySelectorAll('.group')].map((one) => +one.id.slice(5))]"
    )


def later(value):
    """The value once what was just clicked has been drawn."""
    return f"new Promise((done) => setTimeout(() => done({value}), 100))"


@pytest.fixture(autouse=True)
def reset(tab):
    tab.evaluate("document.getElementById('filters').reset()")
    tab.evaluate("showGroups()")


def test_it_opens_with_curves_warnings_and_the_first_groups(tab):
    assert tab.evaluate("document.querySelectorAll('#charts .chart').length") == 8
    assert tab.evaluate("document.querySelectorAll('#signs .chart').length") >= 2
    assert tab.evaluate("document.querySelectorAll('#chart-quality path.smooth').length") == 4, "two runs, two splits"
    assert (
        tab.evaluate("document.querySelector('#chart-quality .train .points').getAttribute('d').split('M').length")
        == 31
    )
    assert tab.evaluate("document.querySelectorAll('.group').length") == 20
    assert "No sign of gaming" in tab.evaluate("document.getElementById('warnings').textContent")
    assert tab.evaluate("document.querySelectorAll('#gained .pick').length") == 4


def test_the_smoothed_line_is_the_local_mean(tab):
    values = [0.0, 1.0, 5.0, 2.0, 8.0]
    weights = [(1 - (distance / 3) ** 3) ** 3 for distance in range(3)]
    expected = []
    for k in range(5):
        near = [(weights[abs(j - k)], value) for j, value in enumerate(values) if abs(j - k) <= 2]
        expected.append(sum(w * v for w, v in near) / sum(w for w, _ in near))
    assert tab.evaluate(f"smooth({values}, 4)") == pytest.approx(expected)
    assert tab.evaluate(f"smooth({values}, 1)") == values


def test_text_is_shown_as_it_is_and_does_nothing(tab):
    count, number = after(tab, "change({split: '1', run: '0'})")
    assert count == 1
    shown = tab.evaluate(f"document.getElementById('group{number}').textContent")
    assert shown.count(HOSTILE) >= 2 and tab.evaluate("typeof window.hacked") == "undefined"
    assert tab.evaluate("document.querySelectorAll('main script, main img').length") == 0


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        ("{}", 254),
        ("{run: '1'}", 102),
        ("{split: '1'}", 2),
        ("{from: '29'}", 12),
        ("{to: '2'}", 20),
        ("{one: true}", 50),
        ("{prompt: 'COLOURS 3'}", 50),
        ("{prompt: '<script'}", 2),
        ("{flat: true, from: '21'}", 10),
        ("{prompt: 'nowhere'}", 0),
    ],
)
def test_filters(tab, chosen, count):
    assert after(tab, f"change({chosen})")[0] == count


def test_orders_and_pages(tab):
    step_and_prompt = "[...document.querySelectorAll('.group .meta')].map((one) => one.textContent)[0]"
    after(tab, "change({sort: 'high', split: '0'})")
    assert "step 30" in tab.evaluate(step_and_prompt)
    _, lowest, *_ = after(tab, "change({sort: 'low'})")
    assert lowest == 0
    gained = after(tab, "change({sort: 'gained'})")
    assert tab.evaluate(f"column.gained[{gained[1]}]") == tab.evaluate(
        "Math.max(...column.gained.filter((v) => v === v))"
    )
    first = after(tab, "change({sort: 'logged'})")[1:]
    assert after(tab, "showGroups(1)")[1] == first[-1] + 1
    assert len(after(tab, "showGroups(9999)")) > 1, "the last page, not an empty one"


def test_a_group_class_by_class_identical_responses_folded_similarity_at_hand(tab):
    _, number = after(tab, "change({split: '1', run: '1'})")
    card = f"document.getElementById('group{number}')"
    assert tab.evaluate(f"{card}.querySelectorAll('.text').length") == 2, "same, same and the other"
    assert "× 2" in tab.evaluate(f"{card}.textContent")
    assert tab.evaluate(f"{card}.querySelector('.class').textContent") == "class 1 · 2 responses, 4 tokens each"
    colours = tab.evaluate(
        f"[...{card}.querySelectorAll('.text')].map((one) => getComputedStyle(one).borderLeftColor)"
    )
    assert len(set(colours)) == 2
    _, number, *_ = after(tab, "change({split: '0', run: '0'})")
    card = f"document.getElementById('group{number}')"
    tab.evaluate(f"{card}.querySelector('footer details').open = true")
    cells = later(f"[...{card}.querySelectorAll('.matrix td')].map((cell) => +cell.textContent)")
    assert sorted(tab.evaluate(cells)) == sorted(value for row in SIMILAR for value in row)


def test_responses_that_were_not_logged_are_not_folded(tab):
    _, number = after(tab, "change({prompt: 'left out', run: '0'})")
    assert tab.evaluate(f"document.querySelectorAll('#group{number} .text').length") == 3


def test_a_highlight_shows_its_group_and_a_curve_its_step(tab):
    tab.evaluate("document.querySelector('#lost .pick').click()")
    assert tab.evaluate(later("[matching.length, document.querySelectorAll('.marked').length]")) == [1, 1]
    tab.evaluate("showStep(7)")
    assert after(tab, "change({})")[0] == 10


def test_the_methods_correlations_are_there_and_a_group_on_which_they_disagree_is_shown(tab):
    assert tab.evaluate("document.querySelectorAll('#compared .heat').length") == 2
    assert tab.evaluate("document.querySelectorAll('#compared .heat')[0].querySelectorAll('td').length") == 9 * 10
    said = tab.evaluate("[...document.querySelectorAll('#compared .heat')].map((one) => one.ariaLabel)")
    assert ["1 within a class and 0 between" in each for each in said] == [False, True], "the second logged none"
    tab.evaluate("document.querySelector('#compared details').open = true")
    table = tab.evaluate(later("document.querySelector('.advantages').innerText"))
    assert "marginal_relevance" in table and "answer 0 of 0" in table
    assert re.search(r"\d\.\d\d / [+−]?\d\.\d\d", table), "reward / advantage"
    tab.evaluate("document.querySelector('#compared .still button').click()")
    chosen = "index.runs[0].methods.groups[0].group"
    assert tab.evaluate(later(f"[matching.length, matching[0] === {chosen}]")) == [1, True]


def test_a_run_that_is_unticked_is_gone(tab):
    box = "document.querySelectorAll('#runs input')[1]"
    tab.evaluate(f"{box}.click()")
    assert after(tab, "showGroups()")[0] == 152
    assert tab.evaluate("document.querySelectorAll('#chart-quality path.smooth').length") == 2
    assert tab.evaluate("document.querySelectorAll('#compared .heat').length") == 1
    tab.evaluate(f"{box}.click()")
    assert after(tab, "showGroups()")[0] == 254


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1400, True)])
def test_nothing_is_wider_than_the_window_and_colours_follow_the_scheme(tab, tmp_path, width, dark):
    path = tab.evaluate("location.pathname")
    with chromium.Browser(width, 800, dark=dark) as other:
        other.open(Path(path))
        other.evaluate(SHOWN)
        assert other.evaluate("document.documentElement.scrollWidth") <= width
        light = other.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light != dark and other.problems == []
