"""`darling-partition` among files, pipes, signals and terminals."""

import io
import os
import pty
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest
from partition_command import COLOURS, LEXICAL, joined, numbered, parsed, start

from darling_plugin.commands import partition as partition_command
from darling_plugin.commands.partition import GROUPS_AT_ONCE, main

# --- files, pipes, signals, terminals


def test_results_go_to_a_file_and_replace_what_it_held(command, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old\n" * 1000)
    done = command([COLOURS, b"bad"], *LEXICAL, "-o", str(path))
    assert (done.status, done.out) == (1, b"")
    assert [each["labels"] for each in parsed(path.read_bytes())] == [[0, 0, 1, 2]]


def test_an_output_is_not_emptied_for_a_model_that_cannot_be_loaded(command, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("an hour's work\n")
    assert main([str(tmp_path / "none.jsonl"), "-o", str(output), "--partition_model", "lexical"]) == 2
    (tmp_path / "in.jsonl").write_text('{"prompt": "p", "responses": ["a"]}\n')
    assert main([str(tmp_path / "in.jsonl"), "-o", str(output), "--partition_model", "head:/none/such"]) == 2
    assert output.read_text() == "an hour's work\n"


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
