"""Small servers in this process that speak the APIs of vLLM and text-embeddings-inference, and what to ask them."""

import contextlib
import json
import random
import socket
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from darling_plugin.partition import Pair
from darling_plugin.partition.models.served import Served
from darling_plugin.partition.servers import pool as pool_module
from darling_plugin.partition.servers import server as server_module

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then"]
MAX_LENGTH = 48


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(Served, "patience", 1.5)
    monkeypatch.setattr(server_module, "FIRST_BACKOFF", 0.02)
    monkeypatch.setattr(server_module, "LAST_BACKOFF", 0.2)
    monkeypatch.setattr(pool_module, "CONCURRENCY", 3)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def make_tokenizer(folder):
    """One without segment ids, as ModernBERT's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {word: k for k, word in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def some_pairs(count=100, longest=40):
    generator = random.Random(0)

    def text():
        return " ".join(generator.choices(WORDS, k=generator.randint(1, longest)))

    return [Pair("p", text(), text()) for _ in range(count)]


def known_score(given):
    """What the small servers answer for a pair, in [0, 1): differs with every token and with the sides."""
    return zlib.crc32(json.dumps(given).encode()) % 1000 / 1000


class SmallServer:
    """A server of `api` that answers known_score for class 1, and in the order of `faults` something else first."""

    def __init__(self, api="vllm", labels=2, root=None, max_length=MAX_LENGTH, batch_size=32, names=None):
        self.api, self.labels, self.root, self.max_length, self.batch_size = api, labels, root, max_length, batch_size
        self.names = names or [f"label {k}" for k in range(labels)]
        self.faults, self.seconds, self.restarts_after = [], 0.0, None
        self.connections, self.sizes, self.bodies, self.headers = 0, [], [], []
        self.running, self.most_running = 0, 0
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.sockets = set()
        handler = type("Handler", (SmallHandler,), {"owner": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.http.daemon_threads, self.port = True, self.http.server_port
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        """As when the process dies: its connections end too."""
        self.http.shutdown()
        self.http.server_close()
        for each in list(self.sockets):
            each.close_now()

    def rows(self, given):
        scores = [known_score(each) for each in given]
        rest = max(1, self.labels - 1)
        return [
            [score if k == min(1, self.labels - 1) else (1 - score) / rest for k in range(self.labels)]
            for score in scores
        ]

    def answer(self, path, body):
        """(status, JSON)"""
        if self.api == "tei":
            if path == "/info":
                kind = "reranker" if self.labels == 1 else "classifier"
                model = {kind: {"id2label": {str(k): name for k, name in enumerate(self.names)}}}
                limits = {"max_input_length": self.max_length, "max_client_batch_size": self.batch_size}
                return 200, {"model_id": "m", "model_type": model, **limits}
            if path == "/predict" and body["truncate"] and not body["raw_scores"]:
                rows = [
                    [{"score": p, "label": n} for p, n in zip(row, self.names, strict=True)]
                    for row in self.rows(body["inputs"])
                ]
                return 200, [sorted(row, key=lambda item: -item["score"]) for row in rows]
        elif path == "/v1/models":
            return 200, {"data": [{"id": "m", "root": self.root, "parent": None, "max_model_len": self.max_length}]}
        elif path == "/classify":
            given = [body["input"]] if isinstance(body["input"], str) else body["input"]
            data = [
                {"index": k, "label": "?", "probs": row, "num_classes": self.labels}
                for k, row in enumerate(self.rows(given))
            ]
            return 200, {"data": data[::-1]}
        elif path == "/score" and self.labels == 1:
            given = list(zip(body["text_1"], body["text_2"], strict=True))
            return 200, {"data": [{"index": k, "score": known_score(each)} for k, each in enumerate(given)][::-1]}
        return 404, {"detail": "Not Found"}


class SmallHandler(BaseHTTPRequestHandler):
    owner: SmallServer
    protocol_version = "HTTP/1.1"  # keeps connections open
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.owner.connections += 1
        self.owner.sockets.add(self)

    def finish(self):
        self.owner.sockets.discard(self)
        super().finish()

    def close_now(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client may give up
            super().handle()

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.reply(*self.owner.answer(self.path, None))

    def do_POST(self):
        owner = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("input") == "a":  # asked for the number of labels
            return self.reply(*owner.answer(self.path, body))
        with owner.lock:
            owner.running += 1
            owner.most_running = max(owner.most_running, owner.running)
            owner.bodies.append(body)
            owner.headers.append(self.headers)
            owner.sizes.append(len(body.get("input") or body.get("inputs") or body["text_1"]))
            fault = owner.faults.pop(0) if owner.faults else None
        time.sleep(owner.seconds)
        status, answer = owner.answer(self.path, body)
        if callable(fault):
            status, answer = 200, fault(answer)
        elif fault == "die":
            owner.stop()
            if owner.restarts_after:
                threading.Timer(owner.restarts_after, owner.start).start()
            return None
        elif fault is not None:
            status, answer = fault, {"error": "not today"}
        with owner.lock:
            owner.running -= 1
        return self.reply(status, answer)

    def reply(self, status, answer):
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def start_server():
    servers = []

    def start(*arguments, **options):
        servers.append(SmallServer(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def ids(tokenizer, pairs, max_length=MAX_LENGTH):
    first, second = zip(*((pair.first, pair.second) for pair in pairs), strict=True)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return loaded(first, second, truncation="longest_first", max_length=max_length)["input_ids"]


def by_ids(tokenizer, pairs, max_length=MAX_LENGTH):
    return [known_score(each) for each in ids(tokenizer, pairs, max_length)]


def by_texts(pairs):
    return [known_score([pair.first, pair.second]) for pair in pairs]


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
