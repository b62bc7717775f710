"""`darling-evaluate` where it samples itself: from a server, and from a model in vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_servers import SMOLLM

from darling_plugin.commands.evaluate import main
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.sampling import OwnVllm, Server, Settings

EXAMPLES = Path(__file__).parents[2] / "examples"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def group(prompt, responses, **more):
    return {"prompt": prompt, "responses": responses, **more}


def test_a_server_is_sampled_and_a_stopped_run_goes_on(tmp_path, server, capsys):
    server.reset()
    words = ["red", "blue", "red", "red", "green", "red", "red", "red"]
    server.script = [(word, []) for word in words]
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"a colour {k}"} for k in range(4)])
    arguments = ["--url", server.url, "--prompts", prompts, "--n", "2", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--partition_model", "lexical", "--no_cosine"]) == 0
    kept = tmp_path / "out" / "samples.jsonl"
    lines = kept.read_text().splitlines(keepends=True)
    assert sorted(word for line in lines for word in json.loads(line)["generations"]) == sorted(words)
    kept.write_text("".join(lines[:2]) + lines[2][:20])  # killed while it wrote
    server.script = [("grey", [])] * 4
    assert main([*arguments, "--partition_model", "lexical", "--no_cosine"]) == 0
    again = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [each["generations"] for each in again[2:]] == [["grey", "grey"]] * 2
    assert [each["id"] for each in again] == ["1", "2", "3", "4"] and not server.script, "two prompts, and no more"
    assert main([*arguments, "--temperature", "0.5"]) == 2
    assert "name another folder" in capsys.readouterr().err
    write(tmp_path / "prompts.jsonl", [{"prompt": f"a colour {k}"} for k in range(3)])
    assert main(arguments) == 2
    assert "another, 'a colour 3'" in capsys.readouterr().err


def test_prompts_that_come_with_responses_are_sampled_anew(tmp_path, server):
    server.reset()
    server.script = [("red", []), ("blue", [])]
    prompts = write(tmp_path / "prompts.jsonl", [group("a colour", ["grey"], labels=[0], answer="red", step=1)])
    arguments = ["--url", server.url, "--prompts", prompts, "--n", "2", "-o", str(tmp_path / "out"), "--no_cosine"]
    assert main([*arguments, "--partition_model", "lexical"]) == 0
    (line,) = (tmp_path / "out" / "generations.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["generations"]) == ["blue", "red"]


def test_prompts_that_cannot_be_sampled_are_named(tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    arguments = [
        "--url",
        "http://127.0.0.1:9",
        "--model_name",
        "m",
        "--prompts",
        str(path),
        "-o",
        str(tmp_path / "out"),
    ]
    for text, said in (
        ('{"prompt": "p"}\n{', "line 2"),
        ('{"prompt": "p", "id": 1}\n{"prompt": "q", "id": 1}', "another id for each prompt"),
        ('{"text": "p"}', "a prompt in each row"),
        ("", "prompts to sample from"),
    ):
        path.write_text(text)
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    path.write_text('{"prompt": "p"}')
    Server.RETRIES, before = 0, Server.RETRIES
    try:
        assert main(arguments) == 2
    finally:
        Server.RETRIES = before
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", ["-1", "nan", "inf"])
def test_a_temperature_that_cannot_be(temperature, capsys):
    with pytest.raises(SystemExit):
        main([f"--temperature={temperature}"])
    assert "needs a number from 0" in capsys.readouterr().err


def test_samples_of_others_are_neither_read_nor_written_to(tmp_path, capsys):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "p"}])
    arguments = ["--url", "http://127.0.0.1:9", "--model_name", "m", "--prompts", prompts, "-o", str(tmp_path)]
    for text in ('{"prompt": "p", "responses": ["a"]}\n', "[1]\n", "{\n"):
        (tmp_path / "samples.jsonl").write_text(text)
        assert main(arguments) == 2
        assert "name another folder" in capsys.readouterr().err
        assert (tmp_path / "samples.jsonl").read_text() == text


def test_what_vllm_refuses_is_said_with_the_longest_prompt():
    class Refusal(Exception):  # newer releases of vLLM raise their own, which are no ValueError
        pass

    def chat(*_, **__):
        raise Refusal("maximum context length is 8 tokens")

    own = object.__new__(OwnVllm)
    own._vllm = SimpleNamespace(SamplingParams=lambda **settings: settings)
    own._llm = SimpleNamespace(get_tokenizer=lambda: SimpleNamespace(chat_template="x"), chat=chat)
    with pytest.raises(DarlingError, match=r"context length is 8 tokens; the longest of 2 begins with 'a long"):
        own(["short", "a long prompt"], Settings())


def test_a_model_is_sampled_in_vllm(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    if not (SMOLLM / "config.json").exists():
        pytest.skip("no SmolLM2-135M-Instruct: make models/SmolLM2-135M-Instruct/config.json")
    prompts = write(tmp_path / "prompts.jsonl", [{"input": "Name a fruit.", "answers": "apple|pear|banana"}])
    command = ["-m", "darling_plugin.commands.evaluate", "--model", str(SMOLLM), "--prompts", prompts, "--n", "6"]
    command += ["--max_tokens", "8", "-o", str(tmp_path / "out"), "--no_cosine"]
    command += ["--reward_func", str(EXAMPLES / "reward_named_answer.py")]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=400, env=environment)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-3000:]
    (line,) = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    generations = json.loads(line)["generations"]
    assert len(generations) == 6 and len(set(generations)) > 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "pass@4" in summary["models"][SMOLLM.name]["figures"]
