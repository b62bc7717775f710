"""`darling-partition`, in this process where it can be and as a command where signals, pipes or terminals matter."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from darling_plugin.commands import partition as partition_command
from darling_plugin.commands.partition import GROUPS_AT_ONCE, main
from darling_plugin.config import DarlingConfig
from darling_plugin.partition import Group, load_partition_model, measure

COLOURS = {"prompt": "Name a colour", "responses": ["Red!", "red", "I say blue", ""]}
LEXICAL = ("--partition_model", "lexical")

MODELS = """
import os, time
from darling_plugin import PartitionModel

class ByLength(PartitionModel):
    def partition(self, groups):
        return [[len(response) for response in group.responses] for group in groups]

class Talker(ByLength):
    def partition(self, groups):
        print("a model that talks")
        os.write(1, b"past Python, too\\n")
        return super().partition(groups)

class Picky(ByLength):
    def partition(self, groups):
        for group in groups:
            if group.prompt == "poison":
                raise ZeroDivisionError("no\\nway")
            if group.prompt == "panic":
                raise SystemExit("panic")
            if group.prompt == "hang":
                time.sleep(600)
        return super().partition(groups)

class NotThere(ByLength):
    def __init__(self):
        raise OSError("no weights at /nowhere")
"""


@pytest.fixture
def models(tmp_path):
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return str(path)


@pytest.fixture
def command(tmp_path, capfdbinary):
    """Runs main() on a file of these lines; a dict is a line of JSON."""

    def run(lines, *flags):
        path = tmp_path / "groups.jsonl"
        path.write_bytes(joined(lines))
        status = main([str(path), *flags])
        out, err = capfdbinary.readouterr()
        return SimpleNamespace(status=status, out=out, records=parsed(out), err=err.decode())

    return run


def joined(lines):
    encoded = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return b"".join(line + b"\n" for line in encoded)


def parsed(out):
    *lines, rest = out.split(b"\n")
    assert rest == b"", "every line is ended"
    return [json.loads(line) for line in lines]


def numbered(count, **more):
    return [{"prompt": f"prompt {k}", "responses": ["x", "y" * (k % 2 + 1)], **more} for k in range(count)]


def start(*flags, **options):
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    # A shell's background job ignores Ctrl-C, and so would all that it starts.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, "-m", "darling_plugin.commands.partition", *flags], **options)


# --- results


def test_every_key_is_kept_and_labels_and_diversity_come_last(command):
    done = command([{"id": 7, **COLOURS, "meta": {"score": [1.5, None]}}], *LEXICAL)
    assert done.status == 0
    expected = {"id": 7, **COLOURS, "meta": {"score": [1.5, None]}, "labels": [0, 0, 1, 2]}
    assert done.records == [{**expected, "diversity": [torch.tensor(2 / 3).item()] * 2 + [1.0, 1.0]}]
    assert list(done.records[0]) == ["id", "prompt", "responses", "meta", "labels", "diversity"]


@pytest.mark.parametrize("clustering", ["union_find", "greedy", "pairwise"])
@pytest.mark.parametrize("threshold", [None, 0.1])
def test_results_are_those_of_measure(command, clustering, threshold):
    responses = ["a b c", "b c d", "c d e", "d e f", "x", "x y"]
    records = [{"prompt": "p", "responses": responses[: k + 1]} for k in range(len(responses))]
    flags = [] if threshold is None else ["--threshold", str(threshold)]
    done = command(records, *LEXICAL, "--clustering", clustering, *flags)
    model = load_partition_model("lexical", threshold=threshold, clustering=clustering)
    expected = measure(model, [Group("p", record["responses"]) for record in records])
    assert [each["labels"] for each in done.records] == [each.labels.tolist() for each in expected]
    assert [each["diversity"] for each in done.records] == [each.diversity.tolist() for each in expected]
    if clustering == "pairwise":
        assert [each["equivalent"] for each in done.records] == [each.equivalent.tolist() for each in expected]
    else:
        assert not any("equivalent" in each for each in done.records)


def test_lines_come_out_in_order_across_batches(command):
    records = numbered(2 * GROUPS_AT_ONCE + 3)
    done = command(records, *LEXICAL)
    assert [each["prompt"] for each in done.records] == [each["prompt"] for each in records]
    assert [each["responses"] for each in done.records] == [each["responses"] for each in records]


def test_the_model_gets_full_batches(command, monkeypatch):
    asked = []

    def counting(model, groups):
        asked.append(len(groups))
        return measure(model, groups)

    monkeypatch.setattr(partition_command, "measure_each", counting)
    lines = [line for record in numbered(GROUPS_AT_ONCE + 1) for line in (b"bad", b"", record)]
    command(lines, *LEXICAL)
    assert asked == [GROUPS_AT_ONCE, 1]


def test_old_labels_are_overwritten(command):
    done = command([{"labels": "old", **COLOURS, "diversity": None}], *LEXICAL)
    assert done.records[0]["labels"] == [0, 0, 1, 2]
    assert done.records[0]["diversity"][2:] == [1.0, 1.0]


def test_a_group_of_one_response_is_one_class_of_full_diversity(command):
    done = command([{"prompt": "p", "responses": ["alone"]}], *LEXICAL)
    assert (done.records[0]["labels"], done.records[0]["diversity"]) == ([0], [1.0])
    assert "1 groups, 1 responses, 0 pairs, mean diversity 1.000, 1.00 classes a group" in done.err


def test_any_text_comes_out_as_it_went_in(command):
    texts = ["日本語", "a\u2028b\x85c\n\x00", "\ud800", "e\u0301", "😀", "\ufeff", "\\ud800"]
    done = command([b"\xef\xbb\xbf" + json.dumps({"prompt": "é", "responses": texts}).encode()], *LEXICAL)
    assert done.records[0]["responses"] == texts
    assert (done.status, done.records[0]["prompt"]) == (0, "é")
    assert "日本語".encode() in done.out


def test_a_line_of_megabytes_is_whole_in_a_pipe():
    record = {"prompt": "p", "responses": ["long " * 2**20, "short"]}
    process = start(*LEXICAL)
    out, err = process.communicate(joined([record, COLOURS]))
    assert (process.returncode, [each["responses"] for each in parsed(out)]) == (
        0,
        [record["responses"], COLOURS["responses"]],
    ), err


def test_no_input_is_no_error(command):
    done = command([], *LEXICAL)
    assert (done.status, done.out) == (0, b"")
    assert done.err.endswith("0 groups, 0 responses, 0 pairs, 0 bad lines\n")


def test_the_summary_counts_what_was_measured(command):
    done = command([COLOURS, {"prompt": "p", "responses": ["same", "same"]}, b"bad"], *LEXICAL)
    diversity = (2 / 3 + 2 / 3 + 1 + 1) / 6
    assert done.err.endswith(
        f"2 groups, 6 responses, 7 pairs, mean diversity {diversity:.3f}, 2.00 classes a group, 1 bad lines\n"
    )


# --- bad lines


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"prompt": "p"', "not JSON: Expecting ',' delimiter at character 15"),
        (b'{"prompt": "p"} {}', "not JSON: Extra data at character 17"),
        (b'{"prompt": "\xff"}', "not UTF-8: invalid start byte at byte 13"),
        (b"1" * 5000, "JSON that Python cannot read: Exceeds the limit"),
        (b"[" * 100_000, "JSON that Python cannot read: maximum recursion depth exceeded"),
        (b'["p"]', "needs an object with prompt and responses, found list"),
        (b"null", "needs an object with prompt and responses, found NoneType"),
        ({"responses": ["a"]}, "needs a str as prompt, found no prompt"),
        ({"prompt": None, "responses": ["a"]}, "needs a str as prompt, found NoneType"),
        ({"prompt": "p"}, "needs a list as responses, found no responses"),
        ({"prompt": "p", "responses": "abc"}, "needs a list as responses, found str"),
        ({"prompt": "p", "responses": {"a": 1}}, "needs a list as responses, found dict"),
        ({"prompt": "p", "responses": []}, "found no responses"),
        ({"prompt": "p", "responses": ["a", 3]}, "found int at position 1"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_goes_on(command, line, fault):
    done = command([COLOURS, b"", b" \t\r", line, COLOURS], *LEXICAL)
    assert done.status == 1
    assert [each["prompt"] for each in done.records] == [COLOURS["prompt"]] * 2
    faults = [each for each in done.err.splitlines() if each.startswith("line ")]
    assert len(faults) == 1
    assert faults[0].startswith("line 4: ")
    assert fault in faults[0]
    assert done.err.endswith("1 bad lines\n")


def test_a_last_line_without_its_end_counts(tmp_path, capfdbinary):
    path = tmp_path / "groups.jsonl"
    path.write_bytes(joined([COLOURS]) + json.dumps(COLOURS).encode())
    assert main([str(path), *LEXICAL]) == 0
    assert len(parsed(capfdbinary.readouterr().out)) == 2


def test_a_group_that_the_model_fails_on_costs_only_itself(command, models):
    records = numbered(5)
    records[1]["prompt"], records[3]["prompt"] = "poison", "panic"
    done = command([b"", *records], "--partition_model", f"{models}:Picky")
    assert done.status == 1
    assert [each["prompt"] for each in done.records] == ["prompt 0", "prompt 2", "prompt 4"]
    faults = [each for each in done.err.splitlines() if each.startswith("line ")]
    assert faults[0].startswith("line 3: the partition model failed: ZeroDivisionError: no way (")
    assert f"{models}:" in faults[0], "the place in the user's file"
    assert faults[1].startswith("line 5: the partition model failed: SystemExit: panic")
    assert len(faults) == 2
    assert done.err.endswith("2 bad lines\n")


def test_labels_that_do_not_fit_are_the_models_failure(command, tmp_path):
    path = tmp_path / "short.py"
    path.write_text(
        "from darling_plugin import PartitionModel\n"
        "class Short(PartitionModel):\n"
        "    def partition(self, groups):\n"
        "        return [[0, 1] for group in groups]\n"
    )
    done = command([*numbered(1), COLOURS], "--partition_model", f"{path}:Short")
    assert (done.status, len(done.records)) == (1, 1)
    assert "line 2: the partition model failed: DarlingError: " in done.err
    assert "needed: 4 integer labels" in done.err


# --- partition models and flags


def test_a_model_of_your_own_is_named_by_its_file(command, models):
    done = command(numbered(2), "--partition_model", f"{models}:ByLength")
    assert (done.status, [each["labels"] for each in done.records]) == (0, [[0, 0], [0, 1]])


def test_a_model_of_your_own_is_registered_by_the_import_path(command):
    example = Path(__file__).parent.parent / "examples" / "own_partition_model.py"
    done = command([COLOURS], "--import_path", str(example), "--partition_model", "opening")
    assert (done.status, done.records[0]["labels"]) == (0, [0, 1, 2, 3])


def test_what_a_model_prints_stays_out_of_the_results(models):
    process = start("--partition_model", f"{models}:Talker")
    out, err = process.communicate(joined(numbered(2)))
    assert [each["labels"] for each in parsed(out)] == [[0, 0], [0, 1]]
    assert b"a model that talks" in err
    assert b"past Python, too" in err


def test_defaults_and_help_are_those_of_training():
    flags = {action.dest: action for action in partition_command._parser()._actions}
    for flag in fields(DarlingConfig):
        if flag.name in ("partition_model", "threshold", "clustering", "import_path"):
            assert flags[flag.name].default == flag.default
            assert flags[flag.name].help.startswith(flag.metadata["help"])
            assert flags[flag.name].choices == flag.metadata["choices"]


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--partition_model", "lexcal"], "did you mean 'lexical'?"),
        (["--partition_model", "lexical:x"], "lexical:x"),
        (["--partition_model", "nowhere.py:Class"], "nowhere.py"),
        (["--import_path", "nowhere.py", *LEXICAL], "nowhere.py"),
        ([*LEXICAL, "--threshold", "nan"], "--threshold: a finite number"),
        ([*LEXICAL, "-o", "no/such/folder/out.jsonl"], "a file that can be written"),
    ],
)
def test_a_wrong_use_is_refused_before_anything_is_loaded(command, monkeypatch, flags, fault):
    monkeypatch.setattr(partition_command, "load_partition_model", None)
    done = command([COLOURS], *flags)
    assert (done.status, done.out) == (2, b"")
    assert fault in done.err
    assert "--darling." not in done.err, "flags that this command does not have"


@pytest.mark.parametrize("flags", [["--clustering", "best"], ["--threshold", "high"], ["--partition", "lexical"]])
def test_an_unknown_flag_or_value_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as exited:
        main(flags)
    assert exited.value.code == 2


def test_weights_that_are_not_there_are_no_traceback(command, models):
    done = command([COLOURS], "--partition_model", f"{models}:NotThere")
    assert (done.status, done.out) == (2, b"")
    assert "no weights at /nowhere" in done.err


def test_an_unreadable_file_is_refused(tmp_path, capfd):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        assert main([str(path), *LEXICAL]) == 2
        assert "a file that can be read" in capfd.readouterr().err


def test_a_wrong_spec_on_the_command_line_is_no_traceback():
    process = start("--partition_model", "lexcal")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert b"lexcal" in err
    assert b"Traceback" not in err


# --- files, pipes, signals, terminals


def test_results_go_to_a_file_and_replace_what_it_held(command, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old\n" * 1000)
    done = command([COLOURS, b"bad"], *LEXICAL, "-o", str(path))
    assert (done.status, done.out) == (1, b"")
    assert [each["labels"] for each in parsed(path.read_bytes())] == [[0, 0, 1, 2]]


def test_the_input_is_never_overwritten(tmp_path, capfd):
    path, link = tmp_path / "groups.jsonl", tmp_path / "link.jsonl"
    path.write_bytes(joined([COLOURS]))
    link.symlink_to(path)
    assert main([str(path), *LEXICAL, "-o", str(link)]) == 2
    assert path.read_bytes() == joined([COLOURS])
    assert "an output apart from the input" in capfd.readouterr().err


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_stdin_is_measured_as_it_comes(dash):
    """A full batch is answered while the producer is still there, the rest when it has ended."""
    with start(*dash, *LEXICAL) as process:
        process.stdin.write(joined(numbered(GROUPS_AT_ONCE)))
        process.stdin.flush()
        first = b"".join(process.stdout.readline() for _ in range(GROUPS_AT_ONCE))
        assert len(parsed(first)) == GROUPS_AT_ONCE
        process.stdin.write(joined([COLOURS]))
        process.stdin.close()
        assert parsed(process.stdout.read())[0]["labels"] == [0, 0, 1, 2]
        assert b"%|" not in process.stderr.read(), "no bar where stderr is no terminal"
    assert process.returncode == 0


def test_a_reader_that_goes_ends_it_quietly(tmp_path):
    path = tmp_path / "groups.jsonl"
    path.write_bytes(joined(numbered(20 * GROUPS_AT_ONCE, padding="x" * 1000)))
    with start(str(path), *LEXICAL) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in err
    assert "Broken pipe" not in err
    assert "groups" not in err


def test_a_file_that_takes_less_than_a_line_is_given_the_rest():
    class Slow(io.BytesIO):
        def write(self, data):
            return super().write(data[:3])

    results = Slow()
    partition_command._write(results, "a whole line\n")
    assert results.getvalue() == b"a whole line\n"


def wait_for_lines(path: Path, process: subprocess.Popen, count: int) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.parametrize(("kill", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_end_by_force_leaves_whole_lines(models, tmp_path, kill, status):
    path = tmp_path / "out.jsonl"
    records = [*numbered(GROUPS_AT_ONCE), {**COLOURS, "prompt": "hang"}]
    with start("--partition_model", f"{models}:Picky", "-o", str(path)) as process:
        process.stdin.write(joined(records))
        process.stdin.close()
        wait_for_lines(path, process, GROUPS_AT_ONCE)
        process.send_signal(kill)
        err = process.stderr.read().decode()
    assert process.returncode == status
    assert len(parsed(path.read_bytes())) == GROUPS_AT_ONCE
    assert "Traceback" not in err
    if kill == signal.SIGINT:
        assert f"interrupted after {GROUPS_AT_ONCE} groups" in err


def test_an_interrupt_waits_for_the_line_that_is_being_written():
    """The reader takes some of a line that is longer than the pipe, and the signal comes while the rest is stuck."""
    record = {"prompt": "p", "responses": ["long " * 2**20, "short"]}
    with start(*LEXICAL) as process:
        process.stdin.write(joined([record]))
        process.stdin.close()
        begun = process.stdout.read(1000)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        out = begun + process.stdout.read()
    assert parsed(out)[0]["responses"] == record["responses"]
    assert process.returncode == 130


def test_a_terminal_shows_how_far_it_is(tmp_path):
    path = tmp_path / "groups.jsonl"
    path.write_bytes(joined([*numbered(4), b"", b"bad"]))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    with start(str(path), *LEXICAL, stderr=theirs) as process:
        out = process.stdout.read()
        os.close(theirs)
        shown = b""
        try:
            while some := os.read(ours, 1000):
                shown += some
        except OSError:  # Linux's way of saying that the other end of a terminal is closed
            pass
    os.close(ours)
    assert process.returncode == 1
    assert len(parsed(out)) == 4
    assert b"4/5" in shown
    assert b" groups/s" in shown
    assert b"line 6: not JSON" in shown
