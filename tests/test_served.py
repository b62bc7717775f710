"""Small servers in this process speak the APIs of vLLM and text-embeddings-inference; the last test starts vLLM."""

import contextlib
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertTokenizerFast,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, Pair, load_partition_model
from darling_plugin.partition.models import served
from darling_plugin.partition.models.served import Served

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then"]
MAX_LENGTH = 48


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(Served, "patience", 1.5)
    monkeypatch.setattr(served, "FIRST_BACKOFF", 0.02)
    monkeypatch.setattr(served, "LAST_BACKOFF", 0.2)
    monkeypatch.setattr(served, "CONCURRENCY", 3)
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


def make_bert_tokenizer(folder, segments):
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BertConfig(type_vocab_size=segments).save_pretrained(folder)
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


# --- what is asked, and what comes back


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_vllm_gets_the_ids_of_each_pair_cut_like_the_tokenizer_cuts(start_server, tokenizer, labels):
    server = start_server(labels=labels, root=tokenizer)
    pairs = some_pairs()
    expected = by_ids(tokenizer, pairs)
    assert 10 < sum(len(each) == MAX_LENGTH for each in ids(tokenizer, pairs)) < 90  # some are cut, some are not
    assert Served(server.url).similarity(pairs) == pytest.approx(expected)
    assert all(body["use_activation"] for body in server.bodies)


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_text_embeddings_inference_gets_texts_and_class_1_is_found_by_its_name(start_server, labels):
    server = start_server("tei", labels=labels)
    pairs = some_pairs()
    assert Served(server.url).similarity(pairs) == pytest.approx(by_texts(pairs))


def test_a_group_is_partitioned_by_the_servers_scores(start_server):
    server = start_server("tei")
    responses = ["the cat", "a dog", "the mat", "a tree"]
    model = load_partition_model(f"served:{server.url}", threshold=0.6)
    (equivalent,) = model.equivalent([Group("p", responses)])
    for i in range(4):
        for j in range(i):
            assert equivalent[i, j] == (known_score([responses[j], responses[i]]) > 0.6)
    assert Served.threshold == 0.5


def test_no_pairs_ask_nothing(start_server):
    server = start_server("tei")
    assert Served(server.url).similarity([]) == []
    assert server.sizes == []


@pytest.mark.parametrize(("asked", "server_length", "used"), [(20, 48, 20), (None, 30, 30), (64, 48, 48)])
def test_pairs_are_cut_at_max_length_but_never_beyond_the_servers(start_server, tokenizer, asked, server_length, used):
    server = start_server(max_length=server_length)
    pairs = some_pairs()
    model = Served(server.url, tokenizer=tokenizer, max_length=asked)
    assert model.similarity(pairs) == pytest.approx(by_ids(tokenizer, pairs, used))
    assert max(len(each) for body in server.bodies for each in body["input"]) == used


def test_pairs_are_cut_at_the_tokenizers_own_limit(start_server, tmp_path):
    make_tokenizer(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path, model_max_length=16).save_pretrained(tmp_path)
    server = start_server(root=str(tmp_path))
    Served(server.url).similarity(some_pairs(20))
    assert max(len(each) for body in server.bodies for each in body["input"]) == 16


def test_the_default_is_cut_at_2048_tokens(start_server, tokenizer):
    server = start_server(root=tokenizer, max_length=8192)
    Served(server.url).similarity([Pair("p", "cat " * 3000, "dog " * 10)])
    assert [len(each) for each in server.bodies[0]["input"]] == [2048]


def test_a_model_that_reads_segment_ids_is_asked_at_score_or_refused(start_server, tmp_path):
    pairs = some_pairs()
    bert = make_bert_tokenizer(tmp_path, segments=2)
    assert Served(start_server(labels=1, root=bert).url).similarity(pairs) == pytest.approx(by_texts(pairs))
    with pytest.raises(DarlingError, match="2 labels, and segment ids"):
        Served(start_server(root=bert).url)
    (tmp_path / "config.json").unlink()  # then nobody knows
    with pytest.raises(DarlingError, match="2 labels, and segment ids"):
        Served(start_server(root=bert).url)
    # DeBERTa's tokenizer makes segment ids too, and the model has no use for them.
    make_bert_tokenizer(tmp_path, segments=0)
    assert Served(start_server(root=bert).url).similarity(pairs) == pytest.approx(by_ids(bert, pairs))


