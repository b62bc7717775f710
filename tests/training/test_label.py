"""`darling-label-pairs`: labels from a judge that is played, a run that goes on, the estimate, bad input."""

import json
import re
import subprocess
import sys

import pytest

from darling_plugin.commands.label_pairs import main
from darling_plugin.training import label
from darling_plugin.training.pairs import read_pairs

GROUPS = [
    {"prompt": "Name a fruit.", "responses": ["An apple.", "apple!", "A fig", " apple! ", ""]},
    {"prompt": "Another fruit?", "responses": ["pear", "A pear it is", "fig"], "id": 3},
]


@pytest.fixture
def fake(server, monkeypatch):
    server.reset()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return server


@pytest.fixture
def responses(tmp_path):
    path = tmp_path / "responses.jsonl"
    path.write_text("\n".join(map(json.dumps, GROUPS)) + "\n")
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(fake, responses, *more):
    out = responses.with_name("pairs.jsonl")
    return main([str(responses), "-o", str(out), "--url", fake.url, *more]), out


def test_yes_means_the_same_in_both_orders_and_the_trainer_reads_it(fake, responses, capsys):
    status, out = run(fake, responses)
    assert status == 0
    said = {(row["generation_0"], row["generation_1"]): row["similar"] for row in rows_of(out)}
    assert said == {
        ("An apple.", "apple!"): 1,
        ("An apple.", "A fig"): 0,
        ("apple!", "A fig"): 0,
        ("pear", "A pear it is"): 1,
        ("pear", "fig"): 0,
        ("A pear it is", "fig"): 0,
    }
    assert all(p == pytest.approx(0.9 if row["similar"] else 0.1) for row in rows_of(out) for p in row["p"])
    assert sum(pair.similar for pair in read_pairs(str(out))) == 2
    printed = capsys.readouterr().out
    assert "asked now: 2 similar, 4 different, 0 with two answers that disagree (0.0%), 0 without an answer" in printed
    # Every pair once in each order, after the judge's own trial of two requests.
    shown = [body["messages"][0]["content"] for body, _ in fake.requests[2:]]
    assert len(shown) == len(set(shown)) == 12
    assert not list(out.parent.glob("*.disagreed.*")) and not list(out.parent.glob("*.unanswered.*"))


def test_a_text_without_a_utf8_form_is_labelled_as_the_judge_read_it(fake, responses):
    responses.write_text(json.dumps({"prompt": "A fruit \ud800?", "responses": ["apple \udc00", "An apple", "fig"]}))
    for _ in range(2):  # and once more, as after a stop
        status, out = run(fake, responses)
        assert status == 0
    assert sorted(row["similar"] for row in rows_of(out)) == [0, 0, 1]
    assert {row["generation_0"] for row in rows_of(out)} == {"apple \ufffd", "An apple"}
    assert len(read_pairs(str(out))) == 3


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system_and_responses_may_be_generations(fake, responses, end):
    lines = [{"prompt": each["prompt"], "generations": each["responses"]} for each in GROUPS]
    responses.write_bytes(end.join(map(json.dumps, lines)).encode())
    status, out = run(fake, responses, "--pairs_per_prompt", "1")
    assert (status, len(rows_of(out))) == (0, 2)


def test_answers_that_follow_the_order_disagree_and_are_no_labels(fake, responses, capsys):
    fake.bias = 0.4  # yes where response 1 comes first in the alphabet
    status, out = run(fake, responses)
    assert status == 0
    disagreed = rows_of(out.with_name("pairs.disagreed.jsonl"))
    # Truth decides where it is not asked in the alphabet's order: similar pairs get yes twice, different ones do not.
    assert len(disagreed) == 4 and all("similar" not in row and len(row["p"]) == 2 for row in disagreed)
    assert [row["similar"] for row in rows_of(out)] == [1, 1]
    assert "4 with two answers that disagree (66.7%)" in capsys.readouterr().out


def test_the_maths_question_is_about_the_approach(fake, responses):
    status, out = run(fake, responses, "--task", "maths")
    asked = [body["messages"][0]["content"] for body, _ in fake.requests[2:]]
    assert status == 0 and len(asked) == 12 and all("same approach" in each for each in asked)
    assert {row["task"] for row in rows_of(out)} == {"maths"}


