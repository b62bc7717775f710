"""How long the page of `darling-report` takes to open, and to answer.

python benchmarks/report_page.py

A made-up run of 8 responses a group, of 20 to 1200 characters, parts of NoveltyBench's where ../shared/data has them,
else random words; the log has the monitor's signs, as training leaves it. Headless Chromium opens the page from disk,
in a new browser each time: from navigation to the first frame with groups, and to the end of loading, medians of five.
The rest is from the choice to the next frame, the worst of five.
"""

import json
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
from browser import CHROMIUM, Browser
from common import console, save, texts

from darling_plugin.evaluation.monitor import TEXT_SIGNS
from darling_plugin.evaluation.report.page import render
from darling_plugin.evaluation.report.runs import read_runs

GROUPS, N, A_STEP = (1_000, 10_000), 8, 8
CHARACTERS = (20, 1200)  # of a response
# Milliseconds from navigation to the first frame with groups, and to the end of loading.
OPENED = """new Promise((done) => {
    const look = () => {
        const [groups] = performance.getEntriesByName("groups"), [page] = performance.getEntriesByType("navigation");
        if (groups && page.loadEventEnd) done([groups.startTime, page.loadEventEnd]);
        else setTimeout(look, 5);
    };
    look();
})"""
ACTION = """(async () => {
    const start = performance.now();
    await (%s);
    await new Promise(requestAnimationFrame);
    return performance.now() - start;
})()"""
ACTIONS = {
    "filter by prompt": ("change({prompt: 'number 7'})", "change({prompt: ''})"),
    "order by reward": ("change({sort: 'high'})", "change({sort: 'logged'})"),
    "next page": ("showGroups(page + 1)", "showGroups(0)"),
    "smooth again": ("drawCharts(30, showStep)", "0"),
}


def write_run(folder: Path, groups: int) -> None:
    rng = random.Random(0)
    with (folder / "partitions.jsonl").open("w", encoding="utf-8") as file:
        for number in range(groups):
            labels = [rng.randrange(5) for _ in range(N)]
            order = {label: place for place, label in enumerate(dict.fromkeys(labels))}
            labels = [order[label] for label in labels]
            diversity = [sum(other != label for other in labels) / (N - 1) for label in labels]
            quality = [round(rng.random(), 3) for _ in labels]
            reward = [q * max(d, 0.1) for q, d in zip(quality, diversity, strict=True)]
            record = {
                "step": 1 + number // A_STEP,
                "split": "train",
                "prompt": f"<|user|>\nPrompt number {number % 500}<|end|>\n<|assistant|>\n",
                "responses": [rng.choice(texts())[: rng.randint(*CHARACTERS)] for _ in labels],
                "labels": labels,
                "quality": quality,
                "diversity": diversity,
                "reward": reward,
                "advantage": [value - sum(reward) / N for value in reward],
                "response_length": [rng.randint(5, 300) for _ in labels],
                "signs": {sign.__name__: [round(rng.random(), 6) for _ in labels] for sign in TEXT_SIGNS},
            }
            file.write(json.dumps(record) + "\n")
    (folder / "run.json").write_text(json.dumps({"darling": {"enable": True}}))


def measure(page: Path) -> dict[str, float]:
    opened, busy = [], []
    for _ in range(5):
        busy.append(psutil.cpu_percent(interval=0.5) / 100)
        with Browser() as browser:
            browser.open(page)
            opened.append(browser.evaluate(OPENED))
    drawn, loaded = (median(times) / 1000 for times in zip(*opened, strict=True))
    row = {"CPUs busy before": median(busy), "groups drawn, s": drawn, "loaded, s": loaded}
    with Browser() as browser:
        browser.open(page)
        browser.evaluate(OPENED)
        for name, (action, undo) in ACTIONS.items():
            took = []
            for _ in range(5):
                took.append(browser.evaluate(ACTION % action) / 1000)
                browser.evaluate(ACTION % undo)
            row[f"{name}, s"] = max(took)
        if browser.problems:
            raise RuntimeError(browser.problems)
    return row


def main() -> None:
    if CHROMIUM is None:
        console.print("no Chromium here to open the page in; the stored result stays")
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        for groups in GROUPS:
            write_run(Path(folder), groups)
            start = time.perf_counter()
            page.write_text(render(read_runs([Path(folder)])), encoding="utf-8")
            made = time.perf_counter() - start
            row = {"groups": groups, "page, MB": page.stat().st_size / 1e6, "made in, s": made}
            rows.append(row | measure(page))
    goal = "10 000 groups open within a second and stay usable"
    save("report_page", "The page of a run", __doc__, rows, goal=goal)


if __name__ == "__main__":
    main()
