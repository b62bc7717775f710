"""`darling-evaluate` where it samples itself: from a server, and from a model in vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import preloaded
import pytest
from chat_servers import SMOLLM
from transformers import AutoTokenizer

from darling_plugin.commands.evaluate import main
from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.sampling import OwnVllm, Refused, Server, Settings, folder_as_of, sample

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


def test_prompts_may_be_a_data_set_which_has_null_where_a_row_lacks_something(tmp_path, server):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", [{"question": "of another split", "id": "x", "answer": "grey"}])
    rows = [{"question": "a colour"}, {"question": "a shade", "id": None, "answer": "red"}]
    write(folder / "test.jsonl", rows)
    server.reset()
    server.script = [("red", []), ("blue", [])]
    arguments = ["--url", server.url, "--prompts", str(folder), "--prompts_split", "test", "--n", "1", "--no_cosine"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        assert main([*arguments, "-o", str(tmp_path / "out"), "--partition_model", "lexical"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(line["id"], line["prompt"], line["answer"]) for line in lines] == [
        ("1", "a colour", None),
        ("2", "a shade", "red"),
    ]


def test_one_prompt_under_two_ids_has_two_seeds(tmp_path, server):
    server.reset()
    server.script = [("red", []), ("blue", [])]
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "a colour", "id": name} for name in "ab"])
    arguments = ["--url", server.url, "--prompts", prompts, "--n", "1", "-o", str(tmp_path / "out"), "--no_cosine"]
    assert main([*arguments, "--partition_model", "lexical"]) == 0
    first, second = (body["seed"] for body, _ in server.requests)
    assert first != second
    drawn = []

    def chat(chats, parameters, **options):
        drawn.extend(each["seed"] for each in parameters)
        return [SimpleNamespace(outputs=[SimpleNamespace(text="red")])] * len(chats)

    own_vllm(chat)([{"id": name, "prompt": "a colour"} for name in "ab"], Settings())
    assert sorted(drawn) == sorted((first, second)), "vLLM here draws with the same"


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


def test_samples_of_others_are_neither_read_nor_written_to(tmp_path, server, capsys):
    server.reset()
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "p"}])
    arguments = ["--url", server.url, "--prompts", prompts, "-o", str(tmp_path)]
    for text in ('{"prompt": "p", "responses": ["a"]}\n', "[1]\n", "{\n"):
        (tmp_path / "samples.jsonl").write_text(text)
        assert main(arguments) == 2
        assert "name another folder" in capsys.readouterr().err
        assert (tmp_path / "samples.jsonl").read_text() == text


def test_a_prompt_that_the_server_refuses_is_named_and_the_rest_go_on(tmp_path, server, capsys):
    server.reset()
    long = "a colour " * 20
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "a colour"}, {"prompt": long}, {"prompt": "a shade"}])
    arguments = ["--url", server.url, "--prompts", prompts, "--n", "2", "-o", str(tmp_path / "out"), "--no_cosine"]
    arguments += ["--partition_model", "lexical"]
    server.context = 100
    try:
        for _ in range(2):
            server.script = [(word, []) for word in ("red", "blue", "red", "green")]
            assert main(arguments) == 1, "one is missing"
            said = capsys.readouterr()
            assert "prompt 2: refused" in said.err and "maximum context length" in said.err
            assert "1 prompt of" in said.out and "missing" in said.out
            (line,) = (tmp_path / "out" / "samples.refused.jsonl").read_text().splitlines()
            assert json.loads(line)["prompt"] == long
    finally:
        server.context = None
    assert len((tmp_path / "out" / "generations.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]["n"] == 2
    server.script = [("grey", []), ("white", [])]
    assert main(arguments) == 0, "it is tried again"
    assert not (tmp_path / "out" / "samples.refused.jsonl").exists()
    assert len((tmp_path / "out" / "generations.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("answer", [(500, {"error": {"message": "inner"}}), (200, {"choices": None})])
def test_a_prompt_at_which_the_server_fails_each_time_leaves_the_others_their_samples(
    answer, tmp_path, server, capsys, monkeypatch
):
    server.reset()
    server.odd = {"a curse": answer}
    server.script = [("red", [])] * 3
    monkeypatch.setattr(Server, "RETRIES", 0)
    rows = [{"prompt": text} for text in ("a curse", "a colour", "a shade", "a tone")]
    prompts = write(tmp_path / "prompts.jsonl", rows)
    arguments = ["--url", server.url, "--prompts", prompts, "--n", "1", "-o", str(tmp_path / "out"), "--no_cosine"]
    for _ in range(2):
        assert main([*arguments, "--partition_model", "lexical"]) == 1
        said = capsys.readouterr()
        assert "prompt 1: refused" in said.err and "1 prompt of" in said.out
        assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 3
    assert not server.script and len(server.requests) == 5, "the second time that prompt alone is asked for"


@pytest.mark.parametrize("status", [404, 502])
def test_what_was_answered_before_a_server_lets_nobody_in_is_kept(status, tmp_path, server, monkeypatch):
    server.reset()
    server.script = [("red", [])] * 35
    monkeypatch.setattr(Server, "RETRIES", 0)
    prompts = [{"id": str(k), "prompt": f"a colour {k}"} for k in range(40)]
    # Gone, or away behind a proxy.
    server.odd = {each["prompt"]: (status, {"error": {"message": "not here"}}) for each in prompts[35:]}
    generate, kept = Server(server.url, None), tmp_path / "samples.jsonl"
    assert sample(prompts, generate, Settings(n=1), kept, "m") == 5, "while it answers others"
    with pytest.raises(DarlingError, match="the same command goes on"):
        sample(prompts, generate, Settings(n=1), kept, "m")
    assert len(kept.read_text().splitlines()) == 35 and not server.script


def test_a_prompt_may_be_a_chats_messages_and_come_through_a_pipe(tmp_path, server, capsys):
    server.reset()
    server.script = [("red", [])]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a colour"}]
    reading, writing = os.pipe()
    os.write(writing, json.dumps({"prompt": messages}).encode() + b"\n")
    os.close(writing)
    arguments = ["--url", server.url, "--prompts", f"/dev/fd/{reading}", "--n", "1", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--no_cosine", "--partition_model", "lexical"]) == 0
    ((body, _),) = server.requests
    assert body["messages"] == messages
    (line,) = (tmp_path / "out" / "generations.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == "Be brief.\na colour"
    other = write(tmp_path / "other.jsonl", [{"prompt": "Be brief.\na colour"}])
    assert main(["--url", server.url, "--prompts", other, "--n", "1", "-o", str(tmp_path / "out")]) == 2
    assert "samples of these prompts" in capsys.readouterr().err, "the same words in one message"
    given = []

    def chat(chats, *_, **__):
        given.extend(chats)
        return [SimpleNamespace(outputs=[SimpleNamespace(text="red")])]

    own_vllm(chat)([{"id": "1", "prompt": "Be brief.\na colour", "messages": messages}], Settings())
    assert given == [messages]


@pytest.mark.parametrize("one_reason", [True, False])
def test_no_more_is_asked_where_the_first_are_all_refused_for_one_reason(one_reason, tmp_path):
    prompts = [{"id": str(k), "prompt": f"prompt {k}"} for k in range(70)]
    asked = []

    def refuse(some, settings):
        asked.extend(some)
        reasons = ["no temperature here" if one_reason else f"{each['prompt']} is too long" for each in some]
        return list(map(Refused, reasons))

    refuse.source = "m"
    with pytest.raises(DarlingError, match=f"all {32 if one_reason else 70} asked for refused"):
        sample(prompts, refuse, Settings(n=1), tmp_path / "samples.jsonl", "m")
    assert len(asked) == (32 if one_reason else 70)


def test_a_server_that_refuses_every_prompt_or_the_key_is_an_error(tmp_path, server, capsys):
    server.reset()
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "a colour"}, {"prompt": "a shade"}])
    arguments = ["--url", server.url, "--prompts", prompts, "--n", "2", "-o", str(tmp_path / "out"), "--no_cosine"]
    server.refuses = {"temperature": "no temperature here"}
    assert main(arguments) == 2
    assert "all 2 asked for refused, the first" in capsys.readouterr().err
    server.reset()
    server.failures = [401, 401]
    assert main(arguments) == 2
    assert "look at the server" in capsys.readouterr().err


def test_samples_of_another_model_of_the_same_name_are_not_gone_on_with(tmp_path):
    prompts = [{"id": str(k), "prompt": f"prompt {k}"} for k in range(2)]
    kept = tmp_path / "samples.jsonl"

    def answer(some, settings):
        return [["red"]] * len(some)

    answer.source = "runs/a/model, of 2026-01-01 10:00:00"
    sample(prompts[:1], answer, Settings(n=1), kept, "model")
    for source in ("runs/b/model, of 2026-01-01 10:00:00", "runs/a/model, of 2026-01-01 11:00:00"):
        answer.source = source
        with pytest.raises(DarlingError, match="runs/a/model, of 2026-01-01 10:00:00"):
            sample(prompts, answer, Settings(n=1), kept, "model")
    assert len(kept.read_text().splitlines()) == 1


def test_right_answers_that_were_corrected_since_are_taken(tmp_path):
    kept, asked = tmp_path / "samples.jsonl", []

    def answer(some, settings):
        asked.extend(each["id"] for each in some)
        return [["4"]] * len(some)

    answer.source = "m"
    for reference in ({"answer": 5}, {"label": "4"}):
        prompts = [{"id": "1", "prompt": "2+2?", **reference}, {"id": "2", "prompt": "2+3?", "answer": 5}]
        sample(prompts, answer, Settings(n=1), kept, "m")
        lines = [json.loads(line) for line in kept.read_text().splitlines()]
        assert [{**each, "generations": ["4"]} for each in prompts] == [
            {key: line[key] for key in (*each, "generations")} for line, each in zip(lines, prompts, strict=True)
        ]
        assert "answer" not in lines[0] or "answer" in reference
    assert asked == ["1", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_where_a_model_is_from(tmp_path, server):
    server.reset()
    url = f"{server.url.rstrip('/')}/v1".replace("/v1/v1", "/v1")
    assert Server(server.url, None).source == url, "it does not say"
    server.root = "runs/a/model"
    assert Server(server.url, None).source == "runs/a/model"
    (tmp_path / "config.json").write_text("{}")
    os.utime(tmp_path / "config.json", (0, 0))
    before = folder_as_of(tmp_path)
    (tmp_path / "train.log").write_text("a line")
    assert folder_as_of(tmp_path) == before, "it may still be written to"
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert before.startswith(str(tmp_path)) and folder_as_of(tmp_path) != before


class VLLMClientError(Exception):  # as newer releases of vLLM name it
    pass


def of_texts(*texts):
    return [{"id": str(k), "prompt": text} for k, text in enumerate(texts)]


def own_vllm(chat):
    own = object.__new__(OwnVllm)
    own._vllm = SimpleNamespace(SamplingParams=lambda **settings: settings)
    own._llm = SimpleNamespace(get_tokenizer=lambda: SimpleNamespace(chat_template="x"), chat=chat)
    return own


@pytest.mark.parametrize("refusal", [ValueError, type("VLLMValidationError", (VLLMClientError,), {})])
def test_a_prompt_that_vllm_refuses_leaves_the_others_their_samples(refusal):
    def chat(chats, *_, **__):
        if any(len(messages[0]["content"]) > 8 for messages in chats):
            raise refusal("maximum context length is 8 tokens")
        return [SimpleNamespace(outputs=[SimpleNamespace(text=messages[0]["content"] + "!")]) for messages in chats]

    found = own_vllm(chat)(of_texts("short", "a long prompt", "other"), Settings())
    assert found == [["short!"], Refused("maximum context length is 8 tokens"), ["other!"]]


def test_vllm_is_imported_before_torch_is_asked_for_a_gpu(tmp_path, monkeypatch):
    """Else CUDA is touched in this process, and the engine that vLLM forks cannot use it."""
    import torch

    (tmp_path / "vllm.py").write_text(
        "class LLM:\n    def __init__(self, path, **options):\n        self.path = path\n"
    )
    monkeypatch.setitem(sys.modules, "vllm", None)  # so that what was there, or was not, comes back
    monkeypatch.delitem(sys.modules, "vllm")
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, "")
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(asked.append("vllm" in sys.modules)))
    assert OwnVllm("a model")._llm.path == "a model"
    assert asked and all(asked)


def test_an_engine_that_died_is_no_refusal():
    def chat(*_, **__):
        raise RuntimeError("the engine is dead")

    with pytest.raises(DarlingError, match="the engine is dead"):
        own_vllm(chat)(of_texts("p", "q"), Settings())


# A reward model comes next, on the same GPU.
ALONE = """
import sys
import psutil
sys.path.insert(0, {folder!r})
import reward_named_answer