def test_labels_of_another_task_or_judge_are_not_mixed_in(fake, responses, capsys):
    out = run(fake, responses, "--task", "maths")[1]
    fake.requests.clear()
    for more, key in (((), "task open"), (("--task", "maths", "--model", "judge-2"), "model judge-2")):
        assert run(fake, responses, *more)[0] == 2  # nothing is left to ask, and yet these are no labels for it
        assert f"labels of the {key} alone" in capsys.readouterr().err
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]))
    fake.models = ["judge-2"]
    assert run(fake, responses, "--task", "maths")[0] == 2
    assert "labels of the model judge-2 alone" in capsys.readouterr().err
    assert out.read_text() == "".join(lines[:3])


def test_an_answer_that_is_neither_is_counted_and_never_a_label(fake, responses, capsys, monkeypatch):
    ask = label.Judge.probability_same

    def sometimes(judge, pair):
        if "fig" in pair.second and "pear" in pair.first:
            fake.script += [("Perhaps.", [{"Perhaps": 0.9}])] * 2
        return ask(judge, pair)

    monkeypatch.setattr(label.Judge, "probability_same", sometimes)
    status, out = run(fake, responses, "--concurrency", "1")
    assert status == 1
    unanswered = rows_of(out.with_name("pairs.unanswered.jsonl"))
    asked = {(row["generation_0"], row["generation_1"]) for row in unanswered}
    assert asked == {("pear", "fig"), ("A pear it is", "fig")}
    assert all("Perhaps" in row["error"] for row in unanswered)
    assert len(rows_of(out)) == 4 and "2 without an answer" in capsys.readouterr().out


def test_a_stopped_run_goes_on_where_it_was(fake, responses, capsys):
    status, out = run(fake, responses)
    whole = out.read_text().splitlines(keepends=True)
    out.write_text("".join(whole[:3]) + whole[3][:20])  # killed in the middle of a line
    fake.requests.clear()
    status, out = run(fake, responses)
    assert status == 0 and sorted(out.read_text().splitlines(keepends=True)) == sorted(whole)
    assert "6 pairs, 3 of them labelled before; 6 requests to go" in capsys.readouterr().out
    fake.requests.clear()
    assert run(fake, responses)[0] == 0 and not fake.requests


def test_a_server_that_fails_stops_it_and_what_was_answered_is_kept(fake, responses, capsys, monkeypatch):
    monkeypatch.setattr("darling_plugin.partition.models.judge.RETRIES", 0)
    fake.delay = 0.01
    ask, asked = label.Judge.probability_same, []

    def failing(judge, pair):
        asked.append(pair)
        if len(asked) == 5:
            fake.failures.append(500)
        return ask(judge, pair)

    monkeypatch.setattr(label.Judge, "probability_same", failing)
    # The trial asks one pair in two orders, so the fifth is the second pair's first order.
    status, out = run(fake, responses, "--concurrency", "1")
    assert status == 2 and "an answer of the judge" in capsys.readouterr().err
    assert len(rows_of(out)) == 1
    monkeypatch.setattr(label.Judge, "probability_same", ask)
    assert run(fake, responses)[0] == 0 and len(rows_of(out)) == 6


def test_the_estimate_comes_first_and_can_be_all(fake, responses, capsys):
    status, out = run(fake, responses, "--estimate_only", "--input_price", "1000000", "--output_price", "0")
    said = capsys.readouterr().out
    assert status == 0 and not fake.requests and not out.exists()
    assert "6 pairs, 0 of them labelled before; 12 requests to go" in said and "server was not asked" in said
    tokens = float(said.split("about ")[1].split(" tokens")[0])
    assert float(said.split("about ")[2].split(" by")[0]) == pytest.approx(tokens, rel=0.01)
    run(fake, responses)
    sent = sum(len(body["messages"][0]["content"]) for body, _ in fake.requests[2:])
    assert tokens == pytest.approx(sent / 4, rel=0.05)


