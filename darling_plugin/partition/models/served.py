"""Partition by a classifier behind HTTP: a pool of vLLM or text-embeddings-inference servers with the same model."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import RANGE_TOLERANCE, Pair, PairwiseModel, describe, start
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

MAX_LENGTH = 2048  # tokens of a pair, as in cross_encoder
LEAST_LENGTH = 8  # room for special tokens and one of each side
BATCH_SIZE = 32  # pairs a request; also text-embeddings-inference's own default limit
BATCH_LENGTH = 400_000  # tokens or characters a request: below text-embeddings-inference's limit of 2 MB
CONCURRENCY = 8  # requests in flight at one server
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 5.0  # seconds between tries, doubled from the first to the last
TRIES = 5  # at the least, before the pairs of a request are given up
CONNECT_TIMEOUT, PROBE_TIMEOUT, REQUEST_TIMEOUT = 10.0, 30.0, 600.0  # seconds
SUM_TOLERANCE = 0.02  # the classes' probabilities may come from half precision
# A machine that lost its power says nothing: the kernel asks after 20 silent seconds, and gives up 15 later.
KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
# Without the last flag vLLM (0.29) never answers a causal classifier's pair of exactly max_model_len tokens that it
# reads in two parts.
SERVE = (
    "python3 -m vllm.entrypoints.openai.api_server --model <path> --runner pooling --convert classify "
    "--no-enable-chunked-prefill"
)


@register_partition_model("served")
class Served(PairwiseModel):
    """P(equivalent) from servers that all hold the same classifier: `served:<url>[,<url>...]`.

    A url is that of a vLLM server, started with `--runner pooling --convert classify` and for causal classifiers also
    with `--no-enable-chunked-prefill`, or of text-embeddings-inference, such as http://host:8000; OPENAI_API_KEY,
    where set, is sent as bearer token.

    The model reads what `cross-encoder` of the same weights would give it, CLS first SEP second SEP, the longer one
    cut first, and class 1 means equivalent:

    - vLLM gets token ids at /classify, made here by `tokenizer`, or else by the tokenizer of the path or Hub name that
      the server was started with, where that is on this machine. Pairs are cut at `max_length` tokens, 2048 by
      default, or at the server's max_model_len where that is less.
    - vLLM's /classify takes no segment ids (token_type_ids). A one-label model that reads them, as BERT does, and one
      whose tokenizer is not on this machine, is asked at /score, where the server's own tokenizer builds the pair and
      cuts it in the same way. With more labels vLLM has no /score: that is refused.
    - text-embeddings-inference gets the two texts, builds the pair in the same way, and cuts it at its own
      max_input_length: identical to `cross-encoder` only where no pair is longer than the smaller of the two limits.

    Requests that a server could not answer (no connection, HTTP 408, 429 and 5xx) go to the others, and that server is
    tried again, ever less often, until it answers. DarlingError when all have been silent for `patience` seconds, when
    one request has failed again and again for that long, when a server refuses a request (other HTTP codes), and when
    an answer is not one distribution over the classes for each pair.
    """

    threshold = 0.5
    patience = 60.0

    def __init__(
        self,
        urls: str,
        *,
        threshold: float | None = None,
        clustering: str | None = None,
        tokenizer: str | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__(threshold=threshold, clustering=clustering)
        import httpx

        client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60),
                socket_options=KEEP_ALIVE,
            ),
            headers=_authorization(),
        )
        self._servers = [_Server(url, client) for url in _split(urls)]
        # Connections belong to an event loop, so that one outlives the calls, in a thread of its own.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="served", daemon=True).start()
        weakref.finalize(self, _close, self._loop, client)

        self._served = self._run(self._first_answer())
        root = next(server.root for server in self._servers if server.served)
        self._ask = _choose_request(self._served, tokenizer, root, max_length)

    def similarity(self, pairs: Sequence[Pair]) -> list[float]:
        if not pairs:
            return []
        items = self._ask.encode(pairs)
        size = min(self._served.batch_size, math.ceil(len(pairs) / (2 * len(self._servers))))
        return self._run(self._score(pairs, items, _pack(items, size)))

    def _run(self, coroutine: Coroutine) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # a KeyboardInterrupt among them
            future.cancel()
            raise

    async def _first_answer(self) -> _Model:
        """What the servers that answer hold, as soon as each has been tried and one has answered."""
        began = time.monotonic()
        await asyncio.gather(*(server.connect() for server in self._servers))
        while not any(server.up.is_set() for server in self._servers):
            self._check_patience(began)
            await asyncio.sleep(0.05)
        served = next(server.served for server in self._servers if server.served)
        for server in self._servers:
            server.check_same(served)
        return served

    async def _score(self, pairs: Sequence[Pair], items: list, batches: list[_Batch]) -> list[float]:
        began = time.monotonic()
        scores = [math.nan] * len(pairs)
        todo: asyncio.Queue[_Batch] = asyncio.Queue()
        for batch in batches:
            todo.put_nowait(batch)

        async def work(server: _Server) -> None:
            while True:
                await server.up.wait()
                batch = await todo.get()
                try:
                    async with server.slots:
                        answer = await self._answer(server, batch, [items[i] for i in batch.positions])
                except _Unavailable:
                    todo.put_nowait(batch)
                else:
                    found = _scores(self._ask, answer, [pairs[i] for i in batch.positions], server)
                    for position, score in zip(batch.positions, found, strict=True):
                        scores[position] = score
                todo.task_done()

        async def watch() -> None:
            while True:
                self._check_patience(began)
                await asyncio.sleep(0.05)

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
        return scores

    async def _answer(self, server: _Server, batch: _Batch, items: list) -> Any:
        if not server.up.is_set():  # dropped while the batch waited for it
            raise _Unavailable(server.error)
        server.check_same(self._served)
        try:
            answer = await server.ask(self._ask.path, self._ask.body(items))
        except _Unavailable as error:
            server.drop(error)
            self._check_batch(batch, error)
            raise
        server.failures = 0
        return answer

    def _check_batch(self, batch: _Batch, error: _Unavailable) -> None:
        batch.failures += 1
        batch.failed_at = batch.failed_at or time.monotonic()
        # Both: a batch that was put back may have waited long for a server that then fails for the first time.
        if batch.failures >= TRIES and time.monotonic() - batch.failed_at > self.patience:
            raise self._gave_up(f"the same {len(batch.positions)} pairs failed again and again") from error

    def _check_patience(self, began: float) -> None:
        if any(server.up.is_set() for server in self._servers):
            return
        if time.monotonic() - max(began, *(server.down_at for server in self._servers)) > self.patience:
            raise self._gave_up("none answers")

    def _gave_up(self, what: str) -> DarlingError:
        return DarlingError(
            f"a classify server that answers within {self.patience:g} s",
            "; ".join([what, *(f"{server.url}: {server.error or 'answers'}" for server in self._servers)]),
            "look at the servers' logs and start them again",
        )


class _Unavailable(Exception):
    """A server gave no answer, and may later."""


class _Model(NamedTuple):
    """What a server holds; all servers of a pool must hold the same."""

    api: str  # "vllm" or "tei"
    labels: int
    equivalent: str | None  # the label of class 1, which text-embeddings-inference names instead of numbering
    max_length: int
    batch_size: int


class _Batch:
    def __init__(self, positions: list[int]) -> None:
        self.positions = positions
        self.failures = 0
        self.failed_at: float | None = None  # for the first time


class _Server:
    """One url; `up` is set while it answers."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.client = client
        self.up = asyncio.Event()
        self.slots = asyncio.Semaphore(CONCURRENCY)
        self.served: _Model | None = None
        self.root: str | None = None
        self.error: str | None = None
        self.down_at = -math.inf
        self.failures = 0  # in a row
        self.recovery: asyncio.Task | None = None

    async def connect(self) -> None:
        """Learns what the server holds; DarlingError if that is no classifier. No answer makes it a dropped one."""
        self.up.set()
        try:
            await self.learn()
        except _Unavailable as error:
            self.drop(error)

    def drop(self, error: Exception) -> None:
        self.error = str(error)
        if self.up.is_set():  # else another request has seen it
            self.up.clear()
            self.down_at = time.monotonic()
            logger.warning("%s is dropped until it answers again: %s", self.url, error)
            self.recovery = asyncio.ensure_future(self.recover())

    async def recover(self) -> None:
        while not self.up.is_set():
            # Grows until a request succeeds: answering the questions of learn() alone does not count.
            wait = min(FIRST_BACKOFF * 2 ** min(self.failures, 10), LAST_BACKOFF)
            self.failures += 1
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            try:
                await self.learn()
            except (_Unavailable, DarlingError) as error:  # of a server that starts, or of what has taken its port
                self.error = error.args[1] if isinstance(error, DarlingError) else str(error)
            else:
                self.error = None
                self.up.set()
                logger.warning("%s answers again", self.url)

    async def learn(self) -> None:
        info = await self.ask("/info", optional=True)
        if isinstance(info, dict) and "model_type" in info:
            self.served = self.read_tei(info)
            return
        models = await self.ask("/v1/models")
        probe = await self.ask("/classify", {"input": "a"})
        try:
            card = next(card for card in models["data"] if not card.get("parent"))  # one with a parent is an adapter
            self.root = card.get("root")
            labels = len(probe["data"][0]["probs"])
            self.served = _Model("vllm", labels, None, int(card["max_model_len"]), BATCH_SIZE)
        except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
            raise self.bad_answer("a vLLM classify server", [models, probe]) from error

    def read_tei(self, info: dict) -> _Model:
        try:
            names = next(info["model_type"][kind] for kind in ("classifier", "reranker") if kind in info["model_type"])
            labels = {int(number): name for number, name in names["id2label"].items()}
            equivalent = labels[min(1, len(labels) - 1)]
            if len(set(labels.values())) < len(labels):
                raise ValueError("two classes of one name")
            batch_size = min(BATCH_SIZE, int(info["max_client_batch_size"]))
            return _Model("tei", len(labels), equivalent, int(info["max_input_length"]), batch_size)
        except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
            raise self.bad_answer("text-embeddings-inference with a classifier", info) from error

    def check_same(self, served: _Model) -> None:
        if self.served and self.served != served:
            raise DarlingError(
                "the same model behind every url", f"{served}, but {self.served} at {self.url}", "restart that server"
            )

    async def ask(self, path: str, body: dict | None = None, optional: bool = False) -> Any:
        """The answer's JSON, or None where that is optional and refused. Raises _Unavailable and DarlingError."""
        import httpx

        seconds = PROBE_TIMEOUT if body is None else REQUEST_TIMEOUT
        timeout = httpx.Timeout(seconds, connect=CONNECT_TIMEOUT, pool=None)
        try:
            response = await self.client.request(
                "POST" if body else "GET", self.url + path, json=body, timeout=timeout
            )
        except httpx.RequestError as error:
            raise _Unavailable(f"{type(error).__name__} {error}".strip()) from error
        found = f"HTTP {response.status_code} from {self.url}{path}: {start(response.text, 300)}"
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise _Unavailable(found)
        if not response.is_success:
            if optional:
                return None
            raise DarlingError(
                f"a classify server at {self.url}", found, f"serve the classifier, such as with {SERVE}"
            )
        try:
            return response.json()
        except ValueError as error:
            raise DarlingError(f"JSON from {self.url}{path}", found, "look at what answers there") from error

    def bad_answer(self, needed: str, answer: Any, pair: Pair | None = None) -> DarlingError:
        about = f"; {describe(pair)}" if pair else ""
        found = f"{start(str(answer), 300)} from {self.url}{about}"
        return DarlingError(needed, found, f"look at the server's log; it is started with {SERVE}")