@pytest.mark.parametrize("root", ["/no/such/folder", "no-one/no-such-model", None])
def test_without_a_tokenizer_here_one_label_is_asked_at_score_and_more_are_refused(start_server, root, tokenizer):
    pairs = some_pairs()
    one, two = start_server(labels=1, root=root), start_server(labels=2, root=root)
    assert Served(one.url).similarity(pairs) == pytest.approx(by_texts(pairs))
    assert all(body["truncate_prompt_tokens"] == MAX_LENGTH and body["use_activation"] for body in one.bodies)
    with pytest.raises(DarlingError, match=f"{root}, which the server was started with(.|\n)*tokenizer=<path>"):
        Served(two.url)
    with pytest.raises(DarlingError, match="a tokenizer in /not/there"):
        Served(two.url, tokenizer="/not/there")
    assert Served(two.url, tokenizer=tokenizer).similarity(pairs) == pytest.approx(by_ids(tokenizer, pairs))


def test_text_embeddings_inference_cuts_by_itself(start_server):
    server = start_server("tei", max_length=48)
    with pytest.raises(DarlingError, match="at least 48(.|\n)*max_length=47"):
        Served(server.url, max_length=47)
    Served(server.url, max_length=48)


@pytest.mark.parametrize("max_length", [-1, 0, 7])
def test_max_length_leaves_room_for_both_sides(start_server, tokenizer, max_length):
    with pytest.raises(DarlingError, match=f"room for two responses(.|\n)*{max_length}"):
        Served(start_server().url, tokenizer=tokenizer, max_length=max_length)


# --- requests and connections


def test_many_pairs_go_in_few_requests_and_longest_first(start_server, tokenizer):
    server = start_server(root=tokenizer)
    Served(server.url).similarity(some_pairs(100))
    assert Counter(server.sizes) == {32: 3, 4: 1}
    longest = sorted((max(map(len, body["input"])) for body in server.bodies), reverse=True)
    shortest = sorted((min(map(len, body["input"])) for body in server.bodies), reverse=True)
    assert all(low >= high for low, high in zip(shortest, longest[1:], strict=False))


def test_few_pairs_are_shared_by_the_servers(start_server):
    servers = [start_server("tei") for _ in range(2)]
    for server in servers:
        server.seconds = 0.1
    model = Served(",".join(server.url for server in servers))
    assert model.similarity(some_pairs(28)) == pytest.approx(by_texts(some_pairs(28)))
    assert [sum(server.sizes) for server in servers] == [14, 14]
    assert model.similarity(some_pairs(1)) == pytest.approx(by_texts(some_pairs(1)))


def test_a_servers_own_batch_limit_and_the_bytes_of_a_request_are_kept(start_server, monkeypatch):
    server = start_server("tei", batch_size=5)
    Served(server.url).similarity(some_pairs(20))
    assert server.sizes == [5] * 4
    monkeypatch.setattr(served, "BATCH_LENGTH", 1000)
    server = start_server("tei")
    Served(server.url).similarity([Pair("p", "x" * 300, f"{k:0100}") for k in range(9)])
    assert sorted(server.sizes) == [1, 2, 2, 2, 2]


def test_connections_outlive_the_calls_and_their_number_is_bounded(start_server):
    server = start_server("tei")
    server.seconds = 0.02
    model = Served(server.url)
    for _ in range(4):
        model.similarity(some_pairs(300))
        time.sleep(0.1)
    assert len(server.sizes) == 40
    assert server.most_running == served.CONCURRENCY == 3
    assert server.connections <= 3


def test_calls_from_several_threads_share_the_bound(start_server):
    server = start_server("tei")
    server.seconds = 0.01
    model = Served(server.url)
    results = {}
    threads = [
        threading.Thread(target=lambda k=k: results.update({k: model.similarity(some_pairs(100 + k))}))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[k] == pytest.approx(by_texts(some_pairs(100 + k))) for k in range(4))
    assert server.most_running == 3


