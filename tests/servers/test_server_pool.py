"""The pool of servers, mostly through `served:`: requests and connections, faults, and what a pool refuses."""

import asyncio
import gc
import threading
import time
from collections import Counter

import pytest
from small_servers import (
    by_texts,
    some_pairs,
    wait_until,
)

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Pair
from darling_plugin.partition.models.served import Served
from darling_plugin.partition.progress import heard_by
from darling_plugin.partition.servers import pool as pool_module
from darling_plugin.partition.servers import server as server_module

pytestmark = pytest.mark.usefixtures("impatient")


# --- requests and connections


def test_many_pairs_go_in_few_requests_and_longest_first(start_server, tokenizer):
    server = start_server(root=tokenizer)
    Served(server.url).similarity(some_pairs(100))
    assert Counter(server.sizes) == {32: 3, 4: 1}
    longest = sorted((max(map(len, body["input"])) for body in server.bodies), reverse=True)
    shortest = sorted((min(map(len, body["input"])) for body in server.bodies), reverse=True)
    assert all(low >= high for low, high in zip(shortest, longest[1:], strict=False))


def test_each_answer_is_a_sign_of_life_in_the_calling_threads_context(start_server):
    model, heard = Served(start_server("tei", batch_size=5).url), []
    with heard_by(lambda: heard.append(None)):
        model.similarity(some_pairs(20))
    assert len(heard) == 4


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
    monkeypatch.setattr(pool_module, "BATCH_LENGTH", 1000)
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
    assert server.most_running == pool_module.CONCURRENCY == 3
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
        return [thread for thread in threading.enumerate() if thread.name == "server-pool"]

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


@pytest.mark.parametrize("status", [408, 424, 429, 500, 503])
def test_a_busy_server_is_asked_again(start_server, status):
    server = start_server("tei")
    server.faults = [status] * 3
    pairs = some_pairs(100)
    model = Served(server.url)
    assert model.similarity(pairs) == pytest.approx(by_texts(pairs))
    assert len(server.sizes) == 4 + 3
    assert model._pool._servers[0].failures == 0, "the next fault is waited for as briefly as the first"


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
    wait_until(lambda: all(server.up.is_set() for server in model._pool._servers))
    assert model.similarity(pairs) == pytest.approx(by_texts(pairs))
    assert len(first.sizes) > asked


def test_nothing_more_is_sent_to_a_dropped_server(start_server, monkeypatch):
    monkeypatch.setattr(server_module, "FIRST_BACKOFF", 20)
    monkeypatch.setattr(server_module, "LAST_BACKOFF", 20)
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
    wait_until(lambda: any(server.up.is_set() for server in model._pool._servers))
    assert model.similarity(some_pairs(10)) == pytest.approx(by_texts(some_pairs(10)))
    second.start()


def test_a_request_that_always_fails_is_given_up_in_time(start_server):
    first, second = start_server("tei"), start_server("tei")
    model = Served(f"{first.url},{second.url}")
    first.faults = second.faults = [500] * 1000
    began = time.monotonic()
    with pytest.raises(DarlingError, match=f"(again and again|no request is).*{first.url}.*not today"):
        model.similarity(some_pairs(1))
    assert 1.4 < time.monotonic() - began < 4
    assert 10 < len(first.sizes + second.sizes) < 100, "ever less often"
    first.faults.clear()
    assert model.similarity(some_pairs(1)) == pytest.approx(by_texts(some_pairs(1)))


def test_servers_that_answer_no_request_at_all_are_given_up_in_time(start_server):
    """However many requests take their turns at failing."""
    server = start_server("tei", batch_size=2)
    model = Served(server.url)
    server.faults = [500] * 10_000
    began = time.monotonic()
    with pytest.raises(DarlingError, match=f"no request is answered; {server.url}: HTTP 500.*not today"):
        model.similarity(some_pairs(1000))
    assert 1.4 < time.monotonic() - began < 4


def test_what_servers_hold_is_not_waited_for_for_ever(start_server, monkeypatch):
    monkeypatch.setattr(server_module, "LEARN_TIMEOUT", 0.5)
    good = start_server("tei")

    async def learn(server):
        if server.url != good.url:
            await asyncio.sleep(60)
        return "a model"

    hung = start_server("tei")
    began = time.monotonic()
    pool = pool_module.ServerPool(f"{good.url},{hung.url}", learn)
    assert time.monotonic() - began < 3 and pool.held == "a model"
    assert "within 0.5 s" in pool._servers[1].error


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
    wait_until(lambda: all(server.up.is_set() for server in model._pool._servers))
    first.seconds = second.seconds = 0.02
    assert model.similarity(some_pairs(200)) == pytest.approx(by_texts(some_pairs(200)))
    assert second.sizes


def test_a_silent_server_is_dropped(start_server, monkeypatch):
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT", 0.3)
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


def test_every_server_of_a_pool_holds_the_same_model(start_server):
    first, second = start_server("tei", labels=2), start_server("tei", labels=3)
    with pytest.raises(DarlingError, match=f"labels=2.*labels=3.* at {second.url}"):
        Served(f"{first.url},{second.url}")


@pytest.mark.parametrize("api", ["vllm", "tei"])
def test_servers_with_other_weights_of_one_kind_are_told_apart(start_server, api, monkeypatch, tokenizer):
    first, second, third = (start_server(api, root=tokenizer) for _ in range(3))
    for server, other in ((second, 0.01), (third, 0.1)):  # of vLLM: half precision, and other weights
        rows, answer = server.rows, server.answer
        if api == "vllm":
            monkeypatch.setattr(
                server, "rows", lambda given, rows=rows, by=other: [[a - by, b + by] for a, b in rows(given)]
            )
        elif server is third:
            monkeypatch.setattr(server, "answer", lambda path, body, answer=answer: sized(answer(path, body)))
    Served(f"{first.url},{second.url}", tokenizer=tokenizer)
    with pytest.raises(DarlingError, match=f"the same model behind every url(.|\n)* at {third.url}"):
        Served(f"{first.url},{third.url}", tokenizer=tokenizer)


def sized(answered):
    """TEI's answer of another revision."""
    status, answer = answered
    return status, {**answer, "model_sha": "another"} if isinstance(answer, dict) else answer


def test_another_model_at_the_same_address_is_noticed(start_server):
    server = start_server("tei")
    model = Served(server.url)
    server.faults, server.restarts_after = ["die"], 0.3
    server.names = ["label 1", "label 0"]
    with pytest.raises(DarlingError, match=f"the same model(.|\n)*{server.url}"):
        model.similarity(some_pairs(5))
