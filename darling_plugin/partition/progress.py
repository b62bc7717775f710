"""Signs that a partition model is at work, for whoever waits for it: a slow one is not a hung one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

# Of the call at hand: it goes with what that call starts in threads and event loops.
_listener: ContextVar[Callable[[], None] | None] = ContextVar("listener", default=None)


def alive() -> None:
    """Called by a partition model between the parts of a long computation: batches, answers of a server.

    In a partition actor `--darling.partition_timeout` begins anew with it. Elsewhere nothing happens.
    """
    listener = _listener.get()
    if listener is not None:
        listener()


@contextlib.contextmanager
def heard_by(listener: Callable[[], None]) -> Iterator[None]:
    """Within it, in this thread and what it starts, `alive` calls the listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
