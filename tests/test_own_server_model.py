"""examples/own_server_model.py against small HTTP servers that fail, die and return."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Group, Pair, load_partition_model
from darling_plugin.user_code import import_user_code

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_server_model.py"
PAIRS = [Pair("p", f"response {k}", f"response {k % 7}") for k in range(200)]


def share(first, second):
    """Jaccard overlap of the words."""
    a, b = set(first.split()), set(second.split())
    return len(a & b) / len(a | b)


EXPECTED = [share(pair.first, pair.second) for pair in PAIRS]


class SimilarityServer:
    """What the example's docstring asks of a server; `stop` and `start` keep the port."""

    def __init__(self):
        self.port, self.asked, self.seconds = 0, 0, 0.0
        self.holds = {"name": "overlap-1"}
        self.fails_next = 0  # requests
        self.change = None  # of an answer
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(*((200, owner.holds) if self.path == "/model" and owner.holds else (404, {})))

            def do_POST(self):
                pairs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["pairs"]
                owner.asked += 1
                time.sleep(owner.seconds)
                if owner.fails_next > 0:
                    owner.fails_next -= 1
                    return self.reply(503, {"error": "loading"})
                answer = {"similarities": [share(first, second) for first, second in pairs]}
                return self.reply(200, owner.change(answer) if owner.change else answer)

            def reply(self, status, answer):
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.http.daemon_threads, self.port = True, self.http.server_port
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def servers():
    both = [SimilarityServer(), SimilarityServer()]
    yield both
    for server in both:
        server.stop()


@pytest.fixture
def load():
    import_user_code(str(EXAMPLE))

    def load(*servers, patience=1.5, **options):
        spec = f"own-server:{','.join(server.url for server in servers)}?patience={patience}"
        return load_partition_model(spec, **options)

    return load


def test_it_partitions_by_the_servers_similarities(servers, load):
    model = load(*servers, threshold=0.4)
    (labels,) = model.partition([Group("p", ["a red cat", "a red dog", "no", "a red", "yes"])])
    assert labels.tolist() == [0, 0, 1, 0, 2]
    assert model.similarity([]) == []
    assert all(server.asked for server in servers)


def test_a_server_that_cannot_answer_for_a_while_is_asked_again(servers, load):
    model = load(servers[0])
    servers[0].fails_next = 3
    assert model.similarity(PAIRS) == EXPECTED
    assert servers[0].asked == 7 + 3, "200 pairs are 7 requests of at most 32, and 3 of them were repeated"


def test_a_dead_server_is_dropped_and_takes_part_again_when_it_returns(servers, load, caplog):
    first, second = servers
    first.seconds = second.seconds = 0.02
    model = load(first, second)
    first.stop()
    assert model.similarity(PAIRS) == EXPECTED
    assert f"{first.url} is dropped until it answers again" in caplog.text
    asked = first.asked
    assert model.similarity(PAIRS) == EXPECTED
    assert first.asked == asked
    first.start()
    deadline = time.monotonic() + 20
    while first.asked == asked:
        assert time.monotonic() < deadline, "it never returned"
        assert model.similarity(PAIRS) == EXPECTED
    assert f"{first.url} answers again" in caplog.text


def test_a_lone_server_that_returns_within_the_patience_loses_nothing(servers, load):
    model = load(servers[0], patience=30)
    servers[0].stop()
    threading.Timer(0.7, servers[0].start).start()
    assert model.similarity(PAIRS) == EXPECTED


def test_with_no_server_the_error_comes_after_the_patience_and_names_it_and_each_server(servers, load):
    first, second = servers
    model = load(first, second)
    first.stop(), second.stop()
    began = time.monotonic()
    with pytest.raises(DarlingError) as caught:
        model.similarity(PAIRS)
    assert 1.4 < time.monotonic() - began < 8
    assert "a similarity server that answers within its patience of 1.5 s" in str(caught.value)
    assert all(f"{server.url}: ConnectError" in str(caught.value) for server in servers)
    first.start(), second.start()
    assert model.similarity(PAIRS) == EXPECTED


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda answer: {"scores": answer["similarities"]},
            r"each of 1 items at /similarity(.|\n)*scores(.|\n)*KeyError",
        ),
        (lambda answer: answer["similarities"], r"/similarity(.|\n)*TypeError"),
        (lambda answer: {"similarities": []}, r"/similarity(.|\n)*0 results"),
        (lambda answer: {"similarities": ["much"]}, r"/similarity(.|\n)*ValueError"),
    ],
)
def test_an_answer_that_cannot_be_read_names_the_server(servers, load, change, found):
    model = load(servers[0])
    servers[0].change = change
    with pytest.raises(DarlingError, match=found) as caught:
        model.similarity(PAIRS[:1])
    assert servers[0].url in str(caught.value) and "look at the server's log" in str(caught.value)
    assert servers[0].asked == 1


def test_servers_of_another_kind_or_with_another_model_are_refused(servers, load):
    first, second = servers
    second.holds = {"name": "overlap-2"}
    with pytest.raises(DarlingError, match=f"the same model(.|\n)*overlap-1, but overlap-2 at {second.url}"):
        load(first, second)
    second.holds = {"model": "overlap-1"}
    with pytest.raises(DarlingError, match=rf"a similarity server at {second.url}(.|\n)*KeyError\('name'\)"):
        load(second)
    second.holds = None
    with pytest.raises(DarlingError, match=f"a similarity server at {second.url}(.|\n)*HTTP 404 from .*/model"):
        load(second)


def test_a_pool_is_imported_without_httpx_and_says_what_is_missing():
    program = (
        "import sys; sys.modules['httpx'] = None\n"
        "from darling_plugin.partition.servers import ServerPool\n"
        "try:\n"
        "    ServerPool('http://host:8000', None)\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "the package httpx" in done.stdout and "pip install httpx" in done.stdout