def test_the_api_key_is_sent_when_set(start_server, monkeypatch):
    server = start_server("tei")
    Served(server.url).similarity(some_pairs(1))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    Served(f"{server.url}/v1/").similarity(some_pairs(1))
    assert [headers["Authorization"] for headers in server.headers] == [None, "Bearer secret"]


def test_a_model_that_is_dropped_takes_its_thread_and_connections_along(start_server):
    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "served"]

    server = start_server("tei")
    gc.collect()
    wait_until(lambda: not threads())
    model = Served(server.url)
    model.similarity(some_pairs(3))
    assert len(threads()) == 1 and server.sockets
    del model
    gc.collect()
    wait_until(lambda: not threads() and not server.sockets)


# --- faults


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(start_server, status):
    server = start_server("tei")
    server.faults = [status] * 3
    pairs = some_pairs(100)
    model = Served(server.url)
    assert model.similarity(pairs) == pytest.approx(by_texts(pairs))
    assert len(server.sizes) == 4 + 3
    assert model._servers[0].failures == 0, "the next fault is waited for as briefly as the first"


def test_a_dead_server_is_dropped_and_comes_back(start_server):
    pairs = some_pairs(200)
    first, second = start_server("tei"), start_server("tei")
    first.seconds = second.seconds = 0.02
    model = Served(f"{first.url},{second.url}")
    first.faults = [None, "die"]
    assert model.similarity(pairs) == pytest.approx(by_texts(pairs))
    assert model.similarity(pairs) == pytest.approx(by_texts(pairs))
    asked = len(first.sizes)
    assert 2 <= asked <= 2 + 3, "what was on its way when it died, and no more"
    first.start()
    wait_until(lambda: all(server.up.is_set() for server in model._servers))
    assert model.similarity(pairs) == pytest.approx(by_texts(pairs))
    assert len(first.sizes) > asked


