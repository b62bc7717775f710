"""`darling-report`: what the page holds, read back out of it. How it looks and acts: test_report_page.py."""

import base64
import gzip
import json
import re
import statistics
import zlib
from html.parser import HTMLParser

import pytest
from logs import FLAGS, group, write
from made_up_runs import run as made_up

from darling_plugin.commands.report import main
from darling_plugin.config import DarlingConfig
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.methods import METHODS, compare_methods
from darling_plugin.evaluation.report import page
from darling_plugin.evaluation.report.curves import curves
from darling_plugin.evaluation.report.runs import as_groups, read_runs
from darling_plugin.log import NOT_LOGGED
from darling_plugin.shaping import shape


class Scripts(HTMLParser):
    """The scripts of a page by their id, as a browser finds them."""

    def __init__(self, text):
        super().__init__()
        self.found, self._id = {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._id = dict(attributes).get("id", "code") if tag == "script" else None
        if self._id:
            assert self._id not in self.found
            self.found[self._id] = ""

    def handle_data(self, data):
        if self._id:
            self.found[self._id] += data

    def handle_endtag(self, tag):
        self._id = None


def made(*folders):
    """The page's index and its groups, of these folders."""
    scripts = Scripts(page.render(read_runs(list(folders)))).found
    parts = [scripts[f"part{k}"] for k in range(len(scripts) - 2)]
    groups = [one for part in parts for one in json.loads(zlib.decompress(base64.b64decode(part)))]
    return json.loads(scripts["index"]), groups


def test_the_curves_are_the_steps_means(tmp_path):
    records = [
        group(1, [0, 1, 1], [1.0, 0.0, 1.0]),
        group(1, [0, 0, 0], [0.5] * 3),
        group(2, [0, 1, 2], [1.0] * 3),
        group(2, [0, 0, 1], [0.0, 0.5, 1.0], split="eval"),
    ]
    index, groups = made(write(tmp_path / "run", records))
    train, evaluation = index["runs"][0]["curves"]["train"], index["runs"][0]["curves"]["eval"]
    assert train["steps"] == [1, 2] and evaluation["steps"] == [2]
    expected = {
        "quality": [3.5 / 6, 1.0],
        "diversity": [2 / 6, 1.0],
        "classes_per_group": [1.5, 3.0],
        "reward": [(1.0 + 0.5 + 3 * 0.05) / 6, 1.0],
        "response_length": [(3 + 4 + 4 + 3 * 3) / 6, 4.0],
        "one_class_share": [0.5, 0.0],
        "flat_share": [0.5, 1.0],
        "signal": [statistics.pstdev([1 / 3, 0, -1 / 6]) / 2, 0.0],
    }
    for name, values in expected.items():
        assert train["figures"][name] == pytest.approx(values, abs=1e-3), name
    assert evaluation["figures"]["quality"] == [0.5] and "signal" not in evaluation["figures"]
    assert [len(one["responses"]) for one in groups] == [3] * 4
    assert index["groups"]["one"] == [0, 1, 0, 0] and index["groups"]["flat"] == [0, 1, 1, 0]
    assert index["groups"]["step"] == [1, 1, 2, 2] and index["groups"]["split"] == [0, 0, 0, 1]


def test_what_diversity_made_of_each_reward_and_who_gained_and_lost_most(tmp_path):
    records = [
        group(1, [0, 0, 1], [1.0, 1.0, 1.0], prompt="a"),
        group(2, [0, 0, 1], [1.0, 1.0, 1.0], prompt="a"),  # the same again: the later one counts
        group(2, [0, 0, 1], [0.2, 0.2, 0.2], prompt="b"),
        group(2, [0, 1, 2], [1.0, 1.0, 1.0], prompt="c"),  # none gained or lost
    ]
    index, groups = made(write(tmp_path / "run", records))
    # diversity 1/2, 1/2, 1 about 2/3, times the quality
    assert groups[0]["gain"] == pytest.approx([-1 / 6, -1 / 6, 1 / 3], abs=1e-3)
    assert groups[2]["gain"] == pytest.approx([-1 / 30, -1 / 30, 1 / 15], abs=1e-3)
    assert index["highlights"] == {"gained": [[1, 2], [2, 2]], "lost": [[1, 0], [2, 0]]}
    assert index["groups"]["gained"] == pytest.approx([1 / 3, 1 / 3, 1 / 15, 0], abs=1e-3)


@pytest.mark.parametrize("flags", [None, {**FLAGS, "reward": "a_users_own"}, {**FLAGS, "weight": 0.5}])
def test_where_the_reward_cannot_be_made_again_nothing_is_said_of_gains(tmp_path, flags):
    index, groups = made(write(tmp_path / "run", [group(1, [0, 0, 1], [1.0, 1.0, 1.0])], flags))
    assert "gain" not in groups[0] and not index["runs"][0]["gain"] and index["groups"]["gained"] == [None]
    assert "signal" not in index["runs"][0]["curves"]["train"]["figures"]
    assert index["highlights"] == {"gained": [], "lost": []}


def test_the_weight_of_each_group_and_its_similarities_are_those_of_the_log(tmp_path):
    half = group(1, [0, 0, 1], [1.0, 1.0, 1.0], weight=0.5)
    half["reward"] = [0.75, 0.75, 1.0]
    _, groups = made(write(tmp_path / "weighted", [half]))
    assert groups[0]["gain"] == pytest.approx([-1 / 12, -1 / 12, 1 / 6], abs=1e-3)
    redundant = group(1, [0, 0, 1], [1.0, 1.0, 1.0], similarity=[[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    made_again = shape(
        as_groups([redundant])[0], DarlingConfig(enable=True, reward="redundancy"), lambda reward: reward
    )
    redundant["reward"] = made_again.unpenalized_reward[0].tolist()
    _, groups = made(write(tmp_path / "redundant", [redundant], {**FLAGS, "reward": "redundancy"}))
    assert groups[0]["gain"] == pytest.approx(made_again.diversity_part[0].tolist(), abs=1e-3)


def test_a_group_whose_responses_were_not_logged_has_its_numbers_and_is_no_highlight(tmp_path):
    record = group(1, [0, 0, 1], [1.0, 1.0, 1.0], signs={"repetition": [0.0, 0.5, None]}) | {"responses": [None] * 3}
    index, groups = made(write(tmp_path / "run", [record]))
    assert groups[0]["responses"] == [NOT_LOGGED] * 3 and groups[0]["gain"][2] == pytest.approx(1 / 3, abs=1e-3)
    assert index["runs"][0]["curves"]["train"]["figures"]["monitor/repetition"] == [0.25]
    assert index["highlights"] == {"gained": [], "lost": []}


def test_a_runs_own_log_is_that_run(tmp_path):
    folder = write(tmp_path / "run", [group(1, [0, 0, 1], [1.0, 0.5, 0.0])], FLAGS)
    index, _ = made(folder / "partitions.jsonl")
    assert index == made(folder)[0] and index["runs"][0]["name"] == "run" and index["runs"][0]["settings"]
    log = folder / "partitions.jsonl"
    lines = log.read_text()
    log.write_text("\n" + lines + '{"step": 1}\n')
    with pytest.raises(DarlingError, match="line 3, without"):
        read_runs([folder])
    log.unlink()
    log.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert made(log.with_suffix(".jsonl.gz"))[0] == index


def test_a_length_penalty_is_no_gain(tmp_path):
    record = group(1, [0, 0, 1], [1.0, 1.0, 1.0], length_penalty=[0.0, -0.5, 0.0])
    record["reward"][1] -= 0.5
    _, groups = made(write(tmp_path / "run", [record]))
    assert groups[0]["gain"] == pytest.approx([-1 / 6, -1 / 6, 1 / 3], abs=1e-3)


HOSTILE = "</script><script>window.hacked = 1</script><!-- {{index}} \u2028 \ud800 <img src=x onerror=window.hacked=1>"


def test_no_text_of_a_users_ends_or_enters_the_page_s_own(tmp_path):
    record = group(1, [0, 1], [1.0, 0.5], prompt=HOSTILE, responses=[HOSTILE, "x"], compared=[HOSTILE, None])
    folder = write(tmp_path / "<script>x<", [record], {**FLAGS, "log_dir": HOSTILE})
    text = page.render(read_runs([folder]))
    assert text.count("<script") == 3 and text.count("</script") == 3 and "hacked" not in text.split("index")[0]
    assert "window.hacked = 1</script>" not in text and "<img" not in text and "&lt;script&gt;x&lt;" in text
    text.encode("utf-8")
    index, groups = made(folder)
    assert index["prompts"] == [HOSTILE] and groups[0]["responses"] == [HOSTILE, "x"]
    assert groups[0]["compared"] == [HOSTILE, None] and index["runs"][0]["settings"]["log_dir"] == HOSTILE


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    text = page.render(read_runs([write(tmp_path / "run", [group(1, [0, 1], [1.0, 0.5])])]))
    assert "default-src 'none'" in text
    for outside in re.findall(r"https?://[^\s\"')]+", text):
        assert outside == "http://www.w3.org/2000/svg", "a name, not an address that is loaded"
    assert not re.search(r"\b(?:src|href)=[\"'](?!#)|@import|url\(", text)


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    one, two, three = (write(tmp_path / name, [group(1, [0, 1], [1.0, 0.5])]) for name in ("a/log", "b/log", "c"))
    assert [run.name for run in read_runs([one])] == ["log"]
    assert [run.name for run in read_runs([one, two, three])] == ["a/log", "b/log", f"{tmp_path.name}/c"]
    with pytest.raises(DarlingError, match="twice"):
        read_runs([one, one])


def test_groups_that_were_not_partitioned_left_out_or_of_one_response(tmp_path):
    failed = group(1, [0, 1], [1.0, 0.5]) | {"labels": None, "diversity": None, "reward": [1.0, 0.5]}
    gated = group(1, [0, -1], [1.0, 0.0]) | {"diversity": [1.0, 0.0], "reward": [1.0, 0.0]}
    single = group(2, [0, 1], [1.0, 0.0], split="eval")
    single |= {key: single[key][:1] for key in ("responses", "quality", "reward", "response_length", "truncated")}
    single |= {"labels": [0], "diversity": [1.0]}
    index, groups = made(write(tmp_path / "run", [failed, gated, single]))
    assert index["groups"]["classes"] == [0, 1, 1] and index["groups"]["one"] == index["groups"]["flat"] == [0, 0, 0]
    assert groups[0]["labels"] is None and groups[1]["labels"] == [0, -1]
    assert list(index["runs"][0]["curves"]["eval"]["figures"]) == ["quality", "reward", "response_length"]


def test_a_group_is_flat_as_in_the_metric_what_a_gate_left_out_included(tmp_path):
    def gated(labels, diversity):
        return group(1, labels, [1.0] * len(labels)) | {"diversity": diversity, "reward": [1.0] * len(labels)}

    records = [gated([-1, 0, 1], [0.0, 1.0, 1.0]), gated([-1, -1, -1], [0.0] * 3), gated([0, 1, 2], [1.0] * 3)]
    index, _ = made(write(tmp_path / "run", records))
    assert index["groups"]["flat"] == [0, 1, 1]


def test_a_log_without_signs_and_lengths_is_read_too_and_its_texts_are_looked_at(tmp_path):
    record = group(1, [0, 1], [1.0, 0.5], responses=["a b c d a b c d a b c d", "The answer is 4. and more"])
    del record["response_length"], record["truncated"]
    index, groups = made(write(tmp_path / "run", [record]))
    assert groups[0]["signs"]["repetition"][0] == pytest.approx(5 / 9, abs=1e-3)
    assert "response_length" not in index["runs"][0]["curves"]["train"]["figures"]
    assert index["runs"][0]["curves"]["train"]["figures"]["monitor/after_answer"] == pytest.approx([8 / 25], abs=1e-3)


def test_the_monitors_warnings_are_on_the_page(tmp_path):
    def logged(steps):
        return [record | {"step": k, "split": "train"} for k, records in enumerate(steps) for record in records]

    clean, gamed = (write(tmp_path / name, logged(made_up(3, how))) for name, how in (("c", None), ("g", "after")))
    for name, run in zip(("c", "g"), read_runs([clean, gamed]), strict=True):
        warned = {figure for _, figure, _ in curves(run, "train").warnings}
        assert warned == {"c": set(), "g": {"after_answer"}}[name]


def test_the_command_writes_the_page_and_names_what_is_none(tmp_path, capsys):
    folder, output = write(tmp_path / "run", [group(1, [0, 1], [1.0, 0.5])]), tmp_path / "page.html"
    assert main([str(folder), "-o", str(output)]) == 0
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>") and "page.html" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
    assert main([str(folder), "-o", str(tmp_path / "no" / "page.html")]) == 2
    assert "a file to write the page to" in capsys.readouterr().err
    (folder / "run.json").write_text("[]")
    assert main([str(folder), "-o", str(output)]) == 2
    assert "run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quality": [1.0]}, "1 quality of 2 responses"),
        ({"labels": [0, 1, 2]}, "3 labels of 2 responses"),
        ({"similarity": [[1.0, 0.0]]}, "1 similarity of 2 responses"),
        ({"similarity": [[1.0, float("nan")]] * 2}, "a similarity that is not 2 times 2 numbers"),
        ({"quality": [1.0, float("nan")]}, "quality not in numbers"),
        ({"quality": None}, "without quality or reward"),
        ({"prompt": None}, "without a response, or with a prompt or responses that are no texts"),
        ({"responses": [], "labels": [], "quality": [], "diversity": [], "reward": []}, "without a response"),
    ],
)
def test_a_line_whose_values_are_not_its_responses_is_named(tmp_path, change, said):
    records = [group(1, [0, 1], [1.0, 0.5]), group(1, [0, 1], [1.0, 0.5]) | change]
    with pytest.raises(DarlingError, match=rf"line 2, {said}"):
        read_runs([write(tmp_path / "run", records)])