class _Classify:
    """vLLM, by token ids."""

    path = "/classify"

    def __init__(self, served: _Model, tokenizer: Any, max_length: int) -> None:
        from darling_plugin.partition.engine.pair_tokens import PairTokens

        self.labels = served.labels
        self._pair_tokens = PairTokens(tokenizer, max_length)

    def encode(self, pairs: Sequence[Pair]) -> list[list[int]]:
        return [pair.ids.tolist() for pair in self._pair_tokens(pairs)]

    def body(self, items: list[list[int]]) -> dict:
        return {"input": items, "use_activation": True}

    def read(self, answer: dict) -> list[list[float]]:
        return [item["probs"] for item in _in_order(answer)]


class _Score:
    """vLLM, by texts, for models with one label."""

    path = "/score"
    labels = 1

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def encode(self, pairs: Sequence[Pair]) -> list[tuple[str, str]]:
        return [(pair.first, pair.second) for pair in pairs]

    def body(self, items: list[tuple[str, str]]) -> dict:
        first, second = zip(*items, strict=True)
        length = self.max_length
        return {"text_1": first, "text_2": second, "truncate_prompt_tokens": length, "use_activation": True}

    def read(self, answer: dict) -> list[list[float]]:
        return [[item["score"]] for item in _in_order(answer)]