def test_nothing_more_is_sent_to_a_dropped_server(start_server, monkeypatch):
    monkeypatch.setattr(served, "FIRST_BACKOFF", 20)
    monkeypatch.setattr(served, "LAST_BACKOFF", 20)
    first, second = start_server("tei"), start_server("tei")
    model = Served(f"{first.url},{second.url}")
    first.faults, first.seconds = [503] * 100, 0.3
    calls = [threading.Thread(target=model.similarity, args=(some_pairs(300),)) for _ in range(2)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert len(first.sizes) == 3, "of the six that two calls had ready for it"


def test_a_lone_server_that_restarts_loses_nothing(start_server):
    pairs = some_pairs(200)
    server = start_server("tei")
    model = Served(server.url)
    server.faults, server.restarts_after = [None, None, "die"], 0.5
    assert model.similarity(pairs) == pytest.approx(by_texts(pairs))


def test_when_all_are_gone_the_error_names_each_and_comes_in_time(start_server):
    first, second = start_server("tei"), start_server("tei")
    model = Served(f"{first.url},{second.url}")
    first.stop(), second.stop()
    again = lambda: model.similarity(some_pairs(10))  # noqa: E731
    for call in (again, again, lambda: Served(f"{first.url},{second.url}")):
        began = time.monotonic()
        with pytest.raises(DarlingError, match=f"{first.url}: ConnectError.*{second.url}: ConnectError"):
            call()
        assert 1.4 < time.monotonic() - began < 3
    first.start()
    wait_until(lambda: any(server.up.is_set() for server in model._servers))
    assert model.similarity(some_pairs(10)) == pytest.approx(by_texts(some_pairs(10)))
    second.start()


def test_a_request_that_always_fails_is_given_up_in_time(start_server):
    first, second = start_server("tei"), start_server("tei")
    model = Served(f"{first.url},{second.url}")
    first.faults = second.faults = [500] * 1000
    began = time.monotonic()
    with pytest.raises(DarlingError, match=f"again and again.*{first.url}.*not today"):
        model.similarity(some_pairs(1))
    assert 1.4 < time.monotonic() - began < 4
    assert 10 < len(first.sizes + second.sizes) < 100, "ever less often"
    first.faults.clear()
    assert model.similarity(some_pairs(1)) == pytest.approx(by_texts(some_pairs(1)))


def test_a_server_that_starts_late_is_waited_for(start_server):
    server = start_server("tei")
    server.stop()
    threading.Timer(0.5, server.start).start()
    assert Served(server.url).similarity(some_pairs(5)) == pytest.approx(by_texts(some_pairs(5)))


def test_a_server_missing_at_the_start_joins_later(start_server):
    first, second = start_server("tei"), start_server("tei")
    second.stop()
    model = Served(f"{first.url},{second.url}")
    second.start()
    wait_until(lambda: all(server.up.is_set() for server in model._servers))
    first.seconds = second.seconds = 0.02
    assert model.similarity(some_pairs(200)) == pytest.approx(by_texts(some_pairs(200)))
    assert second.sizes


def test_a_silent_server_is_dropped(start_server, monkeypatch):
    monkeypatch.setattr(served, "REQUEST_TIMEOUT", 0.3)
    first, second = start_server("tei"), start_server("tei")
    model = Served(f"{first.url},{second.url}")
    first.seconds = 3
    assert model.similarity(some_pairs(60)) == pytest.approx(by_texts(some_pairs(60)))
    assert second.sizes and first.sizes


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refused_request_is_not_repeated(start_server, status):
    server = start_server("tei")
    model = Served(server.url)
    server.faults = [status] * 10
    with pytest.raises(DarlingError, match=f"HTTP {status} from {server.url}/predict(.|\n)*not today"):
        model.similarity(some_pairs(1))
    assert server.sizes == [1]


def change(key, value):
    def fault(answer):
        answer["data"][0][key] = value
        return answer

    return fault


VLLM_FAULTS = {
    "not JSON": lambda answer: b"<html>",
    "null": lambda answer: None,
    "a list": lambda answer: [],
    "no data": lambda answer: {"data": None},
    "a pair missing": lambda answer: {"data": [item for item in answer["data"] if item["index"] < 9]},
    "a pair twice": lambda answer: {"data": [answer["data"][-1], *answer["data"]]},
    "a class missing": change("probs", [1.0]),
    "a class too many": change("probs", [0.5, 0.5, 0.0]),
    "text": change("probs", ["0.5", "0.5"]),
    "NaN": change("probs", [float("nan"), 0.5]),
    "infinite": change("probs", [float("inf"), float("-inf")]),
    "logits": change("probs", [-2.0, 3.0]),
    "independent classes": change("probs", [0.9, 0.8]),
}
TEI_FAULTS = {
    "a pair missing": lambda answer: answer[1:],
    "another label": lambda answer: [[{"score": 0.5, "label": "x"}, {"score": 0.5, "label": "y"}], *answer[1:]],
    "an error": lambda answer: {"error": "no"},
    "raw scores": lambda answer: [[{"score": 5.0, "label": name} for name in ("label 0", "label 1")], *answer[1:]],
    "no score": lambda answer: [[{"label": name} for name in ("label 0", "label 1")], *answer[1:]],
}
FAULTS = [("vllm", name) for name in VLLM_FAULTS] + [("tei", name) for name in TEI_FAULTS]


@pytest.mark.parametrize(("api", "fault"), FAULTS)
def test_an_answer_that_is_no_distribution_for_each_pair_is_refused(start_server, tokenizer, api, fault):
    server = start_server(api, root=tokenizer)
    model = Served(server.url)
    server.faults = [(VLLM_FAULTS if api == "vllm" else TEI_FAULTS)[fault]]
    with pytest.raises(DarlingError, match=server.url):
        model.similarity(some_pairs(20))
    assert len(server.sizes) <= 2


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("", "different urls"),
        ("localhost:8000", "http://"),
        ("http://", "http://"),
        ("ftp://host", "http://"),
        ("http://host:port", "http://"),
        ("http://a,http://a/", "different urls"),
    ],
)
def test_urls_are_checked(url, found):
    with pytest.raises(DarlingError, match=found):
        Served(url)


