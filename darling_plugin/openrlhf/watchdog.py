"""The watchdog: ends a partition actor's process when its model hangs or breaks the GPU, and tells the next one."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from darling_plugin.partition.progress import heard_by

logger = logging.getLogger(__name__)


class Watchdog:
    """Ends this process when a batch of groups hangs, and tells the next one, which Ray starts, about it.

    A batch hangs when its model gives no sign of life (partition.alive) for too long. One that only takes long is
    warned of, once.

    A thread that hangs cannot be ended, and one that holds Python's lock meanwhile, as a regular expression does,
    stops all others too. So the process goes, by faulthandler's timer, which needs no lock.

    Args:
        journal: file that outlives the process; holds the groups at hand and, after a hang, every thread's traceback,
            or the error that ended it.
        limit: seconds without a sign of life.
    """

    def __init__(self, journal: str, limit: float) -> None:
        self._journal, self.limit = Path(journal), limit
        self._lock, self._warned = threading.Lock(), False
        self.hung: set[int] = set()  # groups that ended an earlier process alone
        self.suspects: set[int] = set()  # groups that did in a batch, and were not measured alone since
        state, written, reason = self._journal.read_text().partition("\n") if self._journal.exists() else ("",) * 3
        if written:  # else that process was killed as it began to write
            self.hung, self.suspects, batch = map(set, json.loads(state))
            if reason:
                logger.error("The partition model hung, or failed, on the groups %s:\n%s", sorted(batch), reason)
                (self.hung if len(batch) == 1 else self.suspects).update(batch)

    @contextlib.contextmanager
    def over(self, groups: list[int]) -> Iterator[None]:
        """Watches the measuring of these groups."""
        with self._journal.open("w") as file:
            file.write(self._state(groups) + "\n")
            file.flush()
            began, watched = time.monotonic(), True

            def wait_anew() -> None:
                with self._lock:
                    if watched:  # a server's answer may come late, to a batch that has failed
                        faulthandler.dump_traceback_later(self.limit, exit=True, file=file)

            wait_anew()
            try:
                with heard_by(wait_anew):
                    yield
            finally:
                with self._lock:
                    watched = False
                    faulthandler.cancel_dump_traceback_later()
        self._journal.unlink()
        self._warn_of_slowness(len(groups), time.monotonic() - began)
        self.suspects.difference_update(groups)

    def _warn_of_slowness(self, groups: int, seconds: float) -> None:
        if seconds > self.limit and not self._warned:
            self._warned = True
            logger.warning(
                "%d groups took %.0f s, more than --darling.partition_timeout %g s, and the partition model was at "
                "work all the time: it is slow, and does not hang. More --darling.num_partition_actors share the "
                "groups. Said once",
                *(groups, seconds, self.limit),
            )

    def end(self, groups: list[int], error: Exception) -> NoReturn:
        """Ends this process because of an error after which nothing works in it, which these groups brought about."""
        reason = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):  # a full disk: the next process then knows nothing of these groups
            self._journal.write_text(f"{self._state(groups)}\n{reason}")
        logger.error("This process ends, and another one starts, because of the groups %s:\n%s", groups, reason)
        logging.shutdown()
        os._exit(1)

    def _state(self, groups: list[int]) -> str:
        return json.dumps([list(self.hung), list(self.suspects.difference(groups)), groups])