class _Predict:
    """text-embeddings-inference, by texts."""

    path = "/predict"

    def __init__(self, served: _Model) -> None:
        self.labels, self.equivalent = served.labels, served.equivalent

    def encode(self, pairs: Sequence[Pair]) -> list[tuple[str, str]]:
        return [(pair.first, pair.second) for pair in pairs]

    def body(self, items: list[tuple[str, str]]) -> dict:
        return {"inputs": items, "raw_scores": False, "truncate": True}

    def read(self, answer: list) -> list[list[float]]:
        """The classes come by falling score: class 1 is put where the other servers have it."""
        rows = []
        for row in answer:
            (equivalent,) = [item["score"] for item in row if item["label"] == self.equivalent]
            others = [item["score"] for item in row if item["label"] != self.equivalent]
            rows.append([*others[:1], equivalent, *others[1:]])
        return rows


def _choose_request(
    served: _Model, tokenizer: str | None, root: str | None, max_length: int | None
) -> _Classify | _Score | _Predict:
    if served.api == "tei":
        if max_length is not None and max_length < served.max_length:
            raise DarlingError(
                f"max_length of at least {served.max_length}: text-embeddings-inference cuts pairs there itself",
                f"max_length={max_length}",
                "drop max_length, or serve the classifier with vLLM",
            )
        return _Predict(served)
    loaded = _load_tokenizer(tokenizer, root)
    length = min(MAX_LENGTH if max_length is None else max_length, served.max_length)
    if loaded is not None:
        length = min(length, loaded.model_max_length)
    if length < LEAST_LENGTH:
        raise DarlingError(f"max_length of at least {LEAST_LENGTH}: room for two responses", f"{length}", "raise it")
    if loaded is not None and not _reads_segments(loaded):
        return _Classify(served, loaded, length)
    if served.labels == 1:
        return _Score(length)
    if loaded is None:
        raise DarlingError(
            "the classifier's tokenizer, to build pairs with",
            f"no tokenizer option, and none can be loaded here from {root}, which the server was started with",
            "name its path or Hub name: served:<url>?tokenizer=<path>",
        )
    raise DarlingError(
        f"a model without segment ids, or with one label, behind vLLM for {loaded.name_or_path}",
        f"{served.labels} labels, and segment ids (token_type_ids), which vLLM would set to 0",
        "use cross-encoder:<path>, or serve it with text-embeddings-inference",
    )