def test_what_is_no_classify_server_is_said_at_the_start(start_server, tokenizer):
    server = start_server("neither")
    server.answer = lambda path, body: (404, {"detail": "Not Found"})
    with pytest.raises(DarlingError, match="HTTP 404 from .*/v1/models(.|\n)*--convert classify"):
        Served(server.url)
    server.answer = lambda path, body: (200, {"data": []})
    with pytest.raises(DarlingError, match="a vLLM classify server"):
        Served(server.url)
    server.answer = lambda path, body: (200, {"model_type": {"embedding": {"pooling": "cls"}}})
    with pytest.raises(DarlingError, match="with a classifier"):
        Served(server.url)
    with pytest.raises(DarlingError, match="with a classifier"):
        Served(start_server("tei", names=["same", "same"]).url)


def test_every_server_of_a_pool_holds_the_same_model(start_server):
    first, second = start_server("tei", labels=2), start_server("tei", labels=3)
    with pytest.raises(DarlingError, match=f"labels=2.*labels=3.* at {second.url}"):
        Served(f"{first.url},{second.url}")


def test_another_model_at_the_same_address_is_noticed(start_server):
    server = start_server("tei")
    model = Served(server.url)
    server.faults, server.restarts_after = ["die"], 0.3
    server.names = ["label 1", "label 0"]
    with pytest.raises(DarlingError, match=f"the same model(.|\n)*{server.url}"):
        model.similarity(some_pairs(5))


# --- a real vLLM


def make_modernbert(folder):
    """A random ModernBERT with two labels, of weights so large that its scores spread, and its tokenizer."""
    make_tokenizer(folder)
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        global_attn_every_n_layers=2,
        local_attention=16,
        num_labels=2,
        initializer_range=0.3,
        classifier_pooling="cls",
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    )
    model = ModernBertForSequenceClassification(config)
    model.classifier.weight.data *= 10
    model.save_pretrained(folder)
    return str(folder)


def start_vllm(folder, log, *flags):
    """(process, url) of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--dtype", "float32"]
    command += ["--runner", "pooling", "--convert", "classify", "--host", "127.0.0.1", "--port", str(port), *flags]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, env=os.environ | settings, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + 240
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return process, f"http://127.0.0.1:{port}"
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                stop_vllm(process)
                pytest.fail(f"vLLM did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)


def stop_vllm(process):
    """Ends its engine too, which is a process of the same group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modernbert")
    path = make_modernbert(folder)
    process, url = start_vllm(path, folder / "vllm.log")
    yield url, path
    stop_vllm(process)


def by_transformers(path, pairs):
    """P(equivalent), one pair at a time in float32."""
    loaded = AutoTokenizer.from_pretrained(path)
    model = ModernBertForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    scores = []
    for pair in pairs:
        cut = {"truncation": "longest_first", "max_length": MAX_LENGTH, "return_tensors": "pt"}
        with torch.no_grad():
            scores.append(model(**loaded(pair.first, pair.second, **cut)).logits.softmax(-1)[0, 1].item())
    return torch.tensor(scores)


def test_a_real_vllm_scores_and_decides_like_transformers_and_the_cross_encoder(vllm, monkeypatch):
    monkeypatch.setattr(Served, "patience", 60.0)
    url, path = vllm
    pairs = some_pairs(200)
    assert sum(len(each) == MAX_LENGTH for each in ids(path, pairs)) > 20  # cut ones
    scores = torch.tensor(load_partition_model(f"served:{url}").similarity(pairs))
    expected = by_transformers(path, pairs)
    assert expected.std() > 0.1 and 0.2 < (expected > 0.5).float().mean() < 0.8  # else nothing here could fail
    assert torch.allclose(scores, expected, atol=1e-4), (scores - expected).abs().max()
    assert torch.equal(scores > 0.5, expected > 0.5)
    in_process = load_partition_model(f"cross-encoder:{path}?dtype=float32").similarity(pairs)
    assert torch.allclose(scores, in_process, atol=1e-4), (scores - in_process).abs().max()
    assert torch.equal(scores > 0.5, in_process > 0.5)
