"""The pool of servers that a partition model asks over HTTP: `served:` uses it, and so can a model of your own."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import socket
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from darling_plugin.errors import DarlingError
from darling_plugin.partition.progress import alive
from darling_plugin.partition.servers.server import WRONG_FORM, BadAnswer, Server, Unavailable

if TYPE_CHECKING:
    import httpx

BATCH_SIZE = 32  # items a request
BATCH_LENGTH = 400_000  # of a request, as the dialect measures it: below text-embeddings-inference's limit of 2 MB
CONCURRENCY = 8  # requests in flight at one server
TRIES = 5  # at the least, before the items of a request are given up
# A machine that lost its power says nothing: the kernel asks after 20 silent seconds, and gives up 15 later.
KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class Dialect(ABC):
    """What a request and its answer look like. Implement `body` and `read`, and set the class attribute `path`."""

    path: str  # where requests go: what follows the server's url, from its slash
    batch_size: int = BATCH_SIZE  # items a request, at most

    def encode(self, items: Sequence[Any]) -> Sequence[Any]:
        """What is sent of each item; called once with all items of a call. Here: the items themselves."""
        return items

    def length(self, encoded: Any) -> int:
        """The size of one encoded item, in tokens or characters: requests stay below BATCH_LENGTH. Here: 0."""
        return 0

    @abstractmethod
    def body(self, encoded: Sequence[Any]) -> dict:
        """The body of a request, which is sent as JSON."""

    @abstractmethod
    def read(self, answer: Any, items: Sequence[Any]) -> list[Any]:
        """One result an item, in the order of the items of that request, from the JSON that the server answered.

        Raises BadAnswer, or any AttributeError, LookupError, TypeError or ValueError, where the answer is none.
        """


class ServerPool:
    """Servers that all hold the same model, for a partition model that asks them over HTTP.

    Example, whole in examples/own_server_model.py:

        pool = ServerPool("http://one:8000,http://two:8000", learn)
        similarities = pool.ask(dialect, pairs)

    A call is cut into requests of at most `dialect.batch_size` items, and they go to the servers that answer,
    CONCURRENCY at a time to each; several threads may call. A request that a server could not answer (no connection,
    HTTP 408, 424, 429 and 5xx) goes to the others, and that server is dropped. It is tried again by `learn`, ever less
    often, and takes part again once that succeeds, also between calls and where it was down when the pool was made.

    `patience` is how long a call bears with silence, not how long it may take: while one server answers, a call waits
    as long as its work takes. `--darling.partition_timeout` ends the partition actor's process when no answer came
    for that long; keep the patience well below it, so that the error which names the servers comes first. After a
    failed call each of its groups is tried alone, and waits as long once more.

    Args:
        urls: of the servers, with commas between them; slashes at their ends are dropped.
        learn: a coroutine function that asks a server what it holds: `await server.ask("/path")` gives its JSON.
            Results are compared by ==, and one that differs is an error. It has to answer when the server can work,
            for it also decides that a dropped server is back. It may raise as Dialect.read may.
        kind: what one server is called in errors.
        start_command: how such a server is started, for errors.
        patience: seconds.
        headers: of each request.

    Attributes:
        held: what `learn` found.

    Raises:
        DarlingError: also from `ask`: all servers have been silent for `patience` seconds; one request has failed
            again and again for that long; a server refuses a request (other HTTP statuses); an answer that the
            dialect cannot read; servers that hold different models; the package httpx is missing.
    """

    def __init__(
        self,
        urls: str,
        learn: Callable[[Server], Awaitable[Any]],
        *,
        kind: str = "a server",
        start_command: str = "",
        patience: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if importlib.util.find_spec("httpx") is None:
            raise DarlingError("the package httpx, to ask servers with", "no such module", "pip install httpx")
        import httpx

        self.patience = patience
        self._kind = kind
        client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60),
                socket_options=KEEP_ALIVE,
            ),
            headers=headers,
        )
        self._servers = [
            Server(url, client, learn, kind, start_command, concurrency=CONCURRENCY) for url in _split(urls)
        ]
        # Connections belong to an event loop, so that one outlives the calls, in a thread of its own.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="server-pool", daemon=True).start()
        weakref.finalize(self, _close, self._loop, client)
        self.held = self._run(self._first_held())

    def ask(self, dialect: Dialect, items: Sequence[Any]) -> list[Any]:
        """One result an item, in order; no items ask nothing."""
        if not items:
            return []
        encoded = dialect.encode(items)
        size = min(dialect.batch_size, math.ceil(len(items) / (2 * len(self._servers))))
        batches = _pack([dialect.length(each) for each in encoded], size)
        return self._run(self._ask(dialect, items, encoded, batches))

    def _run(self, coroutine: Coroutine) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # a KeyboardInterrupt among them
            future.cancel()
            raise

    async def _first_held(self) -> Any:
        """What the servers that answer hold, as soon as each has been tried and one has answered."""
        began = time.monotonic()
        await asyncio.gather(*(server.connect() for server in self._servers))
        while not any(server.up.is_set() for server in self._servers):
            self._check_patience(began)
            await asyncio.sleep(0.05)
        held = next(server.held for server in self._servers if server.up.is_set())
        for server in self._servers:
            server.check_same(held)
        return held

    async def _ask(self, dialect: Dialect, items: Sequence, encoded: Sequence, batches: list[_Batch]) -> list[Any]:
        answered = time.monotonic()  # for the last time
        results: list[Any] = [None] * len(items)
        todo: asyncio.Queue[_Batch] = asyncio.Queue()
        for batch in batches:
            todo.put_nowait(batch)

        async def work(server: Server) -> None:
            nonlocal answered
            while True:
                await server.up.wait()
                batch = await todo.get()
                body = dialect.body([encoded[i] for i in batch.positions])
                try:
                    async with server.slots:
                        answer = await self._answer(server, batch, dialect.path, body)
                except Unavailable:
                    todo.put_nowait(batch)
                else:
                    read = _read(dialect, answer, [items[i] for i in batch.positions], server)
                    for position, result in zip(batch.positions, read, strict=True):
                        results[position] = result
                    alive()
                    answered = time.monotonic()
                todo.task_done()

        async def watch() -> None:
            while True:
                self._check_patience(began)
                # Servers that say what they hold, and answer nothing else.
                useless = all(len(server.failed) >= TRIES for server in self._servers)
                if useless and time.monotonic() - answered > self.patience:
                    raise self._gave_up("no request is answered")
                await asyncio.sleep(0.05)

        began = answered
        finished = asyncio.ensure_future(todo.join())
        # The servers take turns, so that each has its part of a few batches. A worker ends by an error only.
        workers = [asyncio.ensure_future(work(server)) for _ in range(CONCURRENCY) for server in self._servers]
        tasks = [finished, asyncio.ensure_future(watch()), *workers]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return results

    async def _answer(self, server: Server, batch: _Batch, path: str, body: dict) -> Any:
        if not server.up.is_set():  # dropped while the batch waited for it
            raise Unavailable(server.error)
        server.check_same(self.held)
        try:
            answer = await server.ask(path, body)
        except Unavailable as error:
            server.drop(error)
            server.failed.append(str(error))
            self._check_batch(batch, error)
            raise
        server.failures = 0
        server.failed.clear()
        return answer

    def _check_batch(self, batch: _Batch, error: Unavailable) -> None:
        batch.failures += 1
        batch.failed_at = batch.failed_at or time.monotonic()
        # Both: a batch that was put back may have waited long for a server that then fails for the first time.
        if batch.failures >= TRIES and time.monotonic() - batch.failed_at > self.patience:
            raise self._gave_up(f"the same {len(batch.positions)} items failed again and again") from error

    def _check_patience(self, began: float) -> None:
        if any(server.up.is_set() for server in self._servers):
            return
        if time.monotonic() - max(began, *(server.down_at for server in self._servers)) > self.patience:
            raise self._gave_up("none answers")

    def _gave_up(self, what: str) -> DarlingError:
        return DarlingError(
            f"{self._kind} that answers within its patience of {self.patience:g} s",
            "; ".join([what, *(f"{server.url}: {_state(server)}" for server in self._servers)]),
            "look at the servers' logs and start them again",
        )


class _Batch:
    """The items of one request, by their positions in the call."""

    def __init__(self, positions: list[int]) -> None:
        self.positions = positions
        self.failures = 0
        self.failed_at: float | None = None  # for the first time


def _pack(lengths: Sequence[int], size: int) -> list[_Batch]:
    """Batches of at most `size` items and BATCH_LENGTH in all, longest first."""
    batches: list[_Batch] = []
    room = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or len(batches[-1].positions) == size or lengths[position] > room:
            batches.append(_Batch([]))
            room = BATCH_LENGTH
        batches[-1].positions.append(position)
        room -= lengths[position]
    return batches


def _read(dialect: Dialect, answer: Any, items: list, server: Server) -> list[Any]:
    try:
        results = list(dialect.read(answer, items))
        if len(results) != len(items):
            raise ValueError(f"{len(results)} results")
    except BadAnswer as error:
        raise server.bad_answer(error) from error
    except WRONG_FORM as error:
        needed = f"an answer for each of {len(items)} items at {dialect.path}"
        raise server.bad_answer(BadAnswer(needed, answer, repr(error))) from error
    return results


def _state(server: Server) -> str:
    return server.error or next(reversed(server.failed), "answers")


def _split(urls: str) -> list[str]:
    import httpx

    found = [url.strip().rstrip("/") for url in urls.split(",") if url.strip()]
    example = "write them as http://host:8000,http://other:8000"
    for url in found:
        try:
            good = httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
        except httpx.InvalidURL:
            good = False
        if not good:
            raise DarlingError("urls that start with http:// or https://", url, example)
    if not found or len(set(found)) < len(found):
        raise DarlingError("one or more different urls", repr(urls), example)
    return found


def _close(loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient) -> None:
    async def close() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(close(), loop)