def _load_tokenizer(path: str | None, root: str | None) -> Any:
    """That of `path`; without one, that of `root` if it is on this machine, or None if it is not."""
    from transformers import AutoTokenizer

    if path is None and root is None:
        return None
    try:
        loaded = AutoTokenizer.from_pretrained(path or root, local_files_only=path is None)
    except (OSError, ValueError) as error:
        if path is None:
            logger.warning("No tokenizer here in %s, which the server was started with: %s", root, error)
            return None
        raise DarlingError(f"a tokenizer in {path}", str(error), "correct the tokenizer option") from error
    if not loaded.is_fast:
        raise DarlingError(
            "a fast tokenizer (tokenizer.json)", f"{type(loaded).__name__} of {path or root}", "convert it"
        )
    return loaded


def _reads_segments(tokenizer: Any) -> bool:
    """Whether the model has an embedding of the side that a token is on; True where that cannot be known."""
    from transformers import AutoConfig

    if not any(tokenizer("a", "a").get("token_type_ids", [])):
        return False
    try:
        config = AutoConfig.from_pretrained(tokenizer.name_or_path, local_files_only=True)
    except (OSError, ValueError):
        return True
    return getattr(config, "type_vocab_size", 0) > 1  # DeBERTa's tokenizer makes segment ids that it does not read


