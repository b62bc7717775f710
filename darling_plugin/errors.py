"""The one error this package raises on purpose: what was needed, what was found, what to do."""


class DarlingError(RuntimeError):
    """Stops a run with three sentences a user can act on.

    Args:
        needed: what the code required.
        found: what it got instead, with the value.
        do: the next step that would cure it.
    """

    def __init__(self, needed: str, found: str, do: str) -> None:
        # All three stay in `args`, so that the error survives pickling on its way out of a Ray worker.
        super().__init__(needed, found, do)

    def __str__(self) -> str:
        needed, found, do = self.args
        return f"darling-plugin\n  needed: {needed}\n  found:  {found}\n  do:     {do}"


_prefix = ""


def options_begin_with(prefix: str) -> None:
    """Says how the user of this process writes options: "--" in a command, "--darling." under the launcher.

    An entry point calls it once, first. Where none does, the user writes Python: options are keyword arguments.
    """
    global _prefix
    _prefix = prefix


def spelled(option: str) -> str:
    """The option, for an error message, as the user of this process writes it."""
    return _prefix + option
