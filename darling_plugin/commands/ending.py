"""How a command ends: what all of them do with an error of this package and with Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from darling_plugin.errors import DarlingError, options_begin_with


def exit_status(run: Callable[[], int | None]) -> int:
    """The command's status: what `run` gives, None being 0; 2 after a DarlingError, or a file that cannot be read or
    written, which is said; 130 after Ctrl-C.

    Errors write options with two dashes from here on.
    """
    options_begin_with("--")
    try:
        return run() or 0
    except DarlingError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads the output has gone: nothing is wrong with a file
        raise
    except OSError as error:
        print(
            f"\n{DarlingError('files that can be read and written', f'{error}', 'correct the path')}\n",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