def _pack(items: Sequence[Sequence], size: int) -> list[_Batch]:
    """Batches of at most `size` items and BATCH_LENGTH tokens or characters, longest first."""
    lengths = [len(item) if isinstance(item[0], int) else len(item[0]) + len(item[1]) for item in items]
    batches: list[_Batch] = []
    room = 0
    for position in sorted(range(len(items)), key=lambda i: -lengths[i]):
        if not batches or len(batches[-1].positions) == size or lengths[position] > room:
            batches.append(_Batch([]))
            room = BATCH_LENGTH
        batches[-1].positions.append(position)
        room -= lengths[position]
    return batches


def _scores(ask: _Classify | _Score | _Predict, answer: Any, pairs: list[Pair], server: _Server) -> list[float]:
    """P(equivalent) of each pair; DarlingError if the answer is not a distribution over the classes for each."""
    needed = f"{ask.labels} probabilities for each of {len(pairs)} pairs"
    try:
        rows = ask.read(answer)
        if len(rows) != len(pairs):
            raise ValueError("another number of pairs")
        good = [_is_distribution(row, ask.labels) for row in rows]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise server.bad_answer(needed, answer) from error
    if not all(good):
        worst = good.index(False)
        raise server.bad_answer(needed, rows[worst], pairs[worst])
    return [row[min(1, ask.labels - 1)] for row in rows]


def _in_order(answer: dict) -> list[dict]:
    items = sorted(answer["data"], key=lambda item: item["index"])
    if [item["index"] for item in items] != list(range(len(items))):
        raise ValueError("indices that do not count from 0")
    return items


def _is_distribution(row: list[float], labels: int) -> bool:
    inside = all(-RANGE_TOLERANCE <= value <= 1 + RANGE_TOLERANCE for value in row)  # false for NaN
    return len(row) == labels and inside and (labels == 1 or abs(sum(row) - 1) < SUM_TOLERANCE)


def _split(urls: str) -> list[str]:
    """The servers' addresses, without what clients of OpenAI's API write after them."""
    import httpx

    found = [url.strip().rstrip("/").removesuffix("/v1") for url in urls.split(",") if url.strip()]
    for url in found:
        try:
            good = httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
        except httpx.InvalidURL:
            good = False
        if not good:
            raise DarlingError("urls that start with http:// or https://", url, "served:http://host:8000")
    if not found or len(set(found)) < len(found):
        raise DarlingError("one or more different urls", repr(urls), "served:http://host:8000,http://other:8000")
    return found


def _authorization() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _close(loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient) -> None:
    async def close() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(close(), loop)