def reward_func(queries, prompts, labels):
    running = [each.name() for each in psutil.Process().children(recursive=True)]
    assert not any("VLLM" in name for name in running), f"the engine holds its memory: {{running}}"
    return reward_named_answer.reward_func(queries, prompts, labels)
"""


def test_a_model_is_sampled_in_vllm(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    if not (SMOLLM / "config.json").exists():
        pytest.skip("no SmolLM2-135M-Instruct: make models/SmolLM2-135M-Instruct/config.json")
    # More tokens than vLLM's CPU build reads at once, 4096, in prompts below one block of its cache.
    long = ["".join(f" Guest {k}{j} likes it." for j in range(10)) for k in range(8)]
    rows = [{"input": f"Name a fruit.{each}", "answers": "apple|pear|banana"} for each in long]
    prompts = write(tmp_path / "prompts.jsonl", rows)
    command = ["-m", "darling_plugin.commands.evaluate", "--model", str(SMOLLM), "--prompts", prompts, "--n", "10"]
    command += ["--max_tokens", "8", "-o", str(tmp_path / "out"), "--no_cosine"]
    (tmp_path / "rewards.py").write_text(ALONE.format(folder=str(EXAMPLES)))
    command += ["--reward_func", str(tmp_path / "rewards.py")]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    ran = subprocess.run([preloaded.python(), *command], capture_output=True, text=True, timeout=400, env=environment)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM)
    chats = [[{"role": "user", "content": row["input"]}] for row in rows]
    lengths = [len(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]) for chat in chats]
    assert max(lengths) < 128 and 10 * sum(lengths) > 1.5 * 4096
    assert len(lines) == len(rows)
    assert all(len(line["generations"]) == 10 and len(set(line["generations"])) > 1 for line in lines)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "pass@8" in summary["models"][SMOLLM.name]["figures"]
