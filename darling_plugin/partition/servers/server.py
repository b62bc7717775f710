"""One server of a pool: asking it, dropping it when it gives no answer, and finding out when it is back."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import start

if TYPE_CHECKING:
    import httpx

FIRST_BACKOFF, LAST_BACKOFF = 0.1, 5.0  # seconds between tries, doubled from the first to the last
CONNECT_TIMEOUT, PROBE_TIMEOUT, REQUEST_TIMEOUT = 10.0, 30.0, 600.0  # seconds; a probe is a request without a body
LEARN_TIMEOUT = 60.0  # seconds for all that `learn` asks, which has bodies for some servers
# What a server may answer otherwise later, or another one: 424 is text-embeddings-inference's failed computation.
NOT_NOW = (408, 424, 429)
# What code that reads an answer raises where the answer has another form.
WRONG_FORM = (AttributeError, LookupError, TypeError, ValueError)

logger = logging.getLogger(__name__)


class BadAnswer(Exception):
    """An answer of another form than needed; code that reads answers raises it, and the pool adds which server it was.

    Args:
        needed: what the answer should have been.
        answer: the answer, or the part of it that is wrong.
        about: what the request was about.
    """

    def __init__(self, needed: str, answer: Any, about: str = "") -> None:
        super().__init__(needed, answer, about)
        self.needed, self.answer, self.about = needed, answer, about


class Unavailable(Exception):
    """A server gave no answer, and may later."""


class Server:
    """One url; `up` is set while it answers.

    Args:
        url: without a slash at its end.
        client: shared by the servers of a pool.
        learn: asks a server what it holds; the result is compared with the other servers'.
        kind: what the server is called in errors.
        start_command: how such a server is started, for errors; "" leaves that out.
        concurrency: requests in flight at once.
    """

    def __init__(
        self,
        url: str,
        client: httpx.AsyncClient,
        learn: Callable[[Server], Awaitable[Any]],
        kind: str,
        start_command: str,
        concurrency: int,
    ) -> None:
        self.url = url
        self.kind = kind
        self.start_command = start_command
        self.up = asyncio.Event()
        self.slots = asyncio.Semaphore(concurrency)
        self.held: Any = None  # what `learn` found, None until it has
        self.error: str | None = None
        self.down_at = -math.inf
        self.failures = 0  # in a row
        self.failed: list[str] = []  # what its requests failed by, in a row; what learn() asks aside
        self._client = client
        self._learn = learn
        self._recovery: asyncio.Task | None = None

    async def ask(self, path: str, body: dict | None = None, optional: bool = False) -> Any:
        """The JSON that the server answers: to GET, or to POST where there is a body.

        Args:
            path: what follows the url, from its slash.
            body: sent as JSON.
            optional: return None where the server refuses the request.

        Raises:
            Unavailable: no answer, or HTTP 408, 424, 429 or 5xx. The pool deals with it: do not catch it.
            DarlingError: another HTTP status that is no success, or no JSON.
        """
        import httpx

        seconds = PROBE_TIMEOUT if body is None else REQUEST_TIMEOUT
        timeout = httpx.Timeout(seconds, connect=CONNECT_TIMEOUT, pool=None)
        try:
            response = await self._client.request(
                "GET" if body is None else "POST", self.url + path, json=body, timeout=timeout
            )
        except httpx.RequestError as error:
            raise Unavailable(f"{type(error).__name__} {error}".strip()) from error
        found = f"HTTP {response.status_code} from {self.url}{path}: {start(response.text, 300)}"
        if response.status_code in NOT_NOW or response.status_code >= 500:
            raise Unavailable(found)
        if not response.is_success:
            if optional:
                return None
            command = f", such as with {self.start_command}" if self.start_command else ""
            raise DarlingError(f"{self.kind} at {self.url}", found, f"start {self.kind} there{command}")
        try:
            return response.json()
        except ValueError as error:
            raise DarlingError(f"JSON from {self.url}{path}", found, "look at what answers there") from error

    async def connect(self) -> None:
        """Learns what the server holds; DarlingError if it is of another kind. No answer makes it a dropped one."""
        self.up.set()
        try:
            await self.learn()
        except Unavailable as error:
            self.drop(error)

    async def learn(self) -> None:
        try:
            self.held = await asyncio.wait_for(self._learn(self), LEARN_TIMEOUT)
        except asyncio.TimeoutError as error:  # a TimeoutError from Python 3.11 on
            raise Unavailable(f"no answer to what it holds within {LEARN_TIMEOUT:g} s") from error
        except BadAnswer as error:
            raise self.bad_answer(error) from error
        except WRONG_FORM as error:
            raise self.bad_answer(BadAnswer(f"{self.kind} at {self.url}", repr(error))) from error

    def drop(self, error: Exception) -> None:
        self.error = str(error)
        if self.up.is_set():  # else another request has seen it
            self.up.clear()
            self.down_at = time.monotonic()
            logger.warning("%s is dropped until it answers again: %s", self.url, error)
            self._recovery = asyncio.ensure_future(self._recover())

    async def _recover(self) -> None:
        while not self.up.is_set():
            # Grows until a request succeeds: answering the questions of learn() alone does not count.
            wait = min(FIRST_BACKOFF * 2 ** min(self.failures, 10), LAST_BACKOFF)
            self.failures += 1
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            try:
                await self.learn()
            except (Unavailable, DarlingError) as error:  # of a server that starts, or of what has taken its port
                self.error = error.args[1] if isinstance(error, DarlingError) else str(error)
            else:
                self.error = None
                self.up.set()
                logger.warning("%s answers again", self.url)

    def check_same(self, held: Any) -> None:
        if self.held is not None and self.held != held:
            raise DarlingError(
                "the same model behind every url", f"{held}, but {self.held} at {self.url}", "restart that server"
            )

    def bad_answer(self, error: BadAnswer) -> DarlingError:
        about = f"; {error.about}" if error.about else ""
        command = f"; it is started with {self.start_command}" if self.start_command else ""
        return DarlingError(
            error.needed,
            f"{start(str(error.answer), 300)} from {self.url}{about}",
            f"look at the server's log{command}",
        )
