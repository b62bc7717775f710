"""The arithmetic of the benchmarks, and the page that is made of their results; nothing is timed here."""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # the benchmarks import what lies beside them

import common
import growth
import limit
import readings
import report
import sync_healthy

from darling_plugin.training.pairs import LabelledPair, folds_by_prompt


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token a character."""
    backend = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")


def test_the_page_on_partition_models_has_the_measured_figures():
    root = Path(__file__).parents[1]
    measured = json.loads((root / "benchmarks/results/partition_models.json").read_text())
    page = (root / "docs/partition-models.md").read_text()
    assert measured["commit"].rstrip("+") in page
    for row in measured["rows"]:
        figures = [row[name] for name in ("model", "roc auc", "accuracy", "balanced accuracy", "calibration error")]
        figures += [f"{row[f'ms a group of 8, {words} words']:.3g}" for words in (30, 300)]
        assert " | ".join(["", *figures, str(row["memory, MB"]), ""]).strip() in page


def test_the_page_on_partition_models_has_the_measured_figures_of_other_cpus():
    root = Path(__file__).parents[1]
    measured = json.loads((root / "benchmarks/results/cpu_numerics.json").read_text())
    page = (root / "docs/partition-models.md").read_text()
    assert f"{measured['commit']}; versions" in page
    of = {model: [row for row in measured["rows"] if row["model"] == model] for model in ("default", "embedding")}
    for rows in zip(*of.values(), strict=True):
        cells = [rows[0]["dtype"], rows[0]["set"]]
        for row in rows:
            cells += [f"{row['decisions that differ']} of {row['pairs']}", row["groups whose classes differ"]]
            cells.append(common.shown(row["largest difference"]))
        assert report.line(cells) in page


def test_the_page_on_partition_models_has_the_measured_seconds_of_a_step():
    root = Path(__file__).parents[1]
    measured = json.loads((root / "benchmarks/results/scoring_time.json").read_text())
    page = (root / "docs/partition-models.md").read_text()
    for row in measured["rows"]:
        name = row["model"] if "," in row["model"] else f"`{row['model']}`"
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {name}") and line.count("|") == 8)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        seconds = [common.shown(row[f"s a step, {cores}"]) for cores in ("1 core", "2 cores")]
        at = {"32 x 8 x 1024": 1, "256 x 8 x 8192": 4}[row["step"]]
        assert cells[at : at + 2] == seconds, row


def test_the_page_on_cpu_mode_has_the_measured_figures_of_healthy_syncs_and_of_faults():
    root = Path(__file__).parents[1]
    page = " ".join((root / "docs/how-it-works.md").read_text().split())
    healthy = json.loads((root / "benchmarks/results/sync_healthy.json").read_text())
    of = {row["readings of"]: row for row in healthy["rows"]}
    everything, worst = of["all"], healthy["rows"][0]
    ((tensors, unfollowed),) = healthy["tensors"]
    assert everything["readings"] >= 300 and unfollowed == healthy["stopped"] == 0
    again = sync_healthy.table([list(enumerate(run)) for run in healthy["readings"]])
    assert [[*map(common.shown, row.values())] for row in again] == [
        [*map(common.shown, row.values())] for row in healthy["rows"]
    ]
    cells = ["trainer and vLLM in bfloat16", str(everything["readings"]), f"0 of {tensors}, each time"]
    assert report.line([*cells, *(f"{everything[name]:.1f} %" for name in ("median, %", "most, %"))]) in page
    assert f"{healthy['runs']} runs" in page and f"{healthy['syncs']} syncs" in page
    chances = [row["chance of more than the tolerance"] for row in (worst, everything)]
    assert f"{chances[0]} by one run's {worst['readings']} readings, {chances[1]} by all" in page
    rows = json.loads((root / "benchmarks/results/sync_faults.json").read_text())["rows"]
    gaps = {row["fault"]: float(row["log-probabilities"].rstrip("%")) for row in rows}
    layers = {fault: each for fault, each in gaps.items() if "layer" in fault and fault.startswith("never loaded")}
    assert f"{min(layers.values()):.1f} % (`q_proj` in the last layer) to {max(layers.values()):.0f} %" in page
    others = [each for fault, each in gaps.items() if fault.startswith("never loaded") and fault not in layers]
    assert f"by {min(others):.0f} % or more" in page
    assert f"and {gaps['left behind: all tensors']:.0f} % with all tensors" in page
    assert not any(row["named"].startswith("0 ") for row in rows), "every fault is named by the comparison of weights"


def test_readings_are_compared_by_group_and_by_pair():
    found = readings.row("one", "other", [[0, 0, 1], [0, 1, 2]], [[0, 0, 1], [0, 0, 1]], ["p", "q"])
    # Of six pairs the second group's first is told otherwise; all of it is flat, and its part of the push missing.
    assert (found["alike"], found["flat"], found["push"]) == (round(5 / 6, 3), 1, "0.500 (0.000–1.000)")
    assert found["correlation"] == "0.500 (0.000–1.000)" and found["kappa"] == pytest.approx(0.571, abs=1e-3)


def test_each_group_has_a_reading_of_each_response_and_some_have_two():
    kept = json.loads(readings.READINGS.read_text())
    assert len(kept["groups"]) == 500 and len(kept["pairs"]) == 160
    lengths = [{len(reading) for reading in each} for each in kept["groups"].values()]
    assert all(len(each) == 1 and 7 <= min(each) <= max(each) <= 10 for each in lengths)
    assert sum(len(each) == 2 for each in kept["groups"].values()) == 60
    assert all(0 <= probability <= 1 for probability in kept["pairs"].values())


def test_readings_become_labels_and_predictions_of_other_pairs_are_refused(tmp_path, monkeypatch):
    rows = [{"prompt": "p", "responses": ["a"] * 10, "labels": [0] * 10, "source": f"model {k}"} for k in range(2)]
    (tmp_path / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    readings.write(tmp_path / "groups.jsonl", tmp_path / "out" / "read.jsonl")
    kept = json.loads(readings.READINGS.read_text())["groups"]
    written = [json.loads(line) for line in (tmp_path / "out" / "read.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in written] == [kept["0"][0], kept["1"][0]]
    assert [row["source"] for row in written] == ["model 0, read", "model 1, read"]
    pairs = [LabelledPair(f"p{k}", "a", "b", k % 2, k) for k in range(20)]
    at = [k for part in folds_by_prompt(pairs, readings.FOLDS, readings.SEED) for k in part]
    predicted = [{"line": k, "similar": k % 2, "probability": k / 20, "threshold": 0.5} for k in at]
    monkeypatch.setattr(readings, "PREDICTIONS", tmp_path / "predictions.jsonl")
    readings.PREDICTIONS.write_text("".join(json.dumps(row) + "\n" for row in predicted))
    assert readings.held_out(pairs)[0].tolist() == [k / 20 for k in range(20)]
    with pytest.raises(SystemExit, match="of other pairs"):
        readings.held_out([replace(pair, similar=1 - pair.similar) for pair in pairs])


def test_the_tail_of_healthy_syncs_is_gumbels_and_repeated_readings_count_once():
    sync = "weights synced, 272 tensors, 0 of them not to be followed, log-probabilities of vLLM and the trainer "
    run = sync_healthy.readings("".join(f"{sync}differ by {gap}%\n" for gap in ("2.60", "2.10", "2.10", "2.30")))
    assert sync_healthy.changed(run) == [(0, 2.6), (1, 2.1), (3, 2.3)]
    draws = 2 - 0.3 * torch.distributions.Exponential(1.0).sample((200_000,)).log()  # Gumbel at 2, of scale 0.3
    assert sync_healthy.chance(tuple(draws.tolist()), 4) == pytest.approx((draws > 4).float().mean().item(), rel=0.15)


def result(**changes):
    return {
        "title": "A title",
        "about": "What is compared.",
        "command": "python benchmarks/some.py",
        "date": "2025-01-02",
        "machine": "a machine",
        "threads": 2,
        "python": "3.11",
        "versions": {"torch": "2"},
        "commit": "abc1234",
        "rows": [{"model": "m", "pairs/s": 12.345, "ratio": None}],
    } | changes


def test_the_flops_of_modernbert_base_at_803_tokens_are_those_of_the_published_configuration():
    with torch.device("meta"):
        model = ModernBertForSequenceClassification(ModernBertConfig())
    assert limit.flops_of_pairs(model, [803]) / 803 == pytest.approx(245.9e6, rel=2e-4)
    assert limit.flops_of_pairs(model, [803] * 28 * 64) == pytest.approx(0.354e15, rel=2e-3)


@pytest.mark.parametrize("lengths", [[7], [40, 40], [64, 64, 64]])
def test_flops_agree_with_torchs_own_counter(lengths):
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80
    )
    model = BertForSequenceClassification(config).eval()
    model.set_attn_implementation("eager")
    ids = torch.ones(len(lengths), lengths[0], dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.bert.encoder(model.bert.embeddings(ids))
    assert limit.flops_of_pairs(model, lengths) == counter.get_total_flops()


def test_a_sliding_window_layer_counts_the_window_alone():
    def model(window):
        config = ModernBertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8,
            local_attention=window, pad_token_id=0,
        )  # fmt: skip
        return ModernBertForSequenceClassification(config)

    narrow, wide = (limit.flops_of_pairs(model(window), [100]) for window in (10, 1000))
    assert wide - narrow == 2 * 4 * 16 * 100 * (100 - 11)  # two of the three layers slide


def test_groups_have_the_sizes_and_lengths_asked_for(tokenizer):
    groups = common.make_groups(tokenizer, 5, (3, 9), (4, 3, 1))
    assert [len(group.responses) for group in groups] == [8] * 5
    lengths = {len(response) for group in groups for response in group.responses}
    assert lengths <= set(range(3, 10))
    assert len(lengths) > 3
    assert len(common.all_pairs(groups)) == 5 * 28


def test_versions_of_one_class_share_most_of_their_words_and_classes_do_not():
    one, other = common.texts()[:2]
    rng = random.Random(0)
    shared = [
        sum(a == b for a, b in zip(one.split(), common.vary(one, rng).split(), strict=True)) / len(one.split())
        for _ in range(20)
    ]
    assert 0.8 < sum(shared) / 20 < 0.97
    assert one != other


def test_a_ratio_is_taken_round_by_round():
    # The machine slowed down threefold for the second round.
    assert common.ratio([2.0, 6.0, 2.2], [1.0, 3.0, 1.0]) == pytest.approx(2.0)


def test_disturbed_rounds_are_made_again(monkeypatch):
    used = iter([0, 0, 0, 1000, 1000, 1000, 1000, 1000])  # others are busy in the first contestant's second round
    monkeypatch.setattr(common, "cpu_seconds_of_others", lambda: next(used))
    runs = []
    seconds = common.side_by_side({"a": lambda: runs.append(1)}, 3)
    assert len(seconds["a"]) == 3
    assert len(runs) == 1 + 4


def test_pairs_asked_of_one_class_and_of_all_distinct():
    assert growth.pairs_asked((8,), "union_find") == 7
    assert growth.pairs_asked((1,) * 8, "union_find") == 28
    assert growth.pairs_asked((8,), "greedy") == 7
    assert growth.pairs_asked((1,) * 8, "greedy") == 28


def test_halves_make_up_the_group():
    assert growth.halves(16) == (8, 4, 2, 1, 1)
    assert all(sum(growth.halves(n)) == n for n in growth.RESPONSES)


def test_a_table_names_its_command_machine_versions_and_commit():
    page = report.render({"some": result()})
    assert "| model | pairs/s | ratio |\n| ---: | ---: | ---: |\n| m | 12.3 | – |\n" in page
    assert (
        "`python benchmarks/some.py`, 2025-01-02, commit abc1234. a machine; 2 threads. Python 3.11, torch 2." in page
    )


def test_tables_come_in_their_order_with_goal_and_picture():
    page = report.render(
        {
            "zebra": result(title="Another"),
            "growth": result(title="Growth", picture="growth.png"),
            "official_protocol": result(title="Official", goal="ten times"),
        }
    )
    assert page.index("## Official") < page.index("## Growth") < page.index("## Another")
    assert "Goal: ten times." in page
    assert "![Growth](results/growth.png)" in page


@pytest.mark.parametrize(
    ("value", "cell"), [(0.01234, "0.0123"), (1.0, "1.00"), (12.345, "12.3"), (1234.6, "1235"), (7, "7"), (None, "–")]
)
def test_floats_are_shown_with_three_digits(value, cell):
    assert common.shown(value) == cell


def test_saving_writes_the_docstrings_command_and_explanation(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    common.save("some", "A title", "First.\n\n    python benchmarks/some.py\n\nWhat is\ncompared.\n", [{"pairs": 3}])
    report.main()
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## A title\n\nWhat is compared.\n\n| pairs |\n| ---: |\n| 3 |\n" in page
    assert "`python benchmarks/some.py`" in page and "No GPU has run it yet. The figures" in page
    common.save("gpu_some", "A title", "First.\n\n    python x\n\nWhat is compared.\n", [{"pairs": 3}])
    report.main()
    assert "No GPU has run" not in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "script",
    ["official_protocol", "libraries", "limit", "growth", "precision", "cpu_numerics", "training", "report_page"],
)
def test_every_benchmark_says_how_it_is_run_and_what_it_compares(script):
    doc = (Path(common.__file__).parent / f"{script}.py").read_text(encoding="utf-8").split('"""')[1]
    parts = doc.split("\n\n")
    assert parts[1].strip() == f"python benchmarks/{script}.py"
    assert len(parts[2]) > 20