def test_an_estimate_by_half_the_prices_is_refused(fake, responses, capsys):
    status, out = run(fake, responses, "--output_price", "3")
    assert status == 2 and not out.exists() and "--input_price and --output_price" in capsys.readouterr().err


def test_no_more_requests_at_once_than_asked_for(fake, responses):
    fake.delay = 0.05
    run(fake, responses, "--concurrency", "3")
    assert fake.most_at_once == 3


@pytest.mark.parametrize("name", ["responses.jsonl", "precious.json", "by_hand.jsonl"])
def test_a_file_of_someone_else_is_left_as_it_is(fake, responses, capsys, name):
    out = responses.with_name(name)
    if name == "precious.json":
        out.write_text('{"precious": true}')  # no line end
    if name == "by_hand.jsonl":
        row = json.dumps({"prompt": "p", "generation_0": "a", "generation_1": "b", "similar": 1})
        out.write_text(f"{row}\n{row}")
    before = out.read_bytes()
    for more in ((), ("--estimate_only",)):
        assert main([str(responses), "-o", str(out), "--url", fake.url, *more]) == 2
        said = capsys.readouterr().err
        assert "darling-label-pairs to go on with" in said or "labels of the task open alone" in said
    assert out.read_bytes() == before and not fake.requests


def test_a_refused_request_leaves_its_pair_unanswered_and_the_run_goes_on(fake, responses, monkeypatch):
    ask = label.Judge.probability_same

    def refused(judge, pair):
        if "fig" in pair.second and "pear" in pair.first:
            fake.failures += [400, 400]  # with log-probabilities and without
        return ask(judge, pair)

    monkeypatch.setattr(label.Judge, "probability_same", refused)
    status, out = run(fake, responses, "--concurrency", "1")
    assert status == 1 and len(rows_of(out)) == 4
    assert all("BadRequestError" in row["error"] for row in rows_of(out.with_name("pairs.unanswered.jsonl")))
    # A run that goes on with nothing to do still says that some are unanswered.
    assert run(fake, responses)[0] == 1


def test_a_pair_in_either_order_is_asked_about_once(fake, responses):
    lines = [{"prompt": "p", "responses": ["An apple.", "fig"]}, {"prompt": "p", "responses": ["fig", "An apple."]}]
    responses.write_text("\n".join(map(json.dumps, lines)) + "\n")
    status, out = run(fake, responses)
    assert status == 0 and len(rows_of(out)) == 1


def test_pairs_per_prompt_are_drawn_by_the_seed(fake, responses):
    assert run(fake, responses, "--pairs_per_prompt", "1")[0] == 0
    out = responses.with_name("pairs.jsonl")
    drawn = sorted(out.read_text().splitlines())
    assert len(drawn) == 2
    fake.requests.clear()
    assert run(fake, responses, "--pairs_per_prompt", "1")[0] == 0 and not fake.requests


@pytest.mark.parametrize(
    ("line", "more", "message"),
    [
        ("nonsense", (), "1 bad lines in .*: line 3: not JSON"),
        ('{"prompt": "p"}', (), "line 3: needs a list as responses"),
        ("", ("--pairs_per_prompt", "0"), "--pairs_per_prompt of 1 or more"),
    ],
)
def test_bad_input_is_named_before_any_request(fake, responses, capsys, line, more, message):
    responses.write_text(responses.read_text() + line + "\n")
    assert run(fake, responses, *more)[0] == 2
    assert re.search(message, capsys.readouterr().err) and not fake.requests


def test_a_real_chat_server_from_the_command_line(vllm_url, responses):
    out = responses.with_name("pairs.jsonl")
    done = subprocess.run(
        [sys.executable, "-m", "darling_plugin.commands.label_pairs", responses, "-o", out, "--url", vllm_url],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [*rows_of(out), *rows_of(out.with_name("pairs.disagreed.jsonl"))]
    assert len(rows) == 6 and all(0 < p < 1 for row in rows for p in row["p"])
    assert all(row["similar"] == (row["p"][0] > 0.5) == (row["p"][1] > 0.5) for row in rows_of(out))
