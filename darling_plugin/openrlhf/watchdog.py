"""The watchdog: ends a partition actor's process when its model hangs or breaks the GPU, and tells the next one."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

logger = logging.getLogger(__name__)


class Watchdog:
    """Ends this process when a batch of groups takes too long, and tells the next one, which Ray starts, about it.

    A thread that hangs cannot be ended, and one that holds Python's lock meanwhile, as a regular expression does,
    stops all others too. So the process goes, by faulthandler's timer, which needs no lock.

    Args:
        journal: file that outlives the process; holds the groups at hand and, after a hang, every thread's traceback,
            or the error that ended it.
        limit: seconds for a batch.
    """

    def __init__(self, journal: str, limit: float) -> None:
        self._journal, self.limit = Path(journal), limit
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
            faulthandler.dump_traceback_later(self.limit, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        self._journal.unlink()
        self.suspects.difference_update(groups)

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