def test_groups_of_other_sizes_in_a_step_and_a_folder_without_a_group_are_refused(tmp_path):
    with pytest.raises(DarlingError, match="groups of one size"):
        read_runs([write(tmp_path / "run", [group(1, [0, 1], [1.0, 0.5]), group(1, [0, 1, 0], [1.0] * 3)])])
    with pytest.raises(DarlingError, match="none yet"):
        read_runs([write(tmp_path / "none", [])])


def luminance(colour):
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_every_colour_of_text_stands_out_from_its_ground_light_and_dark(scheme):
    """By 4.5 to 1, which WCAG 2 asks of text (AA)."""
    sheets = re.findall(r":root \{(.*?)\}", (page.HERE / "page.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", sheets[scheme]))
    assert len(sheets) == 2 and len(colours) == 18
    for name, colour in colours.items():
        for ground in {"line": (), "warn": ("warn-ground",)}.get(name, ("ground", "raised")):
            if name not in ("ground", "raised", "warn-ground"):
                dark, light = sorted((luminance(colour), luminance(colours[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


ALIKE = [[1.0, 0.9, 0.2], [0.9, 1.0, 0.1], [0.2, 0.1, 1.0]]


def test_the_methods_are_compared_as_by_their_command_with_the_pages_own_numbers(tmp_path):
    records = [
        group(1, [0, 0, 1], [1.0, 0.5, 0.25], similarity=ALIKE),
        group(1, [0, 0, 1], [0.5] * 3, split="eval"),
        group(2, [0, 0, 1], [1.0] * 3, similarity=ALIKE),
    ]
    other = write(tmp_path / "other", [group(1, [0, 1], [1.0, 0.0])])
    index, _ = made(other, write(tmp_path / "run", records))
    compared = compare_methods([records[0], records[2]], FLAGS)
    methods = index["runs"][1]["methods"]
    assert methods["names"] == list(METHODS) and methods["count"] == 2 and not methods["of_classes"]
    assert methods["correlation"][1][0] == pytest.approx(compared.rank_correlation[1, 0], abs=1e-4)
    assert methods["silent"] == list(compared.silent.values())
    steps = [index["groups"]["step"][each["group"]] for each in methods["groups"]]
    assert steps == [each.record["step"] for each in compared.groups]
    assert {index["groups"]["run"][each["group"]] for each in methods["groups"]} == {1}
    for column, expected in (("rewards", compared.groups[0].reward), ("advantages", compared.groups[0].advantage)):
        first = dict(zip(methods["names"], methods["groups"][0][column], strict=True))
        for name in ("redundancy", "leave_one_out"):
            assert first[name] == pytest.approx(expected[name], abs=1e-3)


def test_without_all_similarities_the_methods_are_compared_by_classes(tmp_path):
    records = [group(1, [0, 0, 1], [1.0, 0.5, 0.25], similarity=ALIKE), group(2, [0, 1, 1], [1.0, 0.5, 0.25])]
    index, _ = made(write(tmp_path / "run", records))
    methods = index["runs"][0]["methods"]
    compared = compare_methods(records, FLAGS)
    assert methods["of_classes"] and methods["count"] == 2
    assert methods["correlation"][1][0] == pytest.approx(compared.rank_correlation[1, 0], abs=1e-4)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([group(1, [0, 1], [1.0, 0.0], split="eval")], "training groups with classes"),
        ([group(1, [0, 1], [-1.0, 0.0], similarity=[[1, 0], [0, 1]])], "quality_transform"),
    ],
)
def test_where_the_methods_cannot_be_compared_the_page_says_why(tmp_path, records, said):
    index, _ = made(write(tmp_path / "run", records))
    assert said in index["runs"][0]["methods"]["missing"]
