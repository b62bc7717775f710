"""Chat servers for the tests of judges: one that answers truthfully about fruit, and a real one of vLLM.

`server` and `vllm_url` are fixtures, for test modules to import.
"""

import asyncio
import math
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import preloaded
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

SMOLLM = Path(__file__).resolve().parents[1] / "models" / "SmolLM2-135M-Instruct"
MARKED = re.compile(r"BEGIN (prompt|response 1|response 2) (\w+)\n(.*?)\nEND \1 \2$", re.DOTALL | re.MULTILINE)
FRUITS = ("apple", "fig", "pear")
# The first token of an answer: 0.9 for the right word, 0.1 for the other.
TOKENS = {
    "yes": {"Yes": 0.5, " yes": 0.3, "YES": 0.1, "No": 0.06, " no": 0.04},
    "no": {"No": 0.5, " no": 0.3, "NO": 0.1, "Yes": 0.06, "yes": 0.04},
}


def fruit(text):
    return next((name for name in FRUITS if name in text.lower()), text)


class FakeJudge:
    """A chat server that answers the question in the message truthfully; a text's meaning is the fruit it names."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.models, self.root = ["judge-1"], None
        self.logprobs = "given"  # or "ignored", or "refused"
        self.refuses = {}  # an option of a request, and the message with which it is refused
        self.overflow = None  # the answer to what is longer than the context, in place of OpenAI's
        self.failures = []  # statuses of the next requests
        self.context = None  # characters of a message
        self.odd = {}  # by message, the status and body of its answer
        self.script = []  # answers that come before any truthful one
        self.bias = 0.0  # added to p(yes) where response 1 comes before response 2 in the alphabet
        self.delay = 0.0
        self.requests = []
        self.at_once = self.most_at_once = 0

    def truth(self, message):
        texts = {name: text for name, _, text in MARKED.findall(message)}
        question = message.rpartition("END response 2")[2]
        same = fruit(texts["response 1"]) == fruit(texts["response 2"])
        answer = same != ("differ" in question)
        assert "the same" in question and len(texts) == 3
        return ("yes" if answer else "no"), texts["response 1"] < texts["response 2"]

    def answer(self, body):
        message = body["messages"][0]["content"]
        if self.script:
            text, tokens = self.script.pop(0)
        else:
            word, ordered = self.truth(message)
            tokens = [TOKENS[word]]
            if ordered and self.bias:
                tokens = [{"Yes": 0.5 + self.bias, "No": 0.5 - self.bias}]
                word = "yes"
            text = f"{word.title()}."
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if body.get("logprobs") and self.logprobs == "given":
            choice["logprobs"] = {"content": [as_logprobs(token) for token in tokens]}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}


def as_logprobs(probabilities):
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in probabilities.items()]
    return {**top[0], "top_logprobs": top}


def refusal(status, message):
    return JSONResponse({"error": {"message": message, "type": "refused", "code": status}}, status)


def app_of(fake):
    app = FastAPI()

    @app.get("/v1/models")
    def models():
        root = {"root": fake.root} if fake.root else {}  # as vLLM says where it has a model from
        return {"object": "list", "data": [{"id": name, "object": "model", **root} for name in fake.models]}

    @app.post("/v1/chat/completions")
    async def complete(request: Request):
        body = await request.json()
        fake.requests.append((body, request.headers.get("authorization")))
        if fake.failures:
            return refusal(fake.failures.pop(0), "not now")
        if body["model"] not in fake.models:
            return refusal(404, "no such model")
        if fake.logprobs == "refused" and "logprobs" in body:
            return refusal(400, "logprobs are not supported")
        if body["messages"][0]["content"] in fake.odd:
            status, content = fake.odd[body["messages"][0]["content"]]
            return JSONResponse(content, status)
        for option, message in fake.refuses.items():
            if option in body:
                return refusal(400, message)
        if fake.overflow and fake.context and len(body["messages"][0]["content"]) > fake.context:
            return JSONResponse(fake.overflow, 422)
        if fake.context and len(body["messages"][0]["content"]) > fake.context:
            return refusal(400, "This model's maximum context length is 1024 tokens.")
        fake.at_once += 1
        fake.most_at_once = max(fake.most_at_once, fake.at_once)
        await asyncio.sleep(fake.delay)
        fake.at_once -= 1
        return fake.answer(body)

    return app


@pytest.fixture(scope="module")
def server():
    fake = FakeJudge()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        fake.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        running = uvicorn.Server(uvicorn.Config(app_of(fake), log_level="warning"))
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield fake
        running.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def vllm_url(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    if not (SMOLLM / "config.json").exists():
        pytest.skip("no SmolLM2-135M-Instruct: make models/SmolLM2-135M-Instruct/config.json")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = f"-m vllm.entrypoints.openai.api_server --model {SMOLLM} --served-model-name smollm --dtype bfloat16"
    command += f" --max-model-len 1024 --max-num-seqs 16 --enforce-eager --host 127.0.0.1 --port {port}"
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(
            [preloaded.python(), *command.split()],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server, log)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(url, server, log):
    import httpx

    for _ in range(200):
        if server.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"the vLLM server did not start:\n{log.read_text()[-3000:]}")
